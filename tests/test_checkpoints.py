"""A resumed run equals an unbroken one bit for bit; everything else is refused with a reason."""

import dataclasses
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from ibtpo.checkpoints import Checkpoints, find, latest_step, load_config, load_params
from ibtpo.errors import UserError
from ibtpo.losses import LossOptions
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.optimizer import make_optimizer
from ibtpo.packing import TokenBatch
from ibtpo.state import create_state, make_update

MODEL = ModelConfig(
    "qwen3", vocab_size=11, embed_dim=8, mlp_dim=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4,
    tie_embeddings=True, qk_norm=True,
)  # fmt: skip
OPTIMIZER = ConfigDict(
    dict(
        learning_rate=1e-2, schedule="cosine", warmup_steps=2, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1,
        clip_norm=1.0,
        first_moment_dtype="float32",
    )
)  # fmt: skip


def _make_state(model=MODEL, seed=0, keep_reference=True):
    params = nnx.split(Decoder(model, rngs=nnx.Rngs(seed)), nnx.Param)[1]
    optimizer, _ = make_optimizer(OPTIMIZER, 6)
    return create_state(params, optimizer, jax.random.key(seed + 7), keep_reference=keep_reference)


# Op by op, this would compile dozens of programs.
make_state = jax.jit(_make_state, static_argnums=(0, 1, 2))


def zero_state(model):
    """A state of another model without compiling anything: zeros of its shapes."""
    abstract = jax.eval_shape(lambda: _make_state(model, 0, False)).replace(key=None)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract).replace(key=jax.random.key(0))


@functools.cache
def update_fn():
    graphdef = nnx.split(nnx.eval_shape(lambda: Decoder(MODEL, rngs=nnx.Rngs(0))), nnx.Param)[0]
    optimizer, _ = make_optimizer(OPTIMIZER, 6)
    return make_update(graphdef, optimizer, LossOptions(kl=0.1), temperature=1.0, rows_per_step=1)


def train(state, steps):
    """Updates on batches drawn from the state's own key and step, as a run would."""
    for _ in range(steps):
        seed = jax.random.bits(jax.random.fold_in(state.key, state.step))
        rng = np.random.default_rng(int(seed))
        index = np.tile(np.arange(5, dtype=np.int32), (2, 1))
        float_row = rng.standard_normal((4, 2, 5)).astype(np.float32)
        batch = TokenBatch(
            tokens=rng.integers(0, 11, (2, 5)).astype(np.int32),
            positions=index,
            subtree_end=np.full_like(index, 5),
            parent_token=np.maximum(index - 1, 0),
            log_probs=-2.4 + 0.1 * float_row[0],
            positive=np.maximum(float_row[1], 0),
            negative=np.minimum(float_row[1], 0),
            weight=np.full((2, 5), 0.1, np.float32),
            ref_log_probs=-2.4 + 0.1 * float_row[2],
        )
        state, metrics = update_fn()(state, batch)
        state = state.replace(step=state.step + 1)
        assert metrics["skipped_updates"][0] == 0
    return state


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(a)[0], jax.tree.leaves(b)):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path):
    unbroken = train(make_state(), 6)
    with Checkpoints(tmp_path) as checkpoints:
        state = train(make_state(), 3)
        checkpoints.save(state, {"position": 12}, {"method": "ibtpo"})
        train(state, 1)  # its memory is reused; the checkpoint must not notice

    with Checkpoints(tmp_path) as checkpoints:  # another start of the program, from other weights
        saved: list = []
        state, position = checkpoints.restore(make_state(MODEL, 5), check=saved.append)
    assert position == {"position": 12} and saved[0]["config"] == {"method": "ibtpo"}
    assert (state.step, state.policy_version) == (3, 3)
    assert_same(train(state, 3), unbroken)


def test_the_newest_are_kept_and_found(tmp_path):
    state = make_state(MODEL, 0, False)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(UserError, match=r"no checkpoint in .*steps saved there: \[\]"):
            checkpoints.restore(state)
        for step in (1, 2, 5):
            state = state.replace(step=jnp.asarray(step, jnp.int32))
            checkpoints.save(state, {"at": step}, {})
            assert checkpoints.restore(state)[1] == {"at": step}
        checkpoints.save(state, {"at": "again"}, {})  # saved already
        checkpoints.wait()
        assert checkpoints.restore(state)[1] == {"at": 5}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step() == 5
        assert checkpoints.restore(state, step=2)[1] == {"at": 2}
        with pytest.raises(UserError, match=r"no checkpoint of step 1 in .*steps saved there: \[2, 5\]"):
            checkpoints.restore(state, step=1)


def test_parameters_alone_for_evaluation(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {}, {"model": {"path": "x"}})
    assert_same(load_params(tmp_path, make_state(MODEL, 3).params), state.params)
    assert load_config(tmp_path) == {"model": {"path": "x"}}
    with pytest.raises(UserError, match=r"no checkpoints in .*nowhere"):
        load_params(tmp_path / "nowhere", state.params)
    assert not (tmp_path / "nowhere").exists()


def test_a_workdir_leads_to_the_folder_that_its_config_names(tmp_path):
    workdir, bucket, state = tmp_path / "run", tmp_path / "bucket" / "run", make_state(MODEL, 0, False)
    with Checkpoints(workdir, folder=bucket) as checkpoints:
        checkpoints.save(state, {}, {"at": "bucket"})
    workdir.mkdir()
    with pytest.raises(UserError, match=r"no folder .*run/checkpoints, and no config\.json with a checkpoint\.dir"):
        latest_step(workdir)
    for content in ('{"checkpoint": {"dir": ""}}', '{"checkpoint": 3}', "[]", "not JSON"):
        (workdir / "config.json").write_text(content)
        assert find(workdir) is None
    (workdir / "config.json").write_text(json.dumps({"checkpoint": {"dir": str(bucket)}}))
    assert find(workdir) == find(bucket) == bucket and latest_step(workdir) == 0
    assert_same(load_params(workdir, state.params), state.params)
    # What was fetched comes first.
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, {}, {"at": "home"})
    assert load_config(workdir) == {"at": "home"} and load_config(bucket) == {"at": "bucket"}


def test_a_named_folder_that_cannot_be_read_is_said(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"checkpoint": {"dir": str(tmp_path / "gone")}}))
    with pytest.raises(UserError, match=r"no folder .*/checkpoints, and the checkpoint\.dir='.*gone' of its config"):
        latest_step(tmp_path)
    if importlib.util.find_spec("gcsfs") is None:
        (tmp_path / "config.json").write_text(json.dumps({"checkpoint": {"dir": "gs://bucket/run/checkpoints"}}))
        with pytest.raises(UserError, match=r"gs://bucket/run/checkpoints cannot be read here .*gcsfs.*or copy the"):
            latest_step(tmp_path)


def test_what_does_not_fit_is_refused_by_name_and_shape(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(MODEL, 0, False), {}, {})
        wide = zero_state(dataclasses.replace(MODEL, mlp_dim=12))
        with pytest.raises(UserError, match=r"layers\.down is float32\[2, 8, 8\] there and float32\[2, 12, 8\] here"):
            checkpoints.restore(wide)
        untied = zero_state(dataclasses.replace(MODEL, tie_embeddings=False))
        with pytest.raises(UserError, match=r"lm_head is absent there and float32\[11, 8\] here"):
            checkpoints.restore(untied)
        with pytest.raises(UserError, match=r"has no reference but this run needs it"):
            checkpoints.restore(make_state())
