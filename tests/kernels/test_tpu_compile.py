"""The TPU kernels through the real TPU compiler, ahead of time; needs the extra `tpu`, no TPU."""

import functools
import importlib.util
import re

import jax
import pytest
from jax import numpy as jnp

from ibtpo.compiler.topology import get_devices
from ibtpo.kernels.paged_attention import MAX_TABLE, paged_attention
from ibtpo.kernels.tree_attention import tree_attention
from ibtpo.kernels.tree_attention_blocks import MAX_ITEMS, blocks_of, max_items

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the tpu extra is not installed")
TOPOLOGIES = ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"]


@functools.cache
def mesh_of(topology):
    devices = get_devices(topology)
    return jax.make_mesh((len(devices),), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def compiled(topology, fn, *shapes):
    """fn compiled to run on every chip of the topology on its own arrays of these (shape, dtype)."""
    mesh = mesh_of(topology)
    with jax.set_mesh(mesh):
        sharding = jax.NamedSharding(mesh, jax.P("x"))
        arrays = [jax.ShapeDtypeStruct((mesh.size * s[0], *s[1:]), d, sharding=sharding) for s, d in shapes]
        mapped = jax.shard_map(fn, in_specs=jax.P("x"), out_specs=jax.P("x"), check_vma=False)
        return jax.jit(mapped).lower(*arrays).compile()


def tree_gradient(q, k, v, ends):
    return jax.grad(lambda *x: (tree_attention(*x, ends).astype(jnp.float32) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)


def tree_shapes(num_tokens, group, dtype=jnp.bfloat16, head_dim=128):
    return (
        ((1, num_tokens, group * 2, head_dim), dtype),
        *[((1, num_tokens, 2, head_dim), dtype)] * 2,
        ((1, num_tokens), jnp.int32),
    )


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    "num_tokens, group, dtype, head_dim",
    [
        (4096, 4, jnp.bfloat16, 128),
        (4096, 7, jnp.bfloat16, 128),
        (1000, 8, jnp.float32, 128),  # the largest tile
        (100, 1, jnp.bfloat16, 64),
    ],
)
def test_tree_attention_compiles(topology, num_tokens, group, dtype, head_dim):
    text = compiled(topology, tree_gradient, *tree_shapes(num_tokens, group, dtype, head_dim)).as_text()
    assert "tpu_custom_call" in text
    for name in ("tree_attention_forward", "tree_attention_backward_q", "tree_attention_backward_kv"):
        assert name in text, name


def test_the_longest_work_list_fits_scalar_memory():
    shapes = [((7, *shape[1:]), dtype) for shape, dtype in tree_shapes(32768, 7)]
    blocks = blocks_of(32768, 7)
    assert max_items(7, blocks) <= MAX_ITEMS < max_items(8, blocks)
    compiled("v4:2x2x1", tree_gradient, *shapes)


@pytest.mark.parametrize("saved, runs", [((), 2), (("attention",), 1)])
def test_a_remat_policy_can_keep_what_the_forward_kernel_gives(saved, runs):
    policy = jax.checkpoint_policies.save_only_these_names(*saved)

    def gradient(q, k, v, ends):
        attention = jax.checkpoint(lambda *x: tree_attention(*x, ends), policy=policy)
        return jax.grad(lambda *x: (attention(*x).astype(jnp.float32) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)

    text = compiled("v5e:2x2", gradient, *tree_shapes(1024, 4)).as_text()
    assert len(re.findall(r"%\S*tree_attention_forward\S* = .* custom-call\(", text)) == runs


def test_memory_of_tree_attention_is_linear_in_tokens():
    def temporaries(num_tokens):
        program = compiled("v5p:2x2x1", tree_gradient, *tree_shapes(num_tokens, 7))
        return program.memory_analysis().temp_size_in_bytes

    short, long = temporaries(32768), temporaries(65536)
    assert long < 2.5 * short  # twice the tokens
    assert long < 65536**2  # less than a byte for every entry of one mask


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("group, page_size", [(4, 64), (7, 64), (8, 64), (2, 16)])
def test_paged_attention_compiles_without_copying_the_cache(topology, group, page_size):
    layers, pages, slots, tokens = 4, 512, 16, 3072

    def attend(query, keys, values, layer, table, lengths):
        return paged_attention(query, keys, values, layer[0], table, lengths)

    cache = ((1, layers, pages, page_size, 128), jnp.bfloat16)
    program = compiled(
        topology,
        attend,
        ((slots, group, 128), jnp.bfloat16),
        cache,
        cache,
        ((1,), jnp.int32),
        ((slots, tokens // page_size), jnp.int32),
        ((slots,), jnp.int32),
    )
    assert "tpu_custom_call" in program.as_text()
    assert program.memory_analysis().temp_size_in_bytes < 2**20 < layers * pages * page_size * 128 * 2


def test_the_largest_page_table_fits_scalar_memory():
    cache = ((1, 1, 512, 16, 128), jnp.bfloat16)
    rows, columns = MAX_TABLE // 256, 256
    program = compiled(
        "v4:2x2x1",
        lambda q, k, v, layer, table, lengths: paged_attention(q, k, v, layer[0], table, lengths),
        ((rows, 4, 128), jnp.bfloat16),
        cache,
        cache,
        ((1,), jnp.int32),
        ((rows, columns), jnp.int32),
        ((rows,), jnp.int32),
    )
    assert "tpu_custom_call" in program.as_text()
