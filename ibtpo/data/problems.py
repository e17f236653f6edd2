"""Questions with their reference answers, from TFDS or JSON lines, and the prompts made of them."""

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import logging

from ibtpo.data import chained_arithmetic
from ibtpo.rewards.math import find_boxes

_GROUPED_NUMBER = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_MAX_REPORTED_LINES = 20
_CHUNK = 1024  # records read and tokenised together


@dataclass(frozen=True)
class Problem:
    """One question. `id` is its index in the source order of its split (JSON lines: line number - 1),
    whatever else is dropped, so random draws keyed on it survive a change of `data.limit`.
    `kind`: how its responses are graded, a key of `ibtpo.rewards.REWARDS`; "": by reward.kind."""

    id: int
    question: str
    answer: str
    kind: str = ""


class BadRecord(ValueError):
    """A record that cannot be used; the message says why."""


class PromptLengthError(ValueError):
    """A prompt that is empty or longer than `data.max_prompt_tokens`."""


def load_problems(data_config, split: str, tokenizer=None) -> list[Problem]:
    r"""Reads one split of `data.source`, in its order, at most `data.limit` problems (0: all).

    Sources:
      "tfds:chained_arithmetic": generated at the first use into `data.dir`; `data.difficulty` names
        the difficulty.
      "jsonl:<path>": one JSON object per line; "{split}" in the path is replaced by `split`, and a
        path without it is the same file for every split. The question is `data.question_field`, the
        answer is found in `data.answer_field` by `data.answer_pattern` (see `extract_answer`).

    Lines that cannot be used are left out and reported in one warning, by file, reason and line
    number. So are problems whose prompt exceeds `data.max_prompt_tokens` when `tokenizer` is given.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown source, invalid split, difficulty or pattern, or no usable problem.
    """
    kind, _, name = data_config.source.partition(":")
    if kind == "jsonl" and name:
        name = name.replace("{split}", split)
        records = _read_jsonl(Path(name), data_config)
    elif data_config.source == f"tfds:{chained_arithmetic.ChainedArithmetic.name}":
        examples = chained_arithmetic.load(data_config.difficulty or "normal", split, data_config.dir or None)
        name = f"{name}, split {split}"
        records = _read_examples(examples)
    else:
        raise ValueError(f"unknown data.source {data_config.source!r}: use 'tfds:chained_arithmetic' or 'jsonl:<path>'")
    return _usable(records, name, data_config, tokenizer)


def format_prompt(problem: Problem, data_config, tokenizer) -> list[int]:
    r"""Token ids of the prompt: `data.prompt` with {question} filled in (as `str.format` does, so that
    literal braces are doubled), as a user turn of the chat template if `data.chat_template` (after
    `data.system_prompt` as a system turn, if there is one), else with the special tokens the tokenizer
    puts before a text (none for Qwen, one for Llama 3).

    Raises:
      ValueError: the template is no valid format or lacks {question}, the chat template is missing.
      PromptLengthError: the prompt is empty or longer than `data.max_prompt_tokens`.
    """
    tokens = _encode([problem], data_config, tokenizer)[0]
    if not 0 < len(tokens) <= data_config.max_prompt_tokens:
        raise PromptLengthError(
            f"the prompt of problem {problem.id} has {len(tokens)} tokens, "
            f"data.max_prompt_tokens allows 1 to {data_config.max_prompt_tokens}"
        )
    return tokens


def check_chat_template(data_config, tokenizer) -> None:
    """Raises ValueError where `data.chat_template` asks for a template that the tokenizer lacks."""
    if data_config.chat_template and not tokenizer.chat_template:
        raise ValueError(
            f"data.chat_template is on, but the tokenizer {tokenizer.name_or_path!r} has none: "
            "set data.chat_template=False"
        )


def extract_answer(value: Any, pattern: str) -> str:
    r"""The reference answer in a record's field.

    Args:
      value: string or number; a whole number is written without a decimal point (27.0 -> "27").
      pattern: "" takes the whole value, "boxed" the content of the last \boxed{...}, anything else is
        a regular expression with one group whose last match counts, thousands commas removed
        (GSM8K: r"####\s*(.+)").

    Raises:
      BadRecord: no answer there, or it is empty.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRecord(f"answer is a {type(value).__name__}, not a string or number")
    text = str(value)
    if pattern == "boxed":
        answer, _ = find_boxes(text)
        if answer is None:
            raise BadRecord("no \\boxed{...} in the answer field")
    elif pattern:
        matches = _compile(pattern).findall(text)
        if not matches:
            raise BadRecord(f"data.answer_pattern {pattern!r} does not match")
        answer = matches[-1].strip()
        if _GROUPED_NUMBER.fullmatch(answer):
            answer = answer.replace(",", "")
    else:
        answer = text
    if not answer.strip():
        raise BadRecord("empty answer")
    return answer.strip()


def _encode(problems: Sequence[Problem], data_config, tokenizer) -> list[list[int]]:
    """Token ids of the prompts, whatever their lengths; many at once cost much less than one by one."""
    texts = [_fill(data_config.prompt, problem.question) for problem in problems]
    if data_config.chat_template:
        check_chat_template(data_config, tokenizer)
        system = [{"role": "system", "content": data_config.system_prompt}] if data_config.system_prompt else []
        texts = [
            tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
            for text in texts
        ]
    # A chat template spells its special tokens out.
    return tokenizer(texts, add_special_tokens=not data_config.chat_template)["input_ids"] if texts else []


def _compile(pattern: str) -> re.Pattern:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"data.answer_pattern {pattern!r} is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise ValueError(f"data.answer_pattern {pattern!r} has {compiled.groups} groups: it must have one")
    return compiled


def _fill(template: str, question: str) -> str:
    try:
        filled = template.format(question=question)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(
            f"data.prompt {template!r} is no valid template ({error!r}): its only field is {{question}}, "
            "literal braces are written {{ and }}"
        ) from error
    if filled == template.format(question=""):
        raise ValueError(f"data.prompt {template!r} does not contain {{question}}")
    return filled


def _read_examples(examples: Sequence[dict[str, bytes]]) -> Iterator[tuple[int, Problem]]:
    """Yields (index, problem) of a TFDS data source, which reads many examples faster than one by one."""
    for begin in range(0, len(examples), _CHUNK):
        indices = range(begin, min(begin + _CHUNK, len(examples)))
        for index, example in zip(indices, examples.__getitems__(indices), strict=True):
            yield index, Problem(index, example["question"].decode(), example["answer"].decode())


def _read_jsonl(path: Path, data_config) -> Iterator[tuple[int, Problem | BadRecord]]:
    """Yields (line index, problem or what is wrong with the line); blank lines are skipped."""
    if data_config.answer_pattern not in ("", "boxed"):
        _compile(data_config.answer_pattern)  # a wrong pattern is no fault of the first line
    if not path.is_file():
        raise FileNotFoundError(f"data.source names {str(path)!r}, which is no file (relative to {Path.cwd()})")
    with path.open("rb") as file:
        for index, line in enumerate(file):
            if not line.strip():
                continue
            try:
                yield index, _parse(index, line, data_config)
            except BadRecord as error:
                yield index, error


def _parse(index: int, line: bytes, data_config) -> Problem:
    try:
        record = json.loads(line)
    except ValueError as error:  # of JSON, or of UTF-8
        raise BadRecord("not JSON") from error
    if not isinstance(record, dict):
        raise BadRecord("not a JSON object")
    for field in (data_config.question_field, data_config.answer_field):
        if field not in record:
            raise BadRecord(f"no field {field!r}")
    question = record[data_config.question_field]
    if not isinstance(question, str) or not question.strip():
        raise BadRecord("question is not a non-empty string")
    return Problem(index, question, extract_answer(record[data_config.answer_field], data_config.answer_pattern))


def _usable(records: Iterable[tuple[int, Problem | BadRecord]], name: str, data_config, tokenizer) -> list[Problem]:
    """The problems among `records`, up to the limit; the others are reported together."""
    problems: list[Problem] = []
    bad: dict[str, list[int]] = defaultdict(list)
    _fill(data_config.prompt, "a question")  # a wrong template is no fault of the problems
    for index, record in _check_lengths(records, data_config, tokenizer):
        if isinstance(record, BadRecord):
            bad[str(record)].append(index + 1)
            continue
        problems.append(record)
        if data_config.limit and len(problems) >= data_config.limit:
            break
    report = "; ".join(f"{reason}: {_lines(lines)}" for reason, lines in bad.items())
    if not problems:
        raise ValueError(f"{name}: no usable problem ({report or 'it is empty'})")
    if bad:
        count = sum(map(len, bad.values()))
        logging.warning("%s: %d records left out, %d used (%s)", name, count, len(problems), report)
    return problems


def _check_lengths(
    records: Iterable[tuple[int, Problem | BadRecord]], data_config, tokenizer
) -> Iterator[tuple[int, Problem | BadRecord]]:
    """The same records, with a bad one in place of each problem whose prompt is empty or too long; without a
    tokenizer, nothing is checked."""
    if tokenizer is None:
        yield from records
        return
    records, longest = iter(records), data_config.max_prompt_tokens
    too_long = BadRecord(f"prompt longer than data.max_prompt_tokens={longest}")
    while chunk := list(itertools.islice(records, _CHUNK)):
        prompts = iter(_encode([r for _, r in chunk if isinstance(r, Problem)], data_config, tokenizer))
        for index, record in chunk:
            fits = isinstance(record, BadRecord) or 0 < len(next(prompts)) <= longest
            yield index, record if fits else too_long


def _lines(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_MAX_REPORTED_LINES]))
    more = len(numbers) - _MAX_REPORTED_LINES
    return f"line {shown}" + (f" and {more} more" if more > 0 else "")
