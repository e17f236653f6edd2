"""The tokens that one update trains on and that a decode step reads, where all trees are as large as they come."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ibtpo import packing
from ibtpo.kernels import tree_attention_tpu
from ibtpo.kernels.paged_attention import BLOCK_TOKENS
from ibtpo.models.config import ModelConfig
from ibtpo.packing import fill
from ibtpo.run_plan import RunPlan
from ibtpo.sampling.strategies import TreeOptions, num_responses
from ibtpo.tree import Response, Tree, build_tree, stack_trees

STEP_TOKENS = 64  # of a reasoning step of the representative tree


def representative_tree(options: TreeOptions, prompt_tokens: int, seed: int = 0) -> Tree:
    """A tree as sampling with `options` grows it where every response is as long as it may be.

    Steps have `STEP_TOKENS` tokens; each response after the first round forks at a random step of a random earlier one
    (where a step ends and `min_new_tokens` remain).
    """
    rng = np.random.default_rng(seed)
    length = options.max_new_tokens
    ends = range(STEP_TOKENS, length - options.min_new_tokens + 1, STEP_TOKENS)
    tokens, nothing = np.zeros(length, np.int32), np.zeros(length, np.float32)
    responses = []
    for index in range(num_responses(options)):
        parent, fork, round = -1, 0, 0
        if index >= options.initial:
            round = 1 + (index - options.initial) // (options.top_k * options.branch)
            if ends:
                parent, fork = (
                    int(rng.integers(options.initial + (round - 1) * options.top_k * options.branch)),
                    int(rng.choice(ends)),
                )
        responses.append(Response(index, parent, fork, round, tokens, nothing, "length", 0.0))
    return build_tree([0] * prompt_tokens, responses, lambda _: range(STEP_TOKENS, length, STEP_TOKENS))


def visible_pairs(subtree_end: np.ndarray) -> int:
    """Number of (i, j) with j <= i < subtree_end[j], of one row."""
    return int((subtree_end - np.arange(len(subtree_end))).sum())


def visible_blocks(subtree_end: np.ndarray, blocks: tree_attention_tpu.Blocks) -> tuple[int, int]:
    """(pairs of a query and a key block that the TPU kernel visits, those under a plain causal mask), of one row."""
    padded = np.zeros((1, blocks.num_tokens), np.int32)
    padded[0, : len(subtree_end)] = subtree_end
    visited = np.asarray(tree_attention_tpu.visible_blocks(jnp.asarray(padded), blocks))
    return int(visited.sum()), tree_attention_tpu.max_items(1, blocks)


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of one update: rows of row_tokens tokens, with representative trees or pieces of them.

    unique_tokens: of one row. pairs: visible (query, key) pairs of one row. Of pieces, both count real tokens only,
      not the tokens repeated for them. subtree_end: [row_tokens].
    mean_length: tokens of a sequence in the cache at a decode step, mean over a tree's steps. mean_read: the same in
      whole blocks, as the TPU kernel reads them. blocks: of the training attention; visible, causal: `visible_blocks`.
    """

    rows: int
    row_tokens: int
    unique_tokens: int
    pairs: int
    subtree_end: np.ndarray
    tree_tokens: int
    mean_length: float
    mean_read: float
    blocks: tree_attention_tpu.Blocks
    visible: int
    causal: int


def make_work(config, model: ModelConfig, plan: RunPlan) -> Work:
    """The rows of an update of `config`, of the greatest length that its plan has, where all trees are like
    `representative_tree`."""
    options = TreeOptions.from_config(config)
    tree = representative_tree(options, config.data.max_prompt_tokens)
    own: np.ndarray = np.asarray(tree.subtree_end[0])
    size = len(own)
    row_tokens = plan.row_lengths[-1]
    num_questions = -(-config.train.questions_per_step // config.train.minibatches)
    multiple = config.train.rows_per_step
    if per_row := row_tokens // size:
        subtree_end = np.arange(1, row_tokens + 1)
        for index in range(per_row):
            subtree_end[index * size : (index + 1) * size] = own + index * size
        rows = -(-num_questions // per_row)
        used, pairs = per_row * size, visible_pairs(subtree_end[: per_row * size])
    else:  # trees in pieces: the row that attends most stands for all, with their mean number of real tokens
        few = min(num_questions, 8)
        trees = stack_trees([tree] * few)
        ends: np.ndarray = np.asarray(fill(packing.plan(trees, row_tokens=row_tokens), trees).subtree_end)
        subtree_end = ends[np.argmax([visible_pairs(row) for row in ends])]
        rows = -(-len(ends) * num_questions // few)
        used, pairs = num_questions * size // rows, num_questions * visible_pairs(own) // rows
    rows = -(-rows // multiple) * multiple
    blocks = tree_attention_tpu.blocks_of(row_tokens, model.num_heads // model.num_kv_heads)
    visible, causal = visible_blocks(subtree_end, blocks)
    read = max(BLOCK_TOKENS // config.sampling.page_size, 1) * config.sampling.page_size
    cached = tree.positions[0][config.data.max_prompt_tokens :]  # before a token was drawn, that many were there
    return Work(
        rows=rows,
        row_tokens=row_tokens,
        unique_tokens=used,
        pairs=pairs,
        subtree_end=subtree_end,
        tree_tokens=size,
        mean_length=float(cached.mean()),
        mean_read=float((-(-cached // read) * read).mean()),
        blocks=blocks,
        visible=visible,
        causal=causal,
    )
