"""The room of one shard of the sampler: slots, rows and pages, and the pages that one question can need."""

import math
from dataclasses import dataclass

from ibtpo.errors import UserError
from ibtpo.sampling.interface import SamplerOptions
from ibtpo.sampling.pages import pages_for
from ibtpo.sampling.strategies import TreeOptions, mean_in_flight, most_responses

STANDBY = 1  # sequences standing by for each slot


@dataclass(frozen=True)
class Capacity:
    """Static sizes; those that are no sum over shards are of one shard.

    num_shards: shards of the logical axis "rows". num_slots: sequences decoded at once. queue_size: those standing by
    or decoding. num_blocks: questions in flight, each with a block of `block_rows` rows of the page table.
    num_pages: KV pages. page_size: tokens of one. least: pages with which any question can be sampled.
    group_size: responses of a question. chunk: decode steps of a whole chunk.
    max_prompt_tokens, max_new_tokens: of a prompt, of a response.
    """

    num_shards: int
    num_slots: int
    queue_size: int
    num_blocks: int
    num_pages: int
    page_size: int
    least: int
    group_size: int
    chunk: int
    max_prompt_tokens: int
    max_new_tokens: int

    @classmethod
    def of(cls, options: SamplerOptions, tree: TreeOptions, num_shards: int) -> "Capacity":
        """
        Raises:
          UserError: slots or pages do not divide among the shards, or the pages cannot hold even one question.
        """
        for name, count in (("slots", options.slots), ("pages", options.pages)):
            if count % num_shards:
                raise UserError(
                    f"sampling.{name}={count} cannot be split over mesh.data x mesh.fsdp = {num_shards} shards: set it "
                    f"to a multiple of {num_shards}, e.g. {-(-count // num_shards) * num_shards}"
                )
        num_slots = options.slots // num_shards
        in_flight = options.questions_in_flight or math.ceil(2 * options.slots / mean_in_flight(tree))
        num_blocks = math.ceil(min(in_flight, options.questions or in_flight) / num_shards)
        least, group_size = worst_case_pages(options, tree), most_responses(tree)
        num_pages = options.pages // num_shards if options.pages else num_blocks * least
        if num_pages < least:
            raise UserError(
                f"sampling.pages={options.pages} cannot hold one question"
                f"{f' per shard ({num_shards})' * (num_shards > 1)}: "
                f"{group_size} responses of {tree.max_new_tokens} tokens after a prompt of "
                f"{options.max_prompt_tokens} need up to {least} pages of {options.page_size} tokens. Raise "
                f"sampling.pages to at least {least * num_shards}, or set it to 0 to have it computed."
            )
        return cls(
            num_shards=num_shards,
            num_slots=num_slots,
            queue_size=(1 + STANDBY) * num_slots,
            num_blocks=num_blocks,
            num_pages=num_pages,
            page_size=options.page_size,
            least=least,
            group_size=group_size,
            chunk=options.chunk,
            max_prompt_tokens=options.max_prompt_tokens,
            max_new_tokens=tree.max_new_tokens,
        )

    @property
    def total_pages(self) -> int:
        """KV pages of the pool, over all shards."""
        return self.num_pages * self.num_shards

    @property
    def can_preempt(self) -> bool:
        """Whether the questions in flight can ever need more pages than there are."""
        return 1 < self.num_blocks and self.num_pages < self.num_blocks * self.least

    @property
    def block_rows(self) -> int:
        """Rows of the page table that a question owns: its prompt's, and one for each response."""
        return 1 + self.group_size

    @property
    def pages_per_row(self) -> int:
        """Pages of the longest sequence."""
        return pages_for(self.max_prompt_tokens + self.max_new_tokens, self.page_size)


def worst_case_pages(options: SamplerOptions, tree: TreeOptions) -> int:
    """Pages a question can need at most: its prompt's, and for each response all those beyond the
    whole pages of the prompt, as if it shared nothing else."""
    page_size, longest = options.page_size, options.max_prompt_tokens

    def pages(prompt_tokens: int) -> int:
        end = pages_for(prompt_tokens + tree.max_new_tokens - 1, page_size)
        own = end - (prompt_tokens - 1) // page_size
        return pages_for(prompt_tokens, page_size) + most_responses(tree) * own

    # Of a prompt that fills its pages every response copies the last one, for its pending token.
    return max(pages(n) for n in (longest, longest - longest % page_size) if n)
