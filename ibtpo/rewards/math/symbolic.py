"""Compares an answer with its reference by Math-Verify (https://github.com/huggingface/Math-Verify), through sympy.

Nothing here has a time limit of its own: it belongs in a worker of `ibtpo.rewards.pool.Grader`, whose limits are
enforced by the operating system. Math-Verify's own limits are off because they rely on SIGALRM handlers, which Python
runs only between bytecodes: one large power computed in C is not interrupted, and threads other than the main one are
refused.
"""

import dataclasses
import functools
import logging
import re
from fractions import Fraction
from typing import Any

from ibtpo.rewards.math.exact import evaluated, exact_comparison
from ibtpo.rewards.math.numbers import is_rounded, read_number, rounds_to
from ibtpo.rewards.math.spelling import normalise, split_approximation, split_label

_DECIMAL = re.compile(r"(?<![\d.])(\d{1,30})?\.(\d{1,30})(?![\d.])")

_POWER = re.compile(r"(?<=[\w)}]) ?\*\* ?(-?\w+)")
_EXPONENT = re.compile(r"^(-?\d*\.?\d+)[eE]([+-]?\d{1,3})$")


def load() -> None:
    """Prepares a worker: imports Math-Verify, silences its warnings, and fills its parser's tables
    with one answer and its integrator with another.

    All this takes about a second, which would otherwise count against the first answer's time
    limit.
    """
    import sympy.physics.units  # noqa: F401  sympy imports it at the first root of a matrix, by strings that it evaluates

    symbolic_grade(r"\frac{\sqrt{8}}{2}+(x-1)^2", r"\sqrt{2}+x^2-2x+1")
    symbolic_grade(r"\int y dy", r"\frac{y^2}{2}", unevaluated=True)


@functools.cache
def _math_verify():
    import math_verify

    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return math_verify


def _parse(text: str) -> list:
    """The text for Math-Verify, as an answer in a box, decimals as the fractions they are."""
    # LaTeX only: its other reader picks a number out of unreadable text, and evaluates Python
    # expressions.
    math_verify = _math_verify()
    # Its units go unread, and are letters of formulas too ("4t"): ours are gone by now.
    options = math_verify.LatexExtractionConfig()
    options = dataclasses.replace(
        options,
        boxed_match_priority=0,
        normalization_config=dataclasses.replace(options.normalization_config, units=False),
    )
    text = _DECIMAL.sub(_fraction, _EXPONENT.sub(r"\1\\cdot 10^{\2}", normalise(text)))
    text = _POWER.sub(r"^{\1}", text)
    return math_verify.parse(f"\\boxed{{{text}}}", [options], parsing_timeout=None, raise_on_error=True)


def _fraction(match: re.Match) -> str:
    whole, decimals = match.group(1) or "", match.group(2)
    return rf"\frac{{{int(whole + decimals)}}}{{{10 ** len(decimals)}}}"


_parse_reference = functools.lru_cache(1024)(_parse)  # one serves all responses to its question


def symbolic_grade(answer: str, reference: str, *, unevaluated: bool = False) -> bool:
    """Parses both sides with Math-Verify and compares them exactly; a pair it cannot parse or compare is wrong.

    unevaluated: as `reward.unevaluated`; without it an answer must be as far evaluated as its reference, see
    `_left_to_do`.
    """
    try:
        label, value = split_label(normalise(answer), normalise(reference))
        value = value if label else normalise(answer)
        approximation = split_approximation(value)
        value = approximation[0] if approximation else value
        expected, given = _parse_reference(reference), _parse(value)
        math_verify = _math_verify()
        with exact_comparison(math_verify.grader):
            if not math_verify.verify(expected, given, timeout_seconds=None, raise_on_error=True):
                return _rounds(value, expected[0])
        if approximation and not _is_close(expected[0], approximation[1]):
            return False
        return unevaluated or not _left_to_do(given[0], expected[0])
    except MemoryError:  # let the worker report that its limit was hit
        raise
    except Exception:  # sympy raises nearly anything on odd input; an answer that cannot be compared is no answer
        return False


def _is_close(exact: Any, rounded: str) -> bool:
    """Whether a constant comes to a number as rounded."""
    import sympy

    number = read_number(rounded)
    if number is None or not isinstance(exact, sympy.Expr) or exact.free_symbols:
        return False
    value = exact.doit().evalf(40)
    return bool(value.is_real) and is_rounded(Fraction(str(sympy.Rational(value))), number)


def _rounds(answer: str, reference: Any) -> bool:
    """Whether an answer is a constant rounded to six or more decimals."""
    import sympy

    number = read_number(answer)
    if number is None or not number.places or not isinstance(reference, sympy.Expr) or reference.free_symbols:
        return False
    value = reference.doit().evalf(40)
    return bool(value.is_real) and rounds_to(Fraction(str(sympy.Rational(value))), number.value, number.places)


def _left_to_do(answer: Any, reference: Any) -> bool:
    """Whether an expression, right in value, still has to be evaluated: multiplying out and collecting terms makes it
    shorter, and no longer than its reference; or it uses functions, sums or integrals where its reference uses none, or
    more than twice as many; or it multiplies out a reference that is a product of sums; or roots stand within roots,
    deeper than in the reference; or its roots are not in simplest form, see `_roots_to_simplify`."""
    import sympy

    if not (isinstance(answer, sympy.Expr) and isinstance(reference, sympy.Expr)):
        return False
    if _roots_to_simplify(answer, reference):
        return True
    used, expected = _functions(answer), _functions(reference)
    if _depth_of_roots(answer) > max(1, _depth_of_roots(reference)):
        return True
    if used > 2 * expected or (_sums_multiplied(reference) > 1 and answer.is_Add and not reference.is_Add):
        return True
    size, target = _size(answer), _size(reference)
    if 2 * size <= 3 * target:
        return False
    simplest = evaluated(answer)
    simplest = sympy.expand_complex(simplest) if simplest.has(sympy.I) else sympy.expand(simplest)
    return _size(simplest) <= target


def _functions(expression: Any) -> int:
    """How many functions, sums, integrals and the like are applied; exponentials and absolute values not counted."""
    import sympy

    kinds = (sympy.Function, sympy.Integral, sympy.Sum, sympy.Product, sympy.Derivative, sympy.Limit)
    return sum(
        isinstance(part, kinds) and not isinstance(part, (sympy.exp, sympy.Abs))
        for part in sympy.preorder_traversal(expression)
    )


def _depth_of_roots(expression: Any) -> int:
    """How many roots stand within one another at most."""
    depth = max(map(_depth_of_roots, expression.args), default=0)
    return depth + bool(expression.is_Pow and expression.exp.is_Rational and not expression.exp.is_Integer)


def _roots_to_simplify(answer: Any, reference: Any) -> bool:
    r"""Whether an answer has yet to simplify its roots: a number under one has a factor to be taken out (\sqrt{242} for
    11\sqrt2, 3/\sqrt{27} for \sqrt3/3) or is a calculation (\sqrt{2\cdot121}), unless the reference's are no better; or
    roots of numbers are left to be multiplied or added (\sqrt3\sqrt6). 1/\sqrt3 and \sqrt3/3 are both in simplest
    form; a square root that is all of the answer may keep the least factor, 4 (\sqrt8 for 2\sqrt2)."""
    import sympy

    factors = [factor for factor in _flat(answer, sympy.Mul) if factor != -1]
    lone = factors[0] if len(factors) == 1 else answer
    if lone.is_Pow and lone.exp == sympy.Rational(1, 2) and lone.base.is_Integer and lone.base % 4 == 0:
        if _is_simplest(sympy.Pow(lone.base / 4, lone.exp, evaluate=False)):
            return False
    mine, other = _roots(answer), _roots(reference)
    if _to_collect(answer) and not _to_collect(reference):
        return True
    if not all(map(_is_simplest, mine)) and all(map(_is_simplest, other)):
        return True
    if _power_of_constants(answer) and not _power_of_constants(reference):
        return True
    return len(mine) > len(other) and len(mine) > len(_roots(evaluated(answer)))


def _roots(expression: Any) -> list:
    """All roots in an expression as it stands."""
    import sympy

    parts = sympy.preorder_traversal(expression)
    return [part for part in parts if part.is_Pow and part.exp.is_Rational and not part.exp.is_Integer]


def _power_of_constants(expression: Any) -> bool:
    """Whether a constant with roots, or with an imaginary part, stands to a whole power, the latter below a line."""
    import sympy

    for part in sympy.preorder_traversal(expression):
        if not (part.is_Pow and part.exp.is_Integer and {symbol.name for symbol in part.base.free_symbols} <= {"i"}):
            continue
        imaginary = bool(part.base.free_symbols) or part.base.has(sympy.I)
        if (part.exp > 1 and _roots(part.base)) or (imaginary and part.exp != 1):
            return True
    return False


def _to_collect(expression: Any) -> bool:
    """Whether like terms stand in a sum, numbers or powers of one variable in a product, or powers of numbers in it."""
    import sympy

    for part in sympy.preorder_traversal(expression):
        if part.is_Add:
            terms = _flat(part, sympy.Add)
            if len(terms) > len(sympy.Add.make_args(sympy.Add(*(term.doit() for term in terms)))):
                return True
        if part.is_Mul:
            factors = [factor.as_base_exp() for factor in _flat(part, sympy.Mul)]
            pairs = [tuple(map(int, pair)) for pair in factors if all(side.is_Integer for side in pair)]
            whole = [exponent for base, exponent in pairs if abs(base) > 1 and exponent > 0]
            names = [base for base, _ in factors if base.is_Symbol]
            if len(whole) > 1 or any(exponent > 1 for exponent in whole) or len(set(names)) < len(names):
                return True
    return False


def _flat(expression: Any, kind: Any) -> list:
    """The terms of a sum within sums, or the factors of a product within products."""
    if not isinstance(expression, kind):
        return [expression]
    return [part for arg in expression.args for part in _flat(arg, kind)]


def _is_simplest(root: Any) -> bool:
    """Whether no number can be taken out from under a root, and none is left to be calculated there."""
    import sympy

    base = root.base
    if base.is_Pow and base.exp == -1:
        base = base.base
    if base.is_number and base.is_rational and not base.is_Rational:
        return False
    number = base.as_coeff_Mul()[0]
    for part in (abs(number.p), number.q) if number.is_Rational else ():
        factor, rest = sympy.Pow(part, sympy.Rational(1, root.exp.q)).as_coeff_Mul()
        if part != 1 and (factor != 1 or not rest.is_Pow or rest.exp.q != root.exp.q):
            return False
    return True


def _sums_multiplied(expression: Any) -> int:
    """How many sums are factors of a product, powers counted as often as they multiply."""
    if expression.is_Add:
        return 1
    if expression.is_Mul:
        return sum(map(_sums_multiplied, expression.args))
    if expression.is_Pow and expression.exp.is_Integer and expression.exp > 0:
        return min(int(expression.exp), 9) * _sums_multiplied(expression.base)
    return 0


def _size(expression: Any) -> int:
    """Numbers and variables in an expression as it stands, signs not counted."""
    if not expression.args:
        return 0 if expression == -1 else 1
    base = expression.func.__name__ == "exp"  # e^x, like every other power
    return base + sum(_size(arg) for arg in expression.args if not (arg == 1 and expression.is_Mul))
