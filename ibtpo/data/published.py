r"""The published problem sets that runs train on and are evaluated on: their origins, the meaning of their records.

A set is a row of `DATASETS`: its files on the hub, how many records they hold, and a function from a record to question
and answer. `published_problems.py` prepares any of them; docs/data.md has the table for readers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibtpo.data.records import UNITS, BadRecord, extract_answer, find_field, find_paths, find_question
from ibtpo.errors import UserError

# Fields that publishers and their copies use for the same thing.
_QUESTION = ("problem", "question")
_ANSWER = ("answer",)
_OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
LETTERS = "ABCD"

# The instruction around every problem of DAPO-Math-17K; a run brings its own.
_DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
_DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


@dataclass(frozen=True)
class Dataset:
    """A published set of problems.

    name: as in "tfds:<name>". title: as people write it. kind: reward kind of its answers (`ibtpo.rewards.REWARDS`).
    rows: records that the publisher's files hold, by split; where copies in use differ, any of the numbers.
    parse: (question, answer) of a record, or BadRecord. columns: fields that `parse` reads, for parquet.
    repo: data set on the hub, "" where there is none. files: its files, by split. where: anything else there is to say
    on getting them. aliases: names of local files, `<alias>_<split>` or `<alias>` with any known suffix.
    layouts: glob patterns of local folders ({split} is replaced). eval_split: the split that is evaluated on; "": none.
    prompt: template with {question}, instead of data.prompt; "": data.prompt. unique: how many different questions it
    has where repeated ones are left out, 0 where all are kept.
    """

    name: str
    title: str
    kind: str
    rows: Mapping[str, Sequence[int]]
    parse: Callable[[dict[str, Any]], tuple[str, str]]
    columns: Sequence[str]
    repo: str = ""
    files: Mapping[str, Sequence[str]] | None = None
    where: str = ""
    aliases: Sequence[str] = ()
    layouts: Sequence[str] = ()
    eval_split: str = "test"
    prompt: str = ""
    unique: int = 0

    @property
    def homepage(self) -> str:
        """Where its files are, in words."""
        hub = f"`hf download {self.repo} --repo-type dataset --local-dir {self.name}`" if self.repo else ""
        return "; ".join(filter(None, (hub, self.where)))


def find_files(dataset: Dataset, files: str, split: str) -> list[Path]:
    """The local files of a split, [] where there are none in the folder.

    Args:
      files: a file, a pattern of files ("*"), or a folder: of the set (as the hub lays it out), with a folder of the
        set's name, or with files called `<alias>_<split>.<suffix>`. "{split}" in it is replaced; hidden files are none.

    Raises:
      UserError: `files` is neither a file nor a folder, nor a pattern of files.
    """
    path = Path(files.replace("{split}", split)).expanduser()
    if not path.is_dir():
        if found := find_paths(str(path)):
            return found
        raise UserError(f"data.files={files!r}: no file or folder {str(path)!r} (relative to {Path.cwd()})")
    several = len(dataset.rows) > 1
    names = [f"{alias}_{split}" for alias in (dataset.name, *dataset.aliases)]
    names += [] if several else [dataset.name, *dataset.aliases]
    own = path / dataset.name
    # The most telling names first: a file "test.jsonl" may be of any set.
    return (
        _published(dataset, own, split)
        or _named(own, (*names, split, f"{split}-*"))
        or _named(path, names)
        or _published(dataset, path, split)
    )


def _published(dataset: Dataset, folder: Path, split: str) -> list[Path]:
    """A split's files as the hub, all of them or none, or another publisher lays them out."""
    files = [folder / name for name in (dataset.files or {}).get(split, ())]
    if files and all(file.is_file() for file in files):
        return files
    layouts = (_visible(folder, layout.format(split=split)) for layout in dataset.layouts)
    return next(filter(None, layouts), [])


def _named(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of the first name or pattern that has any, of the first suffix."""
    found = (_visible(folder, name + suffix) for name in names for suffix in UNITS)
    return next(filter(None, found), [])


def _visible(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern that are not hidden: systems and editors leave "._1.json" and the like behind."""
    paths = (path for path in folder.glob(pattern) if path.is_file())
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


# --- records --------------------------------------------------------------------------------------------------------


def _fields(
    question: Sequence[str], answer: Sequence[str], pattern: str = ""
) -> Callable[[dict[str, Any]], tuple[str, str]]:
    """A `parse` that reads two fields, the answer by `pattern` (`extract_answer`)."""
    return lambda record: (
        find_question(record, question).strip(),
        extract_answer(find_field(record, answer), pattern),
    )


def _parse_dapo(record: dict[str, Any]) -> tuple[str, str]:
    record = {**record, **{key: _from_json(record[key]) for key in ("prompt", "reward_model") if key in record}}
    prompt = find_field(record, ("prompt",))
    if isinstance(prompt, list):
        # Copies put a system turn first, which is the same for all.
        turns = [turn for turn in prompt if isinstance(turn, dict) and turn.get("role") in ("user", "human", None)]
        if not turns:
            raise BadRecord("no field 'prompt' with a user turn")
        prompt = turns[-1].get("content")
    question = find_question({"prompt": prompt}, ("prompt",)).strip()
    question = question.removeprefix(_DAPO_BEFORE.strip()).removesuffix(_DAPO_AFTER.strip()).strip()
    if not question:
        raise BadRecord("nothing but instructions in the prompt")
    return question, extract_answer(find_field(record, ("reward_model.ground_truth", "solution")), "")


def _from_json(value: Any) -> Any:
    """Turns of a conversation, or an object, that a copy keeps as JSON text; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        return value
    turns = isinstance(content, list) and content and all(isinstance(turn, dict) for turn in content)
    return content if turns or isinstance(content, dict) else value


def _parse_aime(record: dict[str, Any]) -> tuple[str, str]:
    question, answer = _fields(_QUESTION, _ANSWER)(record)
    # Published with leading zeros ("025"), and one answer of 2025 with the sign for degrees.
    number = re.fullmatch(r"0*(\d{1,3})\s*(\^\{?\\circ\}?)?", answer)
    if not number:
        raise BadRecord(f"answer {answer!r} is no whole number from 0 to 999")
    return question, number[1]


def _parse_gpqa(record: dict[str, Any]) -> tuple[str, str]:
    question = find_question(record, ("Question",)).strip()
    options = [extract_answer(find_field(record, (name,)), "") for name in _OPTIONS]
    # The publisher's order gives the answer away. This one depends on the question alone, so that every run, machine
    # and version of Python asks the same.
    order = sorted(range(len(options)), key=lambda i: hashlib.sha256(f"{question}\n{i}".encode()).digest())
    lines = [f"{letter}) {options[i]}" for letter, i in zip(LETTERS, order)]
    return "\n".join([question, "", *lines]), LETTERS[order.index(0)]


def _parse_ifeval(record: dict[str, Any]) -> tuple[str, str]:
    prompt = find_question(record, ("prompt",))
    instructions, arguments = find_field(record, ("instruction_id_list",)), find_field(record, ("kwargs",))
    right = isinstance(instructions, list) and instructions and all(isinstance(x, str) for x in instructions)
    if not right or not isinstance(arguments, list) or not all(isinstance(x, dict) for x in arguments):
        raise BadRecord("instruction_id_list is no list of names, or kwargs no list of objects")
    if len(instructions) != len(arguments):
        raise BadRecord(f"{len(instructions)} instructions with {len(arguments)} kwargs")
    # The copy on the hub gives every argument of every instruction, null where it has none.
    arguments = [{key: value for key, value in given.items() if value is not None} for given in arguments]
    return prompt, json.dumps({"instruction_id_list": instructions, "kwargs": arguments, "prompt": prompt})


# --- the sets -------------------------------------------------------------------------------------------------------

_MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_PART = "{}-00000-of-00001.parquet"

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="dapo_math_17k",
            title="DAPO-Math-17K",
            kind="math",
            # As published, every problem about a hundred times; two copies in use have each once.
            rows={"train": (1_791_700, 17_917, 17_398)},
            parse=_parse_dapo,
            columns=("prompt", "reward_model", "solution"),
            repo="BytedTsinghua-SIA/DAPO-Math-17k",
            files={"train": ("data/dapo-math-17k.parquet",)},
            aliases=("dapo-math-17k",),
            eval_split="",
            unique=17_398,
        ),
        Dataset(
            name="gsm8k",
            title="GSM8K",
            kind="math",
            rows={"train": (7_473,), "test": (1_319,)},
            parse=_fields(("question",), _ANSWER, r"####\s*(.+)"),
            columns=("question", "answer"),
            repo="openai/gsm8k",
            files={split: ("main/" + _PART.format(split),) for split in ("train", "test")},
            where="or train.jsonl and test.jsonl of github.com/openai/grade-school-math",
        ),
        Dataset(
            name="math",
            title="MATH",
            kind="math",
            rows={"train": (7_500,), "test": (5_000,)},
            parse=_fields(_QUESTION, ("solution",), "boxed"),
            columns=("problem", "question", "solution"),
            repo="EleutherAI/hendrycks_math",
            files={
                split: tuple(f"{subject}/{_PART.format(split)}" for subject in _MATH_SUBJECTS)
                for split in ("train", "test")
            },
            where="or the folder MATH of github.com/hendrycks/math",
            layouts=("{split}/*/*.json", "MATH/{split}/*/*.json"),
        ),
        Dataset(
            name="math_500",
            title="MATH-500",
            kind="math",
            rows={"test": (500,)},
            parse=_fields(_QUESTION, _ANSWER),
            columns=("problem", "question", "answer"),
            repo="HuggingFaceH4/MATH-500",
            files={"test": ("test.jsonl",)},
            aliases=("math500", "math-500"),
        ),
        Dataset(
            name="aime_2024",
            title="AIME 24",
            kind="math",
            rows={"test": (30,)},
            parse=_parse_aime,
            columns=("problem", "question", "answer"),
            repo="HuggingFaceH4/aime_2024",
            files={"test": ("data/" + _PART.format("train"),)},
            aliases=("aime24",),
        ),
        Dataset(
            name="aime_2025",
            title="AIME 25",
            kind="math",
            rows={"test": (30,)},
            parse=_parse_aime,
            columns=("problem", "question", "answer"),
            repo="opencompass/AIME2025",
            files={"test": ("aime2025-I.jsonl", "aime2025-II.jsonl")},
            aliases=("aime25",),
        ),
        Dataset(
            name="amc_2023",
            title="AMC 23",
            kind="math",
            rows={"test": (40,)},
            parse=_fields(_QUESTION, _ANSWER),
            columns=("problem", "question", "answer"),
            repo="math-ai/amc23",
            files={"test": (_PART.format("test"),)},
            aliases=("amc23",),
            where="or amc23/test.jsonl of github.com/QwenLM/Qwen2.5-Math",
        ),
        Dataset(
            name="amc_2024",
            title="AMC 24",
            kind="math",
            rows={"test": (45,)},
            parse=_fields(_QUESTION, _ANSWER),
            columns=("problem", "question", "answer"),
            where="the 45 problems of the split amc24 of evalscope/amc_22-24 on ModelScope, as a local file",
            aliases=("amc24",),
        ),
        Dataset(
            name="gpqa_diamond",
            title="GPQA-Diamond",
            kind="multiple_choice",
            rows={"test": (198,)},
            parse=_parse_gpqa,
            columns=("Question", *_OPTIONS),
            repo="Idavidrein/gpqa",
            files={"test": ("gpqa_diamond.csv",)},
            where="gated: accept its terms on the hub and log in with `hf auth login` first",
            prompt=(
                "{question}\n\nPlease reason step by step, and put the letter of the right option within \\boxed{{}}.\n"
            ),
        ),
        Dataset(
            name="ifeval",
            title="IFEval",
            kind="instructions",
            rows={"test": (541,)},
            parse=_parse_ifeval,
            columns=("prompt", "instruction_id_list", "kwargs"),
            repo="google/IFEval",
            files={"test": ("ifeval_input_data.jsonl",)},
            where="or instruction_following_eval/data/input_data.jsonl of github.com/google-research/google-research",
            aliases=("input_data",),
            prompt="{question}",
        ),
    )
}

# The sets that models are evaluated on.
BENCHMARKS = tuple(name for name, dataset in DATASETS.items() if dataset.eval_split)
