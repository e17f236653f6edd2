"""`TreeSampler`: a decoder, its compiled programs and the options of a tree, ready to be called with questions."""

import time
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from ibtpo import parallel
from ibtpo.errors import UserError
from ibtpo.models.config import ModelConfig
from ibtpo.precompiled import Program
from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.chunks import Chunks
from ibtpo.sampling.codec import Codec
from ibtpo.sampling.device import Device
from ibtpo.sampling.engine import BetweenChunks, OnFinished, Run
from ibtpo.sampling.grades import Grades
from ibtpo.sampling.growth import Growth
from ibtpo.sampling.interface import Grade, Question, SampledTree, SamplerOptions, SamplerStats
from ibtpo.sampling.logits import SamplingParams
from ibtpo.sampling.programs import DecoderDevice, Programs
from ibtpo.sampling.strategies import TreeOptions


class TreeSampler:
    """Samples trees, or flat groups with `strategy="independent"`, from a decoder.

    >>> codec = Codec(decoder.config.vocab_size, stop_ids=[eos], token_bytes=table)
    >>> sampler = TreeSampler(graphdef, decoder.config, options, tree_options, codec)
    >>> trees, stats = sampler(params, questions, grade, key=jax.random.key(0), sampling=SamplingParams())

    codec: where responses, their steps and their answers begin and end. dtype: of the KV cache.

    The mesh that is current when it is made (`jax.set_mesh`) must be current when it is called.

    Raises UserError if the pages cannot hold even one question, or slots or pages do not divide among the shards.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        model: ModelConfig,
        options: SamplerOptions,
        tree: TreeOptions,
        codec: Codec,
        *,
        dtype: Any = jnp.float32,
    ):
        if codec.vocab_size != model.vocab_size:
            raise ValueError(f"a codec of {codec.vocab_size} tokens for a model of {model.vocab_size}")
        self.options, self.tree, self.codec = options, tree, codec
        self.capacity = Capacity.of(options, tree, parallel.num_row_shards())
        self.programs = Programs(graphdef, model, self.capacity, codec.stops.table, dtype)

    @property
    def total_pages(self) -> int:
        """KV pages of the pool, over all shards."""
        return self.capacity.total_pages

    @property
    def least_pages(self) -> int:
        """The fewest pages, over all shards, with which any question can be sampled."""
        return self.capacity.least * self.capacity.num_shards

    def ahead(self, params: Any, prompt_tokens: Collection[int] = ()) -> list[Program]:
        """The programs that calls with these parameters (abstract ones will do) can run, for `precompiled.compile_all`.
        prompt_tokens: lengths of the prompts there will be; none: any."""
        return self.programs.ahead(params, prompt_tokens)

    def lower(self, params: Any) -> dict[str, jax.stages.Lowered]:
        """The sampler's programs for parameters in the training layout (abstract ones will do), for ahead-of-time
        compilation: serve, prefill (of the longest prompts), start, decode (all slots), release, recompute."""
        return self.programs.lower(params)

    def __call__(
        self,
        params: Any,
        questions: Sequence[Question],
        grade: Grade,
        *,
        key: jax.Array,
        sampling: SamplingParams,
        on_finished: OnFinished | None = None,
        between_chunks: BetweenChunks | None = None,
    ) -> tuple[list[SampledTree], SamplerStats]:
        """Grows a tree for every question.

        params: the decoder's parameters. grade(question, generated tokens) returns a reward in [0, 1] or a Future
        of one; it is called once per response. key: typed PRNG key of this batch. on_finished is called
        with each tree as it is done, between_chunks between two chunks of decoding, as often on every process; an error
        that it raises gives the sampling up. Returns the trees in the order of the questions, and the cost.
        The KV cache lives only as long as the call, so no older policy's keys can be read.

        Raises:
          UserError: a prompt or an id out of range; a reward that is no number in [0, 1].
          ValueError: parameters that give NaN.
          RuntimeError: with several processes, another one could not grade a response.
        """
        began = time.perf_counter()
        _check(questions, self.capacity.max_prompt_tokens)
        device = DecoderDevice(self.programs, params, key, sampling)
        trees, stats = self.run_on(device, questions, grade, key, began, on_finished, between_chunks)
        stats.seconds = time.perf_counter() - began
        return trees, stats

    def run_on(
        self,
        device: Device,
        questions: Sequence[Question],
        grade: Grade,
        key: jax.Array,
        began: float | None = None,
        on_finished: OnFinished | None = None,
        between_chunks: BetweenChunks | None = None,
    ) -> tuple[list[SampledTree], SamplerStats]:
        """The same call on whatever device, the simulated one too. began: when it began, by time.perf_counter; None:
        now."""
        began = time.perf_counter() if began is None else began
        seed = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
        growth = Growth(self.tree, self.codec, seed)
        grades = Grades(grade, deterministic=self.options.deterministic)
        return Run(device, self.capacity, growth, grades, Chunks(began), questions, on_finished, between_chunks).run()


def _check(questions: Sequence[Question], max_prompt_tokens: int) -> None:
    """Refuses a question that cannot be sampled."""
    for question in questions:
        if not 0 <= question.id < 2**31:
            raise UserError(f"question id {question.id} is out of range: ids go from 0 to 2^31 - 1")
        if not 0 < len(question.tokens) <= max_prompt_tokens:
            raise UserError(
                f"question {question.id} has a prompt of {len(question.tokens)} tokens; "
                f"data.max_prompt_tokens allows 1 to {max_prompt_tokens}"
            )
