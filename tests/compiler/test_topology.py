"""Chips that are not there; where libtpu is installed, the TPU compiler itself."""

import importlib.util

import numpy as np
import pytest

from ibtpo.compiler.chips import CHIPS
from ibtpo.compiler.topology import get_devices, memory_exceeded, usable_hbm
from ibtpo.config import ConfigError

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("required for HLO temporaries (1.56T) exceeds available HBM (15.75G).", (1.56 * 2**40, 15.75 * 2**30)),
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", (20.5 * 2**30, 15.75 * 2**30)),
        ("INTERNAL: something else", None),
    ],
)
def test_the_compilers_complaint_is_read(message, expected):
    assert memory_exceeded(message) == expected


def test_libtpu_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"-r requirements-tpu\.txt"):
        get_devices("v5e:2x2")


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu (requirements-tpu.txt)")
@pytest.mark.parametrize("name", ["v9:2x2", "nonsense", "v5e:3x5"])
def test_an_unknown_topology_is_one_line_with_examples(name):
    with pytest.raises(ConfigError, match="v5p:2x2x2") as error:
        get_devices(name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu (requirements-tpu.txt)")
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v5e:1x1"])
def test_every_generation_has_one_device_per_chip(name):
    devices = get_devices(name)
    assert len(devices) == np.prod([int(n) for n in name.split(":")[1].split("x")])
    chip = CHIPS[devices[0].device_kind]
    assert chip.name == name.split(":")[0]
    assert 0.9 * chip.hbm_bytes < usable_hbm(devices[0]) < 1.01 * chip.hbm_bytes
