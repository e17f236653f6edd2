"""The fastest sizes of a configuration on a topology: which of its keys to change, and to what.

Sampling and update take turns on the chips and share no memory but the training state's, so each is searched alone. A
size of the sampler is simulated at the prices of the compiled programs, which hold for other numbers of slots within
the weights' share; the best is then compiled, and priced and simulated again. It stands if it fits and stays the best.
Pages are not tried one by one: more never cost time, so a size takes all that its memory leaves (`ibtpo.sizing`).
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from ibtpo.compiler.check import Check
from ibtpo.compiler.step import PROGRAMS, Step, can_price, predict, trees_of, update_seconds
from ibtpo.errors import UserError
from ibtpo.sampling import TreeOptions
from ibtpo.sampling.process import Process
from ibtpo.sampling.strategies import flat_group
from ibtpo.sizing import size_sampler

SLOTS = (0.5, 1, 1.5, 2)  # times the configured slots
IN_FLIGHT = 0.5  # of a step's questions, beside what is configured and what the sampler chooses by itself
ROWS = (1, 2, 4, 8)  # rows of an update at a time for each shard
LAGS = (0, 1)
SAMPLER = tuple(name for name in PROGRAMS if name != "update")

Compile = Callable[[Any, Sequence[str]], Check]  # (configuration, names of programs): the check with their reports


@dataclasses.dataclass(frozen=True)
class Found:
    """A tried configuration. changes: keys and their values. step: as predicted; of an update without sampling, None.
    fullest: share of the HBM that its fullest program needs; above 1 it does not fit; None: not compiled. update_s: of
    an update alone."""

    changes: dict[str, Any]
    step: Step | None = None
    fullest: float | None = None
    update_s: float | None = None

    @property
    def seconds(self) -> float:
        """That decide: of the sampling, or of the update."""
        return self.step.sampling_s if self.step else self.update_s if self.update_s is not None else math.inf

    @property
    def fits(self) -> bool:
        return self.fullest is not None and self.fullest <= 1


@dataclasses.dataclass(frozen=True)
class Search:
    """What was tried, fastest first, and whatever is compiled has its `fullest`.

    sizes: of the sampler, for the configured tree. updates: rows at a time. shapes: trees with as many responses, with
    the best sizes; each is another method, so none is part of `changes`. flats: steps of 12 independent responses, by
    slots.
    """

    sizes: list[Found]
    updates: list[Found]
    shapes: list[Found]
    flats: dict[int, Step]

    @property
    def changes(self) -> dict[str, Any]:
        """Keys and values of the fastest that fits."""
        best = [next((f for f in found if f.fits), None) for found in (self.sizes, self.updates)]
        return {key: value for f in best if f for key, value in f.changes.items()}

    def flat_at(self, found: Found) -> Step | None:
        """That of 12 independent responses on as many slots; None where their pages do not fit beside them."""
        return self.flats.get(found.changes["sampling.slots"])


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """A copy of a configuration with other values of some keys ("section.name")."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    return config


def sizes_of(config: Any, shards: int) -> Iterator[dict[str, Any]]:
    """Sizes of the sampler to be tried, the configured ones first."""
    questions, seen = config.train.questions_per_step, set()
    slots = [max(1, round(share * config.sampling.slots / shards)) * shards for share in (1, *SLOTS)]
    some = max(1, math.ceil(IN_FLIGHT * questions / shards)) * shards
    in_flight = [config.sampling.questions_in_flight, 0, some]
    for pair in itertools.product(slots, in_flight):
        if pair not in seen:
            seen.add(pair)
            yield {"sampling.slots": pair[0], "sampling.questions_in_flight": pair[1]}


def shapes_of(config: Any) -> Iterator[dict[str, Any]]:
    """Trees with as many responses as the configured one, as many of them unguided, and as many branches of a node;
    with each lag that says something."""
    tree = config.tree
    grown = (tree.rounds - 1) * tree.top_k
    for top_k in (k for k in range(1, grown + 1) if grown % k == 0):
        rounds = grown // top_k
        for lag in LAGS[: 1 if rounds == 1 else None]:
            yield {"tree.rounds": rounds + 1, "tree.top_k": top_k, "tree.lag": lag}


class Searcher:
    """The search around a check whose programs are compiled. compile_more: makes the checks of other configurations."""

    def __init__(self, check: Check, process: Process, compile_more: Compile, log: Callable[[str], None]):
        self._check, self._process, self._compile, self._log = check, process, compile_more, log
        self._config, self._shards = check.config, check.sampler.capacity.num_shards
        self._checks: dict[tuple, Check] = {}  # compiled ones, by their changes

    def run(self) -> Search:
        """Tries all of it.

        Raises:
          ConfigError: a program of the check is not compiled, or does not fit.
        """
        sizes = self._confirm(self._simulated(self._check, {}, list(sizes_of(self._config, self._shards))))
        best, shapes = next((found for found in sizes if found.fits), None), []
        if best:
            shapes = self._simulated(self._checks[_key(best.changes)], best.changes, list(shapes_of(self._config)))
            shapes = [dataclasses.replace(shape, fullest=best.fullest) for shape in shapes]
        return Search(sizes, self._updates(), shapes, self._flats({f.changes["sampling.slots"] for f in sizes}))

    # The sampler.

    def _simulated(self, check: Check, also: dict[str, Any], tried: Sequence[dict[str, Any]]) -> list[Found]:
        """Each by the check's prices, fastest first, without those whose pages hold no question, and without those that
        come to the sizes of an earlier one."""
        found: dict[tuple, Found] = {}
        for number, changes in enumerate(tried, 1):
            self._log(f"[{number}/{len(tried)}] simulating {_text(changes)}\n")
            if step := self._simulate(check, also | changes):
                same = _key(changes | {"sampling.questions_in_flight": step.in_flight})
                found.setdefault(same, Found(also | changes, step))
        return sorted(found.values(), key=lambda f: f.seconds)

    def _flats(self, slots: set[int]) -> dict[int, Step]:
        flat = {f"tree.{name}": value for name, value in flat_group(12).items()}
        also = flat | {"sampling.questions_in_flight": 0}
        steps = {n: self._simulate(self._check, also | {"sampling.slots": n}) for n in slots}
        return {n: step for n, step in steps.items() if step}

    def _simulate(self, check: Check, changes: dict[str, Any]) -> Step | None:
        config = changed(self._config, changes)
        tree, questions = TreeOptions.from_config(config), config.train.questions_per_step
        with jax.set_mesh(check.mesh):
            try:
                options = size_sampler(
                    config, check.model, tree, questions=questions, training=True, limit=check.limit
                )
                return predict(check, self._process, tree, options, _text(changes), update=False)
            except UserError:
                return None

    def _confirm(self, found: list[Found]) -> list[Found]:
        """Compiles the fastest one, until one that is compiled and fits is the fastest."""
        while True:
            found.sort(key=lambda f: f.seconds if f.fullest is None or f.fits else math.inf)
            if not found or found[0].fullest is not None:
                return found
            changes = found[0].changes
            check = self._checks[_key(changes)] = self._with(changes, SAMPLER)
            step = self._simulate(check, changes) if can_price(check, SAMPLER) else found[0].step
            found[0] = Found(changes, step, _fullest(check, SAMPLER))

    # The update.

    def _updates(self) -> list[Found]:
        found, names = [], ("update", *self._check.plan.log_probs_of)
        trees = trees_of(self._check, self._process)
        for each in ROWS:
            changes = {"train.rows_per_step": each * self._shards}
            if (least := self._least(each * self._shards)) > 1:
                found.append(Found(changes, fullest=least))
                break
            check = self._with(changes, names)
            fits = can_price(check, names)
            fullest, seconds = _fullest(check, names), update_seconds(check, trees) if fits else None
            found.append(Found(changes, fullest=fullest, update_s=seconds))
            if fullest > 1:  # more rows need more
                break
        return sorted(found, key=lambda f: f.seconds)

    def _least(self, rows: int) -> float:
        """Share of the HBM that the update needs at least with so many rows at a time: of what the compiled one needs
        for the while, half grows with the rows."""
        report = self._check.reports["update"]
        more = max(0.0, rows / self._check.plan.rows_per_step - 1)
        return (self._check.need(report) + more * report.temporaries / 2) / self._check.limit

    def _with(self, changes: dict[str, Any], names: Sequence[str]) -> Check:
        """The check of a changed configuration; the one there is, if nothing changes."""
        new = {key: value for key, value in changes.items() if _value(self._config, key) != value}
        return self._compile(changed(self._config, new), names) if new else self._check


def _value(config: Any, key: str) -> Any:
    section, name = key.split(".")
    return config[section][name]


def _text(changes: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in changes.items())


def _key(changes: dict[str, Any]) -> tuple:
    return tuple(sorted(changes.items()))


def _fullest(check: Check, names: Sequence[str]) -> float:
    """Share of the HBM that the fullest of these programs needs."""
    return max(check.need(check.reports[name]) for name in names) / check.limit
