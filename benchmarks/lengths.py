"""Random weights that end their responses when real models do, and are sure of some tokens and unsure of others.

With random weights alone every token is as likely to be the last, so that a response forked at its end would be as long
again as a new one, which no real model's is; and all steps are equally unsure, so that only ties decide where a tree
branches.
"""

import math
import statistics

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from ibtpo.models.decoder import Decoder

SIGMA = 0.5  # of the logarithm of a length
UNSURE, SURE = 2.5, 12.0  # standard deviation of the logits: a flat distribution, and one with a clear favourite
SURE_SHARE = 0.75  # of the tokens
PERIOD = 23  # tokens in which there is a stretch with more of the unsure ones and one with fewer


def hazards(median: float, longest: int) -> np.ndarray:
    """[longest + 1]: the probability that a log-normal length (rounded) is n, given that it is at least n."""

    def below(length):
        return 0.5 * math.erfc(-math.log(length / median) / (SIGMA * math.sqrt(2)))

    ends = np.array([0.0] + [below(n + 0.5) for n in range(longest + 1)])
    return np.diff(ends) / (1 - ends[:-1])


class TimedDecoder(Decoder):
    """A decoder with random weights whose stop tokens together have the probability that `hazards` gives the token's
    number, and whose other logits are sharp or flat, as the hidden state and the position have it.

    The last dimension of what it returns as hidden state is the logarithm of the odds of a stop; it is none of the
    model's own.
    """

    def __init__(self, config, *, stops, prompt_tokens: int, median: float, longest: int, rngs, **types):
        super().__init__(config, rngs=rngs, **types)
        hazard = np.clip(hazards(median, longest + 1), 1e-9, 1 - 1e-3)
        self.stops, self.prompt_tokens = tuple(stops), prompt_tokens
        self.stop_odds = tuple(np.log(hazard / (1 - hazard)).tolist())
        # What the wave below adds to a standard normal number makes its deviation 1.2.
        self.threshold = -1.2 * statistics.NormalDist().inv_cdf(SURE_SHARE)

    def __call__(self, tokens, positions, attend, cache, **options):
        hidden, cache = super().__call__(tokens, positions, attend, cache, **options)
        wave = 0.94 * jnp.sin(2 * np.pi / PERIOD * positions)
        sure = hidden[..., 0] + wave > self.threshold
        scale = jnp.where(sure, SURE, UNSURE) / (0.02 * hidden.shape[-1] ** 0.5)  # the table's deviation is 0.02
        number = jnp.clip(positions - self.prompt_tokens + 2, 0, len(self.stop_odds) - 1)  # of the token to draw
        odds = jnp.asarray(self.stop_odds, jnp.float32)[number]
        hidden = hidden * scale[..., None].astype(hidden.dtype)
        return hidden.at[..., -1].set(odds.astype(hidden.dtype)), cache

    def logits(self, hidden):
        logits = super().logits(hidden.at[..., -1].set(0))
        is_stop = np.isin(np.arange(self.config.vocab_size), self.stops)
        others = jax.nn.logsumexp(jnp.where(is_stop, -jnp.inf, logits), axis=-1, keepdims=True)
        odds = hidden[..., -1:].astype(jnp.float32)
        return jnp.where(is_stop, others + odds - math.log(len(self.stops)), logits)


def timed_decoder(config, **options):
    """(graphdef, parameters) of a TimedDecoder."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: TimedDecoder(config, rngs=nnx.Rngs(0), **options)), nnx.Param)
    return graphdef, jax.jit(lambda: nnx.split(TimedDecoder(config, rngs=nnx.Rngs(0), **options), nnx.Param)[1])()
