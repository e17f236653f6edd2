"""Run by test_importing.py in processes with eight CPU devices between them: checkpoints are imported and exported
again, bit for bit, the first one on every kind of mesh; an error of one of several processes is raised on all.

Arguments: a folder of checkpoints, and with several processes the coordinator's address, their number and the index of
this one. Prints one line per checkpoint and mesh, and one for the errors."""

import pathlib
import sys
from collections.abc import Callable

import jax
import numpy as np
import safetensors.numpy
from flax import nnx
from ml_collections import ConfigDict

from ibtpo import parallel
from ibtpo.errors import UserError
from ibtpo.models import hf
from ibtpo.models.decoder import Decoder
from ibtpo.models.hf.importing import _Staging

MESHES = [(2, 2, 2), (1, 8, 1), (8, 1, 1), (1, 1, 8), (1, 4, 2)]


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: x for file in path.glob("*.safetensors") for name, x in safetensors.numpy.load_file(file).items()}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def expected_parameters(decoder, tensors: dict[str, np.ndarray]):
    """What the import of `tensors` must give, put together on the host by another route."""
    config, params = decoder.config, nnx.state(decoder).to_pure_dict()

    def make(suffix, param, transpose):
        stacked = [tensors[f"model.layers.{i}.{suffix}"] for i in range(config.num_layers)]
        return np.stack([x.T if transpose else x for x in stacked]).reshape(param.shape)

    names = dict(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm")
    names |= {x: f"self_attn.{x}_proj" for x in "qkvo"} | {f"{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
    names |= {x: f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    layers = {}
    for name, param in params["layers"].items():
        if name.endswith("_bias"):
            layers[name] = make(f"self_attn.{name[0]}_proj.bias", param, transpose=False)
        else:
            layers[name] = make(names[name] + ".weight", param, transpose="norm" not in name)
    top = dict(embedding="model.embed_tokens.weight", final_norm="model.norm.weight", lm_head="lm_head.weight")
    return {"layers": layers} | {name: tensors[top[name]] for name in params if name != "layers"}


def check(path: pathlib.Path, sizes: tuple[int, int, int]) -> Decoder:
    """Imports and exports one checkpoint on one mesh; returns what was imported."""
    mesh = parallel.make_mesh(ConfigDict(dict(zip(parallel.MESH_AXES, sizes))))
    tensors = read(path)
    dtype = next(iter(tensors.values())).dtype
    copied, copy = [], _Staging._copy

    def counting(self, view):
        copied.append(view.nbytes)
        return copy(self, view)

    _Staging._copy = counting
    decoder = hf.load(path, param_dtype=dtype, shardings=lambda params: parallel.shardings(params, mesh))
    _Staging._copy = copy

    needed, split = 0, False
    places = jax.tree.leaves(parallel.shardings(nnx.state(decoder), mesh))
    expected = jax.tree.leaves(expected_parameters(decoder, tensors))
    for param, place, whole in zip(jax.tree.leaves(nnx.state(decoder)), places, expected, strict=True):
        assert param.sharding == place
        assert all(same_bits(np.asarray(shard.data), whole[shard.index]) for shard in param.addressable_shards)
        needed += sum({str(shard.index): shard.data.nbytes for shard in param.addressable_shards}.values())
        split |= not param.is_fully_replicated
    assert split or sizes == (8, 1, 1)
    assert sum(copied) == needed, "a process reads what its devices need, once"

    out = path.parent / f"{path.name}-out"
    hf.save(decoder, out, tokenizer_from=None)
    if jax.process_index() == 0:
        again = read(out)
        assert again.keys() == tensors.keys() and all(same_bits(again[name], tensors[name]) for name in tensors)
    print("checked", path.name, sizes, flush=True)
    return decoder


def raised(function: Callable[[], None]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("no error was raised")


def check_failures(decoder: Decoder, folder: pathlib.Path) -> None:
    """The first process, which writes, fails in the middle of an export: every process raises, and goes on."""
    save_file, first = safetensors.numpy.save_file, jax.process_index() == 0

    def fail(contents, file, metadata):
        if file.name.startswith("model-00002"):
            raise OSError("No space left on device")
        save_file(contents, file, metadata)

    safetensors.numpy.save_file = fail
    error = raised(lambda: hf.save(decoder, folder / "full", tokenizer_from=None, max_file_bytes=20_000))
    safetensors.numpy.save_file = save_file
    if first:
        assert type(error) is OSError and not any((folder / "full").iterdir())
    else:
        assert type(error) is RuntimeError
        assert str(error) == "process 0 failed: OSError: No space left on device"

    error = raised(lambda: hf.save(decoder, folder / "none", tokenizer_from=folder))
    assert type(error) is UserError and str(error).startswith(f"no tokenizer in {folder}")
    assert str(error).endswith("(on process 0)") != first

    def fail_elsewhere():
        with parallel.together():
            if not first:
                raise KeyError("é" * 1000)  # longer than the part that is told

    error = raised(fail_elsewhere)
    assert type(error) is RuntimeError if first else type(error) is KeyError
    assert not first or str(error).startswith("process 1 failed: KeyError: 'ééé")
    with parallel.together():
        pass
    print("checked failures", flush=True)


def main() -> None:
    folder, *address = sys.argv[1:]
    if address:
        jax.distributed.initialize(address[0], int(address[1]), int(address[2]))
    assert jax.device_count() == 8
    # Several processes compile anew every time: there, two meshes are enough.
    first, *others = sorted(pathlib.Path(folder).iterdir())
    for sizes in MESHES[:2] if address else MESHES:
        decoder = check(first, sizes)
    for path in others:
        check(path, MESHES[0])
    if address:
        check_failures(decoder, pathlib.Path(folder))


if __name__ == "__main__":
    main()
