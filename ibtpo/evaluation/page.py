"""Pages to browse an evaluation: one per benchmark with every response, and one over all. Each is a single file that
loads nothing.

Responses are hostile text, packed one block per question (`ibtpo.pages`) and unpacked when the question is opened. So
a page of 500 questions with 32 responses each stays small and quick.
"""

import json
from collections.abc import Mapping
from typing import Any

from ibtpo.evaluation.files import INDEX, PAGE
from ibtpo.evaluation.results import Evaluation
from ibtpo.evaluation.tables import metric_rows, overview_rows
from ibtpo.pages import pack, render
from ibtpo.rewards import show_reference


def responses_page(
    evaluation: Evaluation, summary: Mapping[str, float], name: str, checkpoint: str, trees: str = ""
) -> str:
    """The page of one benchmark: its metrics and every question with its responses, collapsed. trees: the file beside
    it with the first questions' trees, "" without one.

    The state of the filters is in the address (#show=wrong&sort=hard&search=...), so that a view can be linked to.
    """
    questions = range(len(evaluation.problems))
    return render(
        "responses.html",
        styles=["responses.css"],
        scripts=["responses.js"],
        name=name,
        checkpoint=checkpoint,
        questions=f"{len(evaluation.problems):,}",
        k=evaluation.samples,
        metrics=metric_rows(summary),
        voted="maj_at_k" in summary,  # responses state answers
        index=INDEX,
        trees=trees,
        data_index=pack([_index_entry(evaluation, q) for q in questions]),
        data_blocks=[
            pack(
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
    return render(
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
        "answer": show_reference(problem.kind, problem.answer),
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
