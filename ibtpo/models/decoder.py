"""One pre-norm decoder for the Qwen2, Qwen3 and Llama families; attention is the caller's.

Letters: B batch rows, T tokens, L layers, D model, H heads, K kv heads, F mlp, V vocab; in einsums b t d h k f v,
and x for head_dim.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ibtpo.models import lora, rope
from ibtpo.models.config import ModelConfig
from ibtpo.parallel import constrain, current_mesh, gather
from ibtpo.vocabulary import project

Cache = Any  # any pytree
# (q [B,T,H,Dh], k [B,T,K,Dh], v [B,T,K,Dh], layer int32 [], cache) -> (out [B,T,H,Dh], cache)
Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, Cache], tuple[jax.Array, Cache]]


# Between the layers a device keeps its share of the tokens, so that activations kept for the backward pass are split
# over tensor too; within them it has all tokens and its share of the heads or of the MLP. Both layouts are named on the
# way in and on the way out: left to choose, the compiler gathers weights or exchanges the MLP's activations in the
# backward pass.
RESIDUAL = ("rows", "tokens", None)
WHOLE = ("rows", None, None)


def _into_layer(x: jax.Array) -> jax.Array:
    return constrain(constrain(x, *RESIDUAL), *WHOLE)


def _out_of_layer(x: jax.Array) -> jax.Array:
    return constrain(constrain(x, *WHOLE), *RESIDUAL)


_KEEP_ATTENTION = jax.checkpoint_policies.save_only_these_names("attention")
# Products with weights have no batch dimension.
_KEEP_PRODUCTS = jax.checkpoint_policies.save_from_both_policies(
    _KEEP_ATTENTION, jax.checkpoint_policies.dots_with_no_batch_dims_saveable
)
REMAT = {"elementwise": _KEEP_PRODUCTS, "attention": _KEEP_ATTENTION, "full": None}


class Layers(nnx.Module):
    """The parameters of all layers, stacked on a leading axis [L, ...]; called on the slice of one layer.

    packed: whether weights that multiply the same input are one array (`pack`).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype, param_dtype):
        self.config, self.dtype, self.packed = config, dtype, False
        L, D, F, Dh = config.num_layers, config.embed_dim, config.mlp_dim, config.head_dim
        H, K = config.num_heads, config.num_kv_heads

        def weight(names: str, *shape: int, fan_in: int) -> nnx.Param:
            init = nnx.initializers.normal(fan_in**-0.5)
            return _param(init(rngs.params(), (L, *shape), param_dtype), "layers " + names)

        def ones(names: str, *shape: int) -> nnx.Param:
            return _param(jnp.ones((L, *shape), param_dtype), "layers " + names)

        def zeros(names: str, *shape: int) -> nnx.Param:
            return _param(jnp.zeros((L, *shape), param_dtype), "layers " + names)

        self.attn_norm = ones("embed", D)
        self.q = weight("embed heads head_dim", D, H, Dh, fan_in=D)
        self.k = weight("embed kv_heads head_dim", D, K, Dh, fan_in=D)
        self.v = weight("embed kv_heads head_dim", D, K, Dh, fan_in=D)
        self.o = weight("heads head_dim embed", H, Dh, D, fan_in=H * Dh)
        if config.qkv_bias:
            self.q_bias = zeros("heads head_dim", H, Dh)
            self.k_bias = zeros("kv_heads head_dim", K, Dh)
            self.v_bias = zeros("kv_heads head_dim", K, Dh)
        if config.qk_norm:
            self.q_norm = ones("head_dim", Dh)
            self.k_norm = ones("head_dim", Dh)
        self.mlp_norm = ones("embed", D)
        self.gate = weight("embed mlp", D, F, fan_in=D)
        self.up = weight("embed mlp", D, F, fan_in=D)
        self.down = weight("mlp embed", F, D, fan_in=F)

    def __call__(self, hidden, cos, sin, layer, attend: Attend, cache: Cache):
        """hidden [B,T,D], cos and sin [B,T,Dh/2], layer [] -> (hidden, cache), for one layer's slice."""
        eps = self.config.norm_eps

        def w(param: nnx.Param) -> jax.Array:
            return gather(param, self.dtype)

        x = _into_layer(rms_norm(hidden, self.attn_norm[...], eps))
        if self.packed:
            H, K = self.config.num_heads, self.config.num_kv_heads
            q, k, v = jnp.split(jnp.einsum("btd,dhx->bthx", x, w(self.qkv)), (H, H + K), axis=2)
        else:
            q = constrain(jnp.einsum("btd,dhx->bthx", x, w(self.q)), "rows", None, "heads", None)
            k = constrain(jnp.einsum("btd,dkx->btkx", x, w(self.k)), "rows", None, "kv_heads", None)
            v = constrain(jnp.einsum("btd,dkx->btkx", x, w(self.v)), "rows", None, "kv_heads", None)
        if self.config.qkv_bias:
            q, k, v = q + w(self.q_bias), k + w(self.k_bias), v + w(self.v_bias)
        if self.config.qk_norm:
            q, k = rms_norm(q, self.q_norm[...], eps), rms_norm(k, self.k_norm[...], eps)
        out, cache = attend(rope.rotate(q, cos, sin), rope.rotate(k, cos, sin), v, layer, cache)
        hidden += _out_of_layer(jnp.einsum("bthx,hxd->btd", out, w(self.o)))

        x = _into_layer(rms_norm(hidden, self.mlp_norm[...], eps))
        if self.packed:
            gate, up = jnp.split(jnp.einsum("btd,df->btf", x, w(self.gate_up)), 2, axis=2)
        else:
            gate = constrain(jnp.einsum("btd,df->btf", x, w(self.gate)), "rows", None, "mlp")
            up = constrain(jnp.einsum("btd,df->btf", x, w(self.up)), "rows", None, "mlp")
        hidden += _out_of_layer(jnp.einsum("btf,fd->btd", jax.nn.silu(gate) * up, w(self.down)))
        return hidden, cache

    def pack(self) -> None:
        """Makes q, k and v one array `qkv` [.., D, H + 2 K, Dh], and gate and up one array `gate_up` [.., D, 2 F], so
        that each pair or triple is one larger product. Not for weights split over tensor: a device would get other
        heads than those it attends with."""
        qkv, gate_up = (self.q, self.k, self.v), (self.gate, self.up)
        self.qkv = nnx.Param(jnp.concatenate([x[...] for x in qkv], axis=-2), axes=self.q.get_metadata()["axes"])
        self.gate_up = nnx.Param(
            jnp.concatenate([x[...] for x in gate_up], axis=-1), axes=self.up.get_metadata()["axes"]
        )
        del self.q, self.k, self.v, self.gate, self.up
        self.packed = True


class Decoder(nnx.Module):
    """Decoder-only transformer. Every parameter names its axes (metadata `axes` of the variable, a tuple): layers,
    vocab, embed, heads, kv_heads, head_dim, mlp; `ibtpo.parallel` maps them onto a mesh.

    Use it functionally: graphdef, params = nnx.split(decoder, nnx.Param); nnx.merge(graphdef, params)(...).

    Args:
      config: sizes and switches.
      rngs: stream "params" draws the weights.
      dtype: of the computation; norms, rotation and logits are float32 inside whatever it is.
      param_dtype: of the stored parameters.

    Attributes:
      adapters: low-rank adapters of its layers, which `lora.decoder_of` gives it; None: there are none.
    """

    adapters: lora.Adapters | None = None

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype=jnp.float32, param_dtype=jnp.float32):
        self.config, self.dtype, self.param_dtype = config, jnp.dtype(dtype), jnp.dtype(param_dtype)
        V, D = config.vocab_size, config.embed_dim
        table = nnx.initializers.normal(0.02)
        self.embedding = _param(table(rngs.params(), (V, D), param_dtype), "vocab embed")
        self.layers = Layers(config, rngs=rngs, dtype=self.dtype, param_dtype=param_dtype)
        self.final_norm = _param(jnp.ones((D,), param_dtype), "embed")
        if not config.tie_embeddings:
            self.lm_head = _param(table(rngs.params(), (V, D), param_dtype), "vocab embed")

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        attend: Attend,
        cache: Cache = None,
        *,
        remat: str = "none",
        layers: list[nnx.State] | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Hidden states after the final norm.

        Args:
          tokens: int32 [B, T].
          positions: int32 [B, T], for the rotary embedding alone; what a token sees is for `attend` to decide.
          attend: (q [B,T,H,Dh], k [B,T,K,Dh], v [B,T,K,Dh], layer int32 [], cache) -> (out [B,T,H,Dh], cache).
            q and k arrive normalised and rotated.
          cache: any pytree, all layers together; carried through the scan over layers, so that an update at
            `layer` is made in place. None in training.
          remat: what the backward pass recomputes of each layer: "none"; "elementwise", all but the products with
            weights and what `attend` has marked with checkpoint_name(x, "attention"); "attention", all but the latter;
            "full", all of it. Each keeps less than the one before.
          layers: `unstack()` of this decoder, to be visited one after another instead of scanned.

        Returns:
          (hidden [B, T, D] in `dtype`, cache).
        """
        hidden = _out_of_layer(gather(self.embedding, self.dtype)[tokens])
        cos, sin = rope.cos_sin(positions, rope.frequencies(self.config))
        graphdef, stacked = nnx.split(self.layers)

        def body(carry, slices):
            hidden, cache = carry
            params, adapters, layer = slices
            if adapters is not None:
                params = lora.add(params, adapters, self.dtype)
            return nnx.merge(graphdef, params)(hidden, cos, sin, layer, attend, cache), None

        if remat != "none":
            # Inside scan there is nothing to merge with.
            body = jax.checkpoint(body, prevent_cse=False, policy=REMAT[remat])
        if layers is None:
            layer_ids = jnp.arange(self.config.num_layers, dtype=jnp.int32)
            (hidden, cache), _ = jax.lax.scan(body, (hidden, cache), (stacked, self.adapters, layer_ids))
        else:
            graphdef = nnx.graphdef(self._layer(0, packed="qkv" in layers[0]))
            for layer, slices in enumerate(layers):
                (hidden, cache), _ = body((hidden, cache), (slices, None, jnp.int32(layer)))
        return _into_layer(rms_norm(hidden, self.final_norm[...], self.config.norm_eps)), cache

    def unstack(self) -> list[nnx.State]:
        """The parameters of each layer as arrays of their own, copied and, unless the mesh splits them over tensor,
        packed (`Layers.pack`). Given to a program that runs the decoder in a loop, they save it the copy of each
        layer's weights that a scan on a CPU or GPU makes in every pass."""
        mesh = current_mesh()
        packed = mesh is None or mesh.shape["tensor"] == 1
        return [nnx.state(self._layer(layer, packed=packed)) for layer in range(self.config.num_layers)]

    def _layer(self, layer: int, *, packed: bool) -> Layers:
        graphdef, stacked = nnx.split(self.layers)
        one = nnx.merge(graphdef, jax.tree.map(lambda x: x[layer], stacked))
        if packed:
            one.pack()
        return one

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits, float32 [..., V], of hidden [..., D]."""
        table = self.embedding if self.config.tie_embeddings else self.lm_head
        return project(hidden, gather(table, self.dtype))


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """scale * x / sqrt(mean(x^2) + eps) over the last axis; float32 inside, x's dtype out."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return scale.astype(x.dtype) * y.astype(x.dtype)


def _param(value: jax.Array, names: str) -> nnx.Param:
    # Not flax's own `out_sharding`: that means axes of the mesh wherever one is set.
    return nnx.Param(value, axes=tuple(names.split()))
