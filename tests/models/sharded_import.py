"""Run by test_hf.py in processes with eight CPU devices between them: checkpoints are imported and exported again, bit
for bit, the first one on every kind of mesh. Arguments: a folder of checkpoints, and with several processes the
coordinator's address, their number and the index of this one. Prints one line per checkpoint and mesh."""

import pathlib
import sys

import jax
import numpy as np
import safetensors.numpy
from flax import nnx
from ml_collections import ConfigDict

from ibtpo import parallel
from ibtpo.models import hf

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


def check(path: pathlib.Path, sizes: tuple[int, int, int]) -> None:
    mesh = parallel.make_mesh(ConfigDict(dict(zip(parallel.MESH_AXES, sizes))))
    tensors = read(path)
    dtype = next(iter(tensors.values())).dtype
    copied, copy = [], hf._Staging._copy

    def counting(self, view):
        copied.append(view.nbytes)
        return copy(self, view)

    hf._Staging._copy = counting
    decoder = hf.load(path, param_dtype=dtype, shardings=lambda params: parallel.shardings(params, mesh))
    hf._Staging._copy = copy

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


def main() -> None:
    folder, *address = sys.argv[1:]
    if address:
        jax.distributed.initialize(address[0], int(address[1]), int(address[2]))
    assert jax.device_count() == 8
    # Several processes compile anew every time: there, two meshes are enough.
    first, *others = sorted(pathlib.Path(folder).iterdir())
    for sizes in MESHES[:2] if address else MESHES:
        check(first, sizes)
    for path in others:
        check(path, MESHES[0])


if __name__ == "__main__":
    main()
