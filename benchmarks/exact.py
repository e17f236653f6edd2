"""The navigation task's exact figures: p(a*|s) against rollouts, and forks against the best ones.

    python benchmarks/exact.py [--quick] [--json] [--parts=outcomes,rollouts,forks] [--model=FOLDER] [--questions=N]

outcomes  256 held-out problems: the share of responses that are right, or fail by execution, coverage or format,
          sampled 8 times at temperature 1 and greedily; and the mean of the exact p(a*|q)
rollouts  2 problems, 10,000 rollouts of the sampler each: of the question and of every step of every right path, how
          many of the responses through it are right, against the exact p(a*|s); and which right path each rollout took
          (or none), against the paths' exact probabilities
forks     32 problems, a tree of 12 responses each by "ib" and by "random": how often a fork is at the node that has the
          highest J, of those that may branch, with the exact p(a*|s) in place of the estimate; and J there

J is that of `ibtpo/ib_score.py`, over the children sampled so far. --model: another checkpoint than that of
configs/navigation.py.
"""

import argparse
import collections
import json
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ("outcomes", "rollouts", "forks")
QUESTIONS = {"outcomes": 256, "rollouts": 2, "forks": 32}
QUICK = {"outcomes": 16, "rollouts": 1, "forks": 4}
SAMPLES, ROLLOUTS, QUICK_ROLLOUTS, GROUP = 8, 10_000, 1_000, 50
STRATEGIES = ("ib", "random")
ROUNDING = 1e-4  # of sums of probabilities in float32
SURE = 0.001  # the share of correct runs that the statistical goals may miss


def held_out(model: str = ""):
    """The `HeldOut` of configs/navigation.py, with another checkpoint where one is given."""
    from benchmarks.held_out import HeldOut
    from ibtpo import config as config_lib

    config = config_lib.load(str(ROOT / "configs" / "navigation.py"))
    if model:
        config.model.path = model
    return HeldOut(config_lib.resolve(config))


def outcomes(setting, questions: int) -> dict:
    """The shares of verdicts, sampled and greedy, and the mean exact p(a*|q)."""
    from ibtpo.rewards.navigation import VERDICTS, judge
    from ibtpo.sampling.strategies import flat_group

    problems = setting.problems[:questions]
    found = {}
    for name, samples, greedy in (("sampled", SAMPLES, False), ("greedy", 1, True)):
        trees, _ = setting.sample(problems, greedy=greedy, **flat_group(samples))
        verdicts = collections.Counter(
            judge(setting.policy.text(r.tokens), problem.answer)
            for problem, sampled in zip(problems, trees)
            for r in sampled.responses
        )
        found[name] = {verdict: verdicts[verdict] / (samples * len(problems)) for verdict in VERDICTS}
    values = [setting.exact(problem).value() for problem in problems]
    return found | {"exact": {"right": statistics.fmean(values)}}


def compare(known, responses, step_ends) -> dict:
    """Rollouts from the question, (tokens, reward) each, against what is known of them.

    prefixes: those that a rollout ran through, of the question and the steps of right paths. outside: of them, with a
    number of right rollouts outside the band that holds all of them but for a share `SURE` of runs. largest: deviation
    in standard errors. paths: the p-value of Pearson's chi-square of the paths taken, those expected less than five
    times counted together.
    """
    import numpy as np
    from scipy import stats

    ends = [tuple(tokens.tolist()) for tokens, _ in responses]
    right = np.array([reward > 0 for _, reward in responses])
    counts, deviations, outside = [], [], 0
    prefixes = known.step_prefixes(step_ends)
    for prefix in prefixes:
        runs = np.array([end[: len(prefix)] == prefix for end in ends])
        if not (n := int(runs.sum())):
            continue
        k, p = int((runs & right).sum()), known.value(prefix)
        p = 1.0 if 1 < p < 1 + ROUNDING else p
        low, high = stats.binom.ppf([SURE / 2 / len(prefixes), 1 - SURE / 2 / len(prefixes)], n, p)
        outside += not low <= k <= high
        deviations.append((k - n * p) / max(n * p * (1 - p), 1e-9) ** 0.5)
        counts.append(n)
    taken = collections.Counter(end for end, is_right in zip(ends, right) if is_right)
    chance = [known.path_probability(i) for i in range(len(known.responses))]
    seen = [taken.pop(tuple(tokens.tolist()), 0) for tokens in known.responses]
    unknown = sum(taken.values())  # right by the grader, but none of the right responses
    return dict(
        rollouts=len(ends),
        prefixes=len(counts),
        outside=outside,
        largest=float(np.abs(deviations).max()),
        root=(known.value(), float(right.mean())),
        unknown=unknown,
        paths=chi_square(np.array(seen), len(ends) * np.array(chance), len(ends)),
    )


def chi_square(seen, expected, total: int) -> float:
    """The p-value of Pearson's test of counts and of the rest of `total`; those expected less than five times are
    counted together, and left out where even together they are not."""
    import numpy as np
    from scipy import stats

    common = expected >= 5
    seen = np.array([*seen[common], seen[~common].sum(), total - seen.sum()], float)
    expected = np.array([*expected[common], expected[~common].sum(), total - expected.sum()])
    if expected[-2] < 5:  # rare ones join the rest
        seen, expected = np.delete(seen, -2), np.delete(expected, -2)
        seen[-1], expected[-1] = total - seen[:-1].sum(), total - expected[:-1].sum()
    return float(stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), len(seen) - 1))


def rollouts(setting, questions: int, number: int, log) -> list[dict]:
    """`compare` of each problem."""
    from ibtpo.sampling.strategies import flat_group

    found = []
    for problem in setting.problems[:questions]:
        began = time.monotonic()
        trees, _ = setting.sample([problem], copies=number // GROUP, **flat_group(GROUP))
        responses = [(r.tokens, r.reward) for sampled in trees for r in sampled.responses]
        found.append(compare(setting.exact(problem), responses, setting.policy.codec.step_ends))
        log(f"  rollouts: {number} in {time.monotonic() - began:.1f} s")
    return found


def forks(setting, questions: int, log) -> dict[str, dict[str, float]]:
    """Of each strategy: the share of forks at the best node, that of a fork drawn at random, and J."""
    from benchmarks.exact_values import forks_of, share_at_best
    from ibtpo.sampling import TreeOptions

    problems = setting.problems[:questions]
    known = [setting.exact(problem) for problem in problems]
    found = {}
    for strategy in STRATEGIES:
        began = time.monotonic()
        options = TreeOptions.from_config(setting.config)  # those of "ib", by which nodes are ranked
        trees, _ = setting.sample(problems, strategy=strategy, initial=options.initial, rounds=options.rounds)
        rows = [row for t, k in zip(trees, known) for row in forks_of(t, k, options, setting.policy.codec)]
        found[strategy] = {
            "forks": len(rows),
            **share_at_best(rows),
            "tokens": statistics.fmean(float((t.tree.step > 0).sum()) for t in trees),
        }
        log(f"  forks, {strategy}: {time.monotonic() - began:.1f} s")
    return found


def run(*, quick=False, parts=PARTS, questions=0, model="", log=print, show=print) -> dict:
    """The figures of the benchmark, `goals` among them."""
    from benchmarks.goals import make_goal
    from ibtpo.report import summary_table

    figures, goals = {}, []
    with held_out(model) as setting:
        for part in parts:
            number = questions or (QUICK if quick else QUESTIONS)[part]
            if part == "outcomes":
                rows = outcomes(setting, number)
                gap = abs(rows["sampled"]["right"] - rows["exact"]["right"])
                most = 0.1 if quick else 0.03
                goals.append(make_goal("sampled accuracy off the exact one", gap, most, at_least=False))
                table = [{"responses": name} | row for name, row in rows.items()]
            elif part == "rollouts":
                rows = rollouts(setting, number, QUICK_ROLLOUTS if quick else ROLLOUTS, log)
                goals.append(make_goal("prefixes outside the band", sum(r["outside"] for r in rows), 0, at_least=False))
                goals.append(make_goal("right but unknown", sum(r["unknown"] for r in rows), 0, at_least=False))
                goals.append(make_goal("least p-value of paths", min(r["paths"] for r in rows), SURE, at_least=True))
                table = [{"problem": n} | {k: v for k, v in row.items() if k != "root"} | {
                    "exact": row["root"][0], "rollouts right": row["root"][1]
                } for n, row in enumerate(rows)]  # fmt: skip
            else:
                rows = forks(setting, number, log)
                ratio = rows["ib"]["at the best node"] / max(rows["random"]["at the best node"], 1e-9)
                goals.append(make_goal("forks at the best node, ib over random", ratio, 1.0, at_least=True))
                table = [{"strategy": name} | row for name, row in rows.items()]
            figures[part] = dict(questions=number, rows=rows)
            show(f"\n{part}, {number} questions\n{summary_table(table)}")
    return dict(quick=quick, results=figures, goals=goals)


def main() -> None:
    from benchmarks.output import streams

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few questions and rollouts")
    parser.add_argument("--json", action="store_true", help="end with one JSON object; the tables go to stderr")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, separated by commas")
    parser.add_argument("--questions", type=int, default=0, help="how many questions each part has; 0: see above")
    parser.add_argument("--model", default="", help="folder of another checkpoint")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"cannot run {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    figures = run(
        quick=arguments.quick,
        parts=parts,
        questions=arguments.questions,
        model=arguments.model,
        **streams(arguments.json),
    )
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
