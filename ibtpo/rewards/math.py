r"""Grades a response to a mathematics problem against its reference answer.

Three stages, each only for what the stage before left open:

1. `extract_answer` finds the answer in the last `TAIL_CHARACTERS` characters of the response;
2. `fast_grade` compares strings and exact rational numbers, without sympy, in microseconds;
3. Math-Verify (https://github.com/huggingface/Math-Verify) parses both sides to sympy and compares
   them.

Stage 3 has no time limit of its own: it belongs in a worker of `ibtpo.rewards.pool.Grader`, whose
limits are enforced by the operating system. Math-Verify's own limits are off because they rely on
SIGALRM handlers, which Python runs only between bytecodes: one large power computed in C is not
interrupted, and threads other than the main one are refused.
"""

import functools
import logging
import re
from dataclasses import dataclass
from fractions import Fraction

TAIL_CHARACTERS = 8192
# Of a number with its unit: keeps int() and the patterns below cheap on hostile text.
_MAX_NUMBER_CHARACTERS = 200

# --------------------------------------------------------------------------------------- extraction

BOX = re.compile(r"(?<!\\)(?:\\\\)*\\f?box(?:ed)?\s*\{")
_BRACE = re.compile(r"\\f?box(?:ed)?\s*\{|\\[\\{}]|[{}]")
_JOINT = re.compile(
    r"(?:[\s$*]|\\[()\[\]])*(?:(?:,|;|and\b|(or\b)|\\text\s?\{\s?,?\s?(?:and|(or))\s?\})(?:[\s$*]|\\[()\[\]])*)+"
    r"(?:[a-zA-Z]\s*=\s*)?"
)
_MAX_JOINT_CHARACTERS = 40
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_ANSWER_IS = re.compile(r"\banswer(?:[ \t]+(is)\b|[ \t]*[:=])[ \t]*:?", re.IGNORECASE)
_MARKUP = " \t\r\n*:`"
_BOLD = re.compile(r"(?<!\w)\*\*|\*\*(?!\w)")  # not the power in 2**3
_SENTENCE_END = re.compile(r"\.(?=[\s`]|$)")
_LIST_ITEM = re.compile(r"\d+[.)] ")
_EXPLANATION = re.compile(r",? \(?(?:because|since)\b", re.IGNORECASE)
_DISPLAY = re.compile(r"\$\$([^$]{1,500})\$\$|\\\[(.{1,500}?)\\\]", re.DOTALL)
_INLINE_MATH = re.compile(r"(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\((.{1,500}?)\\\)")
_NUMBER_IN_TEXT = re.compile(r"(?:(?<![\w)])[-−–])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|/\d+)?|\.\d+)")
# Words, no symbols, around a number; a capital beside it makes a name of both ("March 5", "Room 12").
_PROSE_BEFORE = re.compile(r"(?:(?:[A-Za-z][A-Za-z'’]*,? )*[a-z]+,? )?[-−–]?\\?\$?")
_PROSE_AFTER = re.compile(r"(?: ?\\?%)?,?(?: [a-z][a-z'’]*,?(?: [A-Za-z][A-Za-z'’]*,?)*)?")


def find_boxes(text: str, *, alternatives: bool = False) -> tuple[str | None, int]:
    r"""What the last complete \boxed{...} (or \fbox, \box) holds, None without one; and where the first box left open
    begins, the length of the text if none is. Braces balance; escaped ones do not count.

    Boxes with nothing but a comma or "and" between them ("$x=\boxed{1}$ and $x=\boxed{2}$") are one answer, their
    different contents with commas between. With `alternatives`, so are boxes with "or" between: a reference solution
    may write its answer twice, but a response that names several values has not named one of them.
    """
    # (where the token starts, where a box's content starts or -1 for a mere brace)
    open_braces: list[tuple[int, int]] = []
    boxes: list[tuple[int, int, str]] = []  # (begin, end, content) of complete boxes that no later one encloses
    first = BOX.search(text)  # braces before it close after its own or not at all
    for match in _BRACE.finditer(text, first.start()) if first else ():
        token = match.group()
        if token in ("\\\\", "\\{", "\\}"):
            continue
        if token == "}":
            if open_braces:
                begin, start = open_braces.pop()
                if start >= 0:
                    while boxes and boxes[-1][0] > begin:
                        boxes.pop()
                    boxes.append((begin, match.end(), text[start : match.start()]))
        else:
            open_braces.append((match.start(), match.end() if token != "{" else -1))
    unclosed = min((begin for begin, start in open_braces if start >= 0), default=len(text))
    if not boxes:
        return None, unclosed
    joined = len(boxes) - 1
    while joined:
        gap = text[boxes[joined - 1][1] : boxes[joined][0]]
        joint = len(gap) <= _MAX_JOINT_CHARACTERS and _JOINT.fullmatch(gap)
        if not joint or (any(joint.groups()) and not alternatives):
            break
        joined -= 1
    contents = dict.fromkeys(content.strip() for _, _, content in boxes[joined:])
    return (boxes[-1][2] if len(contents) == 1 else ", ".join(contents)), unclosed


def _lone_number(sentence: str) -> str:
    """The number of a sentence that is prose but for it ("Janet makes 18 dollars every day"). Any other as it is: a
    number with its unit, several numbers, a formula, words that may change the number ("half of 18") or hedge."""
    if len(sentence) > _MAX_NUMBER_CHARACTERS or _number(_normalise(sentence), plain_words=True):
        return sentence
    numbers = list(_NUMBER_IN_TEXT.finditer(sentence))
    if len(numbers) != 1:
        return sentence
    before, after = sentence[: numbers[0].start()], sentence[numbers[0].end() :]
    if not (_PROSE_BEFORE.fullmatch(before) and _PROSE_AFTER.fullmatch(after)):
        return sentence
    words = re.findall(r"(?<!['’])\b[a-z]+", f"{before} {after}".lower())
    variables = [word for word in words if len(word) < 3 and word not in _SHORT_WORDS and word not in _UNIT_NAMES]
    if variables or _NOT_PROSE.intersection(words) or _LABEL_BEFORE.search(before):
        return sentence
    unit = re.match(r" ([A-Za-z]+)", after)
    return numbers[0][0] + (unit[0] if unit and unit[1] in _UNIT_NAMES and unit[1] != "in" else "")


def _stated_answer(text: str) -> str | None:
    """What the last "answer is" states that something with a digit or a formula follows; if none is followed by such,
    what the last states that anything follows."""
    other, end = None, len(text)
    for match in reversed(list(_ANSWER_IS.finditer(text))):
        line = text[match.end() : end].partition("\n")[0]
        rest = text[match.end() : end].lstrip(_MARKUP)
        later = not line.strip(_MARKUP)
        end = match.start()
        if display := _DISPLAY.match(rest):
            # What goes on behind it, "or" another one, belongs to the answer.
            line = rest[: display.end()] + rest[display.end() :].partition("\n")[0]
        elif later:
            line = rest.partition("\n")[0]
        # Reasoning may begin on the line behind "answer:": only what is nothing but an answer is taken from there.
        unannounced = later and match.group(1) is None
        if unannounced and re.search(r"[\d\\$]", rest[len(line) :]):
            continue
        if display and line.strip(_MARKUP + ".,;") == display.group().strip():
            return "".join(filter(None, display.groups())).strip()
        listed = later and _LIST_ITEM.match(line)
        sentence = _BOLD.sub("", line).strip() if listed else _SENTENCE_END.split(_BOLD.sub("", line), 1)[0].strip()
        stated = _EXPLANATION.split(sentence, maxsplit=1)[0].strip()
        # An explanation that may name another answer is kept.
        sentence = sentence if _NOT_PROSE.intersection(re.findall(r"[a-z]+", sentence[len(stated) :])) else stated
        formulas = _INLINE_MATH.findall(sentence)
        if len(formulas) == 1:  # "the answer is the point $(1, 2)$, as shown"
            return "".join(formulas[0]).strip()
        sentence = sentence.strip("` ").rstrip(",;: ") or sentence
        prose = re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,} | [A-Za-z]{2,}", sentence)
        if unannounced and (listed or (prose and not _number(_normalise(sentence), plain_words=True))):
            continue
        if re.search(r"[\d\\$]", sentence):
            return _lone_number(sentence)
        other = other or (sentence if re.search(r"\w", sentence) else None)
    return other


def extract_answer(text: str) -> str | None:
    r"""The answer a response states, as written, or None.

    Only the last `TAIL_CHARACTERS` characters are read. In this order:

    1. the content of the `\boxed{...}` (or `\fbox{...}`) that closes last, braces balanced, nested
       boxes included, or of several that name one answer together (see `find_boxes`); a box left
       open (a truncated response) is no answer, and neither is anything after its opening;
    2. the rest of the line after the last `####` (GSM8K);
    3. the rest of the sentence after the last "answer is", "answer:" or "answer =" that something with a digit or a
       formula follows, else that anything follows. Where its line ends there, a formula or a line that is only a number
       or a word may follow below. Of the sentence: not its explanation ("because", "since"); the one formula in it, if
       there is one; the one number in it, if all else is plain prose that neither changes it nor hedges;
    4. the last number in the text (integer, decimal or a/b, thousands commas and a minus sign of any kind allowed).

    Args:
      text: the response.

    Returns:
      The answer without surrounding blanks; None where there is none.
    """
    text = text[-TAIL_CHARACTERS:]
    content, end = find_boxes(text, alternatives=True)
    if content is not None:
        return content.strip() or None
    text = text[:end]
    matches = _HASHES.findall(text)
    if matches and matches[-1].strip():
        return matches[-1].strip()
    answer = _stated_answer(text)
    if answer:
        return answer
    numbers = _NUMBER_IN_TEXT.findall(text)
    return numbers[-1] if numbers else None


# ---------------------------------------------------------------------------------------- fast path

_SYMBOLS = str.maketrans(
    {"−": "-", "–": "-", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "×": r"\times ", "·": r"\cdot ", "∪": r"\cup ",
     "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "θ": r"\theta ", "²": "^2", "³": "^3",
     "½": r"\frac12", "¼": r"\frac14", "¾": r"\frac34", "\u00a0": " ", "\u202f": " ", "，": ",", "％": "%"}
)  # fmt: skip
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_ROW_GAP = re.compile(r"\\\\ ?\[ ?-?[\d.]+ ?[a-z]{2} ?\]")
# "\\" starts a matrix row: the second of the two never begins a command.
_SPACING = re.compile(r"(?<!\\)(?:\\!\s*|\\[,;: ]|\\q?quad(?![a-zA-Z]))|~")
_DELIMITERS = re.compile(r"(?<!\\)\\(?:(?:left|right|displaystyle)(?![a-zA-Z])|[()\[\]$])|\$")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degrees?(?![a-zA-Z]))")
_ONE_IN_BRACES = re.compile(r"([_^])\{(\w)\}")
_TEXT_COMMAND = r"\\(?:text|mbox|mathrm|textbf|textit|mathbf|operatorname)\s*"
_TEXT = rf"{_TEXT_COMMAND}\{{([^{{}}]*)\}}"
_ALL_TEXT = re.compile(_TEXT)
_CHOICE = re.compile(r"\(([A-Z])\)")
# Of a multiple-choice answer with its value: "\textbf{(B)} 27".
_LABEL = re.compile(
    rf"({_TEXT_COMMAND}\{{\s*)?\(([A-E])\)(?(1)\s*\}}|(?!\())\s*(?=-?[\w\\({{\[.])(?!\\(?:cup|cap|cdot|times|pm)\b)"
)
_UNIT = re.compile(rf"\s*{_TEXT}\s*(?:\^\s*\{{?\d\}}?)?$")
# Two letters are a product of variables unless they are a known unit.
_WORD = r"(?:[A-Za-z][a-z]{2,}|cm|mm|km|kg|mg|ml|ft|in|oz|lb|hr|mi)"
# One letter is a unit in a quotient ("m/s"), or if it is a usual one.
_UNIT_WORDS = re.compile(
    rf"\s+((?:{_WORD}|[A-Za-z](?=\s?/)|[mgshLJNWV](?![A-Za-z]))(?:\^\d)?"
    rf"(?:(?:\s+|\s?/\s?)(?:{_WORD}|[A-Za-z](?![A-Za-z]))(?:\^\d)?)*)$"
)
# Spellings of one unit. Two that are both known and differ are a wrong answer; an unknown one is just a word.
_UNIT_NAMES = {
    name: names.split()[0]
    for names in (
        "mm millimeter millimeters millimetre millimetres", "cm centimeter centimeters centimetre centimetres",
        "m meter meters metre metres", "km kilometer kilometers kilometre kilometres", "in inch inches",
        "ft foot feet", "yd yard yards", "mi mile miles", "mg milligram milligrams", "g gram grams",
        "kg kilogram kilograms", "lb lbs pound pounds", "oz ounce ounces", "s sec second seconds", "min minute minutes",
        "h hr hour hours", "day days", "week weeks", "month months", "year years", "ml milliliter milliliters",
        "l liter liters litre litres", "dollar dollars", "cent cents", "euro euros",
    )
    for name in names.split()
}  # fmt: skip
_PERCENT = re.compile(r"\s?(?:\\?%|percent|\\text\s?\{\s?percent\s?\})$")
# Words after a number that are part of the value, not a unit: such an answer is left to the slow
# path.
_NOT_UNITS = frozenset(
    "pi tau phi theta alpha beta gamma delta lambda mu sqrt sin cos tan cot sec csc log ln exp "
    "infinity infty and or not to by of mod base binary octal hexadecimal hex radian radians am pm "
    "percent percentage half third quarter dozen hundred thousand million billion trillion "
    "hundreds thousands millions billions trillions plus minus times over divided squared cubed "
    "factorial choose if for where when with more less than least most at about approximately "
    "remainder is are was else otherwise except only".split()
)
# Words that may change the number beside them, or say that it is not the answer.
_NOT_PROSE = (_NOT_UNITS - {"is", "are", "was", "of", "to", "for", "at", "with"}) | frozenset(
    "no never neither nor either maybe perhaps possibly but instead wait negative double twice triple from between "
    "nearly almost close around over under above below greater smaller larger fewer adding added multiple".split()
)
_LABEL_BEFORE = re.compile(r"\b(?:step|part|case|day|question|option|room) $", re.IGNORECASE)
_SHORT_WORDS = frozenset("a an as at be by he in is it my of on so to we".split())  # others are variables
_IN_BASE = re.compile(r"([0-9A-Z]+) ?_ ?\{? ?(\d+) ?\}?")
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = re.compile(rf"([+-]?)(?:({_UNSIGNED})(?:\.(\d*))?|\.(\d+))(?:[eE]([+-]?\d{{1,3}}))?")
_SLASH = re.compile(rf"([+-]?)(?:(\d+) )?({_UNSIGNED})/({_UNSIGNED})")
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\(?:overline|bar) ?(?:\{(\d+)\}|(\d))")
_LATEX_FRACTION = re.compile(r"([+-]?)(\d*)\\frac(?:\{(-?\d+)\}|(\d))(?:\{(\d+)\}|(\d))")


def _normalise(text: str) -> str:
    r"""Removes what carries no value: dollar signs, spacing, \left and \right, degrees, \frac's
    style, a comma or full stop at the end; spells symbols as LaTeX commands."""
    text = text if text.isascii() else text.translate(_SYMBOLS)
    text = _PI.sub(r"\\pi", re.sub(r"\s+", " ", text).strip().replace("{,}", ","))
    while text.startswith("\\boxed{"):
        content, _ = find_boxes(text)
        if content is None or len(content) != len(text) - len("\\boxed{}"):
            break
        text = content.strip()
    text = _ROW_GAP.sub(r"\\\\", text)
    text = _SPACING.sub(lambda match: "" if match.group().startswith("\\!") else " ", text)
    text = re.sub(r" +", " ", _DELIMITERS.sub("", _BOLD.sub("", text)))
    text = _FRACTION.sub(r"\\frac", text)
    text = _DEGREES.sub("", text)
    text = _ONE_IN_BRACES.sub(r"\1\2", text)
    text = text.strip()
    if text.endswith((",", ";")):
        text = text[:-1].rstrip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text


def _spelling(text: str) -> str:
    """The form in which two answers are compared as strings: text commands unwrapped, no blanks,
    "(C)" as "C"."""
    text = re.sub(r"\s+", "", _ALL_TEXT.sub(r"\1", text))
    choice = _CHOICE.fullmatch(text)
    return choice.group(1) if choice else text


def _split_label(answer: str, reference: str) -> tuple[str, str]:
    r"""("B", "27") of a normalised answer "\textbf{(B)} 27"; ("", answer) without such a label, or where the reference,
    normalised too, has one."""
    whole = _ALL_TEXT.fullmatch(answer)
    text = whole.group(1).strip() if whole else answer
    label = _LABEL.match(text)
    return (label.group(2), text[label.end() :]) if label and not _LABEL.match(reference) else ("", answer)


def _without_unit(text: str, plain_words: bool) -> str:
    """Strips a unit that follows a digit or a closing brace, in text commands or, if asked, in
    plain words."""
    match = _UNIT.search(text) or (_UNIT_WORDS.search(text) if plain_words else None)
    if match is None or not re.search(r"[\d}.]$", text[: match.start()]):
        return text
    if not _NOT_UNITS.isdisjoint(re.findall(r"[a-z]+", match.group(1).lower())):
        return text
    return text[: match.start()]


def _unit(text: str) -> tuple[str, ...] | None:
    """The unit behind a value, its words by one name each; None where there is none, or one of them is not known."""
    text = text[-_MAX_NUMBER_CHARACTERS:]
    match = _UNIT.search(text) or _UNIT_WORDS.search(text)
    names = [_UNIT_NAMES.get(word.lower()) for word in re.findall(r"[A-Za-z]+", match.group(1))] if match else []
    return tuple(names) if names and all(names) else None


@dataclass(frozen=True)
class _Number:
    """value: exact, of a percentage the number before the sign. decimals: written with some."""

    value: Fraction
    decimals: bool = False
    percent: bool = False


def _number(text: str, plain_words: bool) -> _Number | None:
    r"""The number that a text is (an integer, decimal, repeating decimal, a/b, \frac or mixed number, with a unit or a
    percent sign or without, in a text command or not), else None."""
    if len(text) > _MAX_NUMBER_CHARACTERS:
        return None
    whole = _ALL_TEXT.fullmatch(text)
    text = whole.group(1).strip() if whole else text
    percent = _PERCENT.search(text)
    text = text[: percent.start()] if percent else _without_unit(text, plain_words)
    text = text.replace(" ", "") if "\\frac" in text else text
    match = _DECIMAL.fullmatch(text)
    if match:
        sign, whole, decimals, only_decimals, exponent = match.groups()
        decimals = decimals or only_decimals or ""
        value = Fraction(f"{(whole or '0').replace(',', '')}.{decimals or '0'}e{exponent or 0}")
        return _Number(-value if sign == "-" else value, bool(decimals.strip("0")), bool(percent))
    match = _REPEATING.fullmatch(text)
    if match:
        sign, whole, decimals, repeated, repeated_digit = match.groups()
        repeated = repeated or repeated_digit
        # 1.2333... is (123 - 12) / 90.
        difference = int(whole + decimals + repeated) - int(whole + decimals or "0")
        value = Fraction(difference, 10 ** len(decimals) * (10 ** len(repeated) - 1))
        return _Number(-value if sign == "-" else value, percent=bool(percent))
    match = _SLASH.fullmatch(text)
    if match:
        sign, whole, top, bottom = match.groups()
    else:
        match = _LATEX_FRACTION.fullmatch(text)
        if match is None:
            return None
        sign, whole, top, top_digit, bottom, bottom_digit = match.groups()
        top, bottom = top or top_digit, bottom or bottom_digit
    numerator, denominator = int(top.replace(",", "")), int(bottom.replace(",", ""))
    if denominator == 0:
        return None
    if whole:
        if not 0 <= numerator < denominator:  # a product rather than a mixed number, perhaps
            return None
        numerator += int(whole) * denominator
    value = Fraction(numerator, denominator)
    return _Number(-value if sign == "-" else value, percent=bool(percent))


@functools.lru_cache(8192)  # one reference serves all responses to its question
def _expected(reference: str) -> tuple[str, str, _Number | None]:
    """(normalised, its spelling, its number) of a reference."""
    expected = _normalise(reference)
    return expected, _spelling(expected), _number(expected, plain_words=False)


def fast_grade(answer_text: str | None, reference: str) -> bool | None:
    r"""Compares an extracted answer with the reference without sympy.

    Equal spelling (after removing markup that carries no value) is right. Where both sides are
    numbers (integers, decimals, a/b, `\frac`, mixed numbers; thousands commas, currency and a
    trailing unit ignored) their exact values decide, except that a decimal within 1e-5 of an
    unequal value is left open, because Math-Verify rounds decimals. 50 % is 50 or 1/2, unless both
    sides are percentages. Two known units must be the same. Numerals that both name a base must
    agree in digits and base. Of "(B) 27" the value counts, or the letter if the reference is one; the
    label stays if the reference has one too. A missing answer is wrong.

    Args:
      answer_text: what `extract_answer` returned.
      reference: the reference answer, in the same notation.

    Returns:
      True, False, or None where only symbolic comparison can tell.

    Raises:
      ValueError: the reference is empty.
    """
    expected, spelling, right = _expected(str(reference))
    if not expected:
        raise ValueError(f"the reference answer is empty ({reference!r}): check data.answer_field")
    if answer_text is None:
        return False
    answer = _normalise(answer_text)
    if not answer:
        return False
    if _spelling(answer) == spelling:
        return True
    label, answer = _split_label(answer, expected)
    if label and re.fullmatch("[A-E]", spelling):
        return label == spelling
    if label and _spelling(answer) == spelling:
        return True
    bases = _IN_BASE.fullmatch(answer), _IN_BASE.fullmatch(expected)
    if all(bases):  # Math-Verify ignores the base
        return bases[0].groups() == bases[1].groups()
    if (unit := _unit(expected)) and (_unit(answer) or unit) != unit:
        return False
    left = _number(answer, plain_words=True)
    if left is None or right is None:
        return None
    # A percentage may be written as its number or as a fraction of one.
    scales = (1,) if left.percent == right.percent else (1, 100)
    values = [(left.value * (k if right.percent else 1), right.value * (k if left.percent else 1)) for k in scales]
    if any(x == y for x, y in values):
        return True
    if (left.decimals or right.decimals) and any(abs(x - y) < Fraction(1, 100_000) for x, y in values):
        return None
    return False


def canonical(answer: str) -> str:
    """One spelling of an answer that many spellings share, to count votes by: a number's exact value ("1/2" for "0.50"
    and a LaTeX fraction), of anything else the text without markup and blanks. Equal answers may still differ."""
    text = _normalise(answer)
    number = _number(text, plain_words=True)
    return str(number.value) if number else _spelling(text)


# ---------------------------------------------------------------------------------------- slow path


def load() -> None:
    """Prepares a worker: imports Math-Verify, silences its warnings, and fills its parser's tables
    with one answer and its integrator with another.

    All this takes about a second, which would otherwise count against the first answer's time
    limit.
    """
    _slow_grade(r"\frac{\sqrt{8}}{2}+(x-1)^2", r"\sqrt{2}+x^2-2x+1")
    _slow_grade(r"\int y dy", r"\frac{y^2}{2}")


@functools.cache
def _math_verify():
    import math_verify

    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return math_verify


def _parse(text: str) -> list:
    """What Math-Verify reads, as an answer in a box."""
    # LaTeX only: its other reader picks a number out of unreadable text, and evaluates Python
    # expressions.
    math_verify = _math_verify()
    config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    return math_verify.parse(f"\\boxed{{{_normalise(text)}}}", config, parsing_timeout=None, raise_on_error=True)


_parse_reference = functools.lru_cache(1024)(_parse)  # one serves all responses to its question


def _slow_grade(answer: str, reference: str) -> bool:
    """Parses both sides with Math-Verify and compares them; what it cannot parse or compare is
    wrong."""
    try:
        label, value = _split_label(_normalise(answer), _normalise(reference))
        sides = _parse_reference(reference), _parse(value if label else answer)
        return bool(_math_verify().verify(*sides, timeout_seconds=None, raise_on_error=True))
    except MemoryError:  # let the worker report that its limit was hit
        raise
    except Exception:  # sympy raises nearly anything on odd input; an answer that cannot be compared is no answer
        return False


def verify(response_text: str, reference: str) -> bool:
    """Whether a response's answer equals the reference: extraction, fast path, then Math-Verify.

    May run for ever and use any amount of memory on hostile text: call it in a worker with limits.

    Args:
      response_text: the whole response (only its tail is read).
      reference: the reference answer.

    Raises:
      ValueError: the reference is empty.
    """
    answer = extract_answer(response_text)
    decided = fast_grade(answer, reference)
    return _slow_grade(answer, str(reference)) if decided is None else decided


def reward(text: str, reference: str) -> float:
    """1.0 for a right answer, 0.0 otherwise; see `verify`."""
    return float(verify(text, reference))


def fast_reward(text: str, reference: str) -> float | None:
    """The reward where the fast path can tell, else None."""
    decided = fast_grade(extract_answer(text), reference)
    return None if decided is None else float(decided)
