"""Suite "branching" (the paper's Table 3): trees of the base model, without training.

    python -m benchmarks.study.branching --task=navigation --seed=0 --questions=256 --out=FOLDER

One process samples the trees of every variant for the same held-out questions, with the draws of one seed, and writes
a file with a row for each into FOLDER; what is there is kept. Columns beside those of `benchmarks/branching.py`, where
p(a*|s) is known: bias (mean of p̂ - p) and error (root of the mean square) of each estimate over the nodes with
children, and over the questions alone; and how many forks are at the node with the highest exact J. "mixed" has a digit
for each question, 1 where its responses' rewards differ, so that trees can be compared question by question.
"""

import argparse
import itertools
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.branching import PRINTED, ROUNDS, STRATEGIES, is_mixed, row_of, tree_options
from benchmarks.study.jobs import ROOT
from benchmarks.study.tasks import TASKS
from ibtpo.whole_files import write_text

FIRST = ("independent 8", "independent 12", "random", "fixed width", "entropy 8 x 1", "ib")
_READINGS = {
    "uniform": {},
    "responses": dict(child_weight="responses"),
    "backup": dict(branch_value="backup"),
    "once": dict(rebranch=1),
}
# Name: fields of TreeOptions and ScoreOptions. "ib" is the method's default, others as printed but for what is said.
VARIANTS: dict[str, dict[str, Any]] = {
    name: STRATEGIES[name] for name in FIRST
} | {
    f"ib {reading}, {confidence.split('_')[0]}, beta {beta:g}": dict(
        strategy="ib", **ROUNDS, **(PRINTED | changes | dict(confidence=confidence, beta=beta))
    )
    for (reading, changes), confidence, beta in itertools.product(
        _READINGS.items(), ("geometric_mean", "joint"), (1.0, 5.0, 10.0)
    )
}
_ESTIMATES = {"leaf mean": {}, "backup": dict(value="backup")}


def file_of(name: str) -> str:
    """The file of a variant's row."""
    return "".join(c if c.isalnum() else "_" for c in name) + ".json"


def mixed(trees) -> str:
    """A digit for each tree: 1 where its responses' rewards differ, else 0. Eff-Rate is the share of 1."""
    return "".join(str(int(is_mixed(sampled))) for sampled in trees)


def estimate_errors(trees, known) -> dict[str, float]:
    """Bias and error of each estimate of p(a*|s) over the nodes with children, and of the questions."""
    from ibtpo.ib_score import node_values
    from ibtpo.tree import children_mask

    found = {}
    for name, options in (*_ESTIMATES.items(), ("unguided", dict(root="initial"))):
        inner, roots = [], []
        for sampled, exact in zip(trees, known):
            off = np.asarray(node_values(sampled.tree, **options))[0] - exact.of_nodes(sampled)
            parents = np.asarray(children_mask(sampled.tree))[0].any(axis=1)
            inner += off[parents].tolist()
            roots.append(off[0])
        if name != "unguided":
            found |= {f"bias, {name}": np.mean(inner), f"error, {name}": np.sqrt(np.mean(np.square(inner)))}
        found |= {f"root bias, {name}": np.mean(roots), f"root error, {name}": np.sqrt(np.mean(np.square(roots)))}
    return {name: float(value) for name, value in found.items()}


def best_forks(trees, known, options, codec) -> dict[str, float]:
    """How often a fork is at the truly best node, and how often a draw among the candidates would be."""
    from benchmarks.exact_values import forks_of, share_at_best

    return share_at_best([row for t, exact in zip(trees, known) for row in forks_of(t, exact, options, codec)])


def rows(task: str, seed: int, questions: int, names: list[str]) -> Iterator[dict[str, Any]]:
    """A row of each variant."""
    from benchmarks.held_out import HeldOut
    from ibtpo import config as config_lib
    from ibtpo.sampling import TreeOptions

    config = config_lib.resolve(config_lib.load(str(ROOT / "configs" / f"{TASKS[task].config}.py")))
    base = TreeOptions.from_config(config)
    with HeldOut(config, questions) as held_out:
        codec = held_out.policy.codec
        known = [held_out.exact(problem) for problem in held_out.problems] if TASKS[task].exact else []
        for name in names:
            options = tree_options(VARIANTS[name], base)
            trees, _ = held_out.sample(seed=seed, **vars(options))
            row = {"task": task, "tree": name, "seed": seed, "questions": len(trees)} | row_of(trees, codec)
            row["mixed"] = mixed(trees)
            if known:
                row |= estimate_errors(trees, known)
                if options.strategy in ("ib", "random"):
                    row |= best_forks(trees, known, options, codec)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--trees", default=";".join(VARIANTS), help="variants, separated by semicolons")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in arguments.trees.split(";") if not (arguments.out / file_of(name)).exists()]
    began = time.monotonic()
    for row in rows(arguments.task, arguments.seed, arguments.questions, names) if names else ():
        write_text(arguments.out / file_of(row["tree"]), json.dumps(row, indent=1) + "\n")
        print(f"{row['tree']}: {time.monotonic() - began:.1f} s so far", flush=True)


if __name__ == "__main__":
    main()
