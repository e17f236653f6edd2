"""The problems of a run: published sets by name, and training problems that are in none of them."""

from pathlib import Path

from absl import logging

from ibtpo.data.decontaminate import find_matches
from ibtpo.data.problems import Problem, load_problems
from ibtpo.data.published import BENCHMARKS, DATASETS, Dataset
from ibtpo.data.records import find_paths, list_places
from ibtpo.errors import UserError

__all__ = ["BENCHMARKS", "DATASETS", "Dataset", "load_benchmark", "load_training"]


def load_benchmark(name: str, data_config, tokenizer=None) -> list[Problem]:
    """The evaluation split of a published set, each problem with its reward kind and prompt; `data.limit` is not
    for it.

    Args:
      name: one of `BENCHMARKS`.
      data_config: the config's `data` section. A folder in `data.files` is searched first; a single file there
        ("{split}" replaced) belongs to `data.source`, and to a benchmark only where that is it.

    Raises:
      UserError: no such set, or one without an evaluation split; and as `load_problems`.
    """
    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark {name!r}: use one of {', '.join(BENCHMARKS)}")
    source, files, split = f"tfds:{name}", data_config.files, DATASETS[name].eval_split
    # The source may have files of its own splits only. A path that is no file is passed on: a folder, or refused.
    splits = (split, data_config.train_split, data_config.eval_split)
    if data_config.source != source and any(_is_file(files, split) for split in splits):
        files = ""
    return load_problems(_changed(data_config, source=source, files=files, subset="", revision=""), split, tokenizer)


def load_training(data_config, tokenizer=None) -> list[Problem]:
    """The problems of `data.train_split`, without those that are in an evaluation set of `data.decontaminate`.

    The sets are names of `BENCHMARKS` or sources of problems ("jsonl:<path>"), separated by commas. `decontaminate.py`
    has the rule for a match; how many were left out for each set is logged, and which. `data.limit` counts before.

    Raises:
      UserError: no problem is left; and as `load_problems`, of an evaluation set too.
    """
    problems = load_problems(data_config, data_config.train_split, tokenizer)
    names = split_names(data_config.decontaminate)
    if not names:
        return problems
    questions, matched, counts = [problem.question for problem in problems], set(), []
    for name in names:
        matches = find_matches(questions, [problem.question for problem in _load_evaluation(name, data_config)])
        found = sorted(matches.equal + matches.overlapping)
        matched.update(found)
        places = ": " + list_places("problem", [problems[index].id for index in found]) if found else ""
        counts.append(
            f"{name} {len(found)} ({len(matches.equal)} equal, {len(matches.overlapping)} overlapping{places})"
        )
    if len(matched) == len(problems):
        raise UserError(
            f"data.decontaminate={data_config.decontaminate!r} leaves none of the {len(problems)} training problems: "
            "is the evaluation set the training set?"
        )
    # The user asked for it, so it is said also where nothing is found.
    logging.warning(
        "data.decontaminate: %d of %d training problems left out: %s", len(matched), len(problems), "; ".join(counts)
    )
    return [problem for index, problem in enumerate(problems) if index not in matched]


def split_names(names: str) -> list[str]:
    """The parts of a list of names separated by commas, without blanks; [] of ""."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _is_file(files: str, split: str) -> bool:
    """Whether `data.files` names files, not a folder, for a split, or for a slice of one."""
    path = Path(files.replace("{split}", split.split("[")[0])).expanduser()
    return not path.is_dir() and bool(find_paths(str(path)))


def _load_evaluation(name: str, data_config) -> list[Problem]:
    """Every problem of a set that training is to keep clear of, however long its prompt."""
    if ":" not in name:
        return load_benchmark(name, data_config)
    # A file of one split has no use for the name of a split, which may be a slice of data.source.
    split = data_config.eval_split if "{split}" in name else "test"
    return load_problems(_changed(data_config, source=name), split)


def _changed(data_config, **values):
    changed = data_config.copy_and_resolve_references()
    with changed.unlocked():
        changed.update(limit=0, **values)
    return changed
