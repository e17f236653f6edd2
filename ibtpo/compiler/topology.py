"""Chips that are not there: described devices to compile for, and the HBM that their compiler lets a program use."""

import importlib.util
import os
import re
from typing import Any

import jax
import jax.numpy as jnp

from ibtpo.compiler.chips import CHIPS
from ibtpo.config import ConfigError

EXAMPLES = "v5e:2x4, v5e:4x4, v6e:4x4, v5p:2x2x2, v4:2x2x2"


def get_devices(topology: str) -> list[jax.Device]:
    """Described (not real) devices of a topology such as "v5e:4x4", one per chip.

    Raises:
      ConfigError: libtpu is not installed, or it knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("the TPU compiler (libtpu) is not installed: pip install -r requirements-tpu.txt")
    from jax.experimental import topologies

    # The compiler alone is wanted: no chips are looked for, and several may compile at a time.
    quiet = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {}
    if topology.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # as TPU VMs run it: both cores of a chip are one device
    if re.fullmatch(r"v\w+:1(x1)*", topology):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices: list[jax.Device] = list(topologies.get_topology_desc(topology, "tpu", **options).devices)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--topology={topology}: {reason}; e.g. {EXAMPLES}") from None
    kind = devices[0].device_kind
    if kind not in CHIPS:
        raise ConfigError(f"--topology={topology}: no published peaks of {kind!r} are known here; e.g. {EXAMPLES}")
    return devices


def usable_hbm(device: jax.Device) -> float:
    """Bytes of HBM that the compiler lets a program use: asked by a program that is too large."""
    too_large = jax.ShapeDtypeStruct((2**40,), jnp.int8, sharding=jax.sharding.SingleDeviceSharding(device))
    try:
        jax.jit(jnp.negative).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        if exceeded := memory_exceeded(str(error)):
            return exceeded[1]
    return CHIPS[device.device_kind].hbm_bytes


def memory_exceeded(message: str) -> tuple[float, float] | None:
    """(bytes needed, bytes there are) of the compiler's complaint about memory, None of any other."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern in (
        r"\(([\d.]+)([KMGT]?)\) exceeds available \w+ \(([\d.]+)([KMGT]?)\)",
        r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
    ):
        if match := re.search(pattern, message):
            used, used_unit, limit, limit_unit = match.groups()
            return float(used) * units[used_unit], float(limit) * units[limit_unit]
    return None
