"""What a run is trained and evaluated on: published sets by name, and training problems that are in none of them."""

import os

from ibtpo.data.problems import Problem, load_problems
from ibtpo.data.published import DATASETS, Dataset

__all__ = ["DATASETS", "Dataset", "load_benchmark"]


def load_benchmark(name: str, data_config, tokenizer=None) -> list[Problem]:
    """The evaluation split of a published set, each problem with its reward kind and prompt.

    Args:
      name: a key of `DATASETS`.
      data_config: the config's `data` section. A folder in `data.files` is searched first; a single file there
        belongs to `data.source`, and to a benchmark only where that is it.

    Raises:
      ValueError: no such set, or one without an evaluation split; and as `load_problems`.
    """
    known = [dataset.name for dataset in DATASETS.values() if dataset.eval_split]
    if name not in known:
        raise ValueError(f"unknown benchmark {name!r}: use one of {', '.join(known)}")
    source = f"tfds:{name}"
    with_source = data_config.copy_and_resolve_references()
    with with_source.unlocked():
        if data_config.source != source and not os.path.isdir(data_config.files):
            with_source.files = ""
        with_source.source, with_source.limit = source, 0
    return load_problems(with_source, DATASETS[name].eval_split, tokenizer)
