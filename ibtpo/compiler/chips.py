"""Published peaks of the chips, and the time that they allow at best."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Published peaks of one chip (one JAX device).

    flops: bfloat16 FLOP/s. hbm_bytes: capacity. hbm_bandwidth: bytes/s. ici_bandwidth: bytes/s that leave the chip
    when all its links send at once.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float


# By `device_kind`. Source: the "System architecture" pages of the Google Cloud TPU documentation (v4, v5e, v5p, v6e).
# They give ICI bandwidth in both directions together, of which half leaves the chip, and capacities of 16, 32 and 95
# GB, which are GiB: the compiler's own limit, a little below them, says so.
CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("v4", 275e12, 32 * 2**30, 1228e9, 300e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16 * 2**30, 819e9, 200e9),
    "TPU v5": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * 2**30, 1638e9, 400e9),
}

# By `device_kind` too: dense bfloat16 FLOP/s of GPUs. Source: NVIDIA's data sheets of A100, L4, H100 and H200; where
# they give the number with sparsity alone, half of it.
_GPU_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Published bfloat16 FLOP/s of a device by JAX's name of its kind; None: not known here.

    The A100's forms ("NVIDIA A100-SXM4-80GB", ...) have one peak; all others are looked up by their whole name.
    """
    if device_kind in CHIPS:
        return CHIPS[device_kind].flops
    name = "NVIDIA A100" if re.match(r"NVIDIA A100\b", device_kind) else device_kind
    return _GPU_FLOPS.get(name)


def roofline(flops: float, num_bytes: float, sent: float, chip: Chip) -> tuple[float, str]:
    """(seconds, "compute" | "memory" | "interconnect"): the longest of the times that arithmetic, HBM and links need at
    their published peaks; no run can beat them, with everything else overlapped."""
    times = {
        "compute": flops / chip.flops,
        "memory": num_bytes / chip.hbm_bandwidth,
        "interconnect": sent / chip.ici_bandwidth,
    }
    bound = max(times, key=times.__getitem__)
    return times[bound], bound
