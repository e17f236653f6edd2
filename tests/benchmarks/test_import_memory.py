"""The import benchmark: its checkpoint is a checkpoint, and the import stays near one tensor of host memory."""

import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import pytest
import safetensors.numpy

from benchmarks import import_memory
from ibtpo.models import hf

# Little but two tables, the larger the clearer: compilation takes some 30 MB whatever the model.
SIZES = import_memory.QUICK | dict(vocab_size=49_152, mlp_dim=1024)


def test_the_checkpoint_is_random_finite_and_readable_by_safetensors(tmp_path):
    num_bytes = import_memory.write_checkpoint(tmp_path, import_memory.FIRST, num_files=3)
    files = sorted(tmp_path.glob("*.safetensors"))
    tensors = {name: x for file in files for name, x in safetensors.numpy.load_file(file).items()}
    assert len(files) == 3 and {name: x.nbytes for name, x in tensors.items()} == num_bytes
    values = np.concatenate([x.ravel().astype(np.float32) for x in tensors.values()])
    assert np.isfinite(values).all() and np.abs(values).min() > 0.1 and len(np.unique(values)) > 100
    hf.save(hf.load(tmp_path, param_dtype=jax.numpy.bfloat16), tmp_path / "out", tokenizer_from=None)
    again = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert all(again[name].tobytes() == x.tobytes() for name, x in tensors.items())


@pytest.fixture(scope="module")
def large():
    """(folder as `measure` takes it, bytes of each tensor); removed at once, for it is large."""
    with tempfile.TemporaryDirectory() as name:
        import_memory.write_checkpoint(pathlib.Path(name, "first"), import_memory.FIRST)
        yield pathlib.Path(name), import_memory.write_checkpoint(pathlib.Path(name, "model"), SIZES)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("devices", import_memory.DEVICES)
def test_host_memory_is_one_tensor_beyond_the_parameters(devices, large):
    folder, num_bytes = large
    result = import_memory.measure_in_new_process(folder, devices)
    whole = 4 * hf.read_config(folder / "model").num_params
    assert result["devices"] == devices and whole <= result["parameters"] < 1.01 * whole  # some small ones are copied
    largest = max(num_bytes.values())
    # A second copy of the tensor, in any dtype, would be 100 MB or more.
    assert 0.9 * largest < result["beyond"] < largest + 70e6


def test_figures_end_in_goals(monkeypatch, capsys):
    monkeypatch.setattr(import_memory, "QUICK", import_memory.FIRST)
    monkeypatch.setattr(sys, "argv", ["import_memory.py", "--quick", "--json"])
    monkeypatch.setattr(
        import_memory,
        "measure_in_new_process",
        lambda folder, devices: dict(devices=devices, parameters=1, beyond=5000, first_import=1, seconds=1.0),
    )
    import_memory.main()
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert "importing" in captured.err
    ratio = 5000 / figures["largest_tensor_bytes"]
    for goal in figures["goals"]:
        assert goal["goal"] == 1.2 and goal["value"] == round(ratio, 3) and goal["met"] == (ratio <= 1.2)
