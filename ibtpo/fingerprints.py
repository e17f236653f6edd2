"""Fingerprints of what a run is made from: the problems, the model and the tokenizer.

They are saved with every checkpoint and compared when the run is resumed (docs/resuming.md), since a path may come to
name other content.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ibtpo.checkpoints import sums
from ibtpo.checkpoints.arrays import flatten
from ibtpo.data.problems import Problem
from ibtpo.errors import UserError
from ibtpo.policy import Policy


def fingerprints(policy: Policy, problems: list[Problem], *, chat_template: bool) -> dict[str, str]:
    """{"data": ..., "model": ..., "tokenizer": ...}, each a text that is equal if and only if the content is.

    On several hosts all call this. The policy still holds the weights of its folder.

    Args:
      policy: as loaded.
      problems: those trained on.
      chat_template: whether prompts are made with the tokenizer's template.
    """
    return {
        "data": _of_problems(problems),
        "model": of_model(policy),
        "tokenizer": _of_tokenizer(policy, chat_template),
    }


def check_same(place: Any, saved: Mapping[str, str], now: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Compares the fingerprints of a checkpoint with the present ones.

    Args:
      place: of the checkpoints, for the message.
      names: {kind: the key of the configuration, with its value, that names the content}.

    Raises:
      UserError: one differs; with all that do, and the way out.
    """
    differ = [name for name in now if saved.get(name) != now[name]]
    if differ:
        listed = "; ".join(f"the {name} of {names[name]} ({_words(saved.get(name), now[name])})" for name in differ)
        raise UserError(
            f"{place} belongs to a run on other inputs: {listed} differ from what it was made with: bring back the "
            "files it was made with, or choose a new --workdir (and checkpoint.dir) for a run on these"
        )


def _words(saved: str | None, now: str) -> str:
    return f"{saved or 'not recorded'} then, {now} now"


def _of_problems(problems: Sequence[Problem]) -> str:
    """Of questions, answers, reward kinds and prompts in their order, whatever file they came from."""
    found = hashlib.blake2b(digest_size=8)
    for problem in problems:
        fields = [problem.question, problem.answer, problem.kind, problem.prompt]
        found.update(json.dumps(fields).encode() + b"\n")
    return f"{len(problems)} problems {found.hexdigest()}"


def of_model(policy: Policy) -> str:
    """Of the architecture and of every weight as it was loaded, added up on the devices (`checkpoints.sums`)."""
    found = sums.sums(flatten(policy.params))
    return _digest([dataclasses.asdict(policy.model), sorted(found.items())])


def _of_tokenizer(policy: Policy, chat_template: bool) -> str:
    """Of the mapping from text to tokens, the tokens that end a response and, where it is used, the chat template."""
    tokenizer = policy.tokenizer
    mapping = json.loads(tokenizer.backend_tokenizer.to_str())
    # What a call of it was asked for last.
    state = {name: value for name, value in mapping.items() if name not in ("truncation", "padding")}
    template = tokenizer.chat_template if chat_template else None
    special = sorted(map(str, tokenizer.all_special_ids))
    return _digest([state, special, list(map(int, policy.codec.stop_ids)), template])


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
