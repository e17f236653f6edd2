"""Grades a response by verifiable instructions that it has to follow (IFEval; `instruction_checks.py`)."""

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ibtpo.errors import UserError
from ibtpo.rewards.instruction_checks import CHECKS, RELATIONS, load

__all__ = ["check", "fast_reward", "load", "parse", "reward", "variants"]

Check = Callable[[str], bool]


def _is_whole(low: int) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, int | float) and not isinstance(x, bool) and x == x // 1 >= low


def _is_text(x: Any) -> bool:
    return isinstance(x, str) and bool(x.strip())


# Type -> (test, the test in words); every argument of every kind has one of them.
_ARGUMENT_TYPES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_is_whole(0), "a whole number"),
    str: (_is_text, "text that is not empty"),
    Sequence[str]: (lambda x: isinstance(x, list) and bool(x) and all(map(_is_text, x)), "a list of texts"),
}
# Stricter than its type:
_ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("relation", "let_relation", "capital_relation"),
        (lambda x: x in RELATIONS, " or ".join(map(repr, RELATIONS))),
    ),
    "letter": (lambda x: isinstance(x, str) and len(x) == 1, "one letter"),
    "nth_paragraph": (_is_whole(1), "a whole number of at least 1"),
}


def _bind(name: str, arguments: Mapping[str, Any]) -> Check:
    """The check of a kind with its arguments; arguments that are null are those of other kinds."""
    if name not in CHECKS:
        raise ValueError(f"unknown instruction {name!r}; known: {', '.join(CHECKS)}")
    function = CHECKS[name]
    if not isinstance(arguments, Mapping):
        raise ValueError(f"arguments of {name} are {arguments!r}: expected a JSON object")
    given = {key: value for key, value in arguments.items() if value is not None}
    expected = {p.name: p.annotation for p in inspect.signature(function).parameters.values() if p.name != "text"}
    if unknown := given.keys() - expected.keys():
        raise ValueError(f"{name} has no argument {min(unknown)!r}: it takes {', '.join(expected) or 'none'}")
    for key, kind in expected.items():
        test, words = _ARGUMENTS.get(key) or _ARGUMENT_TYPES[kind]
        if not test(given.get(key)):
            raise ValueError(f"{name} has {key}={given.get(key)!r}: expected {words}")
        if kind is int:
            given[key] = int(given[key])
    return functools.partial(function, **given)


@functools.lru_cache(4096)
def parse(answer: str) -> tuple[Check, ...]:
    """The checks of a reference, a JSON object with IFEval's "instruction_id_list" and "kwargs", in their order.

    Raises:
      UserError: it is none, or names an unknown instruction, or arguments that do not fit it.
    """
    try:
        reference = json.loads(answer)
        names, arguments = reference["instruction_id_list"], reference["kwargs"]
        if not names or len(names) != len(arguments):
            raise ValueError(f"{len(names)} instructions with {len(arguments)} sets of arguments")
        return tuple(_bind(name, given) for name, given in zip(names, arguments))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the reference of an instruction-following problem, {answer[:200]!r}, cannot be used ({error}): it must "
            'be a JSON object {"instruction_id_list": [name, ...], "kwargs": [{argument: value}, ...]} as in IFEval'
        ) from error


def variants(text: str) -> list[str]:
    """The eight forms of a response that IFEval's loose measure tries: as it is, without its first line, its last, and
    both (an introduction, a farewell), and each of the four without asterisks (bold and italics)."""
    lines = text.split("\n")
    cut = [text, *("\n".join(lines[part]).strip() for part in (slice(1, None), slice(-1), slice(1, -1)))]
    return [*cut, *(x.replace("*", "") for x in cut)]


def check(text: str, answer: str) -> dict[str, list[bool]]:
    """Which instructions a response follows.

    Args:
      text: the response.
      answer: the reference, see `parse`.

    Returns:
      {"strict": [bool, ...], "loose": [bool, ...]} in the order of the instructions. Loose: in any of `variants`.
      A blank response follows none.

    Raises:
      UserError: see `parse`.
    """
    checks = parse(answer)
    forms = [form for form in dict.fromkeys(variants(text)) if form.strip()]
    strict = [bool(text.strip()) and follows(text) for follows in checks]
    return {"strict": strict, "loose": [ok or any(map(follows, forms)) for ok, follows in zip(strict, checks)]}


def reward(text: str, reference: str) -> float:
    """1.0 if the response follows all instructions strictly, 0.0 otherwise; see `check`."""
    return float(bool(text.strip()) and all(follows(text) for follows in parse(reference)))


def fast_reward(text: str, reference: str) -> float | None:
    """0.0 for a blank response, else None. Raises UserError for a reference that cannot be used (see `parse`)."""
    parse(reference)
    return None if text.strip() else 0.0
