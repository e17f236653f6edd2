"""Published peaks of the chips, and the time that they allow at best."""

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
