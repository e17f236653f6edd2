"""Random weights whose responses end when real ones do: some early, most later, a fork about where its parent would.

With random weights alone every token is as likely to be the last, so that a response forked at its end would be as long
again as a new one, which no real model's is.
"""

import math

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from ibtpo.models.decoder import Decoder

SIGMA = 0.5  # of the logarithm of a length


def hazards(median: float, longest: int) -> np.ndarray:
    """[longest + 1]: the probability that a log-normal length (rounded) is n, given that it is at least n."""

    def below(length):
        return 0.5 * math.erfc(-math.log(length / median) / (SIGMA * math.sqrt(2)))

    ends = np.array([0.0] + [below(n + 0.5) for n in range(longest + 1)])
    return np.diff(ends) / (1 - ends[:-1])


class TimedDecoder(Decoder):
    """A decoder with random weights whose stop tokens are as likely as the number of the token asks for.

    The last dimension of the vocabulary's tables tells stop tokens (1) from the others (0), and that of the hidden
    state is the logit that gives all of them together the probability of `hazards`.
    """

    def __init__(self, config, *, stops, prompt_tokens: int, median: float, longest: int, rngs, **types):
        super().__init__(config, rngs=rngs, **types)
        is_stop = np.zeros(config.vocab_size)
        is_stop[list(stops)] = 1
        for table in [self.embedding] if config.tie_embeddings else [self.embedding, self.lm_head]:
            table[...] = table[...].at[:, -1].set(is_stop.astype(table[...].dtype))
        hazard = np.clip(hazards(median, longest + 1), 1e-9, 1 - 1e-3)
        odds = hazard / (1 - hazard) * (config.vocab_size - is_stop.sum()) / is_stop.sum()
        self.prompt_tokens, self.stop_logit = prompt_tokens, tuple(np.log(odds).tolist())

    def __call__(self, tokens, positions, attend, cache, **options):
        hidden, cache = super().__call__(tokens, positions, attend, cache, **options)
        number = jnp.clip(positions - self.prompt_tokens + 2, 0, len(self.stop_logit) - 1)  # of the token to draw
        logit = jnp.asarray(self.stop_logit, jnp.float32)[number]
        return hidden.at[..., -1].set(logit.astype(hidden.dtype)), cache


def timed_decoder(config, **options):
    """(graphdef, parameters) of a TimedDecoder."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: TimedDecoder(config, rngs=nnx.Rngs(0), **options)), nnx.Param)
    return graphdef, jax.jit(lambda: nnx.split(TimedDecoder(config, rngs=nnx.Rngs(0), **options), nnx.Param)[1])()
