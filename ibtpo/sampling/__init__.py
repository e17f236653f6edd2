"""Trees, or flat groups, of responses from a decoder over a paged KV cache.

`TreeSampler` is the engine; `TreeOptions` says what grows, `SamplerOptions` what it may use, `SamplingParams` how a
token is drawn. A `SampledTree` is what comes of a `Question`.
"""

from ibtpo.sampling.engine import Question, SampledTree, SamplerOptions, SamplerStats, TreeSampler
from ibtpo.sampling.logits import SamplingParams
from ibtpo.sampling.strategies import TreeOptions

__all__ = [
    "Question",
    "SampledTree",
    "SamplerOptions",
    "SamplerStats",
    "SamplingParams",
    "TreeOptions",
    "TreeSampler",
]
