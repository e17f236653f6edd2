"""Described GPUs, to compile for on a machine without one; needs the packages of requirements-gpu.txt.

Without a GPU the compiler times nothing, so it may choose other products than it would there; our own kernels, the
copies and the memory do not depend on that.
"""

import functools

import jax
from jax.experimental import topologies

from ibtpo import parallel

_DESCRIPTION = """
gpu_device_info {{
  core_count: {cores} fpus_per_core: 128 clock_rate_ghz: {clock} threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: {threads}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {per_core} shared_memory_per_block_optin: {per_block}
  memory_bandwidth: {bandwidth} device_memory_size: {memory} l2_cache_size: {cache}
  cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{name}"
"""
# What the compiler wants to know of each, from the vendor's data sheets and programming guide.
H100 = _DESCRIPTION.format(
    name="NVIDIA H100", cores=132, clock=1.98, threads=2048, per_core=233472, per_block=232448, bandwidth=3350000000000,
    memory=85899345920, cache=52428800, major=9, minor=0, features="feature_extension: ACCELERATED_FEATURES",
)  # fmt: skip
L40S = _DESCRIPTION.format(
    name="NVIDIA L40S", cores=142, clock=2.52, threads=1536, per_core=102400, per_block=101376, bandwidth=864000000000,
    memory=51539607552, cache=100663296, major=8, minor=9, features="",
)  # fmt: skip


@functools.cache
def mesh(description: str = H100, tensor: int = 1) -> jax.sharding.Mesh:
    """The mesh of `tensor` described GPUs."""
    topology = f"1x1x{tensor}"
    devices = topologies.get_topology_desc("gpu", platform="cuda", target_config=description, topology=topology).devices
    axis_types = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, tensor), parallel.MESH_AXES, axis_types=axis_types, devices=devices)
