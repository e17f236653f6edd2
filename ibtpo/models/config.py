"""The architecture of a decoder, and its translation from and to a Hugging Face config.json."""

import dataclasses
from typing import Any

from ibtpo.errors import UserError

_ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
}
# Field: the one value under which the decoder computes the checkpoint's model.
_REQUIRED_VALUES = {
    "hidden_act": "silu",
    "attention_bias": False,  # in these families it also adds a bias to the output projection
    "mlp_bias": False,
    "num_experts": None,
    "num_local_experts": None,
    "quantization_config": None,
    "compression_config": None,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "partial_rotary_factor": 1.0,
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3 stretching of the rotary wavelengths; see `ibtpo.models.rope.frequencies`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one decoder; the three families differ in nothing else.

    Attributes:
      family: "qwen3", "qwen2" (Qwen2.5 included) or "llama" (Llama 3 included).
      num_kv_heads: K; query head h reads key-value head h // (num_heads // num_kv_heads).
      rope_theta: base of the rotary wavelengths.
      rope_scaling: None, or the Llama 3 stretching.
      tie_embeddings: the output projection is the embedding table.
      qk_norm: RMS norm over head_dim of queries and keys (Qwen3).
      qkv_bias: bias on the query, key and value projections (Qwen2).
      max_positions: context length the model was trained for.
    """

    family: str
    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    max_positions: int = 32_768

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_attention_heads {self.num_heads} is not a multiple of num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd; rotary embedding needs pairs")

    @property
    def num_params(self) -> int:
        """Numbers in the checkpoint, a tied table counted once."""
        D, F, Dh, H, K = self.embed_dim, self.mlp_dim, self.head_dim, self.num_heads, self.num_kv_heads
        layer = 2 * D * Dh * (H + K) + 3 * D * F + 2 * D
        layer += Dh * (H + 2 * K) * self.qkv_bias + 2 * Dh * self.qk_norm
        return self.num_layers * layer + self.vocab_size * D * (2 - self.tie_embeddings) + D

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "ModelConfig":
        """Reads the contents of a config.json, in the layout of transformers 4 or 5.

        Raises:
          UserError: a field is missing, or asks for something the decoder does not compute; the message
            names the field, its value and the supported ones.
        """
        family = _field(config, "model_type")
        if family not in _ARCHITECTURES:
            _refuse("model_type", family, f"one of {sorted(_ARCHITECTURES)}")
        # A reward model or classifier of the family has another head, or none.
        for architecture in config.get("architectures") or ():
            if architecture != _ARCHITECTURES[family]:
                _refuse("architectures", architecture, repr(_ARCHITECTURES[family]))
        for name, supported in _REQUIRED_VALUES.items():
            if config.get(name) not in (supported, None):
                _refuse(name, config[name], "absent" if supported is None else repr(supported))
        num_layers = _field(config, "num_hidden_layers")
        _refuse_sliding_window(config, num_layers)
        embed_dim, num_heads = _field(config, "hidden_size"), _field(config, "num_attention_heads")
        # Qwen3 fixes head_dim where the file is silent; the others divide the width among the heads.
        default_head_dim = 128 if family == "qwen3" else embed_dim // num_heads
        rope_theta, rope_scaling = _rope(config)
        return cls(
            family=family,
            vocab_size=_field(config, "vocab_size"),
            embed_dim=embed_dim,
            mlp_dim=_field(config, "intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_dim=config.get("head_dim") or default_head_dim,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tie_embeddings=config.get("tie_word_embeddings", False),
            qk_norm=family == "qwen3",
            qkv_bias=family == "qwen2",
            max_positions=config.get("max_position_embeddings", 32_768),
        )

    def to_hf(self) -> dict[str, Any]:
        """The config.json that `from_hf` and transformers (4 or 5) read back as this configuration."""
        scaling = self.rope_scaling
        return {
            "architectures": [_ARCHITECTURES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.embed_dim,
            "intermediate_size": self.mlp_dim,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling
            and {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            },
            "tie_word_embeddings": self.tie_embeddings,
            "attention_dropout": 0.0,
            "use_cache": True,
        } | ({} if self.family == "qwen2" else {"attention_bias": False})


def _rope(config: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling) from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    where = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(where) or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        _refuse(f"{where}.rope_type", kind, "'default' or 'llama3'")
    return theta, RopeScaling(
        factor=_field(rope, "factor", where),
        low_freq_factor=_field(rope, "low_freq_factor", where),
        high_freq_factor=_field(rope, "high_freq_factor", where),
        original_max_positions=_field(rope, "original_max_position_embeddings", where),
    )


def _refuse_sliding_window(config: dict[str, Any], num_layers: int) -> None:
    for kind in config.get("layer_types") or ():
        if kind != "full_attention":
            _refuse("layer_types", kind, "'full_attention' on every layer")
    # Qwen's window covers the layers from max_window_layers on: a window over no layer is no window.
    first = config.get("max_window_layers", 0)
    if config.get("use_sliding_window") and config.get("sliding_window") and first < num_layers:
        _refuse("sliding_window", config["sliding_window"], "use_sliding_window false")


def _field(config: dict[str, Any], name: str, where: str = "config.json") -> Any:
    if config.get(name) is None:
        raise UserError(f"{where} has no field {name!r}")
    return config[name]


def _refuse(field: str, value: Any, supported: str) -> None:
    raise UserError(f"config.json: {field} = {value!r} is not supported; supported: {supported}")
