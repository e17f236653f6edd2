"""One update: microbatches add up, and a non-finite one leaves no trace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ibtpo.losses import LossOptions, policy_loss, token_log_probs
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.packing import TokenBatch
from ibtpo.state import create_state, make_log_probs, make_update

CONFIG = ModelConfig(
    "llama", vocab_size=11, embed_dim=8, mlp_dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4
)
OPTIONS = LossOptions(kl=0.1)
ROWS, TOKENS = 4, 6


@functools.cache
def decoder():
    return make_decoder(jnp.float32)


def make_decoder(dtype):
    """(graphdef, params), made in one compiled program instead of op by op."""

    def make():
        return Decoder(CONFIG, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)

    graphdef = nnx.split(nnx.eval_shape(make), nnx.Param)[0]
    return graphdef, jax.jit(lambda: nnx.split(make(), nnx.Param)[1])()


def random_batch(seed=0):
    """Rows with one response each, prompt of two tokens; the last row is padding."""
    rng = np.random.default_rng(seed)
    index = np.tile(np.arange(TOKENS, dtype=np.int32), (ROWS, 1))
    trained = (index > 1) & (np.arange(ROWS) < ROWS - 1)[:, None]
    real = (np.arange(ROWS) < ROWS - 1)[:, None]
    advantage = rng.standard_normal((ROWS, 1)) * trained / 12
    return TokenBatch(
        tokens=rng.integers(0, 11, (ROWS, TOKENS)).astype(np.int32),
        positions=index,
        subtree_end=np.where(real, TOKENS, index + 1).astype(np.int32),
        parent_token=np.where(real, np.maximum(index - 1, 0), index).astype(np.int32),
        log_probs=np.where(trained, -2.4 + 0.3 * rng.standard_normal(index.shape), 0).astype(np.float32),
        positive=np.maximum(advantage, 0).astype(np.float32),
        negative=np.minimum(advantage, 0).astype(np.float32),
        weight=(trained / 12).astype(np.float32),
    )


def make(rows_per_step, optimizer=None, **options):
    graphdef, params = decoder()
    optimizer = optimizer or optax.sgd(1.0)
    # Copies: an update gives its state's memory away.
    state = create_state(jax.tree.map(jnp.copy, params), optimizer, jax.random.key(1), keep_reference=True)
    options = {"remat": "full"} | options
    return state, make_update(graphdef, optimizer, OPTIONS, temperature=0.7, rows_per_step=rows_per_step, **options)


def reference_log_probs(batch, rows_per_step=2):
    return make_log_probs(decoder()[0], temperature=0.7, rows_per_step=rows_per_step)(decoder()[1], batch)


def referenced_batch(shift=0.0):
    """A random batch with the log-probabilities of the reference, plus `shift`."""
    batch = random_batch()
    return batch.replace(ref_log_probs=np.asarray(reference_log_probs(batch)) + np.float32(shift))


def test_reference_log_probs_keep_the_order_of_rows():
    batch = random_batch()
    expected = jax.jit(lambda p: token_log_probs(nnx.merge(decoder()[0], p), batch, temperature=0.7)[0])(decoder()[1])
    np.testing.assert_allclose(reference_log_probs(batch), expected, atol=1e-6)


def test_an_update_with_microbatches_takes_the_gradient_of_the_whole_batch():
    batch = referenced_batch(0.1)
    graphdef, params = decoder()

    @jax.jit
    def whole(params):
        def loss_fn(params):
            log_probs, entropy = token_log_probs(nnx.merge(graphdef, params), batch, temperature=0.7)
            return policy_loss(log_probs, batch, entropy=entropy, options=OPTIONS)

        return jax.value_and_grad(loss_fn, has_aux=True)(params)

    (loss, metrics), gradient = whole(params)
    state, update = make(rows_per_step=2)
    state, found = update(state, batch)
    for new, old, g in zip(*map(jax.tree.leaves, (state.params, params, gradient))):
        np.testing.assert_allclose(new, old - g, atol=1e-6)
    metrics |= {
        "loss": (loss, 1),
        "grad_norm": (optax.global_norm(gradient), 1),
        "skipped_updates": (0, 1),
        "empty_updates": (0, 1),
    }
    assert found.keys() == metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(found[name], metrics[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert (state.step, state.policy_version) == (0, 1)  # steps are the caller's to count


def test_a_non_finite_update_is_skipped_and_counted():
    state, update = make(2, optax.adam(0.1))
    batch = referenced_batch()
    state, _ = update(state, batch)
    before = jax.tree.map(np.asarray, (state.params, state.opt_state, state.ref_params))
    broken = batch.replace(positive=np.where(batch.weight > 0, np.inf, 0).astype(np.float32))
    state, metrics = update(state, broken)
    for new, old in zip(jax.tree.leaves((state.params, state.opt_state, state.ref_params)), jax.tree.leaves(before)):
        np.testing.assert_array_equal(new, old)
    assert metrics["skipped_updates"] == (1, 1) and state.policy_version == 1
    state, metrics = update(state, batch)
    assert metrics["skipped_updates"] == (0, 1) and state.policy_version == 2
    assert any((new != old).any() for new, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(before[0])))
    assert update._cache_size() == 1  # same shapes and types, one compilation


def test_an_update_of_nothing_moves_nothing():
    """Adam would go on with its momentum."""
    state, update = make(2, optax.adamw(0.1, weight_decay=0.1))
    batch = referenced_batch()
    state, metrics = update(state, batch)
    assert metrics["empty_updates"] == (0, 1)
    before = jax.tree.map(np.asarray, (state.params, state.opt_state))
    zeros = np.zeros_like(batch.weight)
    state, metrics = update(state, batch.replace(positive=zeros, negative=zeros, weight=zeros))
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), before)
    assert metrics["empty_updates"] == (1, 1) and metrics["skipped_updates"] == (0, 1)
    assert state.policy_version == 1


def test_bfloat16_parameters_keep_their_type():
    graphdef, params = make_decoder(jnp.bfloat16)
    optimizer = optax.adam(1e-2)
    state = create_state(params, optimizer, jax.random.key(1), keep_reference=False)
    types = jax.tree.map(lambda x: x.dtype, state)
    update = make_update(graphdef, optimizer, LossOptions(kl=0.0), temperature=1.0, rows_per_step=ROWS, donate=False)
    after, metrics = update(state, random_batch())
    assert after.ref_params is None and jax.tree.map(lambda x: x.dtype, after) == types
    assert metrics["skipped_updates"][0] == 0


def test_a_reference_in_the_type_of_the_computation_is_exact():
    graphdef, params = nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16), nnx.Param)
    create = functools.partial(create_state, params, optax.sgd(1.0), jax.random.key(1), keep_reference=True)
    whole, small = create().ref_params, create(reference_dtype="bfloat16").ref_params
    assert {x.dtype for x in jax.tree.leaves(whole)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(small)} == {jnp.dtype("bfloat16")}
    log_probs = make_log_probs(graphdef, temperature=0.7, rows_per_step=2)
    np.testing.assert_array_equal(log_probs(whole, random_batch()), log_probs(small, random_batch()))


def test_rows_that_do_not_divide_are_refused():
    state, update = make(rows_per_step=3)
    with pytest.raises(ValueError, match=r"4 rows .* train\.rows_per_step=3: plan them with rows_per_step=3"):
        update(state, referenced_batch())
