"""IB-TPO: information-bottleneck driven tree-based policy optimisation of language models, in JAX.

The names below are loaded when they are first used; importing the package loads nothing else, JAX included. The
function `ib_score` is `ibtpo.ib_score.ib_score`, as its module has the name here. See docs/method.md for the equations
and ibtpo/trainer.py for the algorithm.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "ibtpo.tree": ("Tree", "build_tree"),
    "ibtpo.ib_score": ("ScoreOptions",),
    "ibtpo.advantages": ("AdvantageOptions", "compute_advantages"),
    "ibtpo.sampling": ("TreeSampler", "TreeOptions", "SamplerOptions", "SamplingParams", "Question"),
    "ibtpo.sampling.codec": ("Codec",),
    "ibtpo.packing": ("plan", "fill"),
    "ibtpo.losses": ("policy_loss", "LossOptions"),
    "ibtpo.policy": ("load_policy",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", "ib_score", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name == "ib_score":
        return importlib.import_module("ibtpo.ib_score")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ibtpo' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
