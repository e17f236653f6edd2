"""What is compared: tasks, by their configs, and methods, by the keys that they set."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """config: of the repository's `configs`. tokens: generated in training, the same for every method. exact: whether
    p(a*|s) can be computed (`benchmarks/exact_values.py`)."""

    config: str
    tokens: int
    exact: bool = False


TASKS = {
    "navigation": Task("navigation", 600_000, exact=True),
    "countdown": Task("countdown", 600_000),
    "arithmetic": Task("tiny", 450_000),
    "arithmetic long": Task("arithmetic_long", 900_000),
}

_TREE = "--config.method=ibtpo"
_FLAT = "--config.method=grpo"
# Name: flags. The paper's Table 2 first; then methods of others; then GRPO's variants.
METHODS: dict[str, tuple[str, ...]] = {
    "grpo 8": (_FLAT,),
    "grpo 12": (_FLAT, "--config.tree.initial=12"),
    "tree alone": (_TREE, "--config.loss.advantage=grpo"),
    "advantage alone": (_FLAT, "--config.loss.advantage=ibtpo", "--config.loss.deviation=population"),
    "random tree": (_TREE, "--config.tree.strategy=random"),
    "entropy tree": (_TREE, "--config.tree.strategy=entropy"),
    "ibtpo": (_TREE,),
    "ibtpo 4-3-4-1": (_TREE, "--config.tree.rounds=3", "--config.tree.top_k=4"),
    "ibtpo rebranching": (_TREE, "--config.tree.rebranch=0"),
    "treerl": ("--config.method=treerl",),
    "treepo": ("--config.method=treepo",),
    "tree_grpo": ("--config.method=tree_grpo",),
    "spo_tree": ("--config.method=spo_tree",),
    "treerpo": ("--config.method=treerpo",),
    "tempo": ("--config.method=tempo",),
    "dapo": ("--config.method=dapo",),
    "clip higher": (_FLAT, "--config.loss.clip_high=0.28"),
    "entropy bonus": (_FLAT, "--config.loss.entropy_bonus=0.003"),
}
BASELINE = "grpo 8"
LEARNING_RATES = (3e-4, 1e-3, 3e-3)

# The sweeps of the method's own values, each against "ibtpo" with its learning rate.
SWEEPS: dict[str, tuple[str, ...]] = {
    f"lambda {value:g}": (_TREE, f"--config.loss.ib_weight={value}") for value in (0.0, 0.05, 0.1, 0.2, 0.5)
} | {
    f"beta {value:g}": (_TREE, f"--config.tree.beta={value}") for value in (1.0, 5.0, 10.0)
} | {
    "tree 2-11-1-1": (_TREE, "--config.tree.initial=2", "--config.tree.rounds=11"),
    "tree 8-5-1-1": (_TREE, "--config.tree.initial=8", "--config.tree.rounds=5"),
    "steps moved 10 %": (_TREE, "--config.data.moved_steps=0.1"),
    "steps moved 50 %": (_TREE, "--config.data.moved_steps=0.5"),
    "no mask": (_TREE, "--config.loss.mask_uniform_groups=False"),
}
