"""Every method as a named set of values, for the keys that a config leaves open; an explicit value wins.

Sources and differences from them: docs/method.md, section 6.
"""

from typing import Any

# The defaults of every method: the paper's loss.
_SHARED: dict[str, Any] = {
    "loss.objective": "clip",
    "loss.clip_low": 0.2,
    "loss.clip_high": 0.2,
    "loss.kl": 0.001,
    "loss.aggregation": "response_mean",
    "loss.shared_tokens": "each",
    "loss.deviation": "sample",
    "loss.group_of_one": "zero",
    "loss.skip_zero_advantages": False,
    "loss.max_old_probability": 1.0,
    "loss.entropy_advantage": 0.0,
    "loss.whiten_advantages": False,
    "reward.overlong_share": 0.0,
    "train.refills": 0,
}
# Eight independent responses; GRPO.
_FLAT = _SHARED | {
    "tree.strategy": "independent",
    "tree.initial": 8,
    "tree.rounds": 1,
    "tree.top_k": 1,
    "tree.branch": 1,
    "loss.advantage": "grpo",
}
# Twelve responses, as many as IB-TPO's, in three rounds.
_TREE = _SHARED | {"tree.initial": 4, "tree.rounds": 3, "tree.top_k": 4, "tree.branch": 1}
_CLIP_HIGHER = {"loss.clip_high": 0.28, "loss.aggregation": "token_mean", "loss.kl": 0.0}
# Trees of segments, each of which is trained once, if it has an advantage.
_SEGMENTS_ONCE = {
    "tree.strategy": "fixed_width",
    "loss.aggregation": "unique_mean",
    "loss.skip_zero_advantages": True,
}

METHODS: dict[str, dict[str, Any]] = {
    "ibtpo": _SHARED
    | {
        "tree.strategy": "ib",
        "tree.initial": 4,
        "tree.rounds": 9,
        "tree.top_k": 1,
        "tree.branch": 1,
        "loss.advantage": "ibtpo",
        "loss.deviation": "population",
    },
    "grpo": _FLAT,
    "dr_grpo": _FLAT | {"loss.advantage": "dr_grpo", "loss.aggregation": "fixed_length"},
    "dapo": _FLAT | _CLIP_HIGHER | {"reward.overlong_share": 0.25, "train.refills": 9},
    "rloo": _FLAT | {"loss.advantage": "rloo"},
    "gspo": _FLAT | {"loss.objective": "gspo", "loss.clip_low": 3e-4, "loss.clip_high": 4e-4, "loss.kl": 0.0},
    "cispo": _FLAT | {"loss.objective": "cispo", "loss.clip_low": 1.0, "loss.aggregation": "token_mean"},
    "sapo": _FLAT | {"loss.objective": "sapo"},
    "ibro": _FLAT | {"loss.entropy_advantage": 5e-3},
    "tempo": _FLAT | _CLIP_HIGHER | {"loss.advantage": "tempo"},
    "lambda_grpo": _FLAT | {"loss.shared_tokens": "once", "loss.kl": 0.0},
    "treerl": _TREE | {"tree.strategy": "entropy", "loss.advantage": "treerl", "loss.clip_high": 0.26, "loss.kl": 0.0},
    "treepo": _TREE
    | _CLIP_HIGHER
    | {"tree.strategy": "fixed_width", "loss.advantage": "treepo", "loss.whiten_advantages": True},
    "tree_grpo": _TREE
    | {
        "tree.strategy": "random",
        "loss.advantage": "tree_grpo",
        "loss.group_of_one": "reward",
        "loss.aggregation": "token_mean",
    },
    "spo_tree": _TREE
    | _SEGMENTS_ONCE
    | {
        "loss.advantage": "spo_tree",
        "loss.max_old_probability": 0.9,
        "loss.whiten_advantages": True,
        "loss.kl": 1e-4,
    },
    "treerpo": _TREE | _SEGMENTS_ONCE | {"loss.advantage": "treerpo", "loss.deviation": "bernoulli"},
    "treeadv": _TREE | {"tree.strategy": "entropy", "loss.advantage": "treeadv"},
}
