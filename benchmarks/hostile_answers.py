"""Answers made to break a grader, and a reward that notices if one of them did.

`answers` draws grammar-made LaTeX, cut and scrambled LaTeX, Unicode, code injections and a small share of bombs, which
never end or take any amount of memory. `reward` grades like `ibtpo.rewards.math.unevaluated_reward`, the rule under
which more reaches sympy, with an audit hook, and gives `BROKEN_OUT` where the text made Python write a file, start a
process, open a connection or evaluate source text.
"""

import os
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator

from ibtpo.rewards import math

BROKEN_OUT = 0.5  # no right or wrong answer gets it
# Kinds with their shares.
KINDS = {"grammar": 0.3, "damaged": 0.25, "unicode": 0.3, "injection": 0.1496, "bomb": 0.0004}

REFERENCES = [
    "5", "-3/4", "0.25", r"2\sqrt{3}", r"\{1,2,3\}", r"[1,\infty)", "(1,2)", "x^2+2x+1", r"\text{Monday}", r"\pi/2",
]  # fmt: skip
_ATOMS = [
    "0", "1", "-2", "7", "12", "0.5", "1,000", "x", "y", "n", r"\pi", "e", "i", r"\infty", r"\theta", r"50\%", "2_8",
]  # fmt: skip
_WRAPS = [r"\text{%s}", r"\operatorname{%s}", "%s", "%s", r"\frac{%s}{2}", "x = %s", r"\mathrm{%s}+1", "{%s}"]
_INJECTIONS = [
    "__import__('os').system('touch {canary}')",
    "open('{canary}','w').write('x')",
    "eval(compile('open(\"{canary}\",\"w\")','','exec'))",
    "exec(\"import subprocess; subprocess.run(['touch','{canary}'])\")",
    "().__class__.__bases__[0].__subclasses__()",
    "(lambda: open('{canary}','w'))()",
    "[open('{canary}','w') for _ in range(1)]",
    "os.remove('{canary}')",
    "sympify(\"open('{canary}','w')\")",
    "x.__class__.__init__.__globals__",
    r"\input{{/etc/passwd}}",
    r"\immediate\write18{{touch {canary}}}",
    r"\catcode`\@=11 \openout1={canary}",
    "$(touch {canary})",
    "`touch {canary}`; touch {canary}",
    "{{{{7*7}}}}${{jndi:ldap://localhost/a}}",
    "f'{{open(\"{canary}\",\"w\")}}'",
    "1; import shutil; shutil.rmtree('{canary}')",
    "%s%s%n%x",
]  # fmt: skip
BOMBS = [
    "9^{9^{9^9}}",
    "(10^{10})!",
    "9!!!!!!!!!",
    r"\sum_{n=1}^{10^{10}} \frac{1}{n^n}",
    r"\prod_{k=1}^{10^8} k",
    r"\binom{10^9}{5\cdot 10^8}",
    r"\int_0^1 x^{x^{x^x}} dx",
    "(x+y+z+1)^{4000} - (x+y+z)^{4000}",
    r"\sqrt{" * 900 + "2" + "}" * 900,
    r"\frac{1}{" * 900 + "2" + "}" * 900,
    "{" * 100_000,
    "{" * 4000 + "5" + "}" * 4000,
    r"\boxed{" * 20_000,
    "(" * 4000 + "1" + ")" * 4000,
    "9" * 100_000,
    "0." + "0" * 8000 + "1",
    "1e999999999",
    "2^{" * 500 + "2" + "}" * 500,
    r"\begin{pmatrix}" + "1&" * 3000 + r"1\end{pmatrix}^{-1}",
    "x^{99999999} - 1 = 0",
    r"\{" + ",".join(map(str, range(1500))) + r"\}",
    r"|" * 3000,
    r"\log_{1.0000001} 10^{10^{10}}",
    "-" * 8000 + "1",
    r"\text{" * 2000 + "a" + "}" * 2000,
]


def expression(rng: random.Random, depth: int) -> str:
    """LaTeX by a small grammar of the parts of answers."""
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(_ATOMS)

    def part() -> str:
        return expression(rng, depth - 1)

    return rng.choice(
        [
            lambda: rf"\frac{{{part()}}}{{{part()}}}",
            lambda: rf"{part()}+{part()}",
            lambda: rf"{part()} - {part()}",
            lambda: rf"{part()} \cdot {part()}",
            lambda: rf"\sqrt{{{part()}}}",
            lambda: rf"\sqrt[3]{{{part()}}}",
            lambda: rf"{rng.choice(_ATOMS)}^{{{rng.randint(-3, 4)}}}",
            lambda: rf"\left({part()}, {part()}\right)",
            lambda: rf"[{part()}, {part()})",
            lambda: rf"\{{{part()}, {part()}, {part()}\}}",
            lambda: rf"\begin{{pmatrix}} {part()} & {part()} \\ {part()} & {part()} \end{{pmatrix}}",
            lambda: rf"x = {part()}",
            lambda: rf"x \le {part()}",
            lambda: rf"{part()} \text{{ {rng.choice(['cm', 'dollars', 'or', 'and', 'units'])} }}",
            lambda: rf"\text{{{rng.choice(['Monday', 'yes', 'no solution'])}}}",
            lambda: rf"\{rng.choice(['sin', 'cos', 'ln', 'log', 'arctan'])}({part()})",
            lambda: rf"|{part()}|",
            lambda: rf"{part()} \cup {part()}",
            lambda: rf"\boxed{{{part()}}}",
            lambda: rf"{part()}\%",
        ]
    )()


def _damaged(rng: random.Random) -> str:
    """An expression with its end cut off, characters dropped, doubled or in another order."""
    text = list(expression(rng, 2))
    for _ in range(rng.randint(1, 3)):
        if not text:
            break
        at = rng.randrange(len(text))
        change = rng.randrange(4)
        if change == 0:
            del text[at:]
        elif change == 1:
            del text[at]
        elif change == 2:
            text.insert(at, rng.choice("{}\\$^_&#%()[]"))
        else:
            other = rng.randrange(len(text))
            text[at], text[other] = text[other], text[at]
    return "".join(text)


def _unicode(rng: random.Random) -> str:
    """Characters of all planes (lone surrogates too), of mathematics, and some that join, hide or turn others."""
    alphabets = [(0x20, 0x7F), (0xA0, 0x24F), (0x300, 0x36F), (0x590, 0x6FF), (0x2000, 0x22FF), (0x3000, 0x30FF),
                 (0xD800, 0xDFFF), (0xFF00, 0xFFEF), (0x1D400, 0x1D7FF), (0x1F300, 0x1F64F), (0, 0x10FFFF)]  # fmt: skip
    return "".join(chr(rng.randint(*rng.choice(alphabets))) for _ in range(rng.randint(1, 30)))


def _injection(rng: random.Random, canary: str) -> str:
    text = rng.choice(_INJECTIONS).format(canary=canary)
    return rng.choice(_WRAPS).replace("%s", text)


def answers(count: int, *, seed: int, canary: str, bombs: bool = True) -> Iterator[tuple[str, str, str]]:
    """(kind, response, reference) of `count` hostile answers. canary: path that injections try to write."""
    rng = random.Random(seed)
    kinds = {kind: share for kind, share in KINDS.items() if bombs or kind != "bomb"}
    for _ in range(count):
        kind = rng.choices(list(kinds), kinds.values())[0]
        if kind == "grammar":
            text = expression(rng, 2)
        elif kind == "damaged":
            text = _damaged(rng)
        elif kind == "unicode":
            text = _unicode(rng)
        elif kind == "injection":
            text = _injection(rng, canary)
        else:
            text = rng.choice(BOMBS)
        frame = rng.choice([r"So \boxed{%s}.", r"So \boxed{%s}.", "The answer is %s", "#### %s", r"\boxed{%s", "%s"])
        yield kind, frame.replace("%s", text), rng.choice(REFERENCES)


# ---------------------------------------------------------------------------------------- the audited reward

_watched = threading.local()
_FORBIDDEN = ("os.", "subprocess.", "shutil.", "socket.", "ctypes.", "pty.", "urllib.", "tempfile.")
_HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")  # of an import
# What sympy compiles by itself: its names, arithmetic of numbers it has parsed, and of exponents.
_OWN_SOURCE = re.compile(
    r"from sympy import \*|"
    r"(?:(?:Integer|Float|Rational|sqrt) ?\( ?(?:['\"]?[\d.e+-]+['\"]? ?\))?|pi|[()+\-*/ ])+|"
    r"def monomial_\w+\([AB, k]+\):\n(?:    [()ab\d, =+\-*<>k]*(?:if|else|return|None|[()ab\d, =+\-*<>rk:ABk])*\n)+"
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


def _audit(event: str, arguments: tuple) -> None:
    if not getattr(_watched, "on", False):
        return
    broken = event.startswith(_FORBIDDEN) and event not in _HARMLESS
    broken |= event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
    if event == "compile" and arguments[0] is not None and str(arguments[1]).startswith("<"):  # not of a module's file
        source = arguments[0].decode() if isinstance(arguments[0], bytes) else str(arguments[0])
        broken |= _OWN_SOURCE.fullmatch(source) is None
    if broken:
        _watched.broken = True


def load() -> None:
    """Prepares a process, then watches it."""
    math.load()
    sys.addaudithook(_audit)


def _audited(function: Callable[[str, str], float | None], text: str, reference: str) -> float | None:
    _watched.on, _watched.broken = True, False
    try:
        value = function(text, reference)
    finally:
        _watched.on = False
    return BROKEN_OUT if _watched.broken else value


def reward(text: str, reference: str) -> float:
    """As `ibtpo.rewards.math.unevaluated_reward`, or `BROKEN_OUT`."""
    return _audited(math.unevaluated_reward, text, reference)


def fast_reward(text: str, reference: str) -> float | None:
    """As `ibtpo.rewards.math.fast_unevaluated_reward`, or `BROKEN_OUT`."""
    return _audited(math.fast_unevaluated_reward, text, reference)
