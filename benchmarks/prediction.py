"""The simulated device against the engine on this machine: the time of a call, predicted and measured.

    python benchmarks/prediction.py [--quick] [--json] [--repeats=3]

The workload of benchmarks/sampler.py, part 3, on one device: trees (4,9,1,1) of strategy "ib", and flat groups of 12.
Of one half of the questions each program of the engine is timed by itself, chunk by chunk, and a price is fitted to
them: seconds of a decode step by its width, and by the tokens in the cache; of a prefill, start, release and of a
call's beginning the mean; and what is left, the host's own work, by the response: on a CPU it takes the cores that
the device computes on, so it is added. The other half is drawn by the engine, untimed inside, and by the same
scheduler on the simulated device at that price, with the lengths that the model drew. Both halves are drawn --repeats
times, in turn; a time is the median.

--quick: a much smaller workload.
"""

import argparse
import collections
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.goals import make_goal  # noqa: E402
from benchmarks.workload import SMALL, STOPS, Workload, grade  # noqa: E402

TREES: dict[str, dict] = {
    "ib (4,9,1,1)": dict(strategy="ib", initial=4, rounds=9),
    "flat 12": dict(strategy="independent", initial=12, rounds=1),
}
JOB = dict(model=SMALL, page_size=8, prompt_tokens=64, new_tokens=384, median_tokens=160, slots=64, questions=192)
QUICK = dict(JOB, prompt_tokens=32, new_tokens=64, median_tokens=28, slots=16, questions=24)
POOL_TOKENS = 131_072
KINDS = ("prefill", "start", "decode", "recompute", "release")
Noted = tuple[int, int, float]  # of a chunk


def timed_device(notes: dict[str, list[float]]) -> type:
    """The engine's device, waiting for each of its programs. notes: gets the seconds of each call, by kind."""
    import jax

    from ibtpo.sampling.programs import DecoderDevice

    def timed(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def method(self, *args):
            began = time.perf_counter()
            result = call(self, *args)
            if kind == "decode":
                chunk = result()
                result = lambda: chunk  # noqa: E731
            jax.block_until_ready(self._state)
            notes[kind].append(time.perf_counter() - began)
            return result

        return method

    calls = {name: timed(name, getattr(DecoderDevice, name)) for name in KINDS}
    return type("TimedDevice", (DecoderDevice,), calls | {"__init__": timed("call", DecoderDevice.__init__)})


class Live:
    """`sampling.simulated.Price` whose seconds of a decode step are the tokens in the cache."""

    def step(self, slots: int, live_tokens: float) -> float:
        return live_tokens

    def prefill(self, prompts: int, width: int) -> float:
        return 0.0

    def start(self, forks: int) -> float:
        return 0.0

    def recompute(self, tokens: int) -> float:
        return 0.0

    def release(self) -> float:
        return 0.0


class Fitted(Live):
    """The same, fitted to timed calls. chunks: (width, steps, live tokens summed over the steps) of each of them."""

    def __init__(self, seconds: dict[str, list[float]], chunks: list[Noted]):
        import numpy as np
        from scipy.optimize import nnls

        self.mean = {kind: statistics.fmean(times) for kind, times in seconds.items()}
        if len(seconds["decode"]) != len(chunks):
            raise RuntimeError(f"{len(seconds['decode'])} chunks were timed, {len(chunks)} simulated")
        self.widths = sorted({width for width, *_ in chunks})
        columns = [[*(steps * (width == w) for w in self.widths), live] for width, steps, live in chunks]
        *per_width, self.per_token = nnls(np.array(columns), np.array(seconds["decode"]))[0]
        self.per_step = dict(zip(self.widths, per_width))

    def step(self, slots: int, live_tokens: float) -> float:
        nearest = min(self.widths, key=lambda width: abs(width - slots))
        return self.per_step[nearest] + self.per_token * live_tokens

    def prefill(self, prompts: int, width: int) -> float:
        return self.mean["prefill"]

    def start(self, forks: int) -> float:
        return self.mean["start"]

    def recompute(self, tokens: int) -> float:
        return self.mean["recompute"]

    def release(self) -> float:
        return self.mean["release"]


def simulate(workload: Workload, questions: list, trees: list, price: Any) -> tuple[float, list[Noted]]:
    """(seconds of the simulated device; (width, steps, decode seconds) of each chunk) for the trees that were drawn."""
    import jax

    from ibtpo.sampling.process import Replay
    from ibtpo.sampling.simulated import SimulatedDevice

    sampler, chunks = workload.sampler, []

    class Noting(SimulatedDevice):
        def decode(self, steps, sequences):
            before = self.clock.by_kind["decode"]
            fetch = super().decode(steps, sequences)
            chunk = fetch()
            chunks.append((len(chunk.owner), int(chunk.steps), self.clock.by_kind["decode"] - before))
            return fetch

    recorded = {(tree.question.id, r.index): r for tree in trees for r in tree.responses}
    device = Noting(sampler.capacity, Replay(recorded=recorded, stop_ids=list(STOPS)), price)
    sampler.run_on(device, questions, grade, jax.random.key(0))
    return device.clock.seconds, chunks


def measure(name: str, tree: dict, job: dict, repeats: int, log: Callable[[str], None]) -> dict:
    """The figures of one tree."""
    from ibtpo.sampling import sampler as sampler_lib

    workload = Workload(job | dict(name=name, tree=tree, pool_tokens=POOL_TOKENS, questions_in_flight=0))
    half = len(workload.questions) // 2
    known, asked = workload.questions[:half], workload.questions[half:]
    log(f"{name}: compiling\n")
    workload.run()
    predicted, measured, notes = [], [], []
    for number in range(repeats):
        log(f"{name}: {number + 1} of {repeats}\n")
        seconds: dict[str, list[float]] = collections.defaultdict(list)
        with mock.patch.object(sampler_lib, "DecoderDevice", timed_device(seconds)):
            took, trees, stats = workload.run(known)
        price = Fitted(seconds, simulate(workload, known, trees, Live())[1])
        host = (took - sum(map(sum, seconds.values()))) / stats.responses
        took, trees, stats = workload.run(asked)
        simulated, _ = simulate(workload, asked, trees, price)
        predicted.append(price.mean["call"] + simulated + host * stats.responses)
        measured.append(took)
        notes.append(stats)
    both = statistics.median(predicted), statistics.median(measured)
    return dict(
        predicted_s=both[0],
        measured_s=both[1],
        predicted_over_measured=both[0] / both[1],
        each=[p / m for p, m in zip(predicted, measured)],
        responses=notes[0].responses,
        step_ms={width: 1e3 * seconds for width, seconds in price.per_step.items()},
        token_ns=1e9 * price.per_token,
        host_ms_per_response=1e3 * host,
    )


def run(*, quick: bool, repeats: int, log: Callable[[str], None]) -> dict:
    """Figures and goals."""
    job = QUICK if quick else JOB
    figures: dict[str, Any] = {name: measure(name, TREES[name], job, repeats, log) for name in TREES}
    goals = [
        make_goal(f"{name}: {words}", side, 1.1, at_least=False)
        for name, found in figures.items()
        for words, side in (
            ("time predicted / measured", found["predicted_over_measured"]),
            ("time measured / predicted", 1 / found["predicted_over_measured"]),
        )
    ]
    tree, flat = (figures[name] for name in TREES)
    for kind in ("predicted", "measured"):
        rates = [found["responses"] / found[f"{kind}_s"] for found in (tree, flat)]
        figures[f"tree's responses/s over flat's, {kind}"] = rates[0] / rates[1]
    return {"figures": figures, "goals": goals}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a much smaller workload, once")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else arguments.repeats

    def log(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)

    found = run(quick=arguments.quick, repeats=repeats, log=log)
    if arguments.json:
        print(json.dumps(found))
        return
    print(json.dumps(found["figures"], indent=2))
    for goal in found["goals"]:
        print(f"{'met' if goal['met'] else 'MISSED':6}  {goal['name']}: {goal['value']:.3f} (goal {goal['goal']})")


if __name__ == "__main__":
    main()
