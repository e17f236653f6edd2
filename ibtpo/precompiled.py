"""Programs that are compiled before they are called: side by side, at the start of a run.

    update = Precompiled(jax.jit(update), key=lambda state, batch: batch.tokens.shape)
    compile_all({"update": [update.program(state, batch)]})     # abstract arguments will do
    update(state, batch)                                        # runs what was compiled

`jax.jit` compiles at the first call of a shape, which may be hours into a run, with the devices idle and a few
questions left. What was compiled ahead is called itself (`jax.stages.Compiled`), so nothing depends on what JAX's own
caches hold; a shape that nobody foresaw is compiled at its first call as ever.
"""

import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import jax
from absl import logging

from ibtpo import parallel
from ibtpo.metrics.progress import Progress

_SAID = 2.0  # seconds of a first call that are said


def abstract(tree: Any, shardings: Any = None) -> Any:
    """The arrays of a tree as shapes, with the tree of shardings, or without any."""
    if shardings is None:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


class Precompiled:
    """A jitted function, and programs of it that were compiled ahead.

    Args:
      jitted: of `jax.jit`. Its static arguments are those given here, which come first, and keyword arguments.
      key: of a call's arguments, what tells its programs apart; None: it has one.
    """

    def __init__(self, jitted: Any, *static: Hashable, key: Callable[..., Hashable] | None = None):
        self.jitted, self.static, self.key = jitted, static, key or (lambda *args, **named: None)
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}
        self._unforeseen: set[Hashable] = set()

    def __call__(self, *args: Any, **named: Any) -> Any:
        key = self.key(*args, **named)
        compiled = self._compiled.get(key)
        if compiled is not None:
            try:
                return compiled(*args)
            except (TypeError, ValueError) as error:
                # Said of arguments before anything is run or donated: other types or places than were foreseen.
                logging.warning("a program is compiled once more, for other arguments than at the start: %s", error)
                del self._compiled[key]
        began, is_new = time.monotonic(), bool(self._compiled) and key not in self._unforeseen
        out = self.jitted(*self.static, *args, **named)
        self._unforeseen.add(key)
        if is_new and (seconds := time.monotonic() - began) > _SAID:
            line = f"compiling one more program, not foreseen at the start: {seconds:.0f} s"
            print(line, file=sys.stderr, flush=True)
        return out

    def lower(self, *args: Any, **named: Any) -> jax.stages.Lowered:
        """As of `jax.jit`."""
        return self.jitted.lower(*self.static, *args, **named)

    def program(self, *args: Any, **named: Any) -> "Program":
        """The program of such a call; arrays may be abstract."""
        return Program(self, args, named)

    def take(self, program: "Program", compiled: jax.stages.Compiled) -> None:
        """Calls like that of the program run `compiled` from now on."""
        self._compiled[self.key(*program.args, **program.named)] = compiled


@dataclass(frozen=True)
class Program:
    """A call of a function, to be compiled. named: static arguments."""

    function: Precompiled
    args: tuple
    named: dict[str, Any]

    def lower(self) -> jax.stages.Lowered:
        return self.function.lower(*self.args, **self.named)

    @property
    def identity(self) -> Hashable:
        """Equal for calls that are one program, whoever makes them."""
        leaves, structure = jax.tree.flatten(self.args)
        places = tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)
        return self.function.jitted, self.function.static, tuple(sorted(self.named.items())), structure, places


def compile_all(groups: Mapping[str, Sequence[Program]]) -> str:
    """Compiles the programs of all groups, each program once, as many side by side as there are cores, and has their
    functions call them. Returns a line that says how many of which group there were, and the seconds it took.

    Tracing is Python, and stays in this thread, under its mesh; XLA compiles in threads of its own, without Python's
    lock. With several processes every one of them calls this with the same groups. A compiler may wait for the other
    processes' at the same program (a GPU's shares the measuring of kernels out), so all begin programs in the same
    order, first come first served: of the programs that are not done everywhere, the first is under way in each
    process, whatever its number of threads, so no two wait for each other.

    Raises:
      The compiler's own error, with the name of the program in a note; on every process, if on one.
    """
    began, counts = time.monotonic(), {}
    unique: dict[Hashable, tuple[str, list[Program]]] = {}
    for name, programs in groups.items():
        before = len(unique)
        for program in programs:
            unique.setdefault(program.identity, (name, []))[1].append(program)
        counts[name] = len(unique) - before
    what = f"compiling the {', '.join(name for name, count in counts.items() if count)}"
    with parallel.together(), Progress(len(unique), description=what, brief=True) as progress:
        _compile(list(unique.values()), progress)
    listed = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    many = f"{len(unique)} program{'s' * (len(unique) != 1)}"
    return f"compiling {many} ({listed}): {time.monotonic() - began:.0f} s"


def _compile(unique: list[tuple[str, list[Program]]], progress: Progress) -> None:
    with ThreadPoolExecutor(_cores(), thread_name_prefix="ibtpo-compile") as pool:
        try:
            begun: dict[Future, list[Program]] = {}
            for name, same in unique:
                begun[pool.submit(_one, name, same[0].lower())] = same
                progress.update(sum(future.done() for future in begun))
            for number, done in enumerate(as_completed(begun), 1):
                for program in begun[done]:
                    program.function.take(program, done.result())
                progress.update(number)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one(group: str, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except Exception as error:
        error.add_note(f"while a program of the {group} was compiled, before anything was run")
        raise


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
