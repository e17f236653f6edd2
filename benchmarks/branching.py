"""Where trees branch, and what they cost: every strategy, and every reading of the IB-Score, without training.

    python benchmarks/branching.py [--quick] [--json] [--parts=simulator,segments,demo,model] [--questions=N]
        [--trees=ib,random,...] [--model=FOLDER --data=jsonl:PROBLEMS]

simulator  1,024 questions of a stated process (simulated.py), fitted to the paper's independent responses
segments   share of the tokens that the methods made for segments train, on simulated trees of three steps a segment
demo       64 questions of configs/tiny.py, by its model before training
model      16 word problems (GSM8K's format) by a real model, a folder in Hugging Face format; left out without --model

Every tree has 12 responses but "independent 8"; the same questions, and the same unguided responses, for all. Columns:
tokens a question, over those of the random tree and of 12 independent responses; Eff-Rate; share of right responses of
all and of the unguided ones; of the forks: how many of 8 are at different places, the most at one place, the share at
the question, the depth (share of the tokens kept), how many lie behind a stated answer, and the mean IB-Score J
of the nodes that were branched, by the finished tree.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ("simulator", "segments", "demo", "model")
QUESTIONS = {"simulator": 1024, "segments": 256, "demo": 64, "model": 16}
QUICK = {"simulator": 64, "segments": 16, "demo": 8, "model": 2}
ROUNDS = dict(initial=4, rounds=9, top_k=1, branch=1)  # the paper's (4, 9, 1, 1)
PRINTED = dict(child_weight="uniform", branch_value="leaf_mean", rebranch=0)
# Name: fields of TreeOptions and of its ScoreOptions; what is left out is the default of the method.
STRATEGIES = {
    "independent 8": dict(strategy="independent", initial=8, rounds=1),
    "independent 12": dict(strategy="independent", initial=12, rounds=1),
    "random": dict(strategy="random", **ROUNDS),
    "fixed width": dict(strategy="fixed_width", initial=4, rounds=3, top_k=4),
    "entropy 2 x 4": dict(strategy="entropy", initial=4, rounds=3, top_k=4),
    "entropy 8 x 1": dict(strategy="entropy", **ROUNDS),
    "at2po": dict(strategy="at2po", **ROUNDS),
    "uucb": dict(strategy="uucb", **ROUNDS),
    "ib": dict(strategy="ib", **ROUNDS),
}
READINGS = {
    "ib printed": PRINTED,
    "ib responses": PRINTED | dict(child_weight="responses"),
    "ib backup": PRINTED | dict(branch_value="backup"),
    "ib printed once": PRINTED | dict(rebranch=1),
    "ib responses once": PRINTED | dict(child_weight="responses", rebranch=1),
    "ib backup once": PRINTED | dict(branch_value="backup", rebranch=1),
    "ib printed joint": PRINTED | dict(confidence="joint"),
    "ib printed squared": PRINTED | dict(ratio_power=2),
    "ib printed beta 1": PRINTED | dict(beta=1.0),
}
# Rounds that do not wait for the last ones (`tree.lag`), and fewer rounds of more branches.
LAGS = {
    f"{strategy} {shape} lag {lag}": dict(strategy=strategy, initial=4, rounds=rounds, top_k=top_k, branch=1, lag=lag)
    for strategy, shape, rounds, top_k, lags in (
        ("ib", "4-9-1-1", 9, 1, (1, 2)),
        ("ib", "4-5-2-1", 5, 2, (0, 1)),
        ("ib", "4-3-4-1", 3, 4, (0, 1)),
        ("random", "4-9-1-1", 9, 1, (1, 2)),
    )
    for lag in lags
}
VARIANTS = STRATEGIES | LAGS | {name: dict(strategy="ib", **ROUNDS, **changes) for name, changes in READINGS.items()}
NEEDED = ("independent 12", "random", "ib")
EXAMPLES = """Problem: Tom has 3 boxes with 12 pens in each. He gives away 9 pens. How many pens are left?
Solution: Tom has 3 * 12 = 36 pens.
He has 36 - 9 = 27 pens left.
#### 27

Problem: A train ride takes 40 minutes, and a bus ride half as long. How many minutes do both take?
Solution: The bus ride takes 40 / 2 = 20 minutes.
Both take 40 + 20 = 60 minutes.
#### 60

Problem: {question}
Solution:"""


def tree_options(changes: dict, base):
    """`base` with fields of itself and of its score changed."""
    of_score = {field.name for field in dataclasses.fields(base.score)}
    own = {name: value for name, value in changes.items() if name not in of_score}
    score = {name: value for name, value in changes.items() if name in of_score}
    return dataclasses.replace(base, score=dataclasses.replace(base.score, **score), **own)


def is_mixed(sampled) -> bool:
    """Whether the rewards of a tree's responses differ."""
    return len({r.reward for r in sampled.responses}) > 1


def row_of(trees, codec) -> dict[str, float]:
    """The figures of the trees of one variant."""
    from ibtpo.tree import fork_owner

    scores = []
    tokens, rewards, unguided, uniform = [], [], [], []
    distinct, most, at_question, depth, behind = [], [], [], [], 0
    for sampled in trees:
        responses = sampled.responses
        tokens.append(int((sampled.tree.step > 0).sum()))
        rewards += [r.reward for r in responses]
        unguided += [r.reward for r in responses if r.round == 0]
        uniform.append(not is_mixed(sampled))
        forked = [r for r in responses if r.round > 0]
        places = [(fork_owner(responses, r), r.fork) for r in forked]
        if not places:
            continue
        distinct.append(len(set(places)))
        most.append(max(places.count(place) for place in places))
        at_question += [r.fork == 0 for r in forked]
        depth += [r.fork / len(responses[r.parent].tokens) for r in forked if r.fork]
        starts = [codec.answer_start(r.tokens, sampled.question.find_answer) for r in responses]
        scores += scores_at(sampled.tree, places)
        behind += sum(r.fork > starts[r.parent] for r in forked if r.fork)

    def mean(values):
        return statistics.fmean(values) if values else None

    return {
        "tokens": mean(tokens),
        "Eff-Rate": 1 - mean(uniform),
        "right": mean(rewards),
        "unguided": mean(unguided),
        "places": mean(distinct),
        "most at one": mean(most),
        "at question": mean(at_question),
        "depth": mean(depth),
        "behind": behind if distinct else None,
        "J": mean(scores),
    }


def scores_at(tree, places: list[tuple[int, int]]) -> list[float]:
    """The IB-Score of the nodes at these places (the response that owns the token before, its position)."""
    import numpy as np

    from ibtpo.ib_score import ib_score
    from ibtpo.sampling import TreeOptions
    from ibtpo.sampling.strategies import inner_prefixes

    nodes, forks = inner_prefixes(tree, TreeOptions(max_new_tokens=10**9))
    node = {(f.response if f.position else -1, f.position): n for n, f in zip(nodes, forks)}
    score = np.asarray(ib_score(tree).J)[0]
    return [float(score[node[place]]) for place in places]


def simulator(questions: int, variants: dict, log):
    """Yields (name, row) of each variant."""
    from benchmarks.simulated import UNIT_TOKENS, Simulation
    from ibtpo.sampling import TreeOptions

    for name, changes in variants.items():
        began = time.monotonic()
        simulation = Simulation(tree_options(changes, TreeOptions()))
        row = row_of([simulation.grow(id) for id in range(questions)], simulation.codec)
        log(f"  simulator, {name}: {time.monotonic() - began:.1f} s")
        yield name, row | {"tokens": row["tokens"] * UNIT_TOKENS}


def segments(questions: int, log) -> dict[str, dict[str, float]]:
    """Of the tokens of groups that are not uniform, the share with an advantage: here, where nodes end at steps too; on
    the same trees cut at forks alone, as in the methods' sources; and of the first nodes of segments alone."""
    import numpy as np

    from benchmarks.simulated import Simulation
    from ibtpo.advantages import ADVANTAGES, AdvantageOptions, group_is_uniform
    from ibtpo.advantages.segments import segment_heads
    from ibtpo.sampling import TreeOptions
    from ibtpo.tree import build_tree, node_length

    simulation = Simulation(tree_options(STRATEGIES["fixed width"], TreeOptions()), segment_tokens=300)
    options = AdvantageOptions(segment_tokens=simulation.tree.segment_tokens)
    sums = {name: np.zeros(4) for name in ("treerl", "spo_tree", "treerpo", "treepo")}
    for id in range(questions):
        grown = simulation.grow(id)
        if group_is_uniform(grown.tree)[0]:
            continue
        whole = build_tree([1], grown.responses, lambda tokens: [len(tokens)])
        for name, total in sums.items():
            counts = []
            for tree in (grown.tree, whole):
                trained = np.any(ADVANTAGES[name](tree, options)[0] != 0, axis=0)
                counts.append(node_length(tree)[0] * trained)
            heads = segment_heads(grown.tree)[0] == np.arange(grown.tree.node_parent.shape[1])
            total += [counts[0].sum(), counts[1].sum(), (counts[0] * heads).sum(), (grown.tree.step > 0).sum()]
    log(f"  segments: {questions} questions")
    names = ("ours", "cut at forks alone", "first steps alone")
    return {name: dict(zip(names, (total[:3] / total[3]).tolist())) for name, total in sums.items()}


def sampled(config, questions: int, variants: dict, label: str, log):
    """Yields (name, row) of each variant, sampled by the config's model from its held-out problems."""
    from benchmarks.held_out import HeldOut
    from ibtpo.sampling import TreeOptions

    with HeldOut(config, questions) as held_out:
        for name, changes in variants.items():
            trees, stats = held_out.sample(**vars(tree_options(changes, TreeOptions.from_config(config))))
            log(f"  {label}, {name}: {stats.seconds:.1f} s")
            yield name, row_of(trees, held_out.policy.codec)


def demo_config():
    from ibtpo import config as config_lib

    return config_lib.resolve(config_lib.load(str(ROOT / "configs" / "tiny.py")))


def model_config(folder: str, source: str):
    """Word problems in the format of GSM8K, after two worked examples; a step is a line."""
    from ibtpo import config as config_lib

    config = config_lib.load(str(ROOT / "configs" / "tiny.py"))
    config.model.path, config.data.source = folder, source
    config.data.answer_pattern = r"####\s*(.+)"
    config.data.prompt, config.data.separator, config.data.max_prompt_tokens = EXAMPLES, "\n", 384
    config.sampling.stop_strings, config.sampling.max_new_tokens = '["Problem:"]', 256
    config.sampling.temperature, config.sampling.top_k, config.sampling.top_p = 0.7, 20, 0.95
    config.tree.segment_tokens = 64
    return config_lib.resolve(config, training=False)


def run(
    *, quick=False, parts=PARTS, questions=0, trees=tuple(VARIANTS), model="", data="", log=print, show=print
) -> dict:
    """The figures of the benchmark, `goals` among them. trees: names of VARIANTS, those that goals need among them."""
    from benchmarks.goals import make_goal
    from ibtpo.report import summary_table

    figures, goals = {}, []
    variants = {name: VARIANTS[name] for name in VARIANTS if name in {*trees, *NEEDED}}
    for part in parts:
        number = questions or (QUICK if quick else QUESTIONS)[part]
        if part == "segments":
            rows = segments(number, log)
            figures[part] = dict(questions=number, rows=rows)
            table = summary_table([{"method": name} | row for name, row in rows.items()])
            show(f"\n{part}, {number} questions: share of tokens with an advantage\n{table}")
            for name, row in rows.items():
                off = abs(row["ours"] - row["cut at forks alone"])
                goals.append(make_goal(f"{name}: share off the one cut at forks", off, 0.0, at_least=False))
            continue
        if part == "simulator":
            rows = dict(simulator(number, variants, log))
        else:
            config = demo_config() if part == "demo" else model_config(model, data)
            rows = dict(sampled(config, number, variants, part, log))
        for row in rows.values():
            row["/ random"] = row["tokens"] / rows["random"]["tokens"]
            row["/ independent"] = row["tokens"] / rows["independent 12"]["tokens"]
        figures[part] = dict(questions=number, rows=rows)
        show(f"\n{part}, {number} questions\n{summary_table([{'tree': name} | row for name, row in rows.items()])}")
        goals.append(make_goal(f"{part}: tokens of ib over random's", rows["ib"]["/ random"], 1.05, at_least=False))
        behind = sum(row["behind"] or 0 for row in rows.values())
        goals.append(make_goal(f"{part}: forks behind a stated answer", behind, 0, at_least=False))
    return dict(quick=quick, results=figures, goals=goals)


def main() -> None:
    from benchmarks.output import streams

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few questions")
    parser.add_argument("--json", action="store_true", help="end with one JSON object; the tables go to stderr")
    parser.add_argument("--parts", default="", help="which parts, separated by commas")
    parser.add_argument("--trees", default=",".join(VARIANTS), help="which trees, separated by commas")
    parser.add_argument("--questions", type=int, default=0, help="how many questions each part has; 0: see above")
    parser.add_argument("--model", default="", help="folder of a real model")
    parser.add_argument("--data", default="", help="its problems, jsonl:<path>, fields question and answer (#### 18)")
    arguments = parser.parse_args()
    if bool(arguments.model) != bool(arguments.data):
        parser.error("--model and --data go together")
    default = [part for part in PARTS if part != "model" or arguments.model]
    parts = arguments.parts.split(",") if arguments.parts else default
    if unknown := set(parts) - set(default):
        parser.error(f"cannot run {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}, and model needs --model")
    trees = arguments.trees.split(",")
    if unknown := set(trees) - set(VARIANTS):
        parser.error(f"unknown trees {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    figures = run(
        quick=arguments.quick,
        parts=parts,
        trees=trees,
        questions=arguments.questions,
        model=arguments.model,
        data=arguments.data,
        **streams(arguments.json),
    )
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
