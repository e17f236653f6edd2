"""Data sets of the hub by their id: which of their files are a split, and the problems in these.

The card of a set, README.md, may name configurations and their files, as the library `datasets` reads it
(https://huggingface.co/docs/hub/datasets-manual-configuration). Without that a file belongs to the split whose name is
in its path, as there (https://huggingface.co/docs/hub/datasets-file-names-and-splits).
"""

import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ibtpo import hub
from ibtpo.config.keys import did_you_mean
from ibtpo.data import prepare, published_problems
from ibtpo.data.published import DATASETS, Dataset
from ibtpo.data.records import UNITS, compile_pattern, extract_answer, find_field, find_question
from ibtpo.errors import UserError

CARD = "README.md"
# Names of a split in paths; "validation" is called so in a configuration.
_SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "eval", "evaluation")}
_SPLITS["validation"] = ("validation", "valid", "val", "dev")
_BETWEEN = r"(?:^|[^A-Za-z0-9]){}(?:$|[^A-Za-z0-9])"


def published(data_config: Any) -> Dataset | None:
    """The published set that `data.source`, hf:<owner>/<name>, is the id of: its files and answers are known. None for
    another one, and where `data.subset` names files that are not the published set's."""
    id = data_config.source.partition(":")[2].lower()
    for dataset in DATASETS.values():
        if dataset.repo.lower() == id:
            folders = {name.rpartition("/")[0] for names in (dataset.files or {}).values() for name in names}
            own = folders | {"default"} if folders <= {"", "data"} else folders if len(folders) == 1 else set()
            return dataset if data_config.subset in ("", *own) else None
    return None


def load(id: str, split: str, data_config: Any) -> Sequence[dict[str, bytes]]:
    """The examples of a split (or of a slice of one, "train[:100]") of any set, as a random-access source.

    Questions are in `data.question_field`, answers in `data.answer_field` by `data.answer_pattern`. A copy is prepared
    at the first use into `data.dir`, from the hub at `data.revision` or from the folder `data.files`.

    Raises:
      UserError: it cannot be had; no such configuration or split, or no usable problem.
    """
    if data_config.answer_pattern not in ("", "boxed"):
        compile_pattern(data_config.answer_pattern)
    base, question, answer = split.split("[")[0], data_config.question_field, data_config.answer_field

    def parse(record: dict[str, Any]) -> tuple[str, str]:
        return find_question(record, (question,)), extract_answer(
            find_field(record, (answer,)), data_config.answer_pattern
        )

    dataset = Dataset(re.sub(r"\W+", "_", id), id, "", {}, parse, (question, answer), repo=id)
    key = [data_config.subset, question, answer, data_config.answer_pattern]
    if data_config.files:
        files = _local(id, base, data_config)
        origin = _digest([published_problems.fingerprint(files), *key])
        builder, _ = published_problems.prepared_copy(dataset, base, origin, files, lambda: files, data_config.dir)
    else:
        repo = hub.Repo.dataset(id)
        revision = repo.pin(data_config.revision)

        def fetch() -> list[Path]:
            names = repo.files(revision)
            card = repo.file(CARD, revision).read_text(encoding="utf-8", errors="replace") if CARD in names else ""
            found = files_of(id, names, card, data_config.subset, base)
            return [repo.file(name, revision) for name in found]

        origin = _digest([hub.commit_of(revision), *key])
        builder, _ = published_problems.prepared_copy(dataset, base, origin, [], fetch, data_config.dir)
    published_problems.warn_of_bad(dataset, builder.info.metadata)
    return prepare.read_split(builder, split)


def _digest(content: list) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=6).hexdigest()


def _local(id: str, split: str, data_config: Any) -> list[Path]:
    folder = Path(data_config.files).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"data.files={data_config.files!r}: no folder of this name in {os.getcwd()}: name the one with the files "
            f"of data.source=hf:{id}, as `{hub.Repo.dataset(id).command('')}` makes it"
        )
    names = [str(PurePosixPath(file.relative_to(folder))) for file in sorted(folder.rglob("*")) if file.is_file()]
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    card = (folder / CARD).read_text(encoding="utf-8", errors="replace") if CARD in names else ""
    return [folder / name for name in files_of(id, names, card, data_config.subset, split)]


def files_of(id: str, names: Sequence[str], card: str, subset: str, split: str) -> list[str]:
    """The files of a split, in the order of their names.

    Args:
      id: for messages.
      names: of all files of the set.
      card: the text of its README.md, "" where it has none.
      subset: the configuration by name; "": the one that is the default, or the only one.

    Raises:
      UserError: no such configuration or split, several of which none is the default, or files of no known format.
    """
    readable = sorted(name for name in names if PurePosixPath(name).suffix.lower() in UNITS and not _is_meta(name))
    if not readable:
        kinds = sorted({PurePosixPath(name).suffix for name in names} - {""})
        raise UserError(
            f"data.source=hf:{id} has no file of {', '.join(UNITS)} (but of {', '.join(kinds) or 'nothing'}): convert "
            "it, and name the files as data.source=jsonl:<path> or parquet:<path>"
        )
    said = _configurations(card)
    if said:
        by_split = _matching(_choose(id, said, subset), readable)
    else:
        by_split = _by_name(_in_subset(id, readable, subset))
    if not by_split.get(split):
        found = sorted(name for name, files in by_split.items() if files)
        raise UserError(
            f"data.source=hf:{id} has no split {split!r} but {', '.join(found) or 'none'}{did_you_mean(split, found)}: "
            "set data.train_split and data.eval_split"
        )
    suffixes = {PurePosixPath(name).suffix.lower() for name in by_split[split]}
    if len(suffixes) > 1:
        raise UserError(
            f"data.source=hf:{id}, split {split!r}: files of several formats ({', '.join(sorted(suffixes))}), which "
            "may be copies of one another: name those to read as data.source=jsonl:<path> or parquet:<path>"
        )
    return by_split[split]


def _is_meta(name: str) -> bool:
    """Whether it is about the set, and no part of it."""
    return PurePosixPath(name).name in ("dataset_infos.json", "dataset_info.json", "state.json")


def _configurations(card: str) -> dict[str, dict[str, Any]]:
    """{name: entry} of the card's `configs` that name files; {} where it has none."""
    if not card.lstrip("\ufeff").startswith("---"):
        return {}
    from huggingface_hub import RepoCard

    try:
        entries = RepoCard(card, ignore_metadata_errors=True).data.get("configs")
    except Exception:  # metadata that are no YAML, of which each version says so by another error
        return {}
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("data_files"):
            found[str(entry.get("config_name", "default"))] = entry
    return found


def _choose(id: str, said: dict[str, dict[str, Any]], subset: str) -> dict[str, Any]:
    if subset:
        if subset not in said:
            raise UserError(
                f"data.subset={subset!r}: data.source=hf:{id} has {', '.join(said)}{did_you_mean(subset, list(said))}"
            )
        return said[subset]
    default = [name for name, entry in said.items() if entry.get("default") is True]
    default = default or [name for name in said if name == "default"]
    if not default and len(said) > 1:
        raise UserError(f"data.source=hf:{id} has several configurations: set data.subset to one of {', '.join(said)}")
    return said[default[0] if default else next(iter(said))]


def _matching(entry: dict[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """{split: files} of a configuration of the card: `data_files` is a pattern or some (of the split train), or a list
    of {split, path}, or {split: patterns}."""
    stated, base = entry["data_files"], str(entry.get("data_dir") or "").strip("./")
    pairs: list[tuple[str, Any]] = []
    if isinstance(stated, dict):
        pairs = list(stated.items())
    elif isinstance(stated, list) and all(isinstance(part, dict) for part in stated):
        pairs = [(part.get("split", "train"), part.get("path", [])) for part in stated]
    else:
        pairs = [("train", stated)]
    found: dict[str, list[str]] = {}
    for split, patterns in pairs:
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            whole = "/".join(filter(None, (base, str(pattern).removeprefix("./"))))
            found.setdefault(str(split), []).extend(filter(_glob(whole), names))
    return {split: sorted(set(files)) for split, files in found.items()}


def _glob(pattern: str) -> Callable[[str], bool]:
    """Whether a name matches: "*" stays within a folder, "**" does not; a folder stands for all files in it."""
    parts = [
        {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part)
        or (fnmatch.translate(part)[4:-3] if part.startswith("[") else re.escape(part))
        for part in re.findall(r"\*\*/|\*\*|\*|\?|\[[^]/]+\]|[^*?\[]+|\[", pattern)
    ]
    compiled = re.compile("".join(parts) + "(?:/.*)?")
    return lambda name: compiled.fullmatch(name) is not None


def _in_subset(id: str, names: Sequence[str], subset: str) -> list[str]:
    """The files of a configuration where the card names none: those in the folder of its name."""
    if subset and subset != "default":
        inside = [name for name in names if subset in name.split("/")[:-1]]
        if not inside:
            folders = sorted({name.split("/")[0] for name in names if "/" in name})
            raise UserError(
                f"data.subset={subset!r}: data.source=hf:{id} has no folder of this name but "
                f"{', '.join(folders) or 'none'}{did_you_mean(subset, folders)}"
            )
        return inside
    for files in _by_name(names).values():
        folders = sorted({name.split("/")[0] for name in files if name.count("/")})
        one_each = len(folders) > 1 and not any(_splits_in(folder) for folder in folders)
        if one_each and all(name.count("/") for name in files):
            raise UserError(
                f"data.source=hf:{id} has several folders with files: set data.subset to one of {', '.join(folders)}"
            )
    return list(names)


def _splits_in(path: str) -> list[str]:
    return [s for s, words in _SPLITS.items() if any(re.search(_BETWEEN.format(w), path, re.IGNORECASE) for w in words)]


def _by_name(names: Sequence[str]) -> dict[str, list[str]]:
    """{split: files} by the names of splits in the paths: the file's own first, then its folders from the inside out. A
    set that names no split is its training split."""
    found: dict[str, list[str]] = {}
    for name in names:
        parts = PurePosixPath(name)
        for part in (parts.stem, *(folder.name for folder in parts.parents)):
            if len(splits := _splits_in(part)) == 1:
                found.setdefault(splits[0], []).append(name)
                break
    return found or {"train": list(names)}
