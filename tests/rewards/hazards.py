"""A kind of reward that misbehaves on command, for the tests of the pool (workers import this module by name)."""

import json
import os
import signal
import sys
import time


def reward(text: str, reference: str) -> float:
    """Does what the text says; 1.0 where text and reference agree otherwise."""
    if text == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "exit":
        os._exit(int(reference))
    if text == "sleep":
        time.sleep(float(reference))
    if text == "memory":
        bytearray(int(reference) * 2**20)
    if text == "recurse":
        return reward(text, reference) + 1.0
    if text == "raise":
        raise KeyError(reference)
    if text == "alarm":
        signal.raise_signal(signal.SIGALRM)
    if text == "return":
        return json.loads(reference)
    if text == "modules":
        return float(not {"jax", "numpy", "sympy"} & set(sys.modules))
    return float(text == reference)


def fast_reward(text: str, reference: str) -> float | None:
    return json.loads(reference) if text == "return at once" else None


def check(text: str, reference: str) -> dict[str, object]:
    """Another function of both."""
    return {"reward": reward(text, reference), "text": text}


def load() -> None:
    """Fails in workers where told to, as a missing library would."""
    if os.environ.get("IBTPO_TEST_BROKEN_IMPORT"):
        raise ImportError("broken on purpose")
