"""Rewards: how right a response is, by kind.

A kind is a module of this package, named in `ibtpo.choices.REWARDS`:

    reward(text, reference) -> float             from 0 to 1, in a worker process with limits (`pool.Grader`)
    fast_reward(text, reference) -> float | None optional: the same, None where it cannot tell. It runs in the caller's
                                                 process and so must take bounded time on any text
    unevaluated_reward, fast_unevaluated_reward  optional: both by the laxer rule of `reward.unevaluated`, under which
                                                 an expression that has yet to be evaluated may be right
    extract_answer(text) -> str | None           optional: the answer that a response states, None where it states none;
                                                 the answer that evaluation shows and maj@k votes by
    before_cut(text) -> str                      optional: of a response that its length limit cut off, what it stated
                                                 before, as a text of its own, "" for nothing; that is graded, or the
                                                 text as it is where a kind has no such function
    find_statement(text) -> int                  optional: where a text first states its answer, its length where it
                                                 never does: behind it no tree branches
    show_reference(reference) -> str             optional: the reference answer as people read it
    load()                                       optional: heavy imports, made once in each worker before any answer

A kind may also be a function of the user's, "module:function" (`ibtpo.own_code`): it is the reward, `fast_<function>`
and the other names above are looked for in its module.

A reference that cannot be used is a UserError of `reward` and `fast_reward`. Nothing here imports JAX: grading workers
import this package.
"""

import difflib
import importlib
from collections.abc import Callable
from types import ModuleType

from ibtpo import own_code
from ibtpo.choices import REWARDS
from ibtpo.errors import UserError

KINDS: dict[str, ModuleType] = {kind: importlib.import_module(f"{__name__}.{kind}") for kind in REWARDS}


def find_kind(kind: str) -> ModuleType:
    """The module of a kind, or of a function of the user's (`own_code`).

    Raises:
      UserError: no such kind, the message names the nearest one; or no such function.
    """
    if kind in KINDS:
        return KINDS[kind]
    if own_code.is_path(str(kind)):
        own_code.find("reward.kind", kind)
        return own_code.find_module("reward.kind", kind)
    near = difflib.get_close_matches(str(kind), KINDS, n=1, cutoff=0.0)[0]
    raise UserError(f"unknown reward.kind {kind!r}; did you mean {near!r}? Known: {', '.join(sorted(KINDS))}")


def reward_name(kind: str) -> str:
    """The name of the kind's reward in its module: "reward", or that of a function of the user's."""
    return own_code.split(kind)[1] or "reward"


def _module(kind: str) -> ModuleType | None:
    return find_kind(kind) if kind in KINDS or own_code.is_path(kind) else None


def find_extractor(kind: str) -> Callable[[str], str | None] | None:
    """The `extract_answer` of a kind; None for a kind whose responses state no answer."""
    return getattr(_module(kind), "extract_answer", None)


def show_reference(kind: str, reference: str) -> str:
    """A reference answer as people read it: itself, where the kind says nothing else."""
    return getattr(_module(kind), "show_reference", str)(reference)


def find_statement(kind: str) -> Callable[[str], int]:
    """The `find_statement` of a kind; `len` for a kind whose responses state no answer."""
    return getattr(_module(kind), "find_statement", len)


def as_graded(kind: str, text: str, truncated: bool) -> str:
    """What is graded of a response: itself, or of one that was cut off what it had stated before, by the kind's
    `before_cut`; a kind without takes the text as it is."""
    return getattr(_module(kind), "before_cut", str)(text) if truncated else text


def stated(kind: str, text: str, truncated: bool) -> str | None:
    """The answer that a response states, as it is graded; None where it states none, and of kinds that extract none."""
    extract = find_extractor(kind)
    return extract(as_graded(kind, text, truncated)) if extract else None
