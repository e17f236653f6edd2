"""Run by test_parallel.py in a process with eight CPU devices: every mesh that divides the model updates as one device
does, and three meshes that differ most sample as one does. Prints one line per mesh."""

import dataclasses
import itertools
from unittest import mock

import jax
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from ibtpo.losses import LossOptions
from ibtpo.models import lora
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.packing import fill, plan
from ibtpo.parallel import (
    MESH_AXES,
    SERVING_RULES,
    make_mesh,
    num_row_shards,
    serving,
    shard_batch,
    shard_params,
    shardings,
)
from ibtpo.precompiled import compile_all
from ibtpo.sampling import Codec, Question, SamplerOptions, SamplingParams, TreeOptions, TreeSampler
from ibtpo.sampling import sampler as sampler_lib
from ibtpo.sampling.capacity import worst_case_pages
from ibtpo.sampling.programs import DecoderDevice
from ibtpo.state import create_state, make_update
from ibtpo.token_weights import token_weights
from ibtpo.tree import Response, build_tree, stack_trees
from tests.compilations import compilations
from tests.sampling.recording import check_simulated, recording

VOCAB = 16
MODEL = ModelConfig(
    "qwen3",
    vocab_size=VOCAB,
    embed_dim=16,
    mlp_dim=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    tie_embeddings=True,
    qk_norm=True,
)
# Every split of eight devices whose tensor axis divides the kv heads, and one that does not (attention is then whole).
MESHES = [s for s in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(s) == 8 and s[2] <= 2] + [(1, 1, 8)]
# What sampling sees of a mesh: shards of the slots and the pool, over two axes; the weights' serving layout; and heads
# that are split, or whole. The first has eight shards, the second four and all of it split, the third one.
SAMPLING_MESHES = [(8, 1, 1), (2, 2, 2), (1, 1, 8)]
# Base, adapters and their sums are split over fsdp and tensor as the decoder's own parameters are.
ADAPTER_MESHES = [(2, 2, 2), (1, 4, 2)]


def tree(rng):
    a, b = rng.integers(0, VOCAB, 7), rng.integers(0, VOCAB, 4)
    old = -2.5 + 0.3 * rng.standard_normal(11)
    responses = [
        Response(0, -1, 0, 0, a, old[:7], "stop", 1.0),
        Response(1, 0, 3, 1, np.r_[a[:3], b], np.r_[old[:3], old[7:]], "stop", 0.0),
    ]
    return build_tree(rng.integers(0, VOCAB, 3), responses, lambda t: [*range(2, len(t), 2), len(t)])


def make_batch(rng):
    trees = stack_trees([tree(rng) for _ in range(13)])
    values = rng.standard_normal((13, 2, trees.node_parent.shape[1])).astype(np.float32)
    weights = token_weights(trees, values, aggregation="response_mean", max_new_tokens=7)
    # 13 rows of one tree and 3 of padding, and a microbatch of padding.
    batch = fill(plan(trees, row_tokens=16, rows_per_step=8, num_rows=24), trees, weights)
    return batch.replace(ref_log_probs=(-2.5 + 0.2 * rng.standard_normal(batch.tokens.shape)).astype(np.float32))


def update(graphdef, params, batch, mesh, adapters=None):
    """(state before, state after, metrics) of one update of the parameters, or of adapters of them."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0, momentum=0.9))
    apply = make_update(
        graphdef,
        optimizer,
        LossOptions(kl=0.1, dual_clip=3.0),
        temperature=0.9,
        rows_per_step=8,
        token_block=5,
        remat="full",
        donate=False,
    )
    state = create_state(params, optimizer, jax.random.key(0), keep_reference=False, adapters=adapters)
    if mesh is not None:
        state, batch = shard_params(state, mesh), shard_batch(batch, mesh)
    return (state, *apply(state, batch))


def sample(graphdef, params, slots, *, ahead=False):
    """The trees of nine questions and what they cost. ahead: of a pool that is sure to hold but one question of each
    shard, with every program compiled before the call, which compiles nothing then."""
    options = SamplerOptions(slots=slots, pages=0, page_size=4, chunk=4, max_prompt_tokens=8, questions_in_flight=16)
    tree_options = TreeOptions(
        strategy="ib",
        initial=2,
        rounds=3,
        top_k=1,
        branch=1,
        min_new_tokens=2,
        max_new_tokens=10,
        segment_tokens=5,
    )
    if ahead:
        pages = worst_case_pages(options, tree_options) * num_row_shards()
        options = dataclasses.replace(options, pages=pages)
    sampler = TreeSampler(
        graphdef,
        MODEL,
        options,
        tree_options,
        Codec(VOCAB, stop_ids=[0], cut_steps=lambda t: [*(i + 1 for i in range(len(t) - 1) if t[i] == 1), len(t)]),
    )
    rng = np.random.default_rng(1)
    questions = [Question(id=i, tokens=rng.integers(2, VOCAB, rng.integers(1, 8)).tolist()) for i in range(9)]
    # Random weights are nearly uniform over tokens.
    sharp = jax.jit(lambda params: jax.tree.map(lambda p: p * 3, params))(params)
    key = jax.random.key(7)
    jax.random.key_data(key)  # no program of the sampler's
    if ahead:
        compile_all({"sampler": sampler.ahead(sharp, {len(question.tokens) for question in questions})})
    real = recording(DecoderDevice)
    with compilations() as found, mock.patch.object(sampler_lib, "DecoderDevice", real):
        sampling = SamplingParams(temperature=0.9, top_k=9, top_p=0.95)
        trees, stats = sampler(sharp, questions, grade, key=key, sampling=sampling)
    assert not (ahead and found), found
    check_simulated(real, sampler, questions, grade, key, trees, stats, stop_ids=[0])
    return trees, stats


def check_adapters(graphdef, params, batch):
    """That an update of adapters, and the serving copy that they are merged in, are those of one device."""
    rng = np.random.default_rng(5)
    adapters = lora.create(params, lora.LoraOptions(3, 6.0), jax.random.key(2), np.float32)
    adapters = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.3, x.shape)), adapters)
    serve = jax.jit(lambda p: serving(lora.merged(p, np.float32), np.float32))
    _, expected, expected_metrics = update(graphdef, params, batch, None, adapters)
    expected_copy = serve(expected.policy)
    for sizes in ADAPTER_MESHES:
        mesh = make_mesh(ConfigDict(dict(zip(MESH_AXES, sizes))))
        with jax.set_mesh(mesh):
            before, after, metrics = update(graphdef, shard_params(params, mesh), batch, mesh, adapters)
            copy = serve(after.policy)
        a, b = (before.params.layers["q"][part].get_value().addressable_shards[0].data.shape for part in "ab")
        assert (a, b) == ((2, 16 // sizes[1], 3), (2, 3, 4 // sizes[2], 4)), (sizes, a, b)
        for x, sharding in zip(jax.tree.leaves(after), jax.tree.leaves(shardings(after, mesh))):
            assert x.sharding.is_equivalent_to(sharding, x.ndim), (sizes, x.sharding, sharding)
        for x, sharding in zip(jax.tree.leaves(copy), jax.tree.leaves(shardings(copy, mesh, SERVING_RULES))):
            assert x.sharding.is_equivalent_to(sharding, x.ndim), (sizes, x.sharding, sharding)
        for name in expected_metrics:
            np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=2e-5, atol=1e-6, err_msg=name)
        moved = [np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (expected.params, adapters)))]
        assert min(moved) > 1e-4, moved
        for one, other in ((expected.params, after.params), (expected_copy, copy)):
            for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True):
                np.testing.assert_allclose(x, y, atol=2e-6)
        print(f"mesh {sizes}: same adapters", flush=True)


def grade(question, tokens):
    return float(int(np.sum(tokens)) % 3 == 0)


def main():
    assert jax.device_count() == 8
    graphdef, params = nnx.split(Decoder(MODEL, rngs=nnx.Rngs(0)), nnx.Param)
    batch = make_batch(np.random.default_rng(0))
    assert batch.tokens.shape == (24, 16)
    _, expected, expected_metrics = update(graphdef, params, batch, None)
    expected_trees, expected_stats = sample(graphdef, params, slots=2)
    assert any(r.fork > 0 for t in expected_trees for r in t.responses)
    for sizes in MESHES:
        mesh = make_mesh(ConfigDict(dict(zip(MESH_AXES, sizes))))
        with jax.set_mesh(mesh):
            before, after, metrics = update(graphdef, params, batch, mesh)
        specs = [sharding.spec for sharding in jax.tree.leaves(shardings(before.params, mesh))]
        assert {axis for spec in specs for axes in spec if axes for axis in np.atleast_1d(axes)} == {"fsdp", "tensor"}
        q = before.params["layers"]["q"].get_value()
        heads = 4 // sizes[2] if 4 % sizes[2] == 0 else 4  # four heads do not divide among eight devices
        assert q.addressable_shards[0].data.shape == (2, 16 // sizes[1], heads, 4), sizes
        for state in (before, after):
            for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings(state, mesh))):
                assert x.sharding.is_equivalent_to(sharding, x.ndim), (sizes, x.sharding, sharding)
        for name in expected_metrics:
            np.testing.assert_allclose(
                metrics[name], expected_metrics[name], rtol=2e-5, atol=1e-6, err_msg=f"{sizes} {name}"
            )
        total = error = 0.0
        for a, b, p in zip(*map(jax.tree.leaves, (after.params, expected.params, params))):
            error += float(((np.asarray(a) - np.asarray(b)) ** 2).sum())
            total += float(((np.asarray(b) - np.asarray(p)) ** 2).sum())
        assert total > 1e-4 and (error / total) ** 0.5 <= 2e-6, (sizes, (error / total) ** 0.5)
        print(f"mesh {sizes}: same update, relative error {(error / total) ** 0.5:.1e}", flush=True)
    check_adapters(graphdef, params, batch)
    for sizes in SAMPLING_MESHES:
        mesh = make_mesh(ConfigDict(dict(zip(MESH_AXES, sizes))))
        with jax.set_mesh(mesh):
            # Two slots for each shard: two programs, of both or of one, instead of as many as there may be.
            # Every program ahead on the last of them alone, which has most to preempt.
            ahead = sizes == (1, 1, 8)
            trees, stats = sample(graphdef, shard_params(params, mesh), slots=2 * sizes[0] * sizes[1], ahead=ahead)
        for found, wanted in zip(trees, expected_trees, strict=True):
            for a, b in zip(found.responses, wanted.responses, strict=True):
                assert (a.tokens.tolist(), a.parent, a.fork, a.finish) == (
                    b.tokens.tolist(),
                    b.parent,
                    b.fork,
                    b.finish,
                )
                np.testing.assert_allclose(a.log_probs, b.log_probs, atol=2e-5)
        assert stats.generated_tokens == expected_stats.generated_tokens and stats.pages_left == 0
        # With nine questions on one shard.
        assert stats.preemptions > 0 or sizes != (1, 1, 8)
        print(f"mesh {sizes}: same responses", flush=True)


if __name__ == "__main__":
    main()
