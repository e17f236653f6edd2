"""Random trees, packed, beside the obvious form of the same: every response in a row of its own.

The oracle shares no code with the package: it pads each response, runs plain causal attention and writes the
per-response objective down as published.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ibtpo import advantages
from ibtpo.advantages import AdvantageOptions
from ibtpo.losses import policy_loss, token_log_probs
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.packing import fill, plan
from ibtpo.token_weights import token_weights
from ibtpo.tree import Response, build_tree, stack_trees, tokens_of_response
from tests.advantage_oracles import loss_weights

VOCAB, SEPARATOR = 7, 1
NUM_QUESTIONS, NUM_RESPONSES, MAX_PROMPT, MAX_NEW = 2, 6, 3, 7
ROW_TOKENS = MAX_PROMPT + NUM_RESPONSES * MAX_NEW  # any tree fits, and two rows hold any batch
PLAIN_TOKENS = MAX_PROMPT + MAX_NEW
TEMPERATURE = 0.8
OPTIONS = AdvantageOptions(ib_weight=0.5)
CONFIG = ModelConfig(
    "qwen3", vocab_size=VOCAB, embed_dim=12, mlp_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6,
    qk_norm=True,
)  # fmt: skip


def step_ends(tokens):
    return [i + 1 for i, t in enumerate(tokens) if t == SEPARATOR or i + 1 == len(tokens)]


def random_tree(rng):
    """A random tree: forks anywhere, a duplicate of a whole response, a fork that ends at once."""
    prompt = rng.integers(0, VOCAB, rng.integers(1, MAX_PROMPT + 1))
    responses = []
    for index in range(int(rng.integers(2, NUM_RESPONSES - 1))):
        parent = int(rng.integers(-1, index))
        fork, tokens, log_probs = 0, np.zeros(0, int), np.zeros(0)
        if parent >= 0:
            fork = int(rng.integers(0, len(responses[parent].tokens)))
            tokens, log_probs = responses[parent].tokens[:fork], responses[parent].log_probs[:fork]
        new = int(rng.integers(1, MAX_NEW - fork + 1))
        # Near the current policy (almost uniform), far enough from it that some ratios are clipped on either side.
        old = -np.log(VOCAB) + 0.5 * rng.standard_normal(new)
        tokens, log_probs = np.r_[tokens, rng.integers(0, VOCAB, new)], np.r_[log_probs, old]
        responses.append(Response(index, parent, fork, 0, tokens, log_probs, "stop", float(rng.integers(0, 2))))
    first, index = responses[0], len(responses)
    responses.append(Response(index, 0, 0, 0, first.tokens, first.log_probs - 0.1, "stop", 1.0))
    fork = len(first.tokens) - 1
    last = np.r_[first.log_probs[:fork], -1.0]
    responses.append(Response(index + 1, 0, fork, 0, np.r_[first.tokens[:fork], 3], last, "stop", 0.0))
    return prompt, responses, build_tree(prompt, responses, step_ends)


def random_batch(seed, advantage, mask_some=True, *, by_token=False, options=OPTIONS):
    """(questions [(prompt, responses)], tree, advantages [Q, R, N], mask [Q] or [Q, R])."""
    rng = np.random.default_rng(seed)
    made = [random_tree(rng) for _ in range(NUM_QUESTIONS)]
    tree = stack_trees([tree for _, _, tree in made], num_responses=NUM_RESPONSES)
    tree = advantages.by_token(tree) if by_token else tree
    if advantage == "random":
        shape = (NUM_QUESTIONS, NUM_RESPONSES, tree.node_parent.shape[1])
        values = rng.standard_normal(shape).astype(np.float32)  # off the path too: nothing may read it
    else:
        values = advantages.ADVANTAGES[advantage](tree, options)
    mask = np.ones(NUM_QUESTIONS, bool)
    if mask_some:  # questions, or single responses
        mask = rng.random((NUM_QUESTIONS, NUM_RESPONSES) if seed % 2 else NUM_QUESTIONS) < 0.8
    return [(p, r) for p, r, _ in made], tree, values, mask


def plain_rows(questions, tree, values, mask, aggregation, **weighting):
    """One padded row per response: dict of [Q * R, P] arrays; `weight` is 0 outside generated tokens."""
    mask = np.broadcast_to(np.reshape(mask, (*mask.shape, 1, 1)[:3]), values.shape)
    of_token = {
        (q, r.index, p): mask[q, r.index, tree.step[q, at]]
        for q, (_, responses) in enumerate(questions)
        for r in responses
        for p, at in enumerate(tokens_of_response(tree, r.index, q))
    }
    weights = loss_weights(
        [responses for _, responses in questions],
        aggregation=aggregation,
        max_new_tokens=MAX_NEW,
        trained=lambda *key: of_token[key],
        **{"shared_tokens": "each"} | weighting,
    )
    shape = (NUM_QUESTIONS * NUM_RESPONSES, PLAIN_TOKENS)
    rows = {k: np.zeros(shape, np.int32 if k == "tokens" else np.float64) for k in ("tokens", "old", "A", "weight")}
    for q, (prompt, responses) in enumerate(questions):
        for r in responses:
            row, n, start = q * NUM_RESPONSES + r.index, len(r.tokens), len(prompt)
            rows["tokens"][row, : start + n] = np.r_[prompt, r.tokens]
            cells = (row, slice(start, start + n))
            rows["old"][cells] = r.log_probs.astype(np.float32)
            here = tokens_of_response(tree, r.index, q)
            np.testing.assert_array_equal(tree.tokens[q, here], r.tokens)
            rows["A"][cells] = values[q, r.index, tree.step[q, here]]
            rows["weight"][cells] = [weights[q, r.index, p] for p in range(n)]
    return rows


def plain_log_probs(model, tokens, *, entropy=False):
    """log pi(token | prefix) of unpacked rows [B, P], causal attention over all earlier tokens; 0 at the first. Or the
    entropy of what each was drawn from."""
    T = tokens.shape[1]
    causal = jnp.tril(jnp.ones((T, T), bool))

    def attend(q, k, v, layer, cache):
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
        scores = jnp.where(causal, jnp.einsum("bihd,bjhd->bhij", q, k) / q.shape[3] ** 0.5, -1e30)
        return jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores, axis=-1), v), cache

    hidden, _ = model(tokens, jnp.broadcast_to(jnp.arange(T), tokens.shape), attend)
    log_pi = jax.nn.log_softmax(model.logits(hidden[:, :-1]) / TEMPERATURE)
    if entropy:
        return jnp.pad(-(jnp.exp(log_pi) * log_pi).sum(-1), ((0, 0), (1, 0)))
    return jnp.pad(jnp.take_along_axis(log_pi, tokens[:, 1:, None], -1)[..., 0], ((0, 0), (1, 0)))


def plain_loss(model, ref_model, rows, options):
    lp, ref = plain_log_probs(model, rows["tokens"]), plain_log_probs(ref_model, rows["tokens"])
    old = jax.lax.stop_gradient(lp) if options.importance_cap else rows["old"]
    r, A = jnp.exp(lp - old), rows["A"]
    clipped = jnp.clip(r, 1 - options.clip_low, 1 + options.clip_high)
    loss = -jnp.minimum(r * A, clipped * A)
    if options.dual_clip:
        loss = jnp.where(A < 0, jnp.minimum(loss, -options.dual_clip * A), loss)
    if options.objective == "cispo":
        loss = -jax.lax.stop_gradient(clipped) * A * lp
    if options.objective == "sapo":
        tau = jnp.where(A > 0, 1.0, 1.05)
        loss = -A * jax.nn.sigmoid(tau * (r - 1)) * 4 / tau
    if options.importance_cap:
        loss *= jnp.minimum(jnp.exp(old - rows["old"]), options.importance_cap)
    k3 = jnp.exp(ref - lp) - (ref - lp) - 1
    loss += options.kl * k3
    if options.needs_entropy:
        entropy = plain_log_probs(model, rows["tokens"], entropy=True)
        loss -= (options.entropy_bonus + options.entropy_advantage * A) * entropy
    rare = rows["old"] < (jnp.log(options.max_old_probability) if options.max_old_probability < 1 else jnp.inf)
    return jnp.where((rows["weight"] > 0) & rare, rows["weight"] * loss, 0).sum()


def packed_loss(model, ref_model, batch, options):
    log_probs, entropy = token_log_probs(
        model, batch, temperature=TEMPERATURE, token_block=16, entropy_gradient=options.needs_entropy
    )
    ref, _ = token_log_probs(ref_model, batch, temperature=TEMPERATURE, token_block=16)
    batch = batch.replace(ref_log_probs=jax.lax.stop_gradient(ref))
    return policy_loss(log_probs, batch, entropy=entropy, options=options)[0]


def packed_batch(tree, values, mask, aggregation, row_tokens=ROW_TOKENS, **weighting):
    weights = token_weights(tree, values, aggregation=aggregation, max_new_tokens=MAX_NEW, mask=mask, **weighting)
    rows = NUM_QUESTIONS if row_tokens == ROW_TOKENS else NUM_QUESTIONS * NUM_RESPONSES
    return fill(plan(tree, row_tokens=row_tokens, rows_per_step=rows), tree, weights)


def relative_error(tree, oracle):
    difference = sum(float(((a - b) ** 2).sum()) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(oracle)))
    return (difference / max(sum(float((b**2).sum()) for b in jax.tree.leaves(oracle)), 1e-30)) ** 0.5


@functools.cache
def decoders():
    graphdef = nnx.split(nnx.eval_shape(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0))), nnx.Param)[0]
    make = jax.jit(lambda seed: nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(seed)), nnx.Param)[1], static_argnums=0)
    return graphdef, make(0), make(1)


@functools.cache
def small_batch():
    _, tree, values, mask = random_batch(3, "random", mask_some=False)
    return packed_batch(tree, values, mask, "response_mean")
