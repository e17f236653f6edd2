"""Trees, or flat groups, of responses from a decoder over a paged KV cache.

`TreeSampler` samples; `TreeOptions` says what grows, `SamplerOptions` what it may use, `SamplingParams` how a token is
drawn, and a `Codec` where responses, their steps and their answers begin and end. A `SampledTree` is what comes of a
`Question`.
"""

from ibtpo.sampling.codec import Codec
from ibtpo.sampling.interface import Question, SampledTree, SamplerOptions, SamplerStats
from ibtpo.sampling.logits import SamplingParams
from ibtpo.sampling.sampler import TreeSampler
from ibtpo.sampling.strategies import TreeOptions

__all__ = [
    "Codec",
    "Question",
    "SampledTree",
    "SamplerOptions",
    "SamplerStats",
    "SamplingParams",
    "TreeOptions",
    "TreeSampler",
]
