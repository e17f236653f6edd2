"""Pages to browse an evaluation: one per benchmark with every response, and one over all. Each is a single file that
loads nothing.

Responses are hostile text. A page holds them as base64 of compressed JSON, one block per question, which a script
unpacks when the question is opened and puts in place as text, never as markup; a content security policy allows that
one script, by its hash, and no request. So a page of 500 questions with 32 responses each stays small and quick.
"""

import base64
import functools
import hashlib
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from ibtpo.evaluation.files import INDEX, PAGE
from ibtpo.evaluation.results import Evaluation
from ibtpo.evaluation.tables import metric_rows, overview_rows

_FOLDER = pathlib.Path(__file__).parents[1] / "templates"


def responses_page(evaluation: Evaluation, summary: Mapping[str, float], name: str, checkpoint: str) -> str:
    """The page of one benchmark: its metrics and every question with its responses, collapsed.

    The state of the filters is in the address (#show=wrong&sort=hard&search=...), so that a view can be linked to.
    """
    script = _asset("responses.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    questions = range(len(evaluation.problems))
    return _render(
        "responses.html",
        name=name,
        checkpoint=checkpoint,
        questions=f"{len(evaluation.problems):,}",
        k=evaluation.samples,
        metrics=metric_rows(summary),
        voted="maj_at_k" in summary,  # responses state answers
        index=INDEX,
        responses_style=Markup(_asset("responses.css")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        data_index=_pack([_index_entry(evaluation, q) for q in questions]),
        data_blocks=[
            _pack(
                {"responses": evaluation.texts[q]}
                | {mode: verdicts[q].tolist() for mode, verdicts in evaluation.followed.items()}
            )
            for q in questions
        ],
    )


def index_page(
    summaries: Mapping[str, Mapping[str, float]],
    mean: Mapping[str, tuple[float, float, float]],
    checkpoint: str,
    config: Mapping[str, Any],
) -> str:
    """The page over all benchmarks: their metrics, links to their pages, and the settings."""
    return _render(
        "index.html",
        checkpoint=checkpoint,
        rows=overview_rows(summaries, mean),
        benchmarks={name: metric_rows(summary) for name, summary in summaries.items()},
        page=PAGE,
        config=config,
    )


def _index_entry(evaluation: Evaluation, q: int) -> dict:
    """The entry of one question in the list."""
    problem = evaluation.problems[q]
    entry = {
        "id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "correct": evaluation.correct[q].astype(int).tolist(),
        "truncated": evaluation.truncated[q].astype(int).tolist(),
        "tokens": evaluation.lengths[q].tolist(),
        "extracted": evaluation.answers[q],
    }
    if evaluation.followed:
        reference = json.loads(problem.answer)
        pairs = zip(reference["instruction_id_list"], reference["kwargs"])
        entry["instructions"] = [" ".join([name, *_arguments(given)]) for name, given in pairs]
    return entry


def _arguments(given: Mapping[str, Any]) -> list[str]:
    """An instruction's arguments as text; those that are null are those of other instructions."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value is not None]


def _pack(value: Any) -> Markup:
    """JSON, compressed, in base64: letters, digits, +, / and = only, whatever the texts hold."""
    return Markup(base64.b64encode(zlib.compress(json.dumps(value).encode("ascii"), 9)).decode("ascii"))


@functools.cache
def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(style=Markup(_asset("style.css")), **values)
