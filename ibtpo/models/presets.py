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


def _llama3(embed_dim, mlp_dim, num_layers, num_heads, factor, **changes) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=128_256,
        embed_dim=embed_dim,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=embed_dim // num_heads,
        rope_theta=5e5,
        rope_scaling=RopeScaling(factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192),
        norm_eps=1e-5,
        max_positions=131_072,
        **changes,
    )


def _smollm2(embed_dim, mlp_dim, num_layers, num_heads, num_kv_heads, rope_theta) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=49_152,
        embed_dim=embed_dim,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=64,
        rope_theta=rope_theta,
        norm_eps=1e-5,
        tie_embeddings=True,
        max_positions=8192,
    )


_LLAMA31_8B = _llama3(4096, 14_336, 32, 32, 8.0)
_LLAMA32_1B = _llama3(2048, 8192, 16, 32, 32.0, tie_embeddings=True)
_LLAMA32_3B = _llama3(3072, 8192, 28, 24, 32.0, tie_embeddings=True)
_SMOLLM2_135M = _smollm2(576, 1536, 30, 9, 3, 1e5)
_SMOLLM2_360M = _smollm2(960, 2560, 32, 15, 5, 1e5)
_SMOLLM2_1P7B = _smollm2(2048, 8192, 24, 32, 32, 1.3e5)

# Name on the Hugging Face hub -> sizes and switches.
PRESETS: dict[str, ModelConfig] = {
    "Qwen/Qwen2.5-0.5B": _qwen2(896, 4864, 24, 14, 2, max_positions=32_768, **_QWEN25_SMALL),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(896, 4864, 24, 14, 2, max_positions=32_768, **_QWEN25_SMALL),
    "Qwen/Qwen2.5-1.5B": _qwen2(1536, 8960, 28, 12, 2, max_positions=131_072, **_QWEN25_SMALL),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(1536, 8960, 28, 12, 2, max_positions=32_768, **_QWEN25_SMALL),
    "Qwen/Qwen2.5-3B": _qwen2(2048, 11_008, 36, 16, 2, max_positions=32_768, **_QWEN25_SMALL),
    "Qwen/Qwen2.5-3B-Instruct": _qwen2(2048, 11_008, 36, 16, 2, max_positions=32_768, **_QWEN25_SMALL),
    "Qwen/Qwen2.5-7B": _qwen2(3584, 18_944, 28, 28, 4, vocab_size=152_064, max_positions=131_072),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(3584, 18_944, 28, 28, 4, vocab_size=152_064, max_positions=32_768),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tie_embeddings=True, max_positions=40_960),
    "Qwen/Qwen3-0.6B-Base": _qwen3(1024, 3072, 28, 16, tie_embeddings=True, max_positions=32_768),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tie_embeddings=True, max_positions=40_960),
    "Qwen/Qwen3-1.7B-Base": _qwen3(2048, 6144, 28, 16, tie_embeddings=True, max_positions=32_768),
    "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32, tie_embeddings=True, max_positions=40_960),
    "Qwen/Qwen3-4B-Base": _qwen3(2560, 9728, 36, 32, tie_embeddings=True, max_positions=32_768),
    "Qwen/Qwen3-8B": _qwen3(4096, 12_288, 36, 32, max_positions=40_960),
    "Qwen/Qwen3-8B-Base": _qwen3(4096, 12_288, 36, 32, max_positions=32_768),
    "Qwen/Qwen3-14B": _qwen3(5120, 17_408, 40, 40, max_positions=40_960),
    "Qwen/Qwen3-14B-Base": _qwen3(5120, 17_408, 40, 40, max_positions=32_768),
    "meta-llama/Llama-3.1-8B": _LLAMA31_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA31_8B,
    "meta-llama/Llama-3.2-1B": _LLAMA32_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA32_1B,
    "meta-llama/Llama-3.2-3B": _LLAMA32_3B,
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA32_3B,
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-360M": _SMOLLM2_360M,
    "HuggingFaceTB/SmolLM2-360M-Instruct": _SMOLLM2_360M,
    "HuggingFaceTB/SmolLM2-1.7B": _SMOLLM2_1P7B,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _SMOLLM2_1P7B,
}
