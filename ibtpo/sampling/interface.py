"""The types of the sampler's interface: questions, options, responses and trees, and the cost of a call."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ibtpo.tree import Response, Tree


@dataclass(frozen=True)
class SamplerOptions:
    """Static shapes of the sampler, over all shards.

    slots: sequences decoded at once. pages: KV pages, 0 for as many as `questions_in_flight` questions
    can ever need. page_size: tokens per page. chunk: decode steps between two looks by the host.
    max_prompt_tokens: longest prompt. questions_in_flight: most at once, 0 for as many as have two responses per slot
    at the same time; as many on each shard, so rounded up to a multiple of the shards. questions: the most that a call
    has, so that no room is made for more; 0: any number. deterministic: the schedule waits for rewards at fixed points,
    so that the time that grading takes decides no shape.
    """

    slots: int = 64
    pages: int = 0
    page_size: int = 16
    chunk: int = 32
    max_prompt_tokens: int = 512
    questions_in_flight: int = 0
    questions: int = 0
    deterministic: bool = False

    @classmethod
    def from_config(cls, config: Any) -> "SamplerOptions":
        """Reads the `sampling` section of a config, and `data.max_prompt_tokens`."""
        sampling = config.sampling
        return cls(
            slots=sampling.slots,
            pages=sampling.pages,
            page_size=sampling.page_size,
            chunk=sampling.chunk,
            max_prompt_tokens=config.data.max_prompt_tokens,
            questions_in_flight=sampling.questions_in_flight,
            deterministic=sampling.deterministic,
        )


@dataclass(frozen=True)
class Question:
    """A prompt to grow a tree from.

    id: its random draws depend on it, from 0 to 2^31 - 1. tokens: the prompt. find_answer: where a response to it first
    states its answer, in place of `Codec.find_answer`.
    """

    id: int
    tokens: Sequence[int]
    find_answer: Callable[[str], int] | None = None


# grade(question, generated tokens): the reward, in [0, 1], or a Future of it. One with a parameter `truncated` is told
# whether the response was cut off.
Grade = Callable[..., "float | Future[float]"]


@dataclass
class SampledTree:
    """One finished question: its tree (Q = 1, exact sizes) and the responses it was built from."""

    question: Question
    tree: Tree
    responses: list[Response]


@dataclass
class SamplerStats:
    """The cost of one call. Add two with `+`.

    generated_tokens: tokens decoded, each once however many responses share it.
    response_tokens: tokens of all responses, shared ones counted in each.
    prompt_tokens: tokens of prompts prefilled. decode_steps: steps of the decode loop.
    slot_steps: decode_steps times the slots that took part; generated_tokens / slot_steps is the useful share.
    tail_slot_steps: those of them run after the last question had been admitted.
    peak_pages: most KV pages in use at once. tokens_at_peak: unique tokens cached at that time.
    pages_left: in use after the last question (0).
    preemptions: questions that gave their pages back unfinished. recomputed_tokens: tokens prefilled again for it.
    stall_seconds: time the device had nothing to do. seconds: of the whole call.
    """

    questions: int = 0
    responses: int = 0
    generated_tokens: int = 0
    response_tokens: int = 0
    prompt_tokens: int = 0
    decode_steps: int = 0
    slot_steps: int = 0
    tail_slot_steps: int = 0
    peak_pages: int = 0
    tokens_at_peak: int = 0
    pages_left: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    stall_seconds: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "SamplerStats") -> "SamplerStats":
        total = {name: value + getattr(other, name) for name, value in vars(self).items()}
        higher = max(self, other, key=lambda stats: stats.peak_pages)
        total |= {"peak_pages": higher.peak_pages, "tokens_at_peak": higher.tokens_at_peak}
        return SamplerStats(**total)
