"""A checkpoint made ready to use: the decoder, its tokenizer, and how text is cut, stopped and graded.

The part that every command shares: `load_policy` reads a Hugging Face directory, `make_sampler` builds the
tree sampler that a config describes.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging
from flax import nnx
from jax import numpy as jnp
from jax.sharding import Mesh

from ibtpo import parallel
from ibtpo.config import stop_strings
from ibtpo.data.problems import Problem, check_prompts, format_prompt
from ibtpo.data.tokenizer import check_vocabulary, find_special, load_tokenizer, token_bytes
from ibtpo.errors import UserError
from ibtpo.models import hf
from ibtpo.models.config import ModelConfig
from ibtpo.models.hf.files import read_token_ids
from ibtpo.models.locate import configured_folder, model_folder
from ibtpo.models.lora import LoraOptions, stored_dtype
from ibtpo.models.presets import PRESETS
from ibtpo.profiling import phase
from ibtpo.rewards import find_statement
from ibtpo.rewards.pool import Grader
from ibtpo.sampling import Codec, Question, TreeOptions, TreeSampler
from ibtpo.sizing import size_sampler


@dataclass(frozen=True)
class Policy:
    """A decoder split into structure and parameters, with its tokenizer.

    graphdef: the decoder's structure; nnx.merge(graphdef, params) is the decoder. params: as loaded,
    or None where somebody else holds them.
    codec: where its responses, their steps and their answers begin and end, and their text.
    """

    model: ModelConfig
    graphdef: nnx.GraphDef
    params: nnx.State | None
    tokenizer: Any
    codec: Codec

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of generated tokens, without special tokens and the stop string that ended them."""
        return self.codec.answer_text(tokens)

    def with_params(self, params: nnx.State | None) -> "Policy":
        """The same policy with other parameters."""
        return dataclasses.replace(self, params=params)

    def question(self, id: int, problem: Problem, data_config: Any) -> Question:
        """The problem's prompt as the sampler takes it. id: its random draws depend on it."""
        find_answer = find_statement(problem.kind) if problem.kind else None
        return Question(id, format_prompt(problem, data_config, self.tokenizer, self.codec.stop_ids), find_answer)


def load_policy(
    config: Any,
    *,
    path: str | pathlib.Path | None = None,
    mesh: Mesh | None = None,
    check: Callable[[Any, ModelConfig], None] | None = None,
) -> Policy:
    """Loads `path` (default: config.model.path, of the hub too), a Hugging Face directory; with a mesh, each parameter
    straight into the place that `parallel.shardings` gives it. Everything else is checked before the weights are read.
    check: of the config and the model's sizes, what the caller wants to know before that (`ibtpo.memory`).

    Raises:
      UserError: no model there, or not the one that model.preset names, or too small for model.lora_rank; prompt and
        response cannot fit the model's positions; tokenizer, model, data.chat_template or sampling.stop_tokens do not
        go together.
    """
    folder = model_folder(path) if path else configured_folder(config.model)
    preset = config.model.preset if path is None else ""
    if preset and not (folder / "config.json").is_file():
        raise UserError(
            f"model.path={folder} holds no model: fetch it with `hf download {preset} --local-dir {folder}`"
        )
    model = hf.read_config(folder)
    if preset:
        _check_preset(model, preset, folder)
    _check_sizes(config, model, folder)
    if check is not None:
        check(config, model)
    ends = {name: read_token_ids(folder / name, "eos_token_id") for name in ("config.json", "generation_config.json")}
    tokenizer = load_tokenizer(folder)
    table = token_bytes(tokenizer)
    check_vocabulary(tokenizer, model.vocab_size)
    stop_ids = _stop_ids(folder, tokenizer, config.sampling.stop_tokens, ends, model.vocab_size)
    check_prompts(config.data, tokenizer, stop_ids)
    decoder = hf.load(
        folder,
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=jnp.dtype(stored_dtype(config.model)),
        shardings=None if mesh is None else lambda params: parallel.shardings(params, mesh),
        finite=True,
    )
    graphdef, params = nnx.split(decoder, nnx.Param)
    table += [b""] * (model.vocab_size - len(table))  # vocabularies are often padded
    for token in stop_ids:
        table[token] = b""  # an end is no text, even one that is not marked as special
    return Policy(
        model=model,
        graphdef=graphdef,
        params=params,
        tokenizer=tokenizer,
        codec=Codec(
            model.vocab_size,
            stop_ids=stop_ids,
            stop_strings=stop_strings(config.sampling.stop_strings) or (),
            token_bytes=table,
            separator=None if config.data.step_rule == "sentence" else config.data.separator.encode(),
            moved_steps=config.data.moved_steps,
            find_answer=find_statement(config.reward.kind),
        ),
    )


def _check_sizes(config: Any, model: ModelConfig, folder: pathlib.Path) -> None:
    longest = config.data.max_prompt_tokens + config.sampling.max_new_tokens
    if longest > model.max_positions:
        raise UserError(
            f"data.max_prompt_tokens + sampling.max_new_tokens = {longest} but {folder} has "
            f"{model.max_positions} positions: lower one of the two"
        )
    if (adapters := LoraOptions.from_config(config.model)) is not None:
        adapters.check(model)


def _check_preset(model: ModelConfig, preset: str, folder: pathlib.Path) -> None:
    """Refuses another model than the published one. Its number of positions may differ: it is part of no array."""
    expected = dataclasses.asdict(PRESETS[preset])
    found = dataclasses.asdict(model)
    differences = [
        f"{name} is {found[name]}, not {value}"
        for name, value in expected.items()
        if name != "max_positions" and found[name] != value
    ]
    if differences:
        raise UserError(
            f"model.path={folder} is not model.preset={preset}: {'; '.join(differences)}: name the right folder, or "
            'set model.preset to ""'
        )


def _stop_ids(
    folder: pathlib.Path, tokenizer, names: str, ends: dict[str, list[int]], vocab_size: int
) -> tuple[int, ...]:
    """The tokens of sampling.stop_tokens or, where that is empty, the tokenizer's end-of-sequence token and those
    generation_config.json adds (chat models end a turn with a token of their own). ends: the end-of-sequence tokens
    that each file names."""
    if names:
        try:
            ids = set(find_special(tokenizer, names))
        except ValueError as error:
            raise UserError(f"sampling.stop_tokens={names!r}: {error}") from None
    else:
        ids = {tokenizer.eos_token_id, *ends["generation_config.json"]} - {None}
    if not ids:
        raise UserError(
            f"{folder}: neither the tokenizer nor generation_config.json names an end-of-sequence token, so no "
            "response could end: name one in sampling.stop_tokens"
        )
    if max(ids) >= vocab_size:
        raise UserError(
            f"{folder}: the end-of-sequence token {max(ids)} is outside the model's vocab_size {vocab_size}"
        )
    stops = ", ".join(f"{tokenizer.convert_ids_to_tokens(id)} ({id})" for id in sorted(ids))
    logging.info("%s: responses end at %s", folder, stops)
    if missed := sorted(set(ends["config.json"]) - ids):
        # Published folders do disagree here; only the user knows which token the model was trained to end with.
        logging.warning(
            "%s: responses end at %s, not at the eos_token_id %s of config.json; sampling.stop_tokens decides",
            folder,
            stops,
            ", ".join(f"{tokenizer.convert_ids_to_tokens(id)} ({id})" for id in missed),
        )
    return tuple(sorted(ids))


def make_sampler(
    policy: Policy,
    config: Any,
    *,
    questions: int = 0,
    training: bool = False,
    pages: int | None = None,
    **changes: Any,
) -> TreeSampler:
    """The sampler the config describes, sized for the memory there is (`sizing.size_sampler`). questions: the most of a
    call; 0: any number. training: whether the optimizer's state is there too. pages: instead of sampling.pages.
    changes: fields of `TreeOptions`."""
    tree = TreeOptions.from_config(config, **changes)
    options = size_sampler(config, policy.model, tree, questions=questions, training=training)
    return TreeSampler(
        policy.graphdef,
        policy.model,
        options if pages is None else dataclasses.replace(options, pages=pages),
        tree,
        policy.codec,
        dtype=jnp.dtype(config.model.dtype),
    )


def make_grader(config: Any) -> Grader:
    """The grading processes of the `reward` section."""
    reward = config.reward
    return Grader(
        reward.kind,
        workers=reward.workers,
        timeout=reward.timeout,
        memory_mb=reward.memory_mb,
        unevaluated=reward.unevaluated,
    )


def make_grade(
    policy: Policy,
    grader: Grader,
    problems: dict[int, Problem],
) -> Callable[..., Future]:
    """The sampler's `grade`: detokenise a response and submit it against its problem's answer, by its problem's kind;
    of one that was cut off, what it stated before.

    problems: by question id.
    """

    def grade(question: Question, tokens: np.ndarray, truncated: bool = False) -> Future:
        problem = problems[question.id]
        with phase("grade"):
            return grader.submit(policy.text(tokens), problem.answer, problem.kind or None, truncated=truncated)

    return grade
