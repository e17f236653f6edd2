"""The packed loss against the obvious one: every response in a row of its own.

The oracle below shares no code with the package: it pads each response, runs plain causal attention and writes the
per-response objective down as published.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.base import get_config
from ibtpo import advantages, losses
from ibtpo.config import METHODS, flatten, unflatten
from ibtpo.losses import LossOptions, policy_loss, token_log_probs
from ibtpo.models.attention import tree_attend
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.packing import TokenBatch, pack, sequence_weights, token_weights, unpack
from ibtpo.tree import Response, build_tree, stack_trees, tokens_of_response

VOCAB, SEPARATOR = 7, 1
NUM_QUESTIONS, NUM_RESPONSES, MAX_PROMPT, MAX_NEW = 2, 6, 3, 7
ROW_TOKENS = MAX_PROMPT + NUM_RESPONSES * MAX_NEW  # any tree fits, and two rows hold any batch
PLAIN_TOKENS = MAX_PROMPT + MAX_NEW
TEMPERATURE = 0.8
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


def random_batch(seed, advantage, mask_some=True):
    """(questions [(prompt, responses)], tree, advantages [Q, R, N], mask [Q] or [Q, R])."""
    rng = np.random.default_rng(seed)
    made = [random_tree(rng) for _ in range(NUM_QUESTIONS)]
    tree = stack_trees([tree for _, _, tree in made], num_responses=NUM_RESPONSES)
    if advantage == "random":
        shape = (NUM_QUESTIONS, NUM_RESPONSES, tree.node_parent.shape[1])
        values = rng.standard_normal(shape).astype(np.float32)  # off the path too: nothing may read it
    else:
        values = advantages.ADVANTAGES[advantage](tree, advantages.AdvantageOptions(ib_weight=0.5))
    mask = np.ones(NUM_QUESTIONS, bool)
    if mask_some:  # questions, or single responses
        mask = rng.random((NUM_QUESTIONS, NUM_RESPONSES) if seed % 2 else NUM_QUESTIONS) < 0.8
    return [(p, r) for p, r, _ in made], tree, values, mask


def plain_rows(questions, tree, values, mask, aggregation):
    """One padded row per response: dict of [Q * R, P] arrays; `weight` is 0 outside generated tokens."""
    shape = (NUM_QUESTIONS * NUM_RESPONSES, PLAIN_TOKENS)
    rows = {k: np.zeros(shape, np.int32 if k == "tokens" else np.float64) for k in ("tokens", "old", "A", "weight")}
    lengths = [len(r.tokens) for _, responses in questions for r in responses]
    for q, (prompt, responses) in enumerate(questions):
        for r in responses:
            row, n, start = q * NUM_RESPONSES + r.index, len(r.tokens), len(prompt)
            rows["tokens"][row, : start + n] = np.r_[prompt, r.tokens]
            cells = (row, slice(start, start + n))
            rows["old"][cells] = r.log_probs.astype(np.float32)
            here = tokens_of_response(tree, r.index, q)
            np.testing.assert_array_equal(tree.tokens[q, here], r.tokens)
            rows["A"][cells] = values[q, r.index, tree.step[q, here]]
            w = {
                "response_mean": 1 / (len(lengths) * n),
                "token_mean": 1 / sum(lengths),
                "fixed_length": 1 / (len(lengths) * MAX_NEW),
            }[aggregation]
            rows["weight"][cells] = w * (mask[q] if mask.ndim == 1 else mask[q, r.index])
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
        loss = -jax.lax.stop_gradient(jnp.clip(r, None, 1 + options.clip_high)) * A * lp
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
    return policy_loss(log_probs, batch, jax.lax.stop_gradient(ref), entropy=entropy, options=options)[0]


def packed_batch(tree, values, mask, aggregation, row_tokens=ROW_TOKENS):
    weights = token_weights(tree, values, aggregation=aggregation, max_new_tokens=MAX_NEW, mask=mask)
    rows = NUM_QUESTIONS if row_tokens == ROW_TOKENS else NUM_QUESTIONS * NUM_RESPONSES
    return pack(tree, *weights, row_tokens=row_tokens, row_multiple=rows)[0]


def relative_error(tree, oracle):
    difference = sum(float(((a - b) ** 2).sum()) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(oracle)))
    return (difference / max(sum(float((b**2).sum()) for b in jax.tree.leaves(oracle)), 1e-30)) ** 0.5


OPTIONS = {
    "plain": LossOptions(clip_low=0.2, clip_high=0.3, kl=0.1),
    "dual clip": LossOptions(clip_low=0.2, clip_high=0.3, kl=0.1, dual_clip=1.2),
    "cispo": LossOptions("cispo", clip_high=0.3, kl=0.1),
    "sapo": LossOptions("sapo", kl=0.1),
    "entropy": LossOptions(kl=0.1, entropy_bonus=0.05, entropy_advantage=0.1),
    "importance": LossOptions(clip_low=0.2, clip_high=0.3, kl=0.1, importance_cap=1.1),
    "rare tokens": LossOptions(clip_low=0.2, clip_high=0.3, kl=0.1, max_old_probability=1.1 / VOCAB),
}


@functools.cache
def decoders():
    graphdef = nnx.split(nnx.eval_shape(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0))), nnx.Param)[0]
    make = jax.jit(lambda seed: nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(seed)), nnx.Param)[1], static_argnums=0)
    return graphdef, make(0), make(1)


@functools.cache
def gradients(kind, loss):
    graphdef, _, reference = decoders()

    def of_params(params, data):
        return loss(nnx.merge(graphdef, params), nnx.merge(graphdef, reference), data, OPTIONS[kind])

    return jax.jit(jax.value_and_grad(of_params))


def test_the_entropy_that_is_reported_is_of_all_counted_tokens():
    """Also of those that max_old_probability leaves out of the loss."""
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.uniform(0.2, 1, (2, 8))).astype(np.float32)
    weight = rng.uniform(0.5, 1, (2, 8)).astype(np.float32) * (rng.random((2, 8)) < 0.7)
    entropy = np.where(weight > 0, rng.random((2, 8)), np.nan).astype(np.float32)
    nothing = np.zeros((2, 8), np.int32)
    batch = TokenBatch(nothing, nothing, nothing, nothing, log_probs, weight, 0 * weight, weight)
    expected = (weight * np.nan_to_num(entropy)).sum() / weight.sum()
    losses = set()
    for most in (1.0, 0.5):
        loss, metrics = policy_loss(
            log_probs, batch, entropy=entropy, options=LossOptions(kl=0.0, max_old_probability=most)
        )
        total, count = metrics["entropy"]
        np.testing.assert_allclose(total / count, expected, rtol=1e-6)
        losses.add(float(loss))
    assert len(losses) == 2


@pytest.mark.parametrize("aggregation", ["response_mean", "token_mean", "fixed_length"])
@pytest.mark.parametrize("advantage", ["ibtpo", "grpo", "random"])
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_packed_gradient_is_the_sum_over_responses_float32(advantage, aggregation, seed):
    kind = "dual clip"  # the real decoder is slow to compile; the other is left to float64
    questions, tree, values, mask = random_batch(seed, advantage)
    rows = plain_rows(questions, tree, values, mask, aggregation)
    rows = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in rows.items()}
    params = decoders()[1]
    loss, gradient = gradients(kind, packed_loss)(params, packed_batch(tree, values, mask, aggregation))
    oracle, oracle_gradient = gradients(kind, plain_loss)(params, rows)
    np.testing.assert_allclose(loss, oracle, rtol=1e-5, atol=1e-6)
    assert relative_error(gradient, oracle_gradient) <= 1e-5


def sequence_plain_loss(params, rows, options):
    """GSPO-token: every response by itself, its ratio held constant but for the token's own factor."""
    visible = jnp.tril(jnp.ones((PLAIN_TOKENS, PLAIN_TOKENS), bool))
    lp, A = plain_log_probs(Float64Model(params, visible), rows["tokens"]), rows["A"]
    own = rows["old"] != 0  # a generated token, of a masked group too
    constant = jax.lax.stop_gradient(lp)
    mean = jnp.where(own, constant - rows["old"], 0).sum(1) / jnp.maximum(own.sum(1), 1)
    s = jnp.exp(mean)[:, None] * jnp.exp(lp - constant)
    loss = -jnp.minimum(s * A, jnp.clip(s, 1 - options.clip_low, 1 + options.clip_high) * A)
    return jnp.where(rows["weight"] > 0, rows["weight"] * loss, 0).sum()


def sequence_packed(params, tree, values, mask, aggregation, row_tokens, options):
    """(loss, gradient) of packed trees, whose weights need the current log-probabilities first."""

    def log_probs(params, batch):
        index = jnp.arange(batch.tokens.shape[1])
        visible = (index <= index[:, None]) & (index[:, None] < jnp.asarray(batch.subtree_end)[:, None, :])
        return token_log_probs(Float64Model(params, visible), batch, temperature=TEMPERATURE, token_block=16)[0]

    shape = dict(row_tokens=row_tokens, row_multiple=NUM_QUESTIONS * NUM_RESPONSES)
    batch, layout = pack(tree, *[np.zeros(tree.node_parent.shape)] * 3, **shape)
    now = unpack(log_probs(params, batch), layout, *tree.tokens.shape)
    clip = dict(clip_low=options.clip_low, clip_high=options.clip_high)
    weighting = dict(aggregation=aggregation, max_new_tokens=MAX_NEW, mask=mask)
    batch, _ = pack(tree, *sequence_weights(tree, values, now, **clip, **weighting), **shape)
    return jax.value_and_grad(lambda p: policy_loss(log_probs(p, batch), batch, options=options)[0])(params)


@pytest.mark.parametrize("row_tokens", [ROW_TOKENS, PLAIN_TOKENS], ids=["whole", "pieces"])
@pytest.mark.parametrize("advantage", ["ibtpo", "grpo", "random"])
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), aggregation=st.sampled_from(["response_mean", "token_mean", "fixed_length"]))
def test_sequence_ratios_are_those_of_whole_responses_float64(advantage, row_tokens, seed, aggregation):
    options = LossOptions("gspo", clip_low=0.05, clip_high=0.1, kl=0.0)
    check_float64(*random_batch(seed, advantage), aggregation, options, row_tokens)


def in_float64(tree, values):
    tree = tree.replace(rewards=tree.rewards.astype(np.float64), log_probs=tree.log_probs.astype(np.float64))
    return tree, values.astype(np.float64)


class Float64Model:
    """Embedding, one attention layer, one mlp, all in the parameters' type. Its attention ignores the package's, whose
    softmax is float32, and builds the mask it is given."""

    def __init__(self, params, visible):
        self.p, self.visible = params, visible

    def __call__(self, tokens, positions, attend, cache=None, *, remat="none"):
        p = self.p
        x = p["tokens"][tokens] + p["positions"][positions]
        scores = jnp.einsum("bid,bjd->bij", x @ p["q"], x @ p["k"])
        x = x + jax.nn.softmax(jnp.where(self.visible, scores, -1e30), axis=-1) @ (x @ p["v"])
        return x + jnp.tanh(x @ p["up"]) @ p["down"], cache

    def logits(self, hidden):
        return hidden @ self.p["tokens"].T


def float64_params(seed):
    rng = np.random.default_rng(seed)
    shapes = {"tokens": (VOCAB, 5), "positions": (PLAIN_TOKENS, 5)} | {k: (5, 5) for k in ("q", "k", "v", "up", "down")}
    return {k: jnp.asarray(0.5 * rng.standard_normal(s)) for k, s in shapes.items()}


def float64_packed(params, reference, batch, options):
    index = jnp.arange(batch.tokens.shape[1])
    visible = (index <= index[:, None]) & (index[:, None] < jnp.asarray(batch.subtree_end)[:, None, :])
    return packed_loss(Float64Model(params, visible), Float64Model(reference, visible), batch, options)


def float64_plain(params, reference, rows, options):
    visible = jnp.tril(jnp.ones((PLAIN_TOKENS, PLAIN_TOKENS), bool))
    return plain_loss(Float64Model(params, visible), Float64Model(reference, visible), rows, options)


@functools.cache
def float64_gradient(options, loss):
    return jax.jit(jax.value_and_grad(functools.partial(loss, options=options)))


@pytest.mark.parametrize("row_tokens", [ROW_TOKENS, PLAIN_TOKENS], ids=["whole", "pieces"])
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("aggregation", ["response_mean", "token_mean", "fixed_length"])
@pytest.mark.parametrize("advantage", ["ibtpo", "grpo", "random"])
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_packed_gradient_is_the_sum_over_responses_float64(advantage, aggregation, kind, row_tokens, seed):
    check_float64(*random_batch(seed, advantage), aggregation, OPTIONS[kind], row_tokens)


def check_float64(questions, tree, values, mask, aggregation, options, row_tokens=ROW_TOKENS):
    tree, values = in_float64(tree, values)
    rows = plain_rows(questions, tree, values, mask, aggregation)
    with jax.enable_x64(True):
        params, reference = float64_params(0), float64_params(1)
        if options.objective == "gspo":
            loss, gradient = sequence_packed(params, tree, values, mask, aggregation, row_tokens, options)
            oracle, oracle_gradient = jax.value_and_grad(sequence_plain_loss)(params, rows, options)
        else:
            batch = packed_batch(tree, values, mask, aggregation, row_tokens)
            loss, gradient = float64_gradient(options, float64_packed)(params, reference, batch)
            oracle, oracle_gradient = float64_gradient(options, float64_plain)(params, reference, rows)
        assert loss.dtype == jnp.float64
        np.testing.assert_allclose(loss, oracle, rtol=1e-11, atol=1e-12)
        assert relative_error(gradient, oracle_gradient) <= 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_config_is_exact_on_packed_trees_float64(method):
    """As a run puts them together: the options, advantages, aggregation and mask that the method fills in."""
    loss = unflatten(flatten(get_config()) | METHODS[method]).loss
    trained = 0
    for seed in range(4):
        questions, tree, values, _ = random_batch(seed, loss.advantage)
        mask = np.asarray(tree.response_node >= 0) & ~np.asarray(advantages.group_is_uniform(tree))[:, None]
        if loss.whiten_advantages:
            values = advantages.whiten(tree, values, mask)
        check_float64(questions, tree, values, mask, loss.aggregation, LossOptions.from_config(loss))
        trained += mask.sum()
    assert trained > 10


def test_the_random_trees_exercise_both_clips_and_the_dual_clip():
    upper = lower = dual = shared = 0
    for seed in range(5):
        _, tree, values, mask = random_batch(seed, "random", mask_some=False)
        batch = packed_batch(tree, values, mask, "token_mean")
        lp = np.asarray(token_log_probs(nnx.merge(*decoders()[:2]), batch, temperature=TEMPERATURE)[0])
        ratio = np.exp(lp - batch.log_probs)
        upper += np.sum((batch.positive > 0) & (ratio > 1.3))
        lower += np.sum((batch.negative < 0) & (ratio < 0.8))
        dual += np.sum((batch.negative < 0) & (ratio > 1.2))
        shared += np.sum((batch.negative < 0) & (batch.positive > 0))
    assert min(upper, lower, dual, shared) > 10


@functools.cache
def small_batch():
    _, tree, values, mask = random_batch(3, "random", mask_some=False)
    return packed_batch(tree, values, mask, "response_mean")


def test_log_probs_and_entropy_equal_the_plain_softmax_for_any_block():
    questions, tree, values, mask = random_batch(3, "random", mask_some=False)
    rows = plain_rows(questions, tree, values, mask, "response_mean")
    batch = small_batch()
    model = nnx.merge(*decoders()[:2])
    results = [
        token_log_probs(model, batch, temperature=TEMPERATURE, token_block=block, remat=remat)
        for block, remat in ((7, "none"), (1000, "full"))
    ]
    (log_probs, entropy), again = results
    np.testing.assert_allclose(log_probs, again[0], atol=2e-6)
    np.testing.assert_allclose(entropy, again[1], atol=2e-6)
    # Each token has the value that its unpacked response gives it; compare as multisets over trained tokens.
    oracle = np.asarray(plain_log_probs(model, rows["tokens"]))
    found = np.unique(np.round(np.asarray(log_probs)[batch.weight > 0], 4))
    expected = np.unique(np.round(oracle[rows["weight"] > 0], 4))
    assert all(np.abs(expected - x).min() < 2e-4 for x in found)
    assert all(np.abs(found - x).min() < 2e-4 for x in expected)
    own = batch.parent_token == np.arange(ROW_TOKENS)
    assert own.any() and not np.asarray(log_probs)[own].any() and not np.asarray(entropy)[own].any()
    assert (np.asarray(entropy)[~own] > 0).all() and (np.asarray(entropy) <= np.log(VOCAB) + 1e-5).all()


def test_entropy_is_that_of_the_tempered_softmax_and_carries_no_gradient():
    graphdef, params, _ = decoders()
    batch = small_batch()
    model = nnx.merge(graphdef, params)
    hidden, _ = model(batch.tokens, batch.positions, tree_attend(batch.subtree_end))
    logits = np.asarray(model.logits(hidden), np.float64) / TEMPERATURE
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    expected = np.take_along_axis(-(p * np.log(p)).sum(-1), batch.parent_token, axis=1)
    _, entropy = token_log_probs(model, batch, temperature=TEMPERATURE)
    predicted = batch.parent_token != np.arange(ROW_TOKENS)
    np.testing.assert_allclose(np.asarray(entropy)[predicted], expected[predicted], atol=1e-5)
    total = jax.jit(jax.grad(lambda p: token_log_probs(nnx.merge(graphdef, p), batch)[1].sum()))
    gradient = total(params)
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(gradient))


def test_logits_of_all_tokens_never_exist_forwards_or_backwards():
    vocab, rows, tokens, block = 1000, 2, 64, 8  # 1000 is larger than any other dimension
    config = ModelConfig("qwen3", vocab, 8, 8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4)
    graphdef, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)), nnx.Param)
    index = np.broadcast_to(np.arange(tokens, dtype=np.int32), (rows, tokens))
    zeros = np.zeros((rows, tokens), np.float32)
    parent = np.maximum(index - 1, 0)
    batch = TokenBatch(index, index, np.full_like(index, tokens), parent, zeros, zeros, zeros, zeros)

    def total(params):
        return token_log_probs(nnx.merge(graphdef, params), batch, token_block=block)[0].sum()

    sizes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(v.aval.size for v in equation.outvars if vocab in getattr(v.aval, "shape", ()))
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    visit(inner)

    visit(jax.make_jaxpr(jax.grad(total))(params).jaxpr)
    # Logits of a block, or the embedding table itself.
    assert max(sizes) == max(rows * block * vocab, vocab * config.embed_dim)
    assert max(sizes) < rows * tokens * vocab / 4


def flat_batch(log_probs, positive, negative, weight):
    """TokenBatch [1, n] of these float32 rows, whose tree fields policy_loss does not read."""
    float_rows = [np.asarray([x], np.float32) for x in (log_probs, positive, negative, weight)]
    index = np.zeros(float_rows[0].shape, np.int32)
    return TokenBatch(index, index, index, index, *float_rows)


def test_loss_and_metrics_of_a_worked_example():
    # Ratios 2, 0.5, 1, 1.1; token 2 is trained with advantage 0.
    ratio = np.array([2.0, 0.5, 1.0, 1.1])
    positive, negative = np.array([0.3, 0.0, 0.0, 0.1]), np.array([-0.1, -0.2, 0.0, -0.3])
    weight = np.array([0.4, 0.2, 0.1, 0.3])
    batch = flat_batch(np.full(4, -1.0), positive, negative, weight)
    log_probs = jnp.asarray([np.log(ratio) - 1.0], jnp.float32)
    ref = log_probs + jnp.asarray([[0.5, 0.0, -0.5, 0.0]])
    options = LossOptions(clip_low=0.2, clip_high=0.2, kl=0.5, dual_clip=1.5)
    loss, metrics = policy_loss(log_probs, batch, ref, entropy=jnp.ones((1, 4)), options=options)
    kl = 0.4 * (np.exp(0.5) - 0.5 - 1) + 0.1 * (np.exp(-0.5) + 0.5 - 1)
    policy = -(0.3 * 1.2 - 0.1 * 1.5) - (-0.2 * 0.8) - (0.1 * 1.1 - 0.3 * 1.1)
    np.testing.assert_allclose(loss, policy + 0.5 * kl, rtol=1e-5)
    value = {name: float(total / count) for name, (total, count) in metrics.items()}
    expected = {
        "clip_fraction": 0.4 + 0.2,  # tokens 0 (both signs) and 1 in full
        "ratio": (weight * ratio).sum(),
        "ratio_max": 2.0,
        "sampler_gap": (weight * np.abs(np.log(ratio))).sum(),
        "entropy": 1.0,
        "kl": kl,
    }
    assert value == pytest.approx(expected, rel=1e-5)


def test_tokens_of_weight_zero_contribute_nothing_whatever_they_hold():
    options = LossOptions(kl=0.1, dual_clip=3.0)
    log_probs = np.array([[-1.0, -2.0, np.nan, np.inf, -np.inf, 300.0]], np.float32)
    ref = np.array([[-1.5, -2.0, 0.0, np.nan, np.inf, -300.0]], np.float32)
    padding = [0.0] * 4
    batch = flat_batch([-1.2, -1.0, 0, 0, np.nan, 0], [0.5, 0.0, *padding], [0.0, -0.3, *padding], [1.0, 1.0, *padding])
    short = jax.tree.map(lambda x: x[:, :2], batch)

    @jax.jit
    def run(lp, batch, ref):
        return jax.value_and_grad(lambda x: policy_loss(x, batch, ref, options=options)[0])(lp)

    loss, gradient = run(log_probs, batch, ref)
    expected, expected_gradient = run(log_probs[:, :2], short, ref[:, :2])
    assert loss == expected and np.isfinite(loss)
    np.testing.assert_array_equal(gradient[:, :2], expected_gradient)
    np.testing.assert_array_equal(gradient[:, 2:], 0)
    _, metrics = policy_loss(log_probs, batch, ref, entropy=ref, options=options)
    assert all(np.isfinite(x) for pair in metrics.values() for x in pair)


def test_an_empty_batch_is_worth_nothing():
    batch = flat_batch([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    loss, metrics = policy_loss(jnp.full((1, 2), -1.0), batch, options=LossOptions(kl=0.0))
    assert loss == 0 and metrics["ratio"] == (0, 0) and "kl" not in metrics


def test_enormous_ratios_stay_finite():
    batch = flat_batch([-1000.0, -1000.0], [1.0, 0.0], [0.0, -1.0], [1.0, 1.0])
    loss, _ = policy_loss(jnp.zeros((1, 2)), batch, jnp.full((1, 2), 1000.0), options=LossOptions())
    assert np.isfinite(loss)


def test_impossible_options_are_refused():
    batch = flat_batch([0.0], [0.0], [0.0], [1.0])
    with pytest.raises(ValueError, match=r"loss\.kl=0\.1 needs ref_log_probs"):
        policy_loss(jnp.zeros((1, 1)), batch, options=LossOptions(kl=0.1))
    with pytest.raises(ValueError, match=r"loss\.dual_clip=0\.5"):
        LossOptions(dual_clip=0.5)
    with pytest.raises(ValueError, match=r"loss\.clip_low=1\.5"):
        LossOptions(clip_low=1.5)
    with pytest.raises(ValueError, match=r"loss\.kl=-1"):
        LossOptions(kl=-1.0)


def test_metrics_of_microbatches_add_up():
    stacked = {"kl": (jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0])), "ratio_max": (jnp.array([4.0, 2.0]), jnp.ones(2))}
    assert losses.reduce_metrics(stacked) == {"kl": (3.0, 4.0), "ratio_max": (4.0, 1.0)}


def test_importance_weights_are_to_the_trainers_own_log_probs():
    batch, rng = small_batch(), np.random.default_rng(0)
    new = batch.log_probs + rng.normal(scale=0.4, size=batch.log_probs.shape).astype(np.float32)
    old = batch.log_probs + rng.normal(scale=0.4, size=batch.log_probs.shape).astype(np.float32)
    options = LossOptions(clip_low=0.2, clip_high=0.3, kl=0.0, importance_cap=1.2)
    loss, metrics = policy_loss(new, batch, old_log_probs=old, options=options)
    ratio, gap = np.exp(new - old), np.exp(old - batch.log_probs)
    objective = batch.positive * np.minimum(ratio, 1.3) + batch.negative * np.maximum(ratio, 0.8)
    np.testing.assert_allclose(loss, -(objective * np.minimum(gap, 1.2)).sum(), rtol=1e-5)
    mean = {name: float(total / weight) for name, (total, weight) in metrics.items()}
    share = batch.weight / batch.weight.sum()
    np.testing.assert_allclose(mean["importance"], (share * np.minimum(gap, 1.2)).sum(), rtol=1e-5)
    np.testing.assert_allclose(mean["importance_capped"], (share * (gap > 1.2)).sum(), rtol=1e-5)
    np.testing.assert_allclose(mean["ratio"], (share * ratio).sum(), rtol=1e-5)
    assert 0.1 < mean["importance_capped"] < 0.9
