"""Low-rank adapters of the decoder's matrices (LoRA): W + (alpha / rank) A B in place of each adapted W.

The sum is formed where a layer's weights are used, in float32, and rounded once to the type of the computation; the
serving copy and an export are the same sums (`merged`). So the sampler reads the very weights that are trained, and
the decoder's products, kernels and layouts are those of any other run. W is the base, frozen; A starts uniform within
+-1 / sqrt(inputs), as PEFT's Kaiming initialisation with a = sqrt(5) draws it, and B at 0, so that training starts from
the base.

Source: Hu et al., LoRA, arXiv 2106.09685; the drawing of A is that of its authors' code and of PEFT.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from ibtpo.choices import LORA_TARGETS
from ibtpo.errors import UserError
from ibtpo.models.config import ModelConfig
from ibtpo.parallel import constrain_params

MATRICES = LORA_TARGETS["all"]
_STREAM = 0x6C6F72  # folded into the run's key: no other draw of it is that of an A
_RANK_AXIS = "rank"


@dataclass(frozen=True)
class LoraOptions:
    """rank: r, columns of A and rows of B. alpha: the product A B is multiplied by alpha / rank. targets: a key of
    `choices.LORA_TARGETS`, the matrices that have adapters."""

    rank: int
    alpha: float
    targets: str = "all"

    @classmethod
    def from_config(cls, model: Any) -> "LoraOptions | None":
        """Of the `model` section of a config; None where all parameters are trained."""
        return cls(model.lora_rank, model.lora_alpha, model.lora_targets) if model.lora_rank else None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def matrices(self) -> tuple[str, ...]:
        return LORA_TARGETS[self.targets]

    def sides(self, model: ModelConfig) -> dict[str, tuple[int, int]]:
        """{adapted matrix: (its inputs, its outputs)}."""
        D, F = model.embed_dim, model.mlp_dim
        heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        all_sides = dict(
            q=(D, heads), k=(D, kv_heads), v=(D, kv_heads), o=(heads, D), gate=(D, F), up=(D, F), down=(F, D)
        )
        return {name: all_sides[name] for name in self.matrices}

    def num_params(self, model: ModelConfig) -> int:
        """Numbers in the adapters of all layers: r (inputs + outputs) for each matrix."""
        return model.num_layers * self.rank * sum(map(sum, self.sides(model).values()))

    def check(self, model: ModelConfig) -> None:
        """Raises UserError where the rank is above that of an adapted matrix, which no product of more columns adds
        to."""
        sides = self.sides(model)
        name = min(sides, key=lambda name: min(sides[name]))
        if self.rank > min(sides[name]):
            inputs, outputs = sides[name]
            raise UserError(
                f"model.lora_rank={self.rank} is more than the smallest adapted matrix, {name} of {inputs} x {outputs} "
                f"numbers, can have: set it to {min(sides[name])} or less, or to 0 to train all parameters"
            )


def stored_dtype(model: Any) -> str:
    """The type that a model's weights are read and kept in, of the `model` section of a config: model.param_dtype, or
    that of the computation where they are the base of adapters."""
    return model.dtype if model.lora_rank else model.param_dtype


class Adapters(flax.struct.PyTreeNode):
    """The adapters of all layers, or of one in a scan over them.

    layers: {matrix: {"a": A [L, *inputs, r], "b": B [L, r, *outputs]}}, with the matrix's own inputs and outputs.
    scale: alpha / rank, a constant of the program.
    """

    layers: dict[str, dict[str, nnx.Param]]
    scale: float = flax.struct.field(pytree_node=False)


class Adapted(flax.struct.PyTreeNode):
    """Parameters of a policy in two parts: the frozen base's and the adapters."""

    base: nnx.State
    adapters: Adapters


def create(base: nnx.State, options: LoraOptions, key: jax.Array, dtype: Any) -> Adapters:
    """Adapters of `dtype` before the first update, of the matrices of `base` (`nnx.split(decoder, nnx.Param)[1]`).

    A matrix's A depends on the key and its name alone, whatever other matrices have adapters.
    """
    key, layers = jax.random.fold_in(key, _STREAM), _layers(base)

    def pair(name: str) -> dict[str, nnx.Param]:
        param: Any = layers[name]
        shape, axes = param.shape, param.get_metadata()["axes"]
        ins = 1 + _num_inputs(name)
        bound = math.prod(shape[1:ins]) ** -0.5
        own = jax.random.fold_in(key, MATRICES.index(name))
        a = jax.random.uniform(own, (*shape[:ins], options.rank), jnp.float32, -bound, bound)
        b = jnp.zeros((shape[0], options.rank, *shape[ins:]), dtype)
        return {
            "a": nnx.Param(a.astype(dtype), axes=(*axes[:ins], _RANK_AXIS)),
            "b": nnx.Param(b, axes=(axes[0], _RANK_AXIS, *axes[ins:])),
        }

    return Adapters({name: pair(name) for name in options.matrices}, options.scale)


def decoder_of(graphdef: nnx.GraphDef, params: "nnx.State | Adapted") -> Any:
    """The decoder with these parameters; with `Adapted` ones it forms the sums layer by layer."""
    if not isinstance(params, Adapted):
        return nnx.merge(graphdef, params)
    decoder = nnx.merge(graphdef, params.base)
    decoder.adapters = nnx.data(params.adapters)
    return decoder


def add(layer: nnx.State, adapters: Adapters, dtype: Any) -> nnx.State:
    """One layer's parameters with the sums, of `dtype`, in place of the adapted matrices; in the training layout."""
    return nnx.State({**layer, **_sums({name: layer[name] for name in adapters.layers}, adapters, dtype)})


def merged(params: "nnx.State | Adapted", dtype: Any) -> nnx.State:
    """Plain parameters of the policy, the sums of `dtype`; others as they are, and all of them where there are no
    adapters. Inside jit. One layer at a time, so that no product of all layers exists."""
    if not isinstance(params, Adapted):
        return params
    layers, adapters = _layers(params.base), params.adapters
    matrices = {name: layers[name] for name in adapters.layers}
    sums = jax.lax.map(lambda slices: _sums(slices[0], slices[1], dtype), (matrices, adapters))
    return nnx.State({**params.base, "layers": {**layers, **constrain_params(sums)}})


def _layers(params: Any) -> dict[str, Any]:
    """{name: parameter} of all layers."""
    return params["layers"]


def _sums(matrices: dict[str, Any], adapters: Adapters, dtype: Any) -> dict[str, Any]:
    """Of one layer: {matrix: W + scale A B}."""
    found = {
        name: matrices[name].replace(_sum(matrices[name].get_value(), pair["a"], pair["b"], adapters.scale, dtype))
        for name, pair in adapters.layers.items()
    }
    # Formed where the base lies, from parts of A and B that lie there too; what is gathered is the sum.
    return constrain_params(found)


def _sum(w: jax.Array, a: nnx.Param, b: nnx.Param, scale: float, dtype: Any) -> jax.Array:
    left, right = a.get_value().astype(jnp.float32)[None], scale * b.get_value().astype(jnp.float32)[None]
    # A product with a batch axis, of one: those without are what model.remat=elementwise keeps of every layer.
    axes = (((left.ndim - 1,), (1,)), ((0,), (0,)))
    product = jax.lax.dot_general(left, right, axes, precision=jax.lax.Precision.HIGHEST)
    return (w.astype(jnp.float32) + product[0]).astype(dtype)


def _num_inputs(name: str) -> int:
    """Axes of a layer's matrix that are multiplied with its input."""
    return 2 if name == "o" else 1
