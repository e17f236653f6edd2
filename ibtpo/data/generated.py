"""Generated tasks as TFDS data sets: disjoint splits, the same problems every time, one config per difficulty.

Prepared as ArrayRecord files and read as a random-access source, without TensorFlow.

A task is a module with `make_problem(rng, difficulty)`, presets of difficulties and worked solutions, and a subclass of
`GeneratedBuilder` here that names them (`TASKS`). Its problems have a `question` and an `answer`.
"""

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from ibtpo import choices
from ibtpo.data import arithmetic, countdown, navigation
from ibtpo.data import prepare as prepare_lib
from ibtpo.data.difficulties import find_difficulty
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
# The same in a stream without end, which begins anew then: most questions have come, and more would come slowly.
_USED_UP = 20


class GeneratedProblem(Protocol):
    """What a task's problems have."""

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str: ...


class GeneratedConfig(tfds.core.BuilderConfig):
    """A difficulty, an object of the task's own, and the number of problems per split."""

    def __init__(self, *, difficulty: Any, split_sizes: dict[str, int] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.difficulty = difficulty
        self.split_sizes = dict(SPLIT_SIZES if split_sizes is None else split_sizes)


def _rng_of(split: str, difficulty: Any) -> np.random.Generator:
    """The draws of a split's problems, the same ones every time."""
    return np.random.default_rng([zlib.crc32(split.encode()), zlib.crc32(str(difficulty).encode())])


def _configs(difficulties: Mapping[str, Any]) -> list[GeneratedConfig]:
    return [GeneratedConfig(name=name, description=str(d), difficulty=d) for name, d in difficulties.items()]


class GeneratedBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]  # of TFDS, which has no types
):
    """Problems of a generated task; one config per difficulty.

    Class attributes: `difficulties`, the presets by name; `kind`, the problems' own reward kind, "" for that of the
    config.
    """

    difficulties: ClassVar[Mapping[str, Any]] = {}
    kind: ClassVar[str] = ""

    @staticmethod
    def make_problem(rng: np.random.Generator, difficulty: Any) -> Any:
        """Draws a `GeneratedProblem`."""
        raise NotImplementedError

    @staticmethod
    def worked(problem: Any, rng: np.random.Generator, noise: float, difficulty: Any) -> str:
        """The text of a solution, with mistakes at the rate `noise` per step."""
        raise NotImplementedError

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
        problems = self.draw_split(config.difficulty, split, config.split_sizes[split])
        for index, problem in enumerate(problems):
            yield index, {"question": problem.question, "answer": problem.answer}

    @classmethod
    def draw_split(cls, difficulty: Any, split: str, size: int) -> Iterator[Any]:
        """Yields `size` different problems of a split, the same ones every time; splits share none.

        Raises:
          ValueError: the difficulty's ranges hold too few different problems.
        """
        found = 0
        drawn = cls._different(_rng_of(split, difficulty), difficulty, split, _MAX_MISSES)
        for problem in itertools.islice(drawn, size):
            yield problem
            found += 1
        if found < size:
            raise ValueError(f"found only {found} of {size} different problems for split {split!r}: widen {difficulty}")

    @classmethod
    def _different(cls, rng: np.random.Generator, difficulty: Any, split: str, most_misses: int) -> Iterator[Any]:
        """Different problems of a split, until so many draws in a row gave none."""
        seen: set[str] = set()
        misses = 0
        while misses <= most_misses:
            problem: GeneratedProblem = cls.make_problem(rng, difficulty)
            question = problem.question
            if zlib.crc32(question.encode()) % _NUM_BUCKETS not in _BUCKETS[split] or question in seen:
                misses += 1
                continue
            misses = 0
            seen.add(question)
            yield problem

    @classmethod
    def solutions(cls, difficulty: str, rng: np.random.Generator, noise: float) -> Iterator[tuple[Any, str]]:
        """Endless stream of problems of the training split, each with a worked solution that has mistakes at the rate
        `noise` per step. None comes again before the ranges hold hardly another one.

        Raises:
          UserError: unknown difficulty.
        """
        preset = find_difficulty(cls.difficulties, difficulty)
        drawn = _rng_of("train", preset)
        while True:
            for problem in cls._different(drawn, preset, "train", _USED_UP):
                yield problem, cls.worked(problem, rng, noise, preset)

    @classmethod
    def prepare(cls, config: str | GeneratedConfig, data_dir: str | None = None) -> "GeneratedBuilder":
        """Generates the data unless they are there; safe when several processes do it at once."""
        return prepare_lib.prepare(lambda: cls(config=config, data_dir=data_dir, file_format="array_record"))

    @classmethod
    def load(cls, difficulty: str, split: str, data_dir: str | None = None) -> Sequence[dict[str, bytes]]:
        """The examples of one split as a random-access source, prepared at the first use.

        Args:
          difficulty: a name in `difficulties`.
          split: "train", "validation", "test" or a TFDS slice of one, such as "train[:100]".
          data_dir: where prepared data are kept; None is the default of TFDS.

        Raises:
          UserError: unknown difficulty or split, or a folder that cannot be written to.
        """
        find_difficulty(cls.difficulties, difficulty)
        with prepare_lib.usable_folder():
            return prepare_lib.read_split(cls.prepare(difficulty, data_dir), split)


class ChainedArithmetic(GeneratedBuilder):
    """Problems of chained arithmetic (`ibtpo.data.arithmetic`)."""

    name = "chained_arithmetic"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = _configs(arithmetic.DIFFICULTIES)
    difficulties = arithmetic.DIFFICULTIES
    make_problem = staticmethod(arithmetic.make_problem)

    @staticmethod
    def worked(problem, rng, noise, difficulty):
        """The text of a solution."""
        return arithmetic.worked_solution(problem, rng, noise, difficulty.max_value)


class Navigation(GeneratedBuilder):
    """Problems of navigation (`ibtpo.data.navigation`)."""

    name = "navigation"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = _configs(navigation.DIFFICULTIES)
    difficulties = navigation.DIFFICULTIES
    kind = "navigation"
    make_problem = staticmethod(navigation.make_problem)

    @staticmethod
    def worked(problem, rng, noise, difficulty):
        """The text of a solution."""
        return navigation.worked_solution(problem, rng, noise)


class Countdown(GeneratedBuilder):
    """Problems of countdown (`ibtpo.data.countdown`)."""

    name = "countdown"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = _configs(countdown.DIFFICULTIES)
    difficulties = countdown.DIFFICULTIES
    kind = "countdown"
    make_problem = staticmethod(countdown.make_problem)

    @staticmethod
    def worked(problem, rng, noise, difficulty):
        """The text of a solution."""
        return countdown.worked_solution(problem, rng, noise, difficulty.foresight)


_BUILDERS: tuple[type[GeneratedBuilder], ...] = (ChainedArithmetic, Navigation, Countdown)
TASKS: dict[str, type[GeneratedBuilder]] = {
    name: next(builder for builder in _BUILDERS if builder.name == name) for name in choices.GENERATED
}
