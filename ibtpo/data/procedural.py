"""Problems that the package reasoning-gym generates (https://github.com/open-thought/reasoning-gym): its tasks by name.

Problem i of a task depends on task, parameters, seed and i alone. Which split it belongs to depends on its question
alone, so that no question is in two splits, however few a task has. Splits are generated once and kept in `data.dir`.
"""

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibtpo.config.keys import did_you_mean
from ibtpo.errors import UserError, one_line

KIND = "reasoning_gym"
PROMPT = (
    "{question}\n\nPlease reason step by step, and put your final answer between <answer> and </answer>, without "
    "anything else.\n"
)
GENERATED = 22_000  # problems of a task, over all splits
SHARES = {"test": 0.05, "validation": 0.025, "train": 0.925}
_SEED = 0
_VERSION = 1  # of the files: whoever changes what is in them must raise it
_CACHE = "~/.cache/ibtpo"


@dataclass(frozen=True)
class Reference:
    """The reference answer of a problem: what a scorer needs of it. options: JSON. entry: the problem as the task made
    it, as a Python literal; "" where it is none, and the task makes it again: `index`, for the `question`. answer: the
    task's own, for people; a task may know none."""

    task: str
    options: str
    index: int
    question: str
    entry: str
    answer: str

    def find_entry(self, task: Any) -> dict[str, Any]:
        """The problem as the task made it.

        Raises:
          UserError: the task makes another one now.
        """
        if self.entry:
            return ast.literal_eval(self.entry)
        entry = task[self.index]
        if entry["question"] != self.question:
            raise UserError(
                f"reasoning_gym:{self.task} makes another problem {self.index} than it did: its package is another "
                "version, or it depends on more than its seed; remove the folder reasoning_gym of data.dir, or choose "
                "another task"
            )
        return entry


def read_reference(text: str) -> Reference:
    """Raises UserError where the text is no reference."""
    try:
        fields = json.loads(text)
        found = Reference(**fields)
    except (ValueError, TypeError, RecursionError):
        raise UserError(
            f"the reference answer {text[:100]!r} is none of reasoning_gym: set reward.kind to the kind of your "
            "answers, or data.source to reasoning_gym:<name>"
        ) from None
    return found


def check_installed(source: str) -> None:
    """Raises UserError where `data.source` needs the package and it is not there; nothing is imported."""
    if source.startswith(f"{KIND}:") and importlib.util.find_spec("reasoning_gym") is None:
        raise UserError(
            f'data.source={source}: the package reasoning-gym is not installed: pip install "ibtpo[reasoning-gym]"'
        )


def make_task(name: str, options: str = "") -> Any:
    """The task of this name; options: its parameters, JSON, "" for its own.

    Raises:
      UserError: no package, no such task (with the nearest names), or parameters that it does not take.
    """
    check_installed(f"{KIND}:{name}")
    try:
        library = importlib.import_module("reasoning_gym")
        known = sorted(importlib.import_module("reasoning_gym.factory").DATASETS)
    except Exception as error:
        raise UserError(f"data.source={KIND}:{name}: importing reasoning_gym failed ({one_line(error)})") from error
    if name not in known:
        hint = did_you_mean(name, known) or f": it has {', '.join(known)}"
        raise UserError(f"data.source={KIND}:{name}: reasoning-gym has no task of this name{hint}")
    try:
        return library.create_dataset(name, **{"seed": _SEED, **json.loads(options or "{}"), "size": GENERATED})
    except Exception as error:  # of any kind, as each task checks its own
        raise UserError(
            f"data.source={KIND}:{name} cannot be made with data.options={options!r} ({one_line(error)}): set the "
            "parameters of this task"
        ) from error


def load(name: str, split: str, data_config: Any) -> Sequence[dict[str, bytes]]:
    """The examples of a split, "train", "validation" or "test", as a random-access source: question and reference.

    Raises:
      UserError: as `make_task`; no such split, or no problem of it.
    """
    if split not in SHARES:
        raise UserError(f"data.source={KIND}:{name} has no split {split!r}: use one of {', '.join(SHARES)}")
    from ibtpo.data.prepare import usable_folder  # heavy, and rewards import this module

    task = make_task(name, data_config.options)
    wanted = data_config.limit if split == "train" else 0
    folder = Path(os.path.expanduser(data_config.dir or _CACHE)) / KIND
    made = [name, data_config.options, importlib.metadata.version("reasoning-gym"), _VERSION]
    digest = hashlib.blake2b(json.dumps(made).encode(), digest_size=6).hexdigest()
    file = folder / f"{name}_{digest}" / f"{split}{wanted or ''}.jsonl"
    with usable_folder():
        if not file.is_file():
            lines = [json.dumps(record) for record in _generate(task, name, split, data_config.options, wanted)]
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{file.name}.{os.getpid()}")
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(part, file)
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if not records:
        raise UserError(
            f"data.source={KIND}:{name}, split {split!r}: none of its first {GENERATED:,} questions belongs to it: "
            "choose parameters with more different questions in data.options"
        )
    return _Examples(records)


class _Examples(list):
    """As of a TFDS data source."""

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, bytes]]:
        return [{key: self[i][key].encode() for key in ("question", "answer")} for i in indices]


def split_of(question: str) -> str:
    """The split that a question belongs to: by a hash of its words, 5 % test, 2.5 % validation."""
    digest = hashlib.blake2b(" ".join(question.split()).encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < SHARES["test"]:
        return "test"
    return "validation" if place < SHARES["test"] + SHARES["validation"] else "train"


def _generate(task: Any, name: str, split: str, options: str, wanted: int) -> list[dict[str, str]]:
    """The problems of a split, at most `wanted` (0: all); in those that are held out no question is twice."""
    from ibtpo.metrics import Progress

    records: list[dict[str, str]] = []
    seen: set[str] = set()
    with Progress(GENERATED, description=f"generating {KIND}:{name}, {split}", brief=True) as progress:
        for index in range(GENERATED):
            progress.update(index + 1)
            try:
                entry = task[index]
            except Exception as error:
                why = f"making problem {index} failed ({one_line(error)}): choose other parameters in data.options"
                raise UserError(f"data.source={KIND}:{name}: {why}") from error
            question = entry["question"]
            if split_of(question) != split or (split != "train" and question in seen):
                continue
            seen.add(question)
            reference = Reference(name, options, index, question, _literal(entry), str(entry["answer"] or ""))
            records.append({"question": question, "answer": json.dumps(vars(reference))})
            if len(records) == wanted:
                break
    return records


def _literal(entry: dict[str, Any]) -> str:
    """The entry as a Python literal, or "" where it has a value that none stands for."""
    text = repr(entry)
    try:
        return text if ast.literal_eval(text) == entry else ""
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ""
