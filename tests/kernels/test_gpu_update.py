"""The update and its attention kernels through the compiler for GPUs, ahead of time; needs requirements-gpu.txt, no
GPU."""

import dataclasses
import functools
import importlib.util

import jax
import pytest
from jax import numpy as jnp

from benchmarks import gpu_compiled
from benchmarks.gpu_bench import update_job
from benchmarks.gpu_sizes import FULL
from benchmarks.gpu_target import H100, L40S, mesh
from ibtpo.kernels import tree_attention_gpu as gpu
from ibtpo.kernels.tree_attention import tree_attention
from ibtpo.models.attention import tree_attend
from ibtpo.models.presets import PRESETS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="the requirements for GPUs are not installed"
)
KERNELS = ("tree_attention_forward", "tree_attention_backward_q", "tree_attention_backward_kv")


@pytest.fixture(autouse=True)
def no_cache():
    """The persistent cache keeps such programs, and cannot read them without a GPU."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.parametrize(
    "card, heads, kv_heads, head_dim, dtype",
    [
        (H100, 16, 8, 128, jnp.bfloat16),
        (H100, 28, 4, 128, jnp.bfloat16),  # 7 query heads of a kv head
        (H100, 32, 8, 64, jnp.bfloat16),
        (H100, 4, 4, 32, jnp.float32),
        (L40S, 16, 8, 128, jnp.bfloat16),
        (L40S, 32, 8, 64, jnp.bfloat16),
    ],
)
def test_tree_attention_compiles_forwards_and_backwards(card, heads, kv_heads, head_dim, dtype, monkeypatch):
    monkeypatch.setattr(gpu, "shared_memory", lambda: gpu.SHARED_MEMORY if card == H100 else gpu.SMALL_SHARED_MEMORY)
    T = 1000  # no multiple of the blocks
    placed = jax.NamedSharding(mesh(card), jax.P())
    q, kv = (jax.ShapeDtypeStruct((2, T, n, head_dim), dtype, sharding=placed) for n in (heads, kv_heads))
    ends = jax.ShapeDtypeStruct((2, T), jnp.int32, sharding=placed)

    def gradient(q, k, v, ends):
        out, vjp = jax.vjp(lambda *x: tree_attention(*x, ends), q, k, v)
        return out, *vjp(out)

    with jax.set_mesh(mesh(card)):
        text = jax.jit(gradient).lower(q, kv, kv, ends).compile().as_text()
    assert all(f'name = "{name}"' in text for name in KERNELS)
    assert gpu_compiled.squares(text, T) == []


def test_two_gpus_attend_each_for_its_own_heads():
    both = mesh(tensor=2)

    def of(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(both, jax.P()))

    def gradient(q, k, v, ends):
        return jax.vjp(lambda *x: tree_attend(ends)(*x, 0, None)[0], q, k, v)[1](q)

    with jax.set_mesh(both):
        kv = of(2, 512, 4, 64)
        program = jax.jit(gradient).lower(of(2, 512, 8, 64), kv, kv, of(2, 512, dtype=jnp.int32)).compile()
    assert all(f'name = "{name}"' in program.as_text() for name in KERNELS)
    assert "bf16[2,2048,64]" in program.as_text()  # the queries of 4 heads of 8


@functools.cache
def figures(remat):
    model = dataclasses.replace(PRESETS["Qwen/Qwen3-1.7B"], num_layers=2, vocab_size=4096)
    return gpu_compiled.measure(model, update_job(model, FULL | dict(trees=3)), remat=remat)


def test_an_update_computes_little_more_than_the_model_needs_and_holds_no_square():
    found = figures("elementwise")
    assert found["of_own"] < 1.35 and found["attention_of_own"] < 0.2
    assert found["kernel_calls_per_layer"] == dict.fromkeys(KERNELS, 1)  # nothing of the attention is computed twice
    assert found["square_arrays"] == []


def test_keeping_the_products_saves_a_quarter_of_the_flops_and_costs_memory():
    kept, recomputed = figures("elementwise"), figures("attention")
    assert recomputed["kernel_calls_per_layer"] == dict.fromkeys(KERNELS, 1)
    assert kept["of_own"] < 0.85 * recomputed["of_own"]
    assert kept["memory_gb"] > recomputed["memory_gb"]
