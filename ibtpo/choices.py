"""Every name that a configuration may choose by, written once; nothing is imported here.

The dictionaries that lead from a name to its function (`advantages.ADVANTAGES`, `objectives.OBJECTIVES`,
`sampling.strategies.STRATEGIES`, `rewards.KINDS`, `rewards.terms.TERMS`) are built from these tuples, and the rules
of the configuration (`config.rules`) read them without importing JAX. docs/extending.md says how to add one. Methods,
which are sets of values, are in `config.methods`; data sets and models, which are tables, in `data.published` and
`models.presets`.
"""

# tree.strategy: where a tree branches next. A function of this name in sampling/strategies.py.
STRATEGIES = ("ib", "random", "entropy", "fixed_width", "independent", "at2po", "uucb")
# Those of them that fork where steps end.
STEP_STRATEGIES = ("ib", "random", "at2po", "uucb")
# loss.advantage: the advantage of each step of a response. A function of this name in advantages/.
ADVANTAGES = (
    "ibtpo", "grpo", "dr_grpo", "rloo",
    "treerl", "treepo", "tree_grpo", "spo_tree", "treerpo", "treeadv", "tempo",
)  # fmt: skip
# Those of them that see every token: their trees have a node for each (advantages.by_token).
TOKEN_ADVANTAGES = ("tempo",)
# loss.deviation: what a group's rewards are divided by. loss.group_of_one: the advantage of a group's only member.
DEVIATIONS = ("population", "sample", "bernoulli")
GROUPS_OF_ONE = ("zero", "reward")
# loss.value_center: what is taken off the values of treerl.
VALUE_CENTERS = ("none", "tokens")
# loss.objective: a function of ratio and advantage. A function of this name in objectives.py.
OBJECTIVES = ("clip", "cispo", "sapo", "gspo")
# loss.aggregation: the weight of a response's tokens. loss.shared_tokens: how often one counts that several share.
AGGREGATIONS = ("response_mean", "token_mean", "fixed_length", "unique_mean")
SHARED_TOKENS = ("each", "once")
# reward.kind: how a response is graded.
REWARDS = ("math", "multiple_choice", "instructions", "navigation", "countdown", "reasoning_gym")
# reward.terms: terms that shape the reward in training. A function <name>_term in rewards/terms.py.
TERMS = ("format", "length")

# The options of the IB-Score (`ib_score.ScoreOptions`): tree.ratio_power, tree.confidence, tree.value and
# tree.branch_value, tree.root, tree.child_weight.
RATIO_POWERS = (1, 2)
CONFIDENCES = ("geometric_mean", "joint")
VALUES = ("leaf_mean", "backup")
ROOTS = ("all", "initial")
CHILD_WEIGHTS = ("responses", "uniform")
# loss.ib_confidence: whose probability of a step A_IB takes.
IB_CONFIDENCES = ("behaviour", "reference")

# optimizer.schedule: of the learning rate, after the warm-up.
SCHEDULES = ("constant", "linear", "cosine")
# model.remat: the parts that the backward pass computes again.
REMATS = ("none", "elementwise", "attention", "full")
# model.lora_targets: the matrices of a layer that have adapters, by the names of the decoder's parameters.
LORA_TARGETS = {
    "all": ("q", "k", "v", "o", "gate", "up", "down"),
    "attention": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
}
# model.dtype, model.param_dtype, optimizer.first_moment_dtype.
DTYPES = ("float32", "bfloat16")
# data.source: tasks whose problems are generated, "tfds:<name>". A class in data/generated.py.
GENERATED = ("chained_arithmetic", "navigation", "countdown")
# data.source of ibtpo.sft: the names there of those with worked solutions.
WORKED = {"arithmetic": "chained_arithmetic", "navigation": "navigation", "countdown": "countdown"}
# data.step_rule: where a reasoning step ends. The spans of each are found in data/steps.py.
STEP_RULES = ("separator", "sentence")
# data.difficulty: of a generated task; "long" of chained arithmetic only.
DIFFICULTIES = ("easy", "normal", "hard", "long")
