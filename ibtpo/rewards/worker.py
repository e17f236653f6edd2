"""The code of a grading worker, and how one is started.

Two points are not obvious:

- Workers are spawned, never forked (JAX's threads are alive in the parent), and do not import the
  parent's main module: `python -m ibtpo.train` would otherwise import JAX in every worker.
- SIGTERM ends a worker at once: with a Python handler, a worker inside one long C call would hold
  up the whole pool until the kill that follows seconds later.
"""

import contextlib
import functools
import importlib
import multiprocessing.context
import resource
import signal
import sys
import threading
from multiprocessing import spawn
from types import ModuleType
from typing import Any

# Inside a worker.


def initialise(modules: tuple[str, ...], memory_mb: int) -> None:
    """Limits the worker and imports the modules of all rewards, so that no answer's time goes to that."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS refuses this limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    for module in modules:
        _load(module)


@functools.cache
def _load(module: str) -> ModuleType:
    """The module, imported, with the heavy imports that its `load` makes."""
    loaded = importlib.import_module(module)
    getattr(loaded, "load", lambda: None)()
    return loaded


def ready() -> bool:
    """The first question to a new pool."""
    return True


def call(module: str, name: str, text: str, reference: str, timeout: float) -> Any:
    """`module.name(text, reference)`."""
    # The parent enforces the limit; the alarm ends a worker whose parent was killed and cannot.
    signal.setitimer(signal.ITIMER_REAL, 2 * timeout + 1)
    try:
        return getattr(_load(module), name)(text, reference)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def call_reward(module: str, name: str, text: str, reference: str, timeout: float) -> float:
    """The same of a reward function: anything but a number is its failure."""
    return float(call(module, name, text, reference, timeout))


# Starting one.

_launching = threading.Lock()


@contextlib.contextmanager
def _without_main_module():
    """Makes this thread's next spawned process skip the parent's main module (other threads' are
    not affected)."""
    thread, original = threading.get_ident(), spawn.get_preparation_data

    def preparation_data(name: str) -> dict:
        data = original(name)
        if threading.get_ident() == thread:
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    with _launching:
        spawn.get_preparation_data = preparation_data
        try:
            yield
        finally:
            spawn.get_preparation_data = original


class _Process(multiprocessing.context.SpawnProcess):
    @staticmethod
    def _Popen(process):
        with _without_main_module():
            return multiprocessing.context.SpawnProcess._Popen(process)


class Context(multiprocessing.context.SpawnContext):
    """Starts processes by spawning, without the parent's main module."""

    Process = _Process
