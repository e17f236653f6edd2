"""Sizes of published models, as their config.json gives them: enough to compile for a model before fetching it."""

from ibtpo.models.config import ModelConfig, RopeScaling


def _qwen2(embed_dim, mlp_dim, num_layers, num_heads, num_kv_heads, **changes) -> ModelConfig:
    return ModelConfig(
        family="qwen2",
        embed_dim=embed_dim,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=embed_dim // num_heads,
        rope_theta=1e6,
        qkv_bias=True,
        **changes,
    )


def _qwen3(embed_dim, mlp_dim, num_layers, num_heads, **changes) -> ModelConfig:
    return ModelConfig(
        family="qwen3",
        vocab_size=151_936,
        embed_dim=embed_dim,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e6,
        qk_norm=True,
        **changes,
    )


_QWEN25_SMALL = dict(vocab_size=151_936, tie_embeddings=True)
_LLAMA31_8B = ModelConfig(
    family="llama",
    vocab_size=128_256,
    embed_dim=4096,
    mlp_dim=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=5e5,
    rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192),
    norm_eps=1e-5,
    max_positions=131_072,
)

# Name on the Hugging Face hub -> sizes and switches.
PRESETS: dict[str, ModelConfig] = {
    "Qwen/Qwen2.5-0.5B": _qwen2(896, 4864, 24, 14, 2, max_positions=32_768, **_QWEN25_SMALL),
    "Qwen/Qwen2.5-1.5B": _qwen2(1536, 8960, 28, 12, 2, max_positions=131_072, **_QWEN25_SMALL),
    "Qwen/Qwen2.5-7B": _qwen2(3584, 18_944, 28, 28, 4, vocab_size=152_064, max_positions=131_072),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(3584, 18_944, 28, 28, 4, vocab_size=152_064, max_positions=32_768),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tie_embeddings=True, max_positions=40_960),
    "Qwen/Qwen3-1.7B-Base": _qwen3(2048, 6144, 28, 16, tie_embeddings=True, max_positions=32_768),
    "Qwen/Qwen3-8B": _qwen3(4096, 12_288, 36, 32, max_positions=40_960),
    "Qwen/Qwen3-8B-Base": _qwen3(4096, 12_288, 36, 32, max_positions=32_768),
    "Qwen/Qwen3-14B": _qwen3(5120, 17_408, 40, 40, max_positions=40_960),
    "Qwen/Qwen3-14B-Base": _qwen3(5120, 17_408, 40, 40, max_positions=32_768),
    "meta-llama/Llama-3.1-8B": _LLAMA31_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA31_8B,
}
