"""Numbers are read exactly, however they are written."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from ibtpo.rewards.math import fast_grade


@given(st.fractions(max_denominator=10_000), st.fractions(max_denominator=10_000))
def test_fractions_are_compared_exactly(a, b):
    def forms(x):
        yield f"{x.numerator}/{x.denominator}"
        yield rf"\frac{{{x.numerator}}}{{{x.denominator}}}"
        minus = "-" if x < 0 else ""
        yield rf"{minus}\dfrac {{{abs(x.numerator)}}} {{{x.denominator}}} \text{{ cm}}^2"
        if abs(x) > 1 and x.denominator > 1:
            whole, rest = divmod(abs(x.numerator), x.denominator)
            yield rf"${'-' if x < 0 else ''}{whole}\tfrac{{{rest}}}{{{x.denominator}}}$"

    for left in forms(a):
        assert all(fast_grade(left, right) is True for right in forms(a))
        assert all(fast_grade(left, right) is (a == b) for right in forms(b))


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_integers_and_decimals_in_every_style(value, places):
    exact = Fraction(value, 10**places)
    sign, digits = ("-" if value < 0 else ""), str(abs(value)).zfill(places + 1)
    whole, decimals = (digits[:-places], digits[-places:]) if places else (digits, "")
    tail = f".{decimals}" if places else ""
    grouped = f"{int(whole):,}"
    for text in (
        f"{sign}{whole}{tail}",
        f"{sign}{grouped}{tail}",
        f"{sign}{grouped.replace(',', '{,}')}{tail}",
        f"{sign}{grouped.replace(',', ',' + chr(92) + '! ')}{tail}",
        rf"{sign}\${grouped}{tail}",
        f"${sign}{grouped}{tail}$.",
        f"{sign}{whole}{tail} dollars per day",
        rf"{sign}{whole}{tail}\text{{ dollars}}",
        rf"\left {sign}{whole}{tail} \right",
        f"{sign}{whole}{tail}{'' if places else '.'}00",
        f"00{whole}{tail}" if not sign else f"-00{whole}{tail}",
    ):
        assert fast_grade(text, f"{exact.numerator}/{exact.denominator}") is True, text
        assert fast_grade(text, str(exact.numerator + exact.denominator)) is (
            exact == exact.numerator + exact.denominator
        )
