"""Writes the golden trees: `python -m tests.golden.make`, from the root of the checkout. README.md has the fields.

The inputs are here; everything else in a file is computed in float64 by the code under test. `test_golden.py` compares
the files with the code and with slow oracles that see only the lists of responses.
"""

import dataclasses
import itertools
import json
import math
import pathlib

import numpy as np

from ibtpo.advantages import ADVANTAGES, AdvantageOptions
from ibtpo.ib_score import IBScore, ScoreOptions, ib_score
from ibtpo.tree import Response, Tree, build_tree, stack_trees, tokens_of_response

FOLDER = pathlib.Path(__file__).resolve().parent
PROMPT = [90, 91, 92]
SEPARATOR = 0  # the token that ends a step
BETA, IB_WEIGHT = 5.0, 0.1
SCORE_OPTIONS = [
    dict(child_weight=child_weight, value=value, root=root, ratio_power=ratio_power, confidence=confidence)
    for child_weight, value, root, ratio_power, confidence in itertools.product(
        ("uniform", "responses"), ("leaf_mean", "backup"), ("all", "initial"), (1, 2), ("geometric_mean", "joint")
    )
]
SEGMENT_TOKENS = 2  # of treepo


# The only two places that know how options are passed.


def score_of(tree: Tree, options: dict) -> IBScore:
    """The IB-Score with beta = BETA and the other options as in SCORE_OPTIONS; `value` is that of the score too."""
    return ib_score(tree, ScoreOptions(beta=BETA, branch_value=options["value"], **options))


def advantage_options(**options) -> AdvantageOptions:
    """Options of the advantages, those of the score included; by default the paper's."""
    score = ScoreOptions(beta=BETA, **options)
    return AdvantageOptions(score=score, ib_weight=IB_WEIGHT, segment_tokens=SEGMENT_TOKENS)


# --- The inputs -----------------------------------------------------------------------------------


def start(reward, steps, *, finish="stop"):
    """A response from the question on. steps: [(tokens, their probabilities), ...]; a separator ends each step."""
    return dict(parent=-1, fork=0, round=0, reward=reward, finish=finish, own=steps)


def fork(parent, at, round, reward, steps, *, finish="stop"):
    """A response that shares the first `at` generated tokens of response `parent`."""
    return dict(parent=parent, fork=at, round=round, reward=reward, finish=finish, own=steps)


ONE_FORK = [  # worked out by hand in README.md
    start(1.0, [([1, 0], [1 / 2, 1 / 2]), ([2, 0], [1, 1 / 4])]),
    start(0.0, [([3, 0], [1 / 4, 1 / 4])]),
    fork(0, 2, 1, 0.0, [([4, 0], [1 / 8, 1 / 2])]),
]
FLAT_GROUP = [
    start(1.0, [([1, 2, 0], [0.9, 0.5, 0.8]), ([3], [0.3])]),
    start(0.0, [([2, 0], [0.2, 0.7])]),
    start(0.25, [([1, 0], [0.9, 0.1]), ([1, 0], [0.6, 0.6]), ([4], [0.5])], finish="length"),
    start(1.0, [([3, 3, 0], [0.4, 0.4, 0.9])]),
]
FORK_INSIDE_A_STEP = [  # response 2 forks after one token of response 0's second step, 3 inside what 2 sampled
    start(1.0, [([1, 0], [0.5, 0.9]), ([2, 3, 0], [0.8, 0.4, 0.7]), ([5], [0.95])]),
    start(0.0, [([4, 4, 0], [0.1, 0.3, 0.6]), ([5], [0.2])]),
    fork(0, 3, 1, 0.0, [([4, 2, 0], [0.3, 0.5, 0.9]), ([6], [0.85])]),
    fork(2, 4, 2, 1.0, [([1, 0], [0.25, 0.75])]),
    fork(0, 2, 3, 1.0, [([2, 0], [0.8, 0.2])]),
    fork(1, 0, 3, 0.0, [([6, 0], [0.05, 0.5])]),
]
EQUAL_SIBLINGS = [  # responses 0 and 1 have the same tokens: two samples, two nodes, each with descendants of its own
    start(1.0, [([1, 0], [0.6, 0.9]), ([2], [0.5])]),
    start(0.0, [([1, 0], [0.6, 0.9]), ([2], [0.5])]),
    fork(1, 2, 1, 1.0, [([3], [0.3])]),
    fork(0, 2, 1, 1.0, [([2], [0.5])]),
]
UNIFORM_REWARDS = [
    start(1.0, [([1, 0], [0.5, 0.5]), ([2], [0.25])]),
    start(1.0, [([3, 0], [0.9, 0.8])]),
    fork(0, 2, 1, 1.0, [([4, 0], [0.7, 0.1])]),
]
NO_SUCCESS = [{**r, "reward": 0.0} for r in UNIFORM_REWARDS]
LONE_RESPONSE = [start(1.0, [([1, 2, 3, 0], [0.5, 0.6, 0.7, 0.8])])]

# name -> (title, the lists of responses of its questions, sizes to pad to)
TREES: dict[str, tuple[str, list[list[dict]], dict[str, int]]] = {
    "one_fork": ("three responses, one fork", [ONE_FORK], {}),
    "flat_group": ("independent responses of one to three steps", [FLAT_GROUP], {}),
    "fork_inside_a_step": ("forks inside steps, at a step's end and at the question", [FORK_INSIDE_A_STEP], {}),
    "equal_siblings": ("two equal siblings are two samples", [EQUAL_SIBLINGS], {}),
    "uniform_rewards": ("all rewards are 1", [UNIFORM_REWARDS], {}),
    "padded_batch": (
        "three questions padded to common sizes: one fork, no success, a lone response",
        [ONE_FORK, NO_SUCCESS, LONE_RESPONSE],
        dict(num_tokens=16, num_nodes=7, num_responses=4),
    ),
}


def log_prob(probability: float) -> float:
    """Its logarithm, to 15 decimals: the last bit of a logarithm differs between machines."""
    return round(math.log(probability), 15)


def question_of(prompt: list[int], drafts: list[dict]) -> dict:
    """One question's inputs as they stand in a file: whole responses, shared tokens included, and their step ends."""
    responses: list[dict] = []
    for index, draft in enumerate(drafts):
        shared = responses[draft["parent"]] if draft["parent"] >= 0 else dict(tokens=[], log_probs=[])
        tokens = shared["tokens"][: draft["fork"]] + [t for step, _ in draft["own"] for t in step]
        log_probs = shared["log_probs"][: draft["fork"]] + [log_prob(p) for _, ps in draft["own"] for p in ps]
        ends = [i + 1 for i, token in enumerate(tokens) if token == SEPARATOR or i + 1 == len(tokens)]
        kept = {key: draft[key] for key in ("parent", "fork", "round")}
        rest = dict(tokens=tokens, log_probs=log_probs, step_ends=ends, finish=draft["finish"], reward=draft["reward"])
        responses.append(dict(index=index, **kept, **rest))
    return dict(prompt_length=len(prompt), prompt=prompt, responses=responses)


# --- From the inputs of a file to its outputs -----------------------------------------------------


def responses_of(question: dict, dtype=np.float64) -> list[Response]:
    """The responses of a file's question."""
    names = {field.name for field in dataclasses.fields(Response)}
    return [
        Response(
            **{k: v for k, v in r.items() if k in names - {"tokens", "log_probs"}},
            tokens=np.asarray(r["tokens"], np.int32),
            log_probs=np.asarray(r["log_probs"], dtype),
        )
        for r in question["responses"]
    ]


def tree_of(question: dict, dtype=np.float64) -> Tree:
    """The tree of a file's question; log-probabilities and rewards in `dtype` (`build_tree` itself keeps float32)."""
    responses = responses_of(question, dtype)
    ends = {tuple(r["tokens"]): r["step_ends"] for r in question["responses"]}
    tree = build_tree(question["prompt"], responses, lambda tokens: ends[tuple(tokens.tolist())])
    log_probs = np.zeros(tree.log_probs.shape, dtype)
    for r in reversed(responses):  # whoever sampled a shared token comes first in the list, so is written last
        log_probs[0, tokens_of_response(tree, r.index)] = r.log_probs
    return tree.replace(log_probs=log_probs, rewards=np.asarray([[r.reward for r in responses]], dtype))


def batch_of(questions: list[dict], sizes: dict[str, int], dtype=np.float64) -> Tree:
    """The trees of a file, stacked and padded."""
    tree = stack_trees([tree_of(q, dtype) for q in questions], **sizes)
    assert tree.log_probs.dtype == tree.rewards.dtype == dtype
    return tree


def outputs_of(tree: Tree) -> dict:
    """The code's results for the trees of a file, as arrays; any function of it may be jitted."""
    scores = [score_of(tree, options) for options in SCORE_OPTIONS]
    return dict(
        scores=[dict(values=s.values, eta1=s.eta1, eta2=s.eta2, J=s.J, cov=s.cov) for s in scores],
        advantages={name: function(tree, advantage_options()) for name, function in ADVANTAGES.items()},
    )


def golden(title: str, drafts: list[list[dict]], sizes: dict[str, int]) -> dict:
    """All of one file."""
    questions = [question_of(PROMPT, d) for d in drafts]
    tree = batch_of(questions, sizes)
    outputs = outputs_of(tree)
    return dict(
        title=title,
        questions=questions,
        padded_to=sizes,
        tree={field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)},
        scores=[dict(beta=BETA, **o, **s) for o, s in zip(SCORE_OPTIONS, outputs["scores"])],
        advantage_options=dict(
            beta=BETA, ib_weight=IB_WEIGHT, deviation="population", segment_tokens=SEGMENT_TOKENS, **SCORE_OPTIONS[0]
        ),
        advantages=outputs["advantages"],
    )


def to_json(x, indent: str = "") -> str:
    """JSON with every list of numbers on a line of its own; floats with all digits that float64 has."""
    x = x.tolist() if isinstance(x, np.ndarray) else x
    inner = indent + "  "
    if isinstance(x, dict):
        items = [f"{inner}{json.dumps(key)}: {to_json(value, inner)}" for key, value in x.items()]
    elif isinstance(x, list) and any(isinstance(value, dict | list) for value in x):
        items = [inner + to_json(value, inner) for value in x]
    else:
        return json.dumps(x, allow_nan=False)
    begin, end = "{}" if isinstance(x, dict) else "[]"
    return "\n".join([begin, ",\n".join(items), indent + end]) if items else begin + end


def main() -> None:
    for name, arguments in TREES.items():
        (FOLDER / f"{name}.json").write_text(to_json(golden(*arguments)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
