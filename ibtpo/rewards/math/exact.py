"""Exact comparison of sympy expressions, in place of Math-Verify's, which takes differences below 1e-16 for none."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_DIGITS = 60  # of numerical values
_AGREEMENT = 40  # of them that must agree for equality; rational numbers are compared exactly
# Values of variables at which formulas are compared: where both are real, they must agree.
_POINTS = [
    (3, 7), (-5, 3), (11, 13), (-2, 9), (17, 4), (-23, 6), (1, 19), (29, 31), (41, 5), (-13, 29), (37, 11), (-43, 8),
]  # fmt: skip


def equal_expressions(left: Any, right: Any) -> bool:
    """Whether two sympy expressions or matrices are equal: numbers exactly or to 40 digits of their size, formulas by
    expansion and by their values at a dozen points."""
    import sympy

    if isinstance(left, sympy.MatrixBase) and isinstance(right, sympy.MatrixBase):
        left, right = left.doit(), right.doit()
        return left.shape == right.shape and all(map(equal_expressions, left.flat(), right.flat()))
    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
        return False
    left, right = evaluated(left), evaluated(right)
    if left == right:
        return True
    if left.is_Rational and right.is_Rational:
        return False
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if not symbols:
        return _agree(left, right)
    difference = sympy.expand(left - right)
    if difference == 0:
        return True
    if left.is_polynomial(*symbols) and right.is_polynomial(*symbols) and not _has_irrational(difference):
        return False
    return _agree_at_points(left, right, symbols)


def evaluated(expression: Any) -> Any:
    """An expression with its sums, integrals and the like evaluated, i the imaginary unit, decimals as fractions."""
    import sympy

    value = expression.doit()
    # Math-Verify does not always read the imaginary unit as one.
    if units := {symbol: sympy.I for symbol in value.free_symbols if symbol.name == "i"}:
        value = value.xreplace(units).doit()
    # Decimals as the fractions they are.
    floats = value.atoms(sympy.Float)
    return value.xreplace({number: sympy.Rational(str(number)) for number in floats}) if floats else value


def _has_irrational(expression: Any) -> bool:
    import sympy

    return any(not power.exp.is_Integer for power in expression.atoms(sympy.Pow)) or expression.has(
        sympy.Function, sympy.NumberSymbol, sympy.I
    )


def _agree(left: Any, right: Any) -> bool:
    """Whether two constants agree in their first digits."""
    a, b = (_number(side) for side in (left, right))
    if a is None or b is None:
        return False
    size = max(abs(a), abs(b))
    return bool(size == 0 or abs(a - b) <= size * _tolerance())


def _tolerance() -> Any:
    import sympy

    return sympy.Float(10, _DIGITS) ** -_AGREEMENT


def _number(expression: Any) -> Any:
    """The numerical value of a constant; None without one."""
    import sympy

    value = expression.evalf(_DIGITS, maxn=400)
    real, imaginary = value.as_real_imag()
    if not (real.is_Number and imaginary.is_Number) or not (real.is_finite and imaginary.is_finite):
        return None
    # What is left of an exact zero.
    size = max(abs(real), abs(imaginary))
    parts = [part if abs(part) > size * _tolerance() else sympy.Integer(0) for part in (real, imaginary)]
    return parts[0] + sympy.I * parts[1]


def _agree_at_points(left: Any, right: Any, symbols: list) -> bool:
    """Whether two formulas agree wherever both have real values, and have them at several points; formulas with an
    imaginary unit are compared wherever they have values."""
    import sympy

    complex_formulas = left.has(sympy.I) or right.has(sympy.I)
    compared = 0
    for shift in range(len(_POINTS)):
        points = {s: sympy.Rational(*_POINTS[(shift + 5 * k) % len(_POINTS)]) for k, s in enumerate(symbols)}
        a, b = (_number(side.xreplace(points).doit()) for side in (left, right))
        if a is None and b is None:
            continue
        if a is None or b is None:
            return False
        if not complex_formulas and not a.is_real and not b.is_real:
            continue
        if abs(a - b) > max(abs(a), abs(b)) * _tolerance():
            return False
        compared += 1
    return compared >= 4


@contextlib.contextmanager
def exact_comparison(grader: Any) -> Iterator[None]:
    """Within it, Math-Verify's module `grader` compares numbers and formulas by `equal_expressions`, also within sets,
    equations and intervals. For one thread at a time."""
    names = ("sympy_numeric_eq", "sympy_symbolic_eq")
    with _patching:
        own = {name: getattr(grader, name) for name in names}
        try:
            grader.sympy_numeric_eq = lambda a, b, *_, **__: equal_expressions(a, b)
            grader.sympy_symbolic_eq = lambda *_: False
            yield
        finally:
            for name, function in own.items():
                setattr(grader, name, function)


_patching = threading.RLock()
