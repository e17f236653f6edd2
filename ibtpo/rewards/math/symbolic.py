"""Compares an answer with its reference by Math-Verify (https://github.com/huggingface/Math-Verify), through sympy.

Nothing here has a time limit of its own: it belongs in a worker of `ibtpo.rewards.pool.Grader`, whose limits are
enforced by the operating system. Math-Verify's own limits are off because they rely on SIGALRM handlers, which Python
runs only between bytecodes: one large power computed in C is not interrupted, and threads other than the main one are
refused.
"""

import functools
import logging

from ibtpo.rewards.math.spelling import normalise, split_label


def load() -> None:
    """Prepares a worker: imports Math-Verify, silences its warnings, and fills its parser's tables
    with one answer and its integrator with another.

    All this takes about a second, which would otherwise count against the first answer's time
    limit.
    """
    symbolic_grade(r"\frac{\sqrt{8}}{2}+(x-1)^2", r"\sqrt{2}+x^2-2x+1")
    symbolic_grade(r"\int y dy", r"\frac{y^2}{2}")


@functools.cache
def _math_verify():
    import math_verify

    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return math_verify


def _parse(text: str) -> list:
    """The text for Math-Verify, as an answer in a box."""
    # LaTeX only: its other reader picks a number out of unreadable text, and evaluates Python
    # expressions.
    math_verify = _math_verify()
    config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    return math_verify.parse(f"\\boxed{{{normalise(text)}}}", config, parsing_timeout=None, raise_on_error=True)


_parse_reference = functools.lru_cache(1024)(_parse)  # one serves all responses to its question


def symbolic_grade(answer: str, reference: str) -> bool:
    """Parses both sides with Math-Verify and compares them; a pair it cannot parse or compare is
    wrong."""
    try:
        label, value = split_label(normalise(answer), normalise(reference))
        sides = _parse_reference(reference), _parse(value if label else answer)
        return bool(_math_verify().verify(*sides, timeout_seconds=None, raise_on_error=True))
    except MemoryError:  # let the worker report that its limit was hit
        raise
    except Exception:  # sympy raises nearly anything on odd input; an answer that cannot be compared is no answer
        return False
