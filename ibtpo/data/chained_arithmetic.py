"""TFDS data set "chained_arithmetic": see ibtpo/data/arithmetic.py for the task.

Prepared as ArrayRecord files and read as a random-access source, without TensorFlow.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from ibtpo.data import arithmetic
from ibtpo.data import prepare as prepare_lib
from ibtpo.messages import hushed_import

with hushed_import():
    import tensorflow_datasets as tfds

SPLIT_SIZES = {"train": 20_000, "validation": 512, "test": 1_024}
# A question belongs to the split of its checksum modulo 16, so that no question is in two splits,
# whatever their sizes, seeds and difficulties.
_NUM_BUCKETS = 16
_BUCKETS = {"train": range(2, 16), "validation": range(1, 2), "test": range(0, 1)}
# Draws without a new question after which the ranges are taken to be exhausted.
_MAX_MISSES = 100_000


class ChainedArithmeticConfig(tfds.core.BuilderConfig):
    """A difficulty and the number of problems per split."""

    def __init__(
        self,
        *,
        difficulty: arithmetic.Difficulty,
        split_sizes: dict[str, int] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.difficulty = difficulty
        self.split_sizes = dict(SPLIT_SIZES if split_sizes is None else split_sizes)


class ChainedArithmetic(tfds.core.GeneratorBasedBuilder):
    """Problems of chained arithmetic; one config per difficulty."""

    name = "chained_arithmetic"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        ChainedArithmeticConfig(name=name, description=str(difficulty), difficulty=difficulty)
        for name, difficulty in arithmetic.DIFFICULTIES.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"question": tfds.features.Text(), "answer": tfds.features.Text()}),
            supervised_keys=("question", "answer"),
            disable_shuffling=True,  # the order drawn is the order read
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in self.builder_config.split_sizes}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        config = self.builder_config
        problems = draw_split(config.difficulty, split, config.split_sizes[split])
        for index, problem in enumerate(problems):
            yield index, {"question": problem.question, "answer": problem.answer}


def draw_split(difficulty: arithmetic.Difficulty, split: str, size: int) -> Iterator[arithmetic.ArithmeticProblem]:
    """Yields `size` different problems of a split, the same ones every time; splits share none.

    Raises:
      ValueError: the difficulty's ranges hold too few different problems.
    """
    rng = np.random.default_rng([zlib.crc32(split.encode()), zlib.crc32(str(difficulty).encode())])
    seen: set[str] = set()
    misses = 0
    while len(seen) < size:
        problem = arithmetic.make_problem(rng, difficulty)
        question = problem.question
        bucket = zlib.crc32(question.encode()) % _NUM_BUCKETS
        if bucket not in _BUCKETS[split] or question in seen:
            misses += 1
            if misses > _MAX_MISSES:
                raise ValueError(
                    f"found only {len(seen)} of {size} different problems for split {split!r}: widen {difficulty}"
                )
            continue
        misses = 0
        seen.add(question)
        yield problem


def load(difficulty: str, split: str, data_dir: str | None = None) -> Sequence[dict[str, bytes]]:
    """The examples of one split as a random-access source, prepared at the first use.

    Args:
      difficulty: a name in `arithmetic.DIFFICULTIES`.
      split: "train", "validation", "test" or a TFDS slice of one, such as "train[:100]".
      data_dir: where prepared data are kept; None is the default of TFDS.

    Raises:
      UserError: unknown difficulty or split, or a folder that cannot be written to.
    """
    arithmetic.get_difficulty(difficulty)
    with prepare_lib.usable_folder():
        return prepare_lib.read_split(prepare(difficulty, data_dir), split)


def prepare(config: str | ChainedArithmeticConfig, data_dir: str | None = None) -> ChainedArithmetic:
    """Generates the data unless they are there; safe when several processes do it at once."""
    return prepare_lib.prepare(lambda: ChainedArithmetic(config=config, data_dir=data_dir, file_format="array_record"))
