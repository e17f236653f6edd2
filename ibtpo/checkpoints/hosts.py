"""What the processes of a job tell one another while a checkpoint is saved or read.

Through the key-value store of JAX's coordination service, and not a collective on the devices: a save is finished by a
thread in the background, whose collectives would come between the training's own in another order on every host.
"""

import collections
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax._src import distributed

from ibtpo.checkpoints.damage import Damaged
from ibtpo.errors import RunFailure, UserError

T = TypeVar("T")
_TIMEOUT_MS = 3_600_000  # of a host that writes slowly; one that is gone is noticed by the coordination service
_calls: dict[str, Iterator[int]] = collections.defaultdict(itertools.count)
_KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (Damaged, UserError, RunFailure)}


def exchange(topic: str, told: str) -> list[str]:
    """What each process tells, in their order. All processes call this equally often for each `topic`, of which one
    thread at a time may speak."""
    if jax.process_count() == 1:
        return [told]
    key = f"ibtpo/{topic}/{next(_calls[topic])}"
    client = distributed.global_state.client
    assert client is not None  # several processes are connected
    client.key_value_set(f"{key}/{jax.process_index()}", told)
    return [client.blocking_key_value_get(f"{key}/{i}", _TIMEOUT_MS) for i in range(jax.process_count())]


def together(topic: str, act: Callable[..., T], *arguments: Any) -> T:
    """act(*arguments) on every process. Where it fails on one, all raise an error of its kind, each its own where it
    has one.

    Raises:
      Damaged, UserError, RunFailure: as `act`.
      RuntimeError: `act` raised another error on another process.
    """
    error: Exception | None = None
    result: Any = None
    try:
        result = act(*arguments)
    except Exception as raised:
        error = raised
    outcomes = exchange(topic, json.dumps(None if error is None else [_kind(error), str(error)]))
    if error is not None:
        raise error
    for process, outcome in enumerate(map(json.loads, outcomes)):
        if outcome is not None:
            kind, text = outcome
            raise _KINDS.get(kind, RuntimeError)(f"{text} (on process {process})")
    return result


def from_first(topic: str, act: Callable[[], Any]) -> Any:
    """What act() gives on the first process, on all; its value is JSON-able. Errors as in `together`."""
    value = together(topic, lambda: act() if jax.process_index() == 0 else None)
    return json.loads(exchange(topic, json.dumps(value))[0])


def _kind(error: Exception) -> str:
    return next((name for name, kind in _KINDS.items() if isinstance(error, kind)), type(error).__name__)
