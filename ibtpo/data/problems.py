"""Questions with their reference answers, from TFDS, JSON lines or parquet, and the prompts made of them."""

import bisect
import functools
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from absl import logging

from ibtpo import choices
from ibtpo.data import published_problems
from ibtpo.data.generated import TASKS
from ibtpo.data.prompts import apply_chat_template, encode_prompts
from ibtpo.data.published import DATASETS
from ibtpo.data.records import (
    UNITS,
    BadRecord,
    compile_pattern,
    extract_answer,
    find_field,
    find_paths,
    find_question,
    list_places,
    read_records,
)
from ibtpo.errors import UserError

_CHUNK = 1024  # records read and tokenised together


@dataclass(frozen=True)
class Problem:
    """One question. `id` is its index in the source order of its split (JSON lines: line number - 1, after the lines of
    the files before), whatever else is dropped, so random draws keyed on it survive a change of `data.limit`.

    answer: the reference, a text whose form `kind` says. kind: reward kind (`ibtpo.rewards.REWARDS`), "" is the
    config's `reward.kind`. prompt: template with {question}, "" is the config's `data.prompt`. prompt_tokens: of the
    prompt, a stop token at its end included; 0 where nobody has counted them.
    """

    id: int
    question: str
    answer: str
    kind: str = ""
    prompt: str = ""
    prompt_tokens: int = field(default=0, compare=False)


class _TooLong(BadRecord):
    """A problem whose prompt has more `tokens` than `data.max_prompt_tokens`."""

    def __init__(self, tokens: int, allowed: int):
        super().__init__(f"prompt longer than data.max_prompt_tokens={allowed}")
        self.tokens = tokens


class PromptLengthError(UserError):
    """A prompt that is empty or longer than `data.max_prompt_tokens`."""


def load_problems(data_config, split: str, tokenizer=None) -> list[Problem]:
    r"""Reads one split of `data.source`, in its order, at most `data.limit` problems (0: all).

    Sources:
      "tfds:<name>" of `choices.GENERATED`: generated at the first use into `data.dir`; `data.difficulty` names
        the difficulty.
      "tfds:<name>" of `published.DATASETS`: prepared at the first use into `data.dir` from the
        publisher's files (`data.files`, or through the hub), with their own reward kind.
      "jsonl:<path>", "parquet:<path>": one problem per line or row of a file, of the files of a folder, or of those
        that a pattern matches (`find_paths`); "{split}" in the path is replaced by `split`, and a path without it is
        the same for every split. The question is `data.question_field`, the answer is found in `data.answer_field` by
        `data.answer_pattern` (see `extract_answer`); dotted names lead into nested fields (see `find_field`).

    Records that cannot be used are left out and reported in one warning, by file, reason, count and
    line number. So are problems whose prompt exceeds `data.max_prompt_tokens` when `tokenizer` is given.

    Raises:
      UserError: no such file, unknown source, invalid split (slices are for TFDS), difficulty or pattern, a number
        of rows that is not the publisher's (`published_problems.load`), or no usable problem.
    """
    source, _, name = data_config.source.partition(":")
    if source in ("jsonl", "parquet") and name:
        if "[" in split:
            raise UserError(
                f"split {split!r} is a slice, which {data_config.source!r} has none of: set data.train_split and "
                "data.eval_split to the name that {split} in the path stands for"
            )
        name = name.replace("{split}", split)
        files = find_paths(name, f".{source}")
        if not files:
            raise UserError(
                f"data.source names {name!r}, which is no file, no folder with a .{source} file and no pattern of files"
                f" (relative to {Path.cwd()})"
            )
        ends: list[int] = []
        records, places = _read_files(files, ends, data_config), _places(files, ends, UNITS[f".{source}"])
    elif source == "tfds" and name in TASKS:
        folder = os.path.expanduser(data_config.dir) or None
        examples = TASKS[name].load(data_config.difficulty or "normal", split, folder)
        make = functools.partial(Problem, kind=TASKS[name].kind)
        records, places = _read_examples(examples, make), functools.partial(list_places, "example")
    elif source == "tfds" and name in DATASETS:
        dataset = DATASETS[name]
        examples = published_problems.load(dataset, split, data_config)
        make = functools.partial(Problem, kind=dataset.kind, prompt=dataset.prompt)
        records, places = _read_examples(examples, make), functools.partial(list_places, "example")
    else:
        raise UserError(
            f"unknown data.source {data_config.source!r}: use 'jsonl:<path>', 'parquet:<path>', or 'tfds:<name>' with "
            f"one of {', '.join([*choices.GENERATED, *DATASETS])}"
        )
    if source == "tfds":
        name = f"{name}, split {split}"
    return _usable(records, name, places, data_config, tokenizer)


def format_prompt(problem: Problem, data_config, tokenizer, stop_ids: Collection[int] = ()) -> list[int]:
    r"""Token ids of the prompt: the problem's own template, or else `data.prompt`, with {question} filled in
    (as `str.format` does, so that literal braces are doubled), as a user turn of the chat template if
    `data.chat_template` (after `data.system_prompt` as a system turn, if there is one), else with the
    special tokens the tokenizer puts before a text (none for Qwen, one for Llama 3). A beginning-of-sequence token
    that a chat template forgets is added, and a stop token at the end (one of stop_ids, or the tokenizer's own) left
    out, see `prompts.encode_prompts`.

    Raises:
      UserError: the template is no valid format or lacks {question}, the chat template is missing, raises, or ends with
        a stop token.
      PromptLengthError: the prompt is empty or longer than `data.max_prompt_tokens`.
    """
    tokens = _encode([problem], data_config, tokenizer, stop_ids)[0]
    if not 0 < len(tokens) <= data_config.max_prompt_tokens:
        raise PromptLengthError(
            f"the prompt of problem {problem.id} has {len(tokens)} tokens, "
            f"data.max_prompt_tokens allows 1 to {data_config.max_prompt_tokens}"
        )
    return tokens


def prompt_lengths(problems: Sequence[Problem], data_config, tokenizer) -> list[int]:
    """Tokens of the problems' prompts, as `format_prompt` makes them, whatever `data.max_prompt_tokens` says."""
    return [len(tokens) for tokens in _encode(problems, data_config, tokenizer)]


def lengths_to_prefill(problems: Sequence[Problem]) -> set[int]:
    """The lengths that prompts of these problems can have; empty where one's tokens have not been counted."""
    counted = {problem.prompt_tokens for problem in problems}
    # `format_prompt` leaves out a stop token at the end, which may be one that only it knows of.
    return set() if 0 in counted else counted | {tokens - 1 for tokens in counted if tokens > 1}


def check_chat_template(data_config, tokenizer) -> None:
    """Raises UserError where `data.chat_template` asks for a template that the tokenizer lacks."""
    if data_config.chat_template and not tokenizer.chat_template:
        raise UserError(
            f"data.chat_template is on, but the tokenizer {tokenizer.name_or_path!r} has none: "
            "set data.chat_template=False"
        )


def check_prompts(data_config, tokenizer, stop_ids: Collection[int]) -> None:
    """Makes the prompt of a question, so that what is wrong with template and tokenizer shows before anything else is
    done.

    Raises:
      UserError: as `format_prompt` does, or the chat template leaves the question out.
    """
    problem = Problem(0, "What is 1 + 1?", "2")
    if data_config.chat_template and problem.question not in _texts([problem], data_config, tokenizer)[0]:
        raise UserError(
            f"the chat template of the tokenizer {tokenizer.name_or_path!r} leaves the question out: fetch it again, "
            "or set data.chat_template=False"
        )
    _encode([problem], data_config, tokenizer, stop_ids)


def _encode(
    problems: Sequence[Problem], data_config, tokenizer, stop_ids: Collection[int] = ()
) -> list[list[int]]:
    """Token ids of the prompts, whatever their lengths; many at once cost much less than one by one."""
    return encode_prompts(
        _texts(problems, data_config, tokenizer),
        tokenizer,
        chat=data_config.chat_template,
        stop_ids=stop_ids,
        way_out="set data.chat_template=False",
    )


def _texts(problems: Sequence[Problem], data_config, tokenizer) -> list[str]:
    texts = [_fill(problem.prompt or data_config.prompt, problem.question) for problem in problems]
    if not data_config.chat_template:
        return texts
    check_chat_template(data_config, tokenizer)
    system, way_out = [], "set data.chat_template=False"
    if data_config.system_prompt:
        system = [{"role": "system", "content": data_config.system_prompt}]
        way_out = 'set data.system_prompt="" (not every template has such a turn) or data.chat_template=False'
    turns = ([*system, {"role": "user", "content": text}] for text in texts)
    return [apply_chat_template(tokenizer, messages, way_out) for messages in turns]


def _fill(template: str, question: str) -> str:
    try:
        filled = template.format(question=question)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(
            f"data.prompt {template!r} is no valid template ({error!r}): its only field is {{question}}, "
            "literal braces are written {{ and }}"
        ) from error
    if filled == template.format(question=""):
        raise UserError(f"data.prompt {template!r} does not contain {{question}}")
    return filled


def _read_examples(
    examples: Any, make: Callable[[int, str, str], Problem]
) -> Iterator[tuple[int, Problem]]:
    """Yields (index, problem) of a TFDS data source, which reads many examples faster than one by one."""
    for begin in range(0, len(examples), _CHUNK):
        indices = range(begin, min(begin + _CHUNK, len(examples)))
        for index, example in zip(indices, examples.__getitems__(indices), strict=True):
            yield index, make(index, example["question"].decode(), example["answer"].decode())


def _read_files(files: Sequence[Path], ends: list[int], data_config) -> Iterator[tuple[int, Problem | BadRecord]]:
    """Yields (index, problem or BadRecord) of files of JSON lines or parquet, one after the other. The index goes on
    from file to file; where those of a file end is appended to `ends`."""
    if data_config.answer_pattern not in ("", "boxed"):
        compile_pattern(data_config.answer_pattern)  # a wrong pattern is no fault of the first record
    question_field, answer_field = data_config.question_field, data_config.answer_field
    begin = end = 0
    for path in files:
        for place, record in read_records(path, (question_field, answer_field)):
            index, end = begin + place, begin + place + 1
            try:
                if isinstance(record, BadRecord):
                    raise record
                question = find_question(record, (question_field,))
                answer = extract_answer(find_field(record, (answer_field,)), data_config.answer_pattern)
                yield index, Problem(index, question, answer)
            except BadRecord as error:
                yield index, error
        begin = end
        ends.append(end)


def _places(files: Sequence[Path], ends: Sequence[int], unit: str) -> Callable[[Sequence[int]], str]:
    """The places of indices of `_read_files` in words, by file where there are several."""

    def describe(indices: Sequence[int]) -> str:
        if len(files) == 1:
            return list_places(unit, indices)
        lines: dict[int, list[int]] = defaultdict(list)
        for index in indices:
            file = bisect.bisect_right(ends, index)
            lines[file].append(index - (ends[file - 1] if file else 0))
        return ", ".join(f"{files[file]} {list_places(unit, places)}" for file, places in lines.items())

    return describe


def _usable(
    records: Iterable[tuple[int, Problem | BadRecord]],
    name: str,
    places: Callable[[Sequence[int]], str],
    data_config,
    tokenizer,
) -> list[Problem]:
    """The problems among the records of `name`, up to the limit; the others are reported together, by their places."""
    problems: list[Problem] = []
    bad: dict[str, list[int]] = defaultdict(list)
    longest = 0
    _fill(data_config.prompt, "a question")  # a wrong template is no fault of the problems
    for index, record in _check_lengths(records, data_config, tokenizer):
        if isinstance(record, BadRecord):
            bad[str(record)].append(index)
            longest = max(longest, record.tokens if isinstance(record, _TooLong) else 0)
            continue
        problems.append(record)
        if data_config.limit and len(problems) >= data_config.limit:
            break
    report = "; ".join(f"{reason} ({len(indices)}): {places(indices)}" for reason, indices in bad.items())
    if not problems:
        way_out = ": see data.source, data.question_field, data.answer_field and data.answer_pattern"
        if longest:
            way_out = f": the longest has {longest} tokens, set data.max_prompt_tokens={longest} or more"
        raise UserError(f"{name}: no usable problem ({report or 'it is empty'}){way_out}")
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
    records, allowed = iter(records), data_config.max_prompt_tokens
    while chunk := list(itertools.islice(records, _CHUNK)):
        prompts = iter(_encode([r for _, r in chunk if isinstance(r, Problem)], data_config, tokenizer))
        for index, record in chunk:
            if isinstance(record, Problem):
                tokens = len(next(prompts))
                if tokens > allowed:
                    record = _TooLong(tokens, allowed)
                elif not tokens:
                    record = BadRecord("empty prompt")
                else:
                    record = replace(record, prompt_tokens=tokens)
            yield index, record
