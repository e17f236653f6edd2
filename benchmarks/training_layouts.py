"""The responses of trees in the layouts that training.py compares packed trees with."""

import numpy as np

from ibtpo.packing import TokenBatch, pack_groups
from ibtpo.token_weights import response_weights
from ibtpo.tree import tokens_of_response


def responses_of(tree, advantages, counted, **options) -> list[dict]:
    """Each counted response of each tree by itself, behind its prompt: {field of TokenBatch: [n]}."""
    weights = response_weights(tree, **options)
    result = []
    for q, r in zip(*np.nonzero(counted & (tree.response_node >= 0))):
        prompt, own = np.flatnonzero(tree.step[q] == 0), tokens_of_response(tree, r, q)
        index = np.concatenate([prompt, own])
        weight = np.where(tree.step[q, index] > 0, weights[q, r], 0).astype(np.float32)
        advantage = advantages[q, r, tree.step[q, index]]
        result.append(
            dict(
                tokens=tree.tokens[q, index],
                log_probs=tree.log_probs[q, index],
                weight=weight,
                positive=weight * np.maximum(advantage, 0),
                negative=weight * np.minimum(advantage, 0),
                advantage=advantage,
            )
        )
    return result


def rows_of(responses: list[dict], row_tokens: int, microbatch_tokens: int, *, several: bool):
    """(TokenBatch, rows of a microbatch): a row for each response or, first-fit decreasing, for `several`."""
    used: list[int] = []
    places = []
    for response in sorted(responses, key=lambda response: -len(response["tokens"])):
        n = len(response["tokens"])
        row = next((b for b, taken in enumerate(used) if taken + n <= row_tokens), len(used)) if several else len(used)
        if row == len(used):
            used.append(0)
        places.append((row, used[row], response))
        used[row] += n
    # As few microbatches as there can be, and as equal.
    microbatches = -(-len(used) // max(microbatch_tokens // row_tokens, 1))
    rows = -(-len(used) // microbatches)
    shape = (microbatches * rows, row_tokens)
    own = np.broadcast_to(np.arange(row_tokens, dtype=np.int32), shape)
    kinds = dict(tokens=np.int32, log_probs=np.float32, positive=np.float32, negative=np.float32, weight=np.float32)
    fields = {name: np.zeros(shape, kind) for name, kind in kinds.items()}
    fields |= dict(positions=np.zeros(shape, np.int32), subtree_end=own + 1, parent_token=own.copy())
    for row, start, response in places:
        stop = start + len(response["tokens"])
        for name in kinds:
            fields[name][row, start:stop] = response[name]
        fields["positions"][row, start:stop] = np.arange(stop - start)
        fields["subtree_end"][row, start:stop] = stop
        fields["parent_token"][row, start + 1 : stop] = np.arange(start, stop - 1)
    return TokenBatch(**fields), rows


def prompts_only(tree, responses: list[dict], counted, row_tokens: int, rows: int):
    """(TokenBatch, rows of a microbatch): trees of the same responses that share their prompts alone."""
    questions = np.nonzero(counted & (tree.response_node >= 0))[0]
    prompts = (tree.step == 0).sum(axis=1)
    groups = [[r for q, r in zip(questions, responses) if q == question] for question in np.unique(questions)]
    lengths = [prompts[question] for question in np.unique(questions)]

    def own(name):
        return [[response[name][n:] for response in group] for n, group in zip(lengths, groups)]

    packed = pack_groups(
        [group[0]["tokens"][:n] for n, group in zip(lengths, groups)],
        own("tokens"),
        row_tokens=row_tokens,
        rows_per_step=rows,
        log_probs=own("log_probs"),
        advantages=own("advantage"),
        weights=own("weight"),
        only_prompts=True,
    )
    return packed.rows, rows
