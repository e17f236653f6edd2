"""Supervised training: worked solutions packed into rows, and the mean of -log pi over their tokens."""

import contextlib
import functools
import itertools
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from ibtpo import choices, hub
from ibtpo.compilation_cache import enable_compilation_cache
from ibtpo.config import check_folder, flatten
from ibtpo.data.generated import TASKS
from ibtpo.data.problems import Problem, format_prompt
from ibtpo.data.records import BadRecord, find_paths, find_question, read_records
from ibtpo.data.tokenizer import load_tokenizer, token_bytes
from ibtpo.errors import UserError
from ibtpo.interruption import folder_lost
from ibtpo.losses import token_log_probs
from ibtpo.metrics import MetricWriter, Progress, sinks
from ibtpo.models import hf
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import REMAT, Decoder
from ibtpo.models.locate import configured_folder
from ibtpo.optimizer import make_optimizer
from ibtpo.packing import TokenBatch
from ibtpo.profiling import Profile, phase
from ibtpo.workdir_lock import locked


def solutions(data: ConfigDict, seed: int) -> Iterator[tuple[Problem, str]]:
    """Endless stream of problems, each with a worked solution.

    data.source "arithmetic", "navigation" or "countdown" draws new problems of the training split of this generated
    task for ever, never those of the held-out splits, and mistakes at the rate data.noise per step; "jsonl:<path>" goes
    through the file's records again and again, in a new order each time.

    Raises:
      UserError: unknown source, a file without records, or a record without both texts.
    """
    rng = np.random.default_rng(seed)
    kind, _, path = data.source.partition(":")
    if data.source in choices.WORKED:
        task = TASKS[choices.WORKED[data.source]]
        for i, (problem, solution) in enumerate(task.solutions(data.difficulty, rng, data.noise)):
            yield Problem(i, problem.question, problem.answer), solution
    elif kind == "jsonl":
        pairs = []
        for file in find_paths(path, ".jsonl") or [pathlib.Path(path)]:
            for index, record in read_records(file):
                try:
                    if isinstance(record, BadRecord):
                        raise record
                    fields = (data.question_field, data.solution_field)
                    pairs.append([find_question(record, [field]) for field in fields])
                except BadRecord as error:
                    raise UserError(f"data.source: {file}, line {index + 1}: {error}") from error
        if not pairs:
            raise UserError(f"data.source: {path} holds no record")
        while True:
            for i in rng.permutation(len(pairs)):
                question, solution = pairs[i]
                yield Problem(int(i), question, answer=""), solution
    else:
        known = " nor ".join(map(repr, [*choices.WORKED, "jsonl:<path>"]))
        raise UserError(f"data.source={data.source!r} is neither {known}")


def pack(examples: Iterable[tuple[list[int], list[int]]], *, rows: int, row_tokens: int) -> Iterator[TokenBatch]:
    """Batches [rows, row_tokens] of examples (prompt tokens, solution tokens), several per row.

    An example is a tree of one path: subtree_end is its end, so neighbours do not see each other. It goes to the first
    row with room; the batch is full when there is none. weight is 1 on the solution's tokens.

    Raises:
      UserError: an example is longer than a row.
    """
    batch, used = _empty_batch(rows, row_tokens), np.zeros(rows, np.int64)
    for prompt, solution in examples:
        length = len(prompt) + len(solution)
        if length > row_tokens:
            raise UserError(f"an example of {length} tokens does not fit train.row_tokens={row_tokens}: raise it")
        if (used + length > row_tokens).all():
            yield batch
            batch, used = _empty_batch(rows, row_tokens), np.zeros(rows, np.int64)
        row = int(np.argmax(used + length <= row_tokens))
        start, end = used[row], used[row] + length
        place = (row, slice(start, end))
        batch.tokens[place] = prompt + solution
        batch.positions[place] = np.arange(length)
        batch.subtree_end[place] = end
        batch.parent_token[place] = np.maximum(np.arange(start, end) - 1, start)
        batch.weight[row, start + len(prompt) : end] = 1
        used[row] = end


def _empty_batch(rows: int, row_tokens: int) -> TokenBatch:
    index = np.tile(np.arange(row_tokens, dtype=np.int32), (rows, 1))
    zeros = np.zeros((rows, row_tokens), np.float32)
    return TokenBatch(
        tokens=np.zeros_like(index),
        positions=np.zeros_like(index),
        subtree_end=index + 1,
        parent_token=index.copy(),
        log_probs=zeros,
        positive=zeros,
        negative=zeros,
        weight=zeros.copy(),
    )


def make_update(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, *, remat: str):
    """update(params, opt_state, batch) -> (params, opt_state, loss), jitted; its arguments are donated.

    loss = mean over the solution tokens of -log pi(token | prompt and the tokens before it).
    """

    def loss_fn(params, batch: TokenBatch) -> jax.Array:
        log_probs, _ = token_log_probs(nnx.merge(graphdef, params), batch, remat=remat)
        return -(batch.weight * log_probs).sum() / batch.weight.sum()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return update


def _check(config: ConfigDict) -> None:
    """Raises UserError for settings that would fail late; the command line checks all of them (`SFT_RULES`)."""
    remats = ("none", *REMAT)
    if config.model.remat not in remats:
        raise UserError(f"model.remat={config.model.remat!r} is none of {', '.join(remats)}")
    for key in ("steps", "rows", "row_tokens"):
        if config.train[key] < 1:
            raise UserError(f"train.{key}={config.train[key]} must be at least 1")
    if config.log.every < 1:
        raise UserError(f"log.every={config.log.every} must be at least 1 update")
    make_optimizer(config.optimizer, config.train.steps)  # refuses a warm-up that is longer than the run


def run(config: ConfigDict, workdir: str, profile: Profile | None = None) -> None:
    """Trains for config.train.steps updates and writes the model directory config.output. profile: the updates to
    trace.

    Raises:
      UserError: a setting, the data or a folder cannot be used.
    """
    _check(config)
    check_folder("output", config.output)
    enable_compilation_cache(config)
    with locked([workdir], on_lost=folder_lost):
        train(config, workdir, profile or Profile())


def train(config: ConfigDict, workdir: str, profile: Profile) -> None:
    """The same, in folders that are checked and its own."""
    config = hub.with_pins(config, hub.pins(config, sections=["model"]))
    revision = config.model.revision if config.tokenizer == config.model.path else ""
    own = configured_folder({"path": config.tokenizer, "revision": revision}, hub.TOKENIZER_FILES)
    tokenizer = load_tokenizer(own)
    token_bytes(tokenizer)  # refuses a tokenizer that later runs refuse, before the weights are read
    dtypes = dict(dtype=jnp.dtype(config.model.dtype), param_dtype=jnp.dtype(config.model.param_dtype))
    if config.model.path:
        decoder = hf.load(configured_folder(config.model), **dtypes, finite=True)
    else:
        architecture = ModelConfig(vocab_size=len(tokenizer), **config.model.architecture)
        decoder = Decoder(architecture, rngs=nnx.Rngs(config.train.seed), **dtypes)
    graphdef, params = nnx.split(decoder, nnx.Param)
    batches = _read_batches(config, tokenizer)
    batches = itertools.chain([next(batches)], batches)  # what is wrong with the data is said before a file is made
    with (
        sinks.opened(config, workdir, anew=True) as opened,
        MetricWriter(
            workdir, config.log.tensorboard, resume_step=0, sinks=opened, hparams=flatten(config)
        ) as writer,
        Progress(config.train.steps, description="sft") as progress,
        contextlib.closing(profile),
    ):
        params = _fit(config, workdir, graphdef, params, batches, writer, progress, profile)
        hf.save(
            nnx.merge(graphdef, params),
            config.output,
            tokenizer_from=own,
            token_ids={"eos_token_id": tokenizer.eos_token_id},
        )
        progress.print(f"wrote {config.output}")


def _read_batches(config: ConfigDict, tokenizer: Any) -> Iterator[TokenBatch]:
    """The batches of `config.data`, for ever."""

    def tokenize(problem: Problem, solution: str) -> tuple[list[int], list[int]]:
        response = tokenizer.encode(solution, add_special_tokens=False)
        return format_prompt(problem, config.data, tokenizer), [*response, tokenizer.eos_token_id]

    examples = (tokenize(*pair) for pair in solutions(config.data, config.train.seed))
    yield from pack(examples, rows=config.train.rows, row_tokens=config.train.row_tokens)


def _fit(
    config: ConfigDict,
    workdir: str,
    graphdef: nnx.GraphDef,
    params: nnx.State,
    batches: Iterable[TokenBatch],
    writer: MetricWriter,
    progress: Progress,
    profile: Profile,
) -> nnx.State:
    """The updates; returns the parameters after the last."""
    optimizer, schedule = make_optimizer(config.optimizer, config.train.steps)
    opt_state = optimizer.init(params)
    update = make_update(graphdef, optimizer, remat=config.model.remat)
    start, total, count, tokens = time.monotonic(), 0.0, 0, 0
    for step, batch in zip(range(1, config.train.steps + 1), batches):
        with profile.update(workdir, step):
            with phase("optimizer step"):
                params, opt_state, loss = update(params, opt_state, batch)
            if step == profile.last:
                jax.block_until_ready(loss)  # else the trace ends before what it is of
        total, count, tokens = total + loss, count + 1, tokens + int(batch.weight.sum())
        if step % config.log.every == 0 or step == config.train.steps:
            metrics = {
                "sft/loss": float(total) / count,
                "sft/learning_rate": float(schedule(step - 1)),
                "sft/solution_tokens": tokens,
                "sft/seconds": time.monotonic() - start,
            }
            writer.write(step, metrics)
            progress.update(step, {"loss": metrics["sft/loss"], "tokens": f"{tokens:,}"})
            total, count = 0.0, 0
    return params
