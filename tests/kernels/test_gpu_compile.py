"""The sampler's programs for GPUs through the real compiler, ahead of time; needs requirements-gpu.txt, no GPU."""

import functools
import importlib.util
import re

import jax
import pytest
from flax import nnx
from jax import numpy as jnp

from benchmarks.gpu_target import mesh
from ibtpo import parallel
from ibtpo.kernels.paged_attention import paged_attention
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.sampling import Codec, SamplerOptions, TreeOptions, TreeSampler

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="the requirements for GPUs are not installed"
)
KERNEL = 'custom_call_target="__gpu$xla.gpu.triton"'
# A layer's largest weights take more than all temporaries should.
MODEL = ModelConfig(
    family="qwen3",
    qk_norm=True,
    tie_embeddings=True,
    vocab_size=2048,
    embed_dim=2048,
    mlp_dim=8192,
    num_layers=3,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
)
LARGEST_WEIGHT = 2 * MODEL.embed_dim * 2 * MODEL.mlp_dim


@pytest.fixture(autouse=True)
def no_cache():
    """The persistent cache keeps such programs, and cannot read them without a GPU."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@functools.cache
def lowered(tensor):
    types = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Decoder(MODEL, rngs=nnx.Rngs(0), **types)), nnx.Param)
    tree = TreeOptions(strategy="ib", initial=4, rounds=9, top_k=1, branch=1, max_new_tokens=512)
    options = SamplerOptions(slots=64, pages=4096, page_size=16, chunk=32, max_prompt_tokens=256)
    with jax.set_mesh(mesh(tensor=tensor)):
        codec = Codec(MODEL.vocab_size, stop_ids=[1])
        sampler = TreeSampler(graphdef, MODEL, options, tree, codec, dtype=jnp.bfloat16)
        shardings = parallel.shardings(params, mesh(tensor=tensor))
        return sampler.lower(
            jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)
        )


@functools.cache
def compiled(name, tensor=1):
    with jax.set_mesh(mesh(tensor=tensor)):
        return lowered(tensor)[name].compile()


@pytest.mark.parametrize("slots", [4, 256])  # several parts of a sequence, and one
@pytest.mark.parametrize("group, page_size, head_dim", [(2, 16, 128), (4, 64, 128), (7, 16, 128), (8, 8, 64)])
def test_paged_attention_compiles_without_copying_the_cache(slots, group, page_size, head_dim):
    def of(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh(), jax.P()))

    cache = of((4, 4, 4096, page_size, head_dim), jnp.bfloat16)
    with jax.set_mesh(mesh()):
        program = (
            jax.jit(paged_attention)
            .lower(
                of((slots, 4 * group, head_dim), jnp.bfloat16),
                cache,
                cache,
                of((), jnp.int32),
                of((slots, 3072 // page_size), jnp.int32),
                of((slots,), jnp.int32),
            )
            .compile()
        )
    assert KERNEL in program.as_text()
    assert program.memory_analysis().temp_size_in_bytes < 2**24 < cache.size * 2


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("name", ["serve", "prefill", "start", "decode", "release", "recompute"])
def test_every_program_compiles_and_updates_the_cache_in_place(name, tensor):
    memory = compiled(name, tensor).memory_analysis()
    cache = 2 * 2 * MODEL.num_layers * MODEL.num_kv_heads * MODEL.head_dim * 4096 * 16 // tensor
    assert name == "serve" or memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < cache


def test_decoding_copies_no_weights():
    program = compiled("decode")
    assert program.memory_analysis().temp_size_in_bytes < LARGEST_WEIGHT
    copied = re.findall(rf"= bf16\[(?:1,)?{MODEL.embed_dim},{2 * MODEL.mlp_dim}\]\S* (\S+)\(", program.as_text())
    assert set(copied) <= {"parameter", "get-tuple-element", "bitcast"}
    assert program.as_text().count(KERNEL) == MODEL.num_layers


def test_prompts_are_attended_to_by_cudnn():
    assert "cudnn$fmha" in compiled("prefill").as_text()
