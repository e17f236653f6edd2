"""The time that a chip's peaks allow."""

from ibtpo.compiler.chips import Chip, roofline


def test_roofline_takes_the_longest():
    chip = Chip("x", flops=100, hbm_bytes=1, hbm_bandwidth=10, ici_bandwidth=5)
    assert roofline(200, 10, 5, chip) == (2.0, "compute")
    assert roofline(200, 50, 5, chip) == (5.0, "memory")
    assert roofline(200, 50, 35, chip) == (7.0, "interconnect")
