"""Checks whether a response follows verifiable instructions: the 25 kinds of IFEval.

Source of the definitions: "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911; names of
kinds and arguments are those of its data set. Each kind is one function (response, arguments) -> bool of `CHECKS`.

Where a definition needs a tool, this is ours:

- Sentences end at a run of . ! ? (or their forms in other scripts), but not at a full stop after an abbreviation, an
  initial or a list number, nor at three points that a small letter follows. IFEval's own program uses a trained
  splitter.
- Words are runs of letters, digits and underscores, as there; words in capitals may hold hyphens, apostrophes, points.
- Languages are told by langdetect, as there, with a fixed seed. A text that has no language to be detected, which there
  follows any language instruction, follows none here: it would be the cheapest answer to train towards. Text in
  capitals is detected in small letters, because langdetect ignores words in capitals.
- Paragraphs that must start with a word are numbered without blank ones.

Official scores may therefore differ in rare cases.
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import langdetect
from langdetect import detector_factory

Check = Callable[[str], bool]

_RELATIONS = ("less than", "at least")
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

# ------------------------------------------------------------------------------------ counting, languages

_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st sr jr rev gen col sgt capt lt hon gov sen rep vol fig eq al approx vs inc ltd co corp dept "
    "est e.g i.e cf viz jan feb mar apr jun jul aug sep sept oct nov dec u.s u.k a.m p.m ph.d".split()
)
_SENTENCE_END = re.compile(r"""(?:[.!?…]{1,50}["'”’)\]*_]{0,5}(?=\s|$))|[。！？।॥؟۔]{1,50}""")
_LAST_WORD = re.compile(r"(?:^|(?<=[\s(\"'“‘*\[]))[^\s(\"'“‘*\[]{1,30}$")
_LINE_NUMBER = re.compile(r"(?:^|\n)[ \t]{0,20}\(?\d{1,4}$")
_WORD = re.compile(r"\w+")
_CAPITAL_WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")


def count_sentences(text: str) -> int:
    """Sentences of a text, by the rule in the module's description; what is left at its end counts as one."""
    count = start = 0
    for match in _SENTENCE_END.finditer(text):
        if match.group() == ".":
            before = text[max(match.start() - 40, start) : match.start()]
            word = _LAST_WORD.search(before)
            word = word.group() if word else ""
            initial = len(word) == 1 and word.isupper() and word != "I"
            if initial or word.lower() in _ABBREVIATIONS or _LINE_NUMBER.search(before):
                continue
        elif match.group() in ("...", "…") and text[match.end() : match.end() + 50].lstrip()[:1].islower():
            continue
        if _WORD.search(text, start, match.start()):
            count += 1
        start = match.end()
    return count + (_WORD.search(text, start) is not None)


@functools.cache
def load() -> None:
    """Reads langdetect's profiles, which takes about 0.3 s, and makes its draws repeatable."""
    detector_factory.init_factory()
    langdetect.DetectorFactory.seed = 0


def detect_language(text: str) -> str | None:
    """Code of the text's language as langdetect names it ("en", "pt", "zh-cn"), None where it has none."""
    load()
    try:
        return langdetect.detect(text.lower() if text.isupper() else text)
    except langdetect.LangDetectException:
        return None


def _compare(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


# ---------------------------------------------------------------------------------------------- the kinds


def existence(text: str, *, keywords: Sequence[str]) -> bool:
    """Every keyword occurs, in whatever case, also within a word."""
    return all(keyword.lower() in text.lower() for keyword in keywords)


def frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """The keyword occurs less than, or at least, so many times."""
    return _compare(text.lower().count(keyword.lower()), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    """None of the words occurs as a word of its own."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """The letter occurs less than, or at least, so many times, in whatever case."""
    return _compare(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
    """The whole response is in the language; "zh" takes both of Chinese's scripts."""
    found = detect_language(text)
    return found is not None and (found == language or found.startswith(language + "-"))


def number_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    """Less than, or at least, so many sentences."""
    return _compare(count_sentences(text), relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs with the divider *** between them, none of them blank."""
    parts = [part.strip() for part in text.split("***")]
    first, last = int(not parts[0]), len(parts) - int(not parts[-1])
    return all(parts[first:last]) and last - first == num_paragraphs


def number_words(text: str, *, num_words: int, relation: str) -> bool:
    """Less than, or at least, so many words."""
    return _compare(len(_WORD.findall(text)), relation, num_words)


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly so many paragraphs with a blank line between them, the nth of which starts with the word."""
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many placeholders in square brackets, such as [address]."""
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    """A postscript that starts with the marker; "P.S." and "P.P.S" may have blanks after their points."""
    spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return re.search(spaced.get(postscript_marker, re.escape(postscript_marker)), text, re.IGNORECASE) is not None


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly so many bullet points: lines that start with one asterisk or a hyphen."""
    return sum(re.match(r"\*[^*]|-", line.lstrip()) is not None for line in text.splitlines()) == num_bullets


def constrained_response(text: str) -> bool:
    """One of the three answers that are offered is given."""
    return any(answer in text for answer in _ANSWERS)


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least so many passages within a line between asterisks, *so* or **so**."""
    passages = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", text)
    return sum(bool("".join(passage).strip()) for passage in passages) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections, each headed by the splitter and a number ("Section 1")."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """The whole response is one JSON document, with or without a code fence around it."""
    text = re.sub(r"^```(?:json)?", "", text.strip(), flags=re.IGNORECASE).removesuffix("```")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """A title in double angular brackets, <<so>>."""
    lines = (line.partition("<<")[2].rpartition(">>") for line in text.splitlines())
    return any(content.strip("<> \t") for content, closed, _ in lines if closed)


def two_responses(text: str) -> bool:
    """Exactly two different responses with six asterisks between them."""
    parts = [part.strip() for part in text.split("******")]
    first, last = int(not parts[0]), len(parts) - int(not parts[-1])
    parts = parts[first:last]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """The response begins with the request, word for word, whatever the case."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, *, end_phrase: str) -> bool:
    """The response ends with the phrase, whatever the case; closing quotation marks do not count."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    """The whole response is within double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    """Less than, or at least, so many words all in capitals."""
    return _compare(sum(word.isupper() for word in _CAPITAL_WORD.findall(text)), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    """English, and no small letter."""
    return text.isupper() and detect_language(text) == "en"


def english_lowercase(text: str) -> bool:
    """English, and no capital letter."""
    return text.islower() and detect_language(text) == "en"


def no_comma(text: str) -> bool:
    """No comma."""
    return "," not in text


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}

# ------------------------------------------------------------------------------------------ the reference


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
        (lambda x: x in _RELATIONS, " or ".join(map(repr, _RELATIONS))),
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
      ValueError: it is none, or names an unknown instruction, or arguments that do not fit it.
    """
    try:
        reference = json.loads(answer)
        names, arguments = reference["instruction_id_list"], reference["kwargs"]
        if not names or len(names) != len(arguments):
            raise ValueError(f"{len(names)} instructions with {len(arguments)} sets of arguments")
        return tuple(_bind(name, given) for name, given in zip(names, arguments))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the reference of an instruction-following problem, {answer[:200]!r}, cannot be used ({error}): it must "
            'be a JSON object {"instruction_id_list": [name, ...], "kwargs": [{argument: value}, ...]} as in IFEval'
        ) from error


# ---------------------------------------------------------------------------------------------- verdicts


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
      ValueError: see `parse`.
    """
    checks = parse(answer)
    forms = [form for form in dict.fromkeys(variants(text)) if form.strip()]
    strict = [bool(text.strip()) and follows(text) for follows in checks]
    return {"strict": strict, "loose": [ok or any(map(follows, forms)) for ok, follows in zip(strict, checks)]}


def reward(text: str, reference: str) -> float:
    """1.0 if the response follows all instructions strictly, 0.0 otherwise; see `check`."""
    return float(bool(text.strip()) and all(follows(text) for follows in parse(reference)))


def fast_reward(text: str, reference: str) -> float | None:
    """0.0 for a blank response, else None. Raises ValueError for a reference that cannot be used (see `parse`)."""
    parse(reference)
    return None if text.strip() else 0.0
