"""The cost of an update: trees packed into rows, against their responses one by one.

    python benchmarks/training.py [--quick] [--json] [--parts=1,2,3]

1. demo: the trees of one step of configs/tiny.py, sampled by its model. Time and memory of an update, the reference's
   log-probabilities included, on
     packed     the trees, as `ibtpo.train` packs them
     padded     a row for each response and its prompt, as long as the longest of the batch
     sequences  the same responses and prompts packed into rows of train.row_tokens
     prompts    trees that share the prompt alone, packed into such rows
   All four have the same gradient, which is checked, and no more tokens in a microbatch than the first. The tokens of
   the trees over those of the responses bound the saving of packing where the cost is by the token.
2. sharing: 32 made-up questions of 8 responses, 16 tokens of prompt and 112 of response, of which 0 to 90 % are
   shared by all 8.
3. compiled: the update of configs/qwen3_1p7b.py on TPU v5e:2x4 in the three layouts, through the TPU compiler, as
   `ibtpo.compiler` counts it: FLOPs and bytes per chip, and the time that the chip's peaks allow at best. Every
   response is 2,048 tokens long, so that no row of a padded layout is. Needs the packages of requirements-tpu.txt, and
   is left out without them.

Time: medians of --repeats updates, in which the layouts take turns, after an untimed one each. Memory: what the
compiled update needs at its peak, as XLA plans it. --quick: 4 questions, once each; in 3, a small model.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import platform
import statistics
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = (1, 2, 3)
SHARES = (0.0, 0.3, 0.5, 0.7, 0.9)
QUESTIONS, RESPONSES, PROMPT, LENGTH = 32, 8, 16, 112
QUICK_QUESTIONS = 4
SHARING_ROW = 2048  # tokens of its rows, which hold two of its trees or more
TOPOLOGY = "v5e:2x4"
LONG_ROW = 25_600  # tokens of a row that holds a tree, or several responses


class Layouts:
    """The updates of one tree batch in every layout, compiled, from the same state."""

    def __init__(self, trainer, tree, trained, *, sequence_tokens: int):
        import jax

        from benchmarks.training_layouts import prompts_only, responses_of, rows_of
        from ibtpo.advantages import compute_advantages
        from ibtpo.losses import LossOptions
        from ibtpo.packing import fill, plan
        from ibtpo.run_plan import run_optimizer
        from ibtpo.state import make_log_probs, make_update
        from ibtpo.token_weights import token_weights

        config = trainer.config
        advantages = compute_advantages(config.loss.advantage, tree, trainer.advantage_options)
        counted = trained[:, None] & (tree.response_node >= 0)
        options = dict(aggregation=config.loss.aggregation, max_new_tokens=config.sampling.max_new_tokens)
        layout = plan(
            tree,
            row_tokens=config.train.row_tokens,
            rows_per_step=config.train.rows_per_step,
            select=trained,
        )
        batch = fill(layout, tree, token_weights(tree, advantages, mask=counted, **options))
        responses = responses_of(tree, advantages, counted, **options)
        rows = config.train.rows_per_step
        budget = rows * batch.tokens.shape[1]
        longest = max(len(response["tokens"]) for response in responses)
        batches = {
            "packed": (batch, rows),
            "padded": rows_of(responses, longest, budget, several=False),
            "sequences": rows_of(responses, sequence_tokens, budget, several=True),
            "prompts": prompts_only(tree, responses, counted, sequence_tokens, rows),
        }
        self.row_use = layout.useful_share
        self.unique_share = float((tree.step[trained] >= 0).sum()) / sum(len(r["tokens"]) for r in responses)
        optimizer, _ = run_optimizer(config, trainer.plan)
        self.state, self.runs, self.facts = trainer.state, {}, {}
        for name, (batch, rows) in batches.items():
            options = dict(temperature=config.sampling.temperature, rows_per_step=rows)
            options |= dict(token_block=config.train.token_block)
            reference = make_log_probs(trainer.policy.graphdef, **options)
            update = make_update(
                trainer.policy.graphdef,
                optimizer,
                LossOptions.from_config(config.loss),
                remat=config.model.remat,
                donate=False,
                **options,
            )
            batch = jax.device_put(batch)
            log_probs = jax.eval_shape(reference, self.state.params, batch)
            update = update.lower(self.state, batch.replace(ref_log_probs=log_probs)).compile()
            memory = update.memory_analysis()
            self.facts[name] = dict(
                rows=batch.tokens.shape[0],
                row_tokens=batch.tokens.shape[1],
                tokens=int(batch.tokens.size),
                memory_mb=(memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes)
                / 2**20,
            )
            self.runs[name] = (reference, update, batch)

    def time(self, name: str) -> float:
        import jax

        reference, update, batch = self.runs[name]
        started = time.perf_counter()
        batch = batch.replace(ref_log_probs=reference(self.state.ref_params, batch))
        _, metrics = jax.block_until_ready(update(self.state, batch))
        seconds = time.perf_counter() - started
        self.facts[name]["loss"], self.facts[name]["grad_norm"] = (
            float(metrics[key][0]) for key in ("loss", "grad_norm")
        )
        return seconds

    def measure(self, repeats: int) -> dict[str, dict]:
        """{layout: facts, the median `seconds` among them}; raises if the layouts do not agree."""
        for name in self.runs:
            self.time(name)
        seconds = {name: [] for name in self.runs}
        for _ in range(repeats):
            for name in self.runs:
                seconds[name].append(self.time(name))
        packed = self.facts["packed"]
        for name, facts in self.facts.items():
            facts["seconds"] = statistics.median(seconds[name])
            for key in ("loss", "grad_norm"):
                if abs(facts[key] - packed[key]) > 1e-4 * abs(packed["grad_norm"]):
                    raise RuntimeError(f"{name}: {key} is {facts[key]}, and {packed[key]} on packed trees")
        return self.facts


def made_up_tree(share: float, questions: int, vocab_size: int, max_new_tokens: int):
    """Trees whose responses all share the first `share` of their tokens."""
    from ibtpo.tree import Response, build_tree, stack_trees

    rng = np.random.default_rng(0)
    length = min(LENGTH, max_new_tokens)
    fork = round(share * length)

    def draw(n):
        return rng.integers(0, vocab_size, n).astype(np.int32), np.full(n, -np.log(vocab_size), np.float32)

    trees = []
    for _ in range(questions):
        responses = []
        for index in range(RESPONSES):
            tokens, log_probs = draw(length)
            parent = 0 if index and fork else -1
            if parent == 0:
                tokens[:fork], log_probs[:fork] = responses[0].tokens[:fork], responses[0].log_probs[:fork]
            reward = float(index % 2)
            responses.append(Response(index, parent, fork if parent == 0 else 0, 0, tokens, log_probs, "stop", reward))
        trees.append(build_tree(draw(PROMPT)[0], responses, lambda tokens: [len(tokens)]))
    return stack_trees(trees)


class Benchmark:
    """Runs the parts; `figures` collects their results."""

    def __init__(self, *, quick: bool, repeats: int, log, show):
        import jax

        self.quick, self.repeats, self.log, self.show = quick, 1 if quick else repeats, log, show
        self.questions = QUICK_QUESTIONS if quick else QUESTIONS
        self.figures: dict[str, object] = {}
        self.goals: list[dict] = []
        self.versions = dict(python=platform.python_version(), jax=jax.__version__, device=jax.devices()[0].device_kind)

    @functools.cached_property
    def trainer(self):
        """Of configs/tiny.py. Made when it is needed: it sets the mesh of this machine's devices."""
        from ibtpo.config import load, resolve
        from ibtpo.trainer import Trainer

        config = load(str(ROOT / "configs" / "tiny.py"))
        config.model.path = str(ROOT / config.model.path)
        config.data.dir = str(ROOT / "build" / "tfds")
        config.eval.every = 0
        config.train.questions_per_step = self.questions
        config.sampling.max_new_tokens = max(config.sampling.max_new_tokens, LENGTH)
        return Trainer(resolve(config))

    def goal(self, *args) -> None:
        from benchmarks.goals import make_goal

        self.goals.append(make_goal(*args[:-1], at_least=args[-1]))

    def table(self, title: str, rows: list[dict]) -> None:
        from ibtpo.report import summary_table

        self.show(f"\n{title}\n{summary_table(rows)}")

    def demo(self) -> None:
        from ibtpo.advantages import group_is_uniform

        with self.trainer.grader:
            tree = self.trainer.sample_batch().tree
        self.log(f"demo: {len(tree.tokens)} trees are sampled; compiling the layouts")
        layouts = Layouts(
            self.trainer, tree, ~group_is_uniform(tree), sequence_tokens=self.trainer.config.train.row_tokens
        )
        found = layouts.measure(self.repeats)
        packed = found["packed"]
        ratios = {
            what: {name: packed[what] / facts[what] for name, facts in found.items()}
            for what in ("seconds", "memory_mb")
        }
        self.figures["demo"] = dict(
            layouts=found, ratios=ratios, unique_token_share=layouts.unique_share, row_use=layouts.row_use
        )
        self.table("1. demo: one update", [dict(layout=name) | facts for name, facts in found.items()])
        self.show(f"tokens of the trees over those of the responses: {layouts.unique_share:.3f}")
        self.goal("demo: time of packed trees / padded responses", ratios["seconds"]["padded"], 0.6, False)
        self.goal("demo: time of packed trees / packed responses", ratios["seconds"]["sequences"], 0.75, False)
        self.goal("demo: useful tokens of a row", layouts.row_use, 0.9, True)

    def sharing(self) -> None:
        config, rows = self.trainer.config, []
        with config.unlocked():
            config.train.row_tokens = SHARING_ROW
        for share in SHARES:
            self.log(f"sharing: {100 * share:.0f} %")
            vocab = self.trainer.policy.model.vocab_size
            tree = made_up_tree(share, self.questions, vocab, config.sampling.max_new_tokens)
            layouts = Layouts(
                self.trainer, tree, np.ones(self.questions, bool), sequence_tokens=config.train.row_tokens
            )
            found = layouts.measure(self.repeats)
            row = dict(shared=share, unique_token_share=layouts.unique_share)
            for name, facts in found.items():
                row[f"{name}_s"] = facts["seconds"]
            row["packed/padded"] = row["packed_s"] / row["padded_s"]
            row["packed/sequences"] = row["packed_s"] / row["sequences_s"]
            row["packed/prompts"] = row["packed_s"] / row["prompts_s"]
            rows.append(row)
        self.figures["sharing"] = rows
        self.table("2. one update by the share of shared tokens", rows)

    def compiled(self) -> None:
        from ibtpo.compiler.topology import get_devices, usable_hbm
        from ibtpo.parallel import make_mesh

        config = layout_config("packed", quick=self.quick)
        devices = get_devices(TOPOLOGY)
        mesh, limit = make_mesh(config.mesh, devices), usable_hbm(devices[0])
        rows = {}
        for name in ("packed", "padded", "sequences"):
            self.log(f"compiled: {name}")
            rows[name] = compiled_update(layout_config(name, quick=self.quick), mesh, limit)
        packed = rows["packed"]
        for row in rows.values():
            row["tokens / packed"] = row["tokens"] / packed["tokens"]
            row["FLOPs / packed"] = row["tflop"] / packed["tflop"]
            row["bytes / packed"] = row["hbm_gb"] / packed["hbm_gb"]
        self.figures["compiled"] = rows
        self.table(f"3. one update on {TOPOLOGY}, per chip", [dict(layout=name) | row for name, row in rows.items()])


def layout_config(name: str, *, quick: bool):
    """configs/qwen3_1p7b.py, whose trees are single responses but for "packed": one in a row of its own length, or
    several in rows as long as those of the trees."""
    from ibtpo.config import load, resolve
    from ibtpo.sampling.strategies import TreeOptions, num_responses

    config = resolve(load(str(ROOT / "configs" / "qwen3_1p7b.py"))).copy_and_resolve_references()
    config.unlock()
    config.train.row_tokens = LONG_ROW
    if quick:
        config.train.questions_per_step, config.train.row_tokens = 10, 4096
        config.sampling.max_new_tokens, config.data.max_prompt_tokens = 256, 128
    if name != "packed":
        config.train.questions_per_step *= num_responses(TreeOptions.from_config(config))
        config.tree.initial, config.tree.rounds = 1, 1
    if name == "padded":
        config.train.row_tokens = config.data.max_prompt_tokens + config.sampling.max_new_tokens
        # As many tokens at a time as in the other layouts.
        config.train.rows_per_step *= (4096 if quick else LONG_ROW) // config.train.row_tokens
    return config.lock()


def compiled_update(config, mesh, limit: float) -> dict[str, float]:
    """The cost of one update per chip, by the compiled program."""
    from ibtpo.compiler.check import Check

    check = Check(config, mesh, limit)
    report = check.compile(check.lowered()["update"])
    if report.exceeded is not None:
        raise RuntimeError(f"the update needs {report.exceeded / 2**30:.2f} GiB too many")
    work = check.work
    return dict(
        rows=work.rows,
        row_tokens=work.row_tokens,
        tokens=work.rows * work.unique_tokens,
        tflop=report.flops / 1e12,
        hbm_gb=report.hbm_bytes / 1e9,
        memory_gib=check.need(report) / 2**30,
        best_s=report.roofline,
    )


def run(*, quick: bool = False, parts=PARTS, repeats: int = 7, log=print, show=print) -> dict:
    """The figures of the benchmark, `goals` among them."""
    benchmark = Benchmark(quick=quick, repeats=repeats, log=log, show=show)
    # The third first, before there is a mesh of other devices than it compiles for.
    for part, method in ((3, benchmark.compiled), (1, benchmark.demo), (2, benchmark.sharing)):
        if part in parts:
            log(f"part {part}")
            method()
    if benchmark.goals:
        benchmark.table("goals", [goal | dict(met="yes" if goal["met"] else "no") for goal in benchmark.goals])
    return dict(quick=quick, versions=benchmark.versions, results=benchmark.figures, goals=benchmark.goals)


def main() -> None:
    from benchmarks.output import streams

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 questions, once each")
    parser.add_argument("--json", action="store_true", help="end with one JSON object; the tables go to stderr")
    has_compiler = importlib.util.find_spec("libtpu") is not None
    parser.add_argument("--parts", default="1,2,3" if has_compiler else "1,2", help="which parts, separated by commas")
    parser.add_argument("--repeats", type=int, default=7, help="timed updates of each layout")
    arguments = parser.parse_args()
    parts = [int(part) for part in arguments.parts.split(",")]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(map(str, sorted(unknown)))}; there are 1 to 3")
    figures = run(
        quick=arguments.quick,
        parts=parts,
        repeats=arguments.repeats,
        **streams(arguments.json),
    )
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
