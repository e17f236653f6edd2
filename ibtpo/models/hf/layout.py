"""Which tensors of a checkpoint make up which parameter of the decoder, and how the two lie in memory."""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder

# Our parameter: (name of its tensor, number of its leading axes that are contracted with the input). A checkpoint
# stores a projection as [out, in], ours is [in axes, out axes]; with none contracted only the shape differs.
LAYER_TENSORS = {
    "attn_norm": ("input_layernorm.weight", 0),
    "q": ("self_attn.q_proj.weight", 1),
    "k": ("self_attn.k_proj.weight", 1),
    "v": ("self_attn.v_proj.weight", 1),
    "o": ("self_attn.o_proj.weight", 2),
    "q_bias": ("self_attn.q_proj.bias", 0),
    "k_bias": ("self_attn.k_proj.bias", 0),
    "v_bias": ("self_attn.v_proj.bias", 0),
    "q_norm": ("self_attn.q_norm.weight", 0),
    "k_norm": ("self_attn.k_norm.weight", 0),
    "mlp_norm": ("post_attention_layernorm.weight", 0),
    "gate": ("mlp.gate_proj.weight", 1),
    "up": ("mlp.up_proj.weight", 1),
    "down": ("mlp.down_proj.weight", 1),
}
MODEL_TENSORS = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The checkpoint's tensors that make up one parameter: one, or one per layer.

    shape is the parameter's without the layer axis, [*ins, *outs]; inputs is the number of ins as in
    `LAYER_TENSORS`, None where the tensor has the parameter's own shape.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    inputs: int | None
    stacked: bool

    @property
    def hf_shape(self) -> tuple[int, ...]:
        if self.inputs is None:
            return self.shape
        ins, outs = self.shape[: self.inputs], self.shape[self.inputs :]
        return (math.prod(outs), math.prod(ins)) if ins else (math.prod(outs),)

    @property
    def view_shape(self) -> tuple[int, ...]:
        """[*outs, *ins], as which a tensor can be seen without moving a byte."""
        return self._rotate(self.shape, self.inputs or 0)

    def view_spec(self, spec: PartitionSpec) -> PartitionSpec:
        """The placement of the view under which the parameter's placement `spec` moves no byte between devices."""
        layers = int(self.stacked)
        axes = (*spec, *(None,) * (len(self.shape) + layers - len(spec)))
        if any(axes[:layers]):
            raise ValueError(
                f"{self.names[0]}: the layers axis of a parameter is not split, but its placement is {spec}"
            )
        return PartitionSpec(*self._rotate(axes[layers:], self.inputs or 0))

    def from_view(self, view: jax.Array) -> jax.Array:
        outs = len(self.shape) - (self.inputs or 0)
        return view.transpose(self._rotate(tuple(range(view.ndim)), outs))

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        if not self.inputs:
            return np.ascontiguousarray(array.reshape(self.hf_shape))
        # safetensors writes the buffer as it lies in memory: the transpose must be made, not viewed.
        return np.ascontiguousarray(array.reshape(self.hf_shape[::-1]).T)

    @staticmethod
    def _rotate(axes: tuple, count: int) -> tuple:
        return axes[count:] + axes[:count]


def tensors_of(key_path, param) -> Tensors:
    """The tensors of the parameter at `key_path` of the decoder's state."""
    path = [key.key for key in key_path if isinstance(key, jax.tree_util.DictKey)]
    if path[0] != "layers":
        return Tensors((MODEL_TENSORS[path[0]],), param.shape, inputs=None, stacked=False)
    suffix, inputs = LAYER_TENSORS[path[1]]
    num_layers, *shape = param.shape
    names = tuple(f"model.layers.{layer}.{suffix}" for layer in range(num_layers))
    return Tensors(names, tuple(shape), inputs, stacked=True)


def abstract(config: ModelConfig, *, dtype=jnp.float32, param_dtype=jnp.float32) -> tuple[nnx.GraphDef, nnx.State]:
    """(graphdef, parameters as shapes) of a decoder, which costs no memory: for shardings and compilation."""

    def init() -> Decoder:
        return Decoder(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype)

    return nnx.split(nnx.eval_shape(init), nnx.Param)


def tensor_shapes(params: nnx.State) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the checkpoint's tensors that these parameters, abstract or not, are written as."""
    groups = [tensors_of(*item) for item in jax.tree.leaves_with_path(params)]
    return {name: group.hf_shape for group in groups for name in group.names}


def tensors(params: nnx.State) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of the checkpoint's tensors that these parameters are written as, one parameter on the host at a
    time. When they are sharded over several processes, all must go through it."""
    for key_path, param in jax.tree.leaves_with_path(params):
        group = tensors_of(key_path, param)
        if not param.is_fully_addressable:
            param = multihost_utils.process_allgather(param, tiled=True)
        value = np.asarray(param)
        for name, array in zip(group.names, value if group.stacked else [value]):
            yield name, group.to_hf(array)
