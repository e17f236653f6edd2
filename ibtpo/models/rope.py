"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), with the frequency stretching of Llama 3."""

import jax
import jax.numpy as jnp
import numpy as np

from ibtpo.models.config import ModelConfig


def frequencies(config: ModelConfig) -> np.ndarray:
    """Radians per position of each rotated pair, float32 [head_dim / 2].

    f_i = theta^(-2i / head_dim). The Llama 3 stretching divides by `factor` those whose wavelength 2 pi / f exceeds
    original_max_positions / low_freq_factor, leaves those below original_max_positions / high_freq_factor, and
    interpolates linearly (in cycles per original context) in between.
    """
    f = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    s = config.rope_scaling
    if s is not None:
        cycles = s.original_max_positions * f / (2 * np.pi)
        keep = (cycles - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        f = keep * f + (1 - keep) * f / s.factor
    return f.astype(np.float32)


def cos_sin(positions: jax.Array, freqs: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of position * frequency, float32 [B, T, head_dim / 2] each, of positions [B, T]."""
    angles = positions[..., None].astype(jnp.float32) * freqs
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (x_i, x_{i + head_dim/2}) of x [B, T, heads, head_dim]; float32 inside, x's dtype out."""
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)
