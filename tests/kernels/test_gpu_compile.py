"""The sampler's programs for GPUs through the real compiler, ahead of time; needs requirements-gpu.txt, no GPU.

Without a GPU the compiler times nothing, so it may choose other products than it would there; our own
kernels, the copies and the memory do not depend on that.
"""

import functools
import importlib.util
import re

import jax
import pytest
from flax import nnx
from jax import numpy as jnp
from jax.experimental import topologies

from ibtpo import parallel
from ibtpo.kernels.paged_attention import paged_attention
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.sampling import Codec, SamplerOptions, TreeOptions, TreeSampler

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="the requirements for GPUs are not installed"
)
# What the compiler wants to know of an H100, from the vendor's data sheet and programming guide.
H100 = """
gpu_device_info {
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  memory_bandwidth: 3350000000000 device_memory_size: 85899345920 l2_cache_size: 52428800
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100"
"""
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
def mesh(tensor=1):
    topology = f"1x1x{tensor}"
    devices = topologies.get_topology_desc("h100", platform="cuda", target_config=H100, topology=topology).devices
    axis_types = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, tensor), parallel.MESH_AXES, axis_types=axis_types, devices=devices)


@functools.cache
def lowered(tensor):
    types = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Decoder(MODEL, rngs=nnx.Rngs(0), **types)), nnx.Param)
    tree = TreeOptions(strategy="ib", initial=4, rounds=9, top_k=1, branch=1, max_new_tokens=512)
    options = SamplerOptions(slots=64, pages=4096, page_size=16, chunk=32, max_prompt_tokens=256)
    with jax.set_mesh(mesh(tensor)):
        codec = Codec(MODEL.vocab_size, stop_ids=[1])
        sampler = TreeSampler(graphdef, MODEL, options, tree, codec, dtype=jnp.bfloat16)
        shardings = parallel.shardings(params, mesh(tensor))
        return sampler.lower(
            jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)
        )


@functools.cache
def compiled(name, tensor=1):
    with jax.set_mesh(mesh(tensor)):
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
