"""A checkpoint made ready to use: the decoder, its tokenizer, and how text is cut, stopped and graded.

What every command shares: `load_policy` reads a Hugging Face directory, `make_sampler` builds the
tree sampler that a config describes.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from flax import nnx
from jax import numpy as jnp

from ibtpo.data.problems import Problem, format_prompt
from ibtpo.data.tokenizer import load_tokenizer, step_ends, token_bytes
from ibtpo.models import hf
from ibtpo.models.config import ModelConfig
from ibtpo.rewards.pool import Grader
from ibtpo.sampling.engine import Question, SamplerOptions, TreeSampler
from ibtpo.sampling.strategies import TreeOptions

ANSWER_MARKER = b"\\boxed"  # from here on a response states its result and reasons no more


@dataclass(frozen=True)
class Policy:
    """A decoder split into structure and parameters, with its tokenizer.

    graphdef: the decoder's structure; nnx.merge(graphdef, params) is the decoder. params: as loaded,
    or None where somebody else holds them.
    stop_ids: tokens that end a response. separator: bytes between steps.
    """

    model: ModelConfig
    graphdef: nnx.GraphDef
    params: nnx.State | None
    tokenizer: object
    table: list[bytes]
    stop_ids: tuple[int, ...]
    separator: bytes

    def step_ends(self, tokens: np.ndarray) -> list[int]:
        """Exclusive ends of a response's steps, in tokens."""
        return step_ends(tokens, self.table, self.separator, self.stop_ids)

    def answer_start(self, tokens: np.ndarray) -> int:
        """Index of the token in which the first answer marker begins; len(tokens) without one."""
        pieces = [self.table[token] for token in tokens]
        at = b"".join(pieces).find(ANSWER_MARKER)
        if at < 0:
            return len(pieces)
        return int(np.searchsorted(np.cumsum([len(piece) for piece in pieces]), at, side="right"))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, without special tokens."""
        return b"".join(self.table[token] for token in tokens).decode("utf-8", errors="replace")

    def with_params(self, params: nnx.State | None) -> "Policy":
        """The same policy with other parameters."""
        return dataclasses.replace(self, params=params)

    def question(self, id: int, problem: Problem, data_config) -> Question:
        """The problem's prompt as the sampler takes it. id: what its random draws depend on."""
        return Question(id, format_prompt(problem, data_config, self.tokenizer))


def load_policy(config, *, path: str | pathlib.Path | None = None, shardings=None) -> Policy:
    """Loads `path` (default: config.model.path), a Hugging Face directory.

    Raises ValueError where prompt and response cannot fit the model's positions.
    """
    path = pathlib.Path(path or config.model.path)
    decoder = hf.load(
        path, dtype=jnp.dtype(config.model.dtype), param_dtype=jnp.dtype(config.model.param_dtype), shardings=shardings
    )
    longest = config.data.max_prompt_tokens + config.sampling.max_new_tokens
    if longest > decoder.config.max_positions:
        raise ValueError(
            f"data.max_prompt_tokens + sampling.max_new_tokens = {longest} but {path} has "
            f"{decoder.config.max_positions} positions: lower one of the two"
        )
    tokenizer = load_tokenizer(path)
    graphdef, params = nnx.split(decoder, nnx.Param)
    table = token_bytes(tokenizer)
    table += [b""] * (decoder.config.vocab_size - len(table))  # vocabularies are often padded
    return Policy(
        model=decoder.config,
        graphdef=graphdef,
        params=params,
        tokenizer=tokenizer,
        table=table,
        stop_ids=_stop_ids(path, tokenizer),
        separator=config.data.separator.encode(),
    )


def _stop_ids(path: pathlib.Path, tokenizer) -> tuple[int, ...]:
    """The tokenizer's end-of-sequence token and those generation_config.json adds (chat models end
    a turn with a token of their own)."""
    ids = {tokenizer.eos_token_id} - {None}
    file = path / "generation_config.json"
    if file.exists():
        extra = json.loads(file.read_text()).get("eos_token_id") or []
        ids.update(extra if isinstance(extra, list) else [extra])
    if not ids:
        raise ValueError(
            f"{path}: neither the tokenizer nor generation_config.json names an "
            "end-of-sequence token, so no response could end"
        )
    return tuple(sorted(ids))


def tree_options(config, **changes) -> TreeOptions:
    """The `tree` section (and sampling.max_new_tokens) as `TreeOptions`."""
    values = {**config.tree.to_dict(), "max_new_tokens": config.sampling.max_new_tokens, **changes}
    return TreeOptions(**values)


def make_sampler(policy: Policy, config, **changes) -> TreeSampler:
    """The sampler the config describes. changes: fields of `TreeOptions` to override."""
    return TreeSampler(
        policy.graphdef,
        policy.model,
        SamplerOptions.from_config(config),
        tree_options(config, **changes),
        stop_ids=policy.stop_ids,
        step_ends=policy.step_ends,
        answer_start=policy.answer_start,
        dtype=jnp.dtype(config.model.dtype),
    )


def make_grader(config) -> Grader:
    """The grading processes of the `reward` section."""
    reward = config.reward
    return Grader(reward.kind, workers=reward.workers, timeout=reward.timeout, memory_mb=reward.memory_mb)


def make_grade(
    policy: Policy,
    grader: Grader,
    problems: dict[int, Problem],
) -> Callable[[Question, np.ndarray], Future]:
    """The sampler's `grade`: detokenise a response and submit it against its problem's answer.

    problems: by question id.
    """

    def grade(question: Question, tokens: np.ndarray) -> Future:
        return grader.submit(policy.text(tokens), problems[question.id].answer)

    return grade
