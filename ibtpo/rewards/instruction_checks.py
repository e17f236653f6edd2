"""The 25 kinds of verifiable instructions of IFEval, each one function (response, arguments) -> bool of `CHECKS`.

Source of the definitions: "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911; names of
kinds and arguments are those of its data set.

Where a definition needs a tool, this is ours:

- Sentences end at a run of . ! ? (or their forms in other scripts), but not at a full stop after an abbreviation, an
  initial, a list number or "No" before a number, nor where a small letter follows three points or a closing quotation
  mark. An abbreviation that often ends a sentence ("p.m.") does so before a word that often begins one ("He"). IFEval's
  own program uses a trained splitter.
- Words are runs of letters, digits and underscores, as there. Words in capitals are those of a Treebank tokenizer, as
  there: "I'M" and "DON'T" are two, "WELL-KNOWN" and "A_B" one. The rules are nltk 3.10's, stated here, because that
  package costs a second to import and its tables are for splitting sentences. Older ones leave "A—B" together.
- Keywords are searched as text, not as regular expressions.
- Languages are told by langdetect, as there, with a fixed seed. A text that has no language to be detected, which there
  follows any language instruction, follows none here: it would be the cheapest answer to train towards. Text in
  capitals is detected in small letters, because langdetect ignores words in capitals.
- Paragraphs that must start with a word are numbered without blank ones.

Official scores may therefore differ in rare cases.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence

import langdetect
from langdetect import detector_factory

RELATIONS = ("less than", "at least")
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

# Counting, and languages.

_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st sr jr rev gen col sgt capt lt hon gov sen rep vol fig eq al approx vs inc ltd co corp dept "
    "est e.g i.e cf viz jan feb mar apr jun jul aug sep sept oct nov dec u.s u.k a.m p.m ph.d".split()
)
_SENTENCE_END = re.compile(r"""(?:[.!?…]{1,50}["'”’)\]*_]{0,5}(?=\s|$))|[。！？।॥؟۔]{1,50}""")
_LAST_WORD = re.compile(r"(?:^|(?<=[\s(\"'“‘*\[]))[^\s(\"'“‘*\[]{1,30}$")
_MAY_END = frozenset("a.m p.m etc inc ltd co corp jr sr u.s u.k ph.d".split())
_BEGINNING = re.compile(
    r"\s+(?:The|This|That|These|Those|He|She|It|We|They|You|I|In|But|And|So|However|There|Then|After|"
    r"When|If|My|His|Her|Our)\b"
)
_LINE_NUMBER = re.compile(r"(?:^|\n)[ \t]{0,20}\(?\d{1,4}$")
_WORD = re.compile(r"\w+")
# Where the Treebank rules (nltk's `NLTKWordTokenizer`) part a text, in their order. What holds no letter is dropped.
_TREEBANK = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\.{2,}|(?<!\.)\.(?=[])}>\"'»”’]{0,20}(?:\s|$))", " "),
        (r"(?i)(?<!\w)'(?!(?:re|ve|ll|[mtsdn])\b)(?=\w)", "' "),  # an opening quote, which is no "'s"
        (r"[«“‘„`;@#$%&?!‒-―]|[:,](?!\d)", " "),
        (r"(?<=[^'])'(?= )", " '"),
        (r"[»”’\"]|''|[][*(){}<>]|--", " "),
        (r"(?<=[^'\s])('[sSmMdD]?)(?=\s|$)", r" \1"),
        (r"(?<=[^'\s])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T)(?=\s|$)", r" \1"),
        (r"(?i)\b(can|d|gim|gon|got|lem|more)((?<=can)not|(?<=d)'ye|(?<=gim)me|(?<=gon)na|(?<=got)ta|(?<=lem)me|"
         r"(?<=more)'n)\b", r" \1 \2 "),
        (r"(?i)\b(wan)(na)(?=\s|$)", r" \1 \2 "),
        (r"(?i)(?<!\S)('t)(is|was)\b", r" \1 \2 "),
    )
)  # fmt: skip


def count_sentences(text: str) -> int:
    """Sentences of a text, by the rule in the module's description; the rest at its end counts as one."""
    count = start = 0
    for match in _SENTENCE_END.finditer(text):
        if match.group() == ".":
            before = text[max(match.start() - 40, start) : match.start()]
            last = _LAST_WORD.search(before)
            word = last.group() if last else ""
            initial = len(word) == 1 and word.isupper() and word != "I"
            abbreviation = word.lower() in _ABBREVIATIONS
            if abbreviation and word.lower() in _MAY_END and _BEGINNING.match(text, match.end()):
                abbreviation = False
            numbered = word == "No" and text[match.end() : match.end() + 2].strip().isdigit()
            if initial or abbreviation or numbered or _LINE_NUMBER.search(before):
                continue
        elif match.group() in ("...", "…") or match.group()[-1] in "\"'”’":
            if text[match.end() : match.end() + 50].lstrip()[:1].islower():
                continue
        if _WORD.search(text, start, match.start()):
            count += 1
        start = match.end()
    return count + (_WORD.search(text, start) is not None)


def capital_words(text: str) -> list[str]:
    """The words of a text that are all in capitals, as IFEval's program parts them (without the splitter of sentences
    before it, which only decides whether a point belongs to a word)."""
    for pattern, replacement in _TREEBANK:
        text = pattern.sub(replacement, text)
    return [word for word in text.split() if word.isupper()]


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


# The kinds.


def existence(text: str, *, keywords: Sequence[str]) -> bool:
    """Every keyword occurs, in whatever case, also within a word."""
    return all(keyword.lower() in text.lower() for keyword in keywords)


def frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """The keyword, without blanks around it, occurs less than, or at least, `frequency` times."""
    return _compare(text.lower().count(keyword.strip().lower()), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    """None of the words occurs as a word of its own."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """The letter occurs less than, or at least, `let_frequency` times, in whatever case."""
    return _compare(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
    """The whole response is in the language; "zh" takes both of Chinese's scripts."""
    found = detect_language(text)
    return found is not None and (found == language or found.startswith(language + "-"))


def number_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    """Less than, or at least, `num_sentences` sentences."""
    return _compare(count_sentences(text), relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Exactly `num_paragraphs` paragraphs with the divider *** between them, none of them blank."""
    parts = [part.strip() for part in text.split("***")]
    first, last = int(not parts[0]), len(parts) - int(not parts[-1])
    return all(parts[first:last]) and last - first == num_paragraphs


def number_words(text: str, *, num_words: int, relation: str) -> bool:
    """Less than, or at least, `num_words` words."""
    return _compare(len(_WORD.findall(text)), relation, num_words)


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly `num_paragraphs` paragraphs with a blank line between them; the nth starts with `first_word`."""
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least `num_placeholders` placeholders in square brackets, such as [address]."""
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    """A postscript that starts with the marker; "P.S." and "P.P.S" may have blanks after their points."""
    spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return re.search(spaced.get(postscript_marker, re.escape(postscript_marker)), text, re.IGNORECASE) is not None


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly `num_bullets` bullet points: lines that start with a hyphen, or with one asterisk, whose text may begin
    on the next line (which is then no point of its own)."""
    asterisks = re.findall(r"^[^\S\n]*\*[^*].*$", text, re.MULTILINE)
    hyphens = re.findall(r"^[^\S\n]*-", text, re.MULTILINE)
    return len(asterisks) + len(hyphens) == num_bullets


def constrained_response(text: str) -> bool:
    """One of the three answers that are offered is given."""
    return any(answer in text for answer in _ANSWERS)


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least `num_highlights` passages within a line between asterisks: those in *one* and those in **two**, each
    searched for by itself, so that ***three*** count twice."""
    single, double = re.findall(r"\*([^\n*]*)\*", text), re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(passage.strip()) for passage in single + double) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least `num_sections` sections, each headed by the splitter and a number ("Section 1")."""
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
    return any(content.lstrip("<").rstrip(">").strip() for content, closed, _ in lines if closed)


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
    """Less than, or at least, `capital_frequency` words all in capitals."""
    return _compare(len(capital_words(text)), capital_relation, capital_frequency)


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
