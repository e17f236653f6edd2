"""The sampler's speed and memory on the CPU: against other samplers, trees against flat groups, and how both grow.

    python benchmarks/sampler.py [--quick] [--json] [--parts=1,2,3,4,5] [--peers=transformers,tunix | --peers=none]

1. flat: 64 different prompts of 64 tokens, one response of 256 tokens each; a small and a large model. Tokens per
   second against Hugging Face transformers' generate and Tunix's sampler.
2. groups: 8 or 32 responses of 128 tokens to one prompt of 128, 512 or 2,048 tokens. Time, tokens per second and the
   peak of the resident memory, against the same.
3. trees: (4,9,1,1) and (4,3,4,1) of strategy "ib" against flat groups of 8 and 12; 256 questions, prompts of 64 tokens,
   at most 384 new ones. Lengths are log-normal, with a median of 160 and a standard deviation of 0.5 of the logarithm;
   32 of the 512 tokens end a step. The model is sure of some steps and unsure of others (lengths.py), and one step in
   fourteen is a mistake, which makes every response behind it wrong. 131,072 tokens of KV cache.
4. memory: KV pages in use at the peak of (4,9,1,1), in tokens, over the tokens they hold, for three page sizes.
5. growth: time for 16 to 1,024 questions, 4 to 64 responses, 64 to 1,024 tokens; the exponent is the slope of the
   least-squares line through the logarithms.

Everyone uses random float32 weights of the same sizes, temperature 1 without truncation, log-probabilities, and all
cores: our engine as one JAX device each, between which it splits the questions or the model, or all as one device,
transformers with each of its caches, and in 1 and 2 the fastest counts (in 2 there is one question, which is not
split); 3 to 5 have a device for each core, and questions split. In 1 and 2 no token ends a response, so that all draw
as many. Each engine and workload of 1 and 2 has a process of its own, in turn, runs once untimed and then --repeats
times (fewer once --budget seconds are spent); medians are reported. In 3 and 5 the workloads of a process take turns,
after a smaller untimed run. The peers are installed, at pinned versions, under build/benchmarks. --quick: much smaller
workloads, once each.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.engines import PEERS, EngineError, our_command, peer_command, run_jobs
from benchmarks.goals import exponent, make_goal
from benchmarks.workload import SHAPES, SMALL

PARTS = (1, 2, 3, 4, 5)
PAGE_SIZE = 8
PAGE_SIZES = (4, 8, 16)
SLOTS = 64
POOL_TOKENS = 131_072
TREES = {
    "flat 8": dict(strategy="independent", initial=8, rounds=1),
    "flat 12": dict(strategy="independent", initial=12, rounds=1),
    "ib (4,9,1,1)": dict(strategy="ib", initial=4, rounds=9),
    "ib (4,3,4,1)": dict(strategy="ib", initial=4, rounds=3, top_k=4),
}
IB = [name for name in TREES if name.startswith("ib")]


class Benchmark:
    """Runs the parts; `figures` collects their results."""

    def __init__(self, *, quick: bool, peers: list[str], repeats: int, budget: float, log, show):
        self.quick, self.log, self.show = quick, log, show
        self.common = dict(repeats=1 if quick else repeats, budget_s=budget)
        self.versions = dict(python=platform.python_version(), cpu=cpu_model(), cores=os.cpu_count())
        self.peers = {name: peer_command(name, log) for name in peers}
        self.figures: dict[str, object] = {}
        self.goals: list[dict] = []
        self._memory: dict[int, dict] = {}  # page size -> statistics of (4,9,1,1)

    def most_devices(self, jobs: list[dict]) -> int:
        """The most devices, at most one per core, that have equally many slots each, and some of the questions."""
        most = min([os.cpu_count() or 1, *(job["questions"] // 2 for job in jobs)])
        return max(n for n in range(1, max(1, most) + 1) if all(job["slots"] % n == 0 for job in jobs))

    def ours(self, jobs: list[dict], devices: int | None = None) -> list[dict]:
        devices = devices or self.most_devices(jobs)
        jobs = [dict(page_size=PAGE_SIZE) | self.common | job for job in jobs]
        results = run_jobs(our_command(), jobs, devices=devices)
        self.versions |= results[0]["versions"]
        return results

    def add_goal(self, *args, **options) -> None:
        self.goals.append(make_goal(*args, **options))

    def table(self, title: str, rows: list[dict]) -> None:
        from ibtpo.report import summary_table

        self.show(f"\n{title}\n{summary_table(rows)}")

    def compare(self, job: dict) -> dict[str, dict]:
        """{engine: {seconds, tokens_per_second, ...}} of one workload of `prompts` x `responses`."""
        our_job = job | dict(
            questions=job["prompts"],
            tree=dict(strategy="independent", initial=job["responses"], rounds=1),
            slots=job["prompts"] * job["responses"],
            questions_in_flight=job["prompts"],
        )

        def fastest() -> dict:
            cores = os.cpu_count() or 1
            variants = {"1 device": (our_job, 1)}
            if (split := self.most_devices([our_job])) > 1:
                variants[f"{split} devices, questions split"] = (our_job, split)
            if cores > 1 and our_job["model"]["num_kv_heads"] % cores == 0:
                variants[f"{cores} devices, model split"] = (our_job | dict(tensor=cores), cores)
            results = [self.ours([job], devices)[0] | dict(variant=name) for name, (job, devices) in variants.items()]
            return min(results, key=lambda result: statistics.median(result["seconds"]))

        runs = {"ours": fastest}
        for name, command in self.peers.items():
            runs[name] = functools.partial(lambda command: run_jobs(command, [job | self.common])[0], command)
        found = {}
        for name, run in runs.items():
            try:
                result = run()
            except (EngineError, subprocess.TimeoutExpired) as error:
                if name == "ours":
                    raise
                self.log(f"  {name} failed: {error}")
                found[name] = dict(error=str(error))
                continue
            seconds = statistics.median(result["seconds"])
            self.versions |= result["versions"]
            found[name] = dict(
                seconds=seconds,
                tokens_per_second=result["tokens"] / seconds,
                peak_rss_mb=result["peak_rss_mb"],
                runs=len(result["seconds"]),
                variant=result.get("variant", ""),
            )
            self.log(f"  {job['name']}, {name}: {seconds:.3g} s, {result['tokens'] / seconds:,.0f} tokens/s")
        return found

    def ratio(self, found: dict[str, dict]) -> float | None:
        """Our tokens per second over the fastest peer's."""
        rates = [r["tokens_per_second"] for name, r in found.items() if name != "ours" and "error" not in r]
        return found["ours"]["tokens_per_second"] / max(rates) if rates else None

    def rows(self, name: str, found: dict[str, dict]) -> list[dict]:
        def row(engine, r):
            return {
                "workload": name,
                "engine": engine,
                "tokens/s": r.get("tokens_per_second"),
                "seconds": r.get("seconds"),
                "peak MB": r.get("peak_rss_mb"),
                "runs": r.get("runs"),
                "note": r.get("variant") or ("failed" if "error" in r else ""),
            }

        return [row(engine, r) for engine, r in found.items()]

    def flat(self) -> None:
        results, rows = {}, []
        sizes = dict(prompts=8, prompt_tokens=16, new_tokens=16) if self.quick else {}
        for name, model in SHAPES.items():
            job = dict(prompts=64, responses=1, prompt_tokens=64, new_tokens=256) | sizes
            results[name] = self.compare(job | dict(name=f"flat {name}", model=model))
            rows += self.rows(f"flat {name}", results[name])
            ratio = self.ratio(results[name])
            self.add_goal(f"flat {name}: ratio to the better peer", ratio, 1.5, at_least=True)
        self.figures["flat"] = results
        self.table("1. different prompts", rows)

    def groups(self) -> None:
        results, rows = {}, []
        prompts, responses, new_tokens = ((128,), (4, 8), 16) if self.quick else ((128, 512, 2048), (8, 32), 128)
        for prompt_tokens in prompts:
            for num in responses:
                name = f"prompt of {prompt_tokens} x {num} responses"
                job = dict(name=name, model=SMALL, prompts=1, responses=num, prompt_tokens=prompt_tokens)
                results[name] = self.compare(job | dict(new_tokens=new_tokens))
                rows += self.rows(name, results[name])
        self.add_goal(f"groups, {name}: ratio to the better peer", self.ratio(results[name]), 3.0, at_least=True)
        self.figures["groups"] = results
        self.table("2. one prompt, several responses", rows)

    def tree_job(self, name: str, **changes) -> dict:
        sizes = dict(questions=16, warm_questions=16, new_tokens=64, median_tokens=28, slots=16, prompt_tokens=32)
        if not self.quick:
            sizes = dict(questions=256, warm_questions=32, slots=SLOTS, prompt_tokens=64)
            sizes |= dict(new_tokens=384, median_tokens=160)
        return dict(name=name, model=SMALL, tree=TREES[name], pool_tokens=POOL_TOKENS) | sizes | changes

    def tree_figures(self, result: dict) -> dict:
        stats, seconds = result["stats"], statistics.median(result["seconds"])
        return dict(
            seconds=seconds,
            generated_tokens=stats["generated_tokens"],
            useful_share=stats["generated_tokens"] / stats["slot_steps"],
            stall_share=stats["stall_seconds"] / seconds,
            tail_share=stats["tail_slot_steps"] / stats["slot_steps"],
            seconds_per_token=seconds / stats["generated_tokens"],
            responses_per_second=stats["responses"] / seconds,
            preemptions=stats["preemptions"],
            runs=len(result["seconds"]),
            lengths=result["lengths"],
        )

    def trees(self) -> None:
        self.log("  trees: " + ", ".join(TREES))
        results, rows = {}, []
        for result in self.ours([self.tree_job(name) for name in TREES]):
            figures = results[result["name"]] = self.tree_figures(result)
            if result["name"] == IB[0]:
                self._memory[PAGE_SIZE] = result["stats"]
            rows.append(
                {
                    "sampling": result["name"],
                    "seconds": figures["seconds"],
                    "tokens": int(figures["generated_tokens"]),
                    "useful": figures["useful_share"],
                    "stalled": figures["stall_share"],
                    "tail": figures["tail_share"],
                    "µs/token": 1e6 * figures["seconds_per_token"],
                    "responses/s": figures["responses_per_second"],
                    "preempted": int(figures["preemptions"]),
                    "runs": figures["runs"],
                }
                | {f"length {key}": round(value) for key, value in result["lengths"].items()}
            )
        for name in IB:
            for flat in ("flat 12", "flat 8"):
                tree, base = results[name], results[flat]
                tree[f"token_time_to_{flat.replace(' ', '_')}"] = tree["seconds_per_token"] / base["seconds_per_token"]
                tree[f"responses_to_{flat.replace(' ', '_')}"] = (
                    tree["responses_per_second"] / base["responses_per_second"]
                )
            self.add_goal(
                f"{name}: time per generated token / flat 12's",
                results[name]["token_time_to_flat_12"],
                1.0,
                at_least=False,
            )
            self.add_goal(
                f"{name}: finished responses per second / flat 12's",
                results[name]["responses_to_flat_12"],
                1.45,
                at_least=True,
            )
        self.figures["trees"] = results
        self.table("3. trees and flat groups", rows)
        self.table(
            "   trees / flat groups",
            [
                {
                    "tree": name,
                    "over": f"flat {n}",
                    "time per token": results[name][f"token_time_to_flat_{n}"],
                    "responses per second": results[name][f"responses_to_flat_{n}"],
                }
                for name in IB
                for n in (12, 8)
            ],
        )

    def memory(self) -> None:
        sizes = [size for size in PAGE_SIZES if size not in self._memory]
        self.log(f"  memory: {IB[0]} with pages of {', '.join(map(str, sizes))} tokens")
        # Nothing is timed here: one run, and of nothing before.
        jobs = [self.tree_job(IB[0], page_size=size, repeats=1, warm_questions=1) for size in sizes]
        self._memory |= {size: result["stats"] for size, result in zip(sizes, self.ours(jobs))}
        results = {
            size: dict(
                peak_pages=stats["peak_pages"],
                tokens_at_peak=stats["tokens_at_peak"],
                ratio=stats["peak_pages"] * size / stats["tokens_at_peak"],
            )
            for size, stats in sorted(self._memory.items())
        }
        self.figures["memory"] = results
        name = f"memory of {IB[0]}: KV tokens in use / tokens held, pages of {PAGE_SIZE}"
        self.add_goal(name, results[PAGE_SIZE]["ratio"], 1.1, at_least=False)
        rows = [
            {"page size": size, "pages": int(r["peak_pages"]), "tokens": int(r["tokens_at_peak"]), "ratio": r["ratio"]}
            for size, r in results.items()
        ]
        self.table(f"4. KV memory at the peak of {IB[0]}", rows)

    def growth(self) -> None:
        results, rows = {}, []
        if self.quick:
            sweeps = dict(questions=(4, 8, 16), responses=(2, 4, 8), tokens=(16, 32, 64))
            base = dict(slots=16, questions=4, responses=2, tokens=16)
        else:
            powers = [2**i for i in range(4, 11)]
            sweeps = dict(questions=powers, responses=[4, 8, 16, 32, 64], tokens=powers[2:])
            base = dict(slots=SLOTS, questions=16, responses=4, tokens=32)
        for what, sizes in sweeps.items():
            self.log(f"  growth: {what} {', '.join(map(str, sizes))}")
            jobs = []
            for size in sizes:
                now = base | {what: size}
                if what == "tokens":  # as many slots as responses: every step is full at every length
                    now |= dict(questions=4, responses=4, slots=16) if not self.quick else {}
                jobs.append(
                    dict(
                        name=f"{what} {size}",
                        model=SMALL,
                        tree=dict(strategy="independent", initial=now["responses"], rounds=1),
                        questions=now["questions"],
                        warm_questions=16,
                        prompt_tokens=16,
                        new_tokens=now["tokens"],
                        slots=now["slots"],
                        questions_in_flight=32,
                        budget_s=min(15, self.common["budget_s"]),
                    )
                )
            seconds = [statistics.median(result["seconds"]) for result in self.ours(jobs)]
            results[what] = dict(sizes=list(sizes), seconds=seconds, exponent=exponent(sizes, seconds))
            rows += [{"of": what, "size": n, "seconds": s} for n, s in zip(sizes, seconds)]
            note = ", attention's own growth included" if what == "tokens" else ""
            self.add_goal(f"growth with {what}: exponent{note}", results[what]["exponent"], 1.1, at_least=False)
        self.figures["growth"] = results
        self.table("5. growth", rows)
        self.table("   exponents", [{"of": what, "exponent": r["exponent"]} for what, r in results.items()])


def cpu_model() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def run(
    *,
    quick: bool = False,
    parts=PARTS,
    peers=tuple(PEERS),
    repeats: int = 3,
    budget: float = 60.0,
    log=print,
    show=print,
) -> dict:
    """The figures of the benchmark, `goals` among them."""
    benchmark = Benchmark(quick=quick, peers=list(peers), repeats=repeats, budget=budget, log=log, show=show)
    methods = (benchmark.flat, benchmark.groups, benchmark.trees, benchmark.memory, benchmark.growth)
    for part, method in zip(PARTS, methods):
        if part in parts:
            log(f"part {part}")
            method()
    show("\n" + ", ".join(f"{name} {version}" for name, version in benchmark.versions.items()))
    benchmark.table(
        "goals", [goal | dict(met={True: "yes", False: "no", None: "?"}[goal["met"]]) for goal in benchmark.goals]
    )
    return dict(quick=quick, versions=benchmark.versions, results=benchmark.figures, goals=benchmark.goals)


def main() -> None:
    from benchmarks.output import streams

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="much smaller workloads, once each")
    parser.add_argument("--json", action="store_true", help="end with one JSON object; the tables go to stderr")
    parser.add_argument("--parts", default="1,2,3,4,5", help="which parts, separated by commas")
    parser.add_argument("--peers", default=",".join(PEERS), help="which peers, separated by commas, or none")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each workload")
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds of a workload after which it is not repeated"
    )
    arguments = parser.parse_args()
    peers = [] if arguments.peers == "none" else arguments.peers.split(",")
    parts = [int(part) for part in arguments.parts.split(",")]
    if unknown := [*(set(peers) - set(PEERS)), *(set(parts) - set(PARTS))]:
        parser.error(f"unknown: {', '.join(map(str, unknown))}; peers: {', '.join(PEERS)} or none; parts: 1 to 5")
    figures = run(
        quick=arguments.quick,
        parts=parts,
        peers=peers,
        repeats=arguments.repeats,
        budget=arguments.budget,
        **streams(arguments.json),
    )
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
