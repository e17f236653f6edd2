"""The architecture of a decoder, and its translation from and to a Hugging Face config.json."""

import dataclasses
from typing import Any

from ibtpo.errors import UserError
from ibtpo.models.config_json import ARCHITECTURES, read_fields


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
            names the field, its value and the supported ones (see `config_json.read_fields`).
        """
        fields = read_fields(config)
        scaling = fields.pop("rope_scaling")
        return cls(**fields, rope_scaling=scaling and RopeScaling(**scaling))

    def to_hf(self) -> dict[str, Any]:
        """The config.json that `from_hf` and transformers (4 or 5) read back as this configuration."""
        scaling = self.rope_scaling
        return {
            "architectures": [ARCHITECTURES[self.family]],
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
