"""The math verifier: its accuracy, its speed, and the effect of hostile answers.

    python benchmarks/rewards.py [--quick] [--json] [--data=FOLDER] [--answers=100000]

--data holds gsm8k_test.jsonl, math500_test.jsonl, aime24_test.jsonl, aime25_test.jsonl and amc23_test.jsonl (default:
../shared/data beside the checkout); without them only the last part runs, and figures that need them have no value.

1. right: every GSM8K test answer in four phrasings, and one more than it, to be refused; the MATH-500 solutions against
   their own answers, and each against another problem's (shuffled); the AIME and AMC answers.
2. speed: answers per second that the fast path decides, through `Grader.submit` on one core (its caller's), the best of
   five passes; the responses are GSM8K's and MATH-500's own solutions. Two processes on two cores do twice that: the
   fast path shares nothing.
3. agreement: time per answer and verdicts against Math-Verify called directly, on MATH-500 solutions with their own and
   with shuffled answers.
4. copies: what a policy earns that copies instead of solving. Every formula of every MATH-500 question, and the last
   calculation of every GSM8K solution ("9*2"), as the answer in a box; by the default rule and by reward.unevaluated.
   Of formulas that are a number themselves nothing is to be learnt: they are left out. A formula in the very spelling
   of its reference is the right answer by any rule: such pairs are left out too, counted, and shown.
5. hostile: --answers of `hostile_answers` through a grader of two workers that watches files, processes and evaluated
   source text; the workers' peak memory is sampled. Then each bomb alone, timed.

--quick: 100 rows of each set and 2,000 hostile answers.
"""

import argparse
import collections
import json
import pathlib
import random
import re
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import hostile_answers  # noqa: E402
from ibtpo.rewards import KINDS  # noqa: E402
from ibtpo.rewards import math as math_reward  # noqa: E402
from ibtpo.rewards.pool import Grader  # noqa: E402

PHRASINGS = (
    r"So it is \boxed{%s}.",
    "#### %s",
    "The answer is %s dollars.",
    r"Thus \boxed{%s \text{ dollars}}",
)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$((?:[^$\\]|\\.)+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
COMPETITIONS = ("aime24", "aime25", "amc23")
TIMEOUT = 1.0  # seconds for a hostile answer
MEMORY_MB = 1024
IN_FLIGHT = 2000
RESTART = 3.0  # seconds a worker may need to be killed and replaced, on a loaded machine


def read(folder: pathlib.Path, name: str, limit: int | None) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}_test.jsonl").read_text().splitlines()][:limit]


def gsm8k_pairs(rows: list[dict]) -> list[tuple[str, str, str]]:
    """(working, answer, answer plus one) of GSM8K rows; the first is the solution without its last line."""
    result = []
    for row in rows:
        working, _, answer = row["answer"].partition("####")
        answer = answer.strip()
        result.append((working, answer, f"{int(answer.replace(',', '')) + 1:,}"))
    return result


def right(folder: pathlib.Path, limit: int | None) -> tuple[dict, list[dict]]:
    """Accepted references and refused wrong answers, with goals."""
    gsm8k, math500 = gsm8k_pairs(read(folder, "gsm8k", limit)), read(folder, "math500", limit)
    order = random.Random(0).sample(range(len(math500)), len(math500))
    goals, figures = [], {}
    math_reward.load()
    with Grader(workers=2) as grader:
        for phrasing in PHRASINGS:
            for what, index, expected in (("accepted", 1, 1.0), ("planted wrong answer refused", 2, 0.0)):
                pairs = [(working + phrasing.replace("%s", row[index]), row[1])
                         for row in gsm8k for working in row[:1]]  # fmt: skip
                count = grader.grade(pairs).count(expected)
                goals.append(make_goal(f"GSM8K, {phrasing!r}: {what}", count, len(gsm8k)))
        count = grader.grade([(row["solution"], row["answer"]) for row in math500]).count(1.0)
        goals.append(make_goal("MATH-500 solutions right against their own answers", count, len(math500)))
        # Each solution's answer against the next in the shuffled order.
        pairs = [(math500[i], math500[j]) for i, j in zip(order, order[1:] + order[:1])]
        grades = grader.grade([(mine["solution"], other["answer"]) for mine, other in pairs])
        accepted = [(mine["answer"], other["answer"]) for (mine, other), grade in zip(pairs, grades) if grade]
        figures["math500_shuffled"] = dict(pairs=len(pairs), accepted=accepted)
        # True equals: the pairs that Math-Verify, called directly on the two answers, calls equal too.
        unequal = [pair for pair in accepted if not equal_by_math_verify(*pair)]
        goals.append(make_goal("MATH-500 shuffled pairs that are accepted and not equal", len(unequal), 0))
        for name in COMPETITIONS:
            rows = read(folder, name, limit)
            values = [int(float(row["answer"])) for row in rows]
            for what, shift, expected in (("accepted", 0, 1.0), ("wrong refused", 1, 0.0)):
                pairs = [
                    (form.replace("%s", str(value + shift)), str(row["answer"]))
                    for row, value in zip(rows, values)
                    for form in (*PHRASINGS, "%s.0", r"$\boxed{%s}$")
                ]
                goals.append(make_goal(f"{name}: {what}", grader.grade(pairs).count(expected), len(pairs)))
    return figures, goals


def equal_by_math_verify(left: str, right: str) -> bool:
    import math_verify

    left, right = (math_verify.parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (left, right))
    return math_verify.verify(left, right, timeout_seconds=None) or math_verify.verify(
        right, left, timeout_seconds=None
    )


def speed(folder: pathlib.Path, limit: int | None) -> tuple[dict, list[dict]]:
    """Answers per second of the fast path on one core."""
    gsm8k = gsm8k_pairs(read(folder, "gsm8k", limit))
    sets = {
        "gsm8k": [
            (working + phrasing.replace("%s", value), answer)
            for working, answer, wrong in gsm8k
            for phrasing in PHRASINGS
            for value in (answer, wrong)
        ],
        "math500": [(row["solution"], row["answer"]) for row in read(folder, "math500", limit)],
    }
    figures = {}
    for name, pairs in sets.items():
        with Grader(workers=1) as grader:
            # Those for the slow path would share the core with their worker.
            pairs = [pair for pair in pairs if math_reward.fast_reward(*pair) is not None]
            rates = []
            for _ in range(5):
                started = time.perf_counter()
                for pair in pairs:
                    grader.submit(*pair)
                rates.append(len(pairs) / (time.perf_counter() - started))
            characters = sum(len(text) for text, _ in pairs) / len(pairs)
            figures[name] = dict(per_second_one_core=max(rates), answers=len(pairs), characters=characters)
    rate = figures["gsm8k"]["per_second_one_core"]
    goals = [make_goal("fast path, answers per second on two cores (twice one core)", 2 * rate, 10_000, at_least=True)]
    return figures, goals


def copies(folder: pathlib.Path, limit: int | None) -> tuple[dict, list[dict]]:
    """Problems that a copied formula answers."""
    pairs = [
        ("math500", number, formula, row["answer"])
        for number, row in enumerate(read(folder, "math500", limit))
        for match in FORMULA.finditer(row["problem"])
        for formula in {match[0].strip("$\\[]() .,"), *"".join(filter(None, match.groups())).split("=")}
    ]
    for number, row in enumerate(read(folder, "gsm8k", limit)):
        working, _, answer = row["answer"].partition("####")
        calculations = re.findall(r"<<([^<>=]+)=[^<>]*>>", working)
        pairs += [("gsm8k", number, formula, answer.strip()) for formula in calculations[-1:]]
    pairs = [pair for pair in pairs if pair[2].strip() and not math_reward.is_number(pair[2])]
    given = [pair for pair in pairs if math_reward.canonical(pair[2]) == math_reward.canonical(pair[3])]
    pairs = [pair for pair in pairs if pair not in given]
    figures: dict = {"formulas": len(pairs), "references_as_spelt": len(given), "spelt": [p[2:] for p in given][:50]}
    for rule, unevaluated in (("default", False), ("unevaluated", True)):
        with Grader(workers=2, unevaluated=unevaluated) as grader:
            grades = grader.grade([(rf"\boxed{{{formula}}}", answer) for _, _, formula, answer in pairs])
        paid = {pair[:2]: pair[2:] for pair, grade in zip(pairs, grades) if grade}
        for name in ("math500", "gsm8k"):
            numbers = [pair for key, pair in paid.items() if key[0] == name and math_reward.is_number(pair[1])]
            figures[f"{name}_{rule}"] = sum(key[0] == name for key in paid)
            figures[f"{name}_{rule}_of_numbers"] = len(numbers)
        figures[f"paid_{rule}"] = [pair for key, pair in paid.items() if key[0] == "math500"][:50]
    paid = figures["math500_default"] + figures["gsm8k_default"]
    return figures, [make_goal("copied formulas paid by the default rule", paid, 0)]


def agreement(folder: pathlib.Path, limit: int | None) -> tuple[dict, list[dict]]:
    """Verdicts and time per answer of our gate and of Math-Verify alone."""
    import math_verify

    rows = read(folder, "math500", limit)
    order = random.Random(0).sample(range(len(rows)), len(rows))
    pairs = [(row["solution"], row["answer"]) for row in rows]
    pairs += [(rows[i]["solution"], rows[j]["answer"]) for i, j in zip(order, order[1:] + order[:1])]
    math_reward.load()

    def direct(text: str, reference: str) -> bool:
        sides = [math_verify.parse(x, parsing_timeout=None) for x in (rf"\boxed{{{reference}}}", text)]
        return math_verify.verify(*sides, timeout_seconds=None)

    figures, verdicts = {"answers": len(pairs)}, {}
    for name, grade in (("ours", math_reward.verify), ("math_verify", direct)):
        started = time.perf_counter()
        verdicts[name] = [grade(*pair) for pair in pairs]
        figures[f"{name}_ms"] = 1000 * (time.perf_counter() - started) / len(pairs)
    differing = [
        dict(answer=math_reward.extract_answer(text), reference=reference, ours=ours, math_verify=theirs)
        for (text, reference), ours, theirs in zip(pairs, verdicts["ours"], verdicts["math_verify"])
        if ours != theirs
    ]
    figures |= dict(agreement=1 - len(differing) / len(pairs), differing=differing)
    return figures, []


class WorkerMemory:
    """Within it, a thread keeps the largest address space and resident memory of this process's children, in bytes."""

    def __enter__(self):
        self.virtual = self.resident = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self):
        children = pathlib.Path("/proc/self/task")
        while not self._done.wait(0.05):
            for pid in {pid for file in children.glob("*/children") for pid in file.read_text().split()}:
                try:
                    status = pathlib.Path(f"/proc/{pid}/status").read_text()
                except OSError:  # it has just ended
                    continue
                sizes = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
                self.virtual = max(self.virtual, 1024 * int(sizes.get("VmPeak", 0)))
                self.resident = max(self.resident, 1024 * int(sizes.get("VmHWM", 0)))


def hostile(count: int, log, *, bombs: bool = True, seed: int = 0) -> tuple[dict, list[dict]]:
    """The effect of `count` hostile answers, and then of every bomb alone, on a grader."""
    KINDS["hostile"] = hostile_answers
    hostile_answers.load()  # the fast path runs in this process
    kinds, unusual = collections.Counter(), []
    with tempfile.TemporaryDirectory() as name:
        canary = pathlib.Path(name) / "canary"
        with (
            Grader("hostile", workers=2, timeout=TIMEOUT, memory_mb=MEMORY_MB) as grader,
            WorkerMemory() as memory,
        ):
            started, waiting = time.perf_counter(), collections.deque()
            stream = hostile_answers.answers(count, seed=seed, canary=str(canary), bombs=bombs)
            for number, (kind, text, reference) in enumerate(stream, 1):
                kinds[kind] += 1
                waiting.append((text, grader.submit(text, reference)))
                while len(waiting) > (IN_FLIGHT if number < count else 0):
                    text, future = waiting.popleft()
                    if future.result() not in (0.0, 1.0):
                        unusual.append(text)
                if number % 5000 == 0:
                    log(f"  {number} answers, {time.perf_counter() - started:.0f} s, {grader.counts}")
            seconds, counts = time.perf_counter() - started, grader.counts
            slowest = 0.0
            for bomb in hostile_answers.BOMBS if bombs else ():
                begun = time.perf_counter()
                grader.submit(rf"\boxed{{{bomb}}}", "5").result()
                slowest = max(slowest, time.perf_counter() - begun)
        left = [path.name for path in pathlib.Path(name).iterdir()]
    figures = dict(
        kinds=dict(kinds),
        counts=counts,
        seconds=seconds,
        slowest_bomb_seconds=slowest,
        peak_address_space_mb=memory.virtual / 2**20,
        peak_resident_mb=memory.resident / 2**20,
        broken_out=unusual[:10],
    )
    goals = [
        make_goal("hostile answers graded 0 or 1", counts["graded"] - len(unusual), count),
        make_goal("slowest bomb, seconds (limit and restart)", slowest, TIMEOUT + RESTART),
        make_goal("workers' largest address space, MiB", figures["peak_address_space_mb"], MEMORY_MB),
        make_goal("files written, processes started, sources evaluated", len(left) + len(unusual), 0),
    ]
    return figures, goals


def make_goal(name: str, value: float, goal: float, *, at_least: bool | None = None) -> dict:
    """One entry of `goals`: a count must be equal or, where the value may be a fraction, on the right side."""
    if at_least is None and isinstance(value, int):
        met = value == goal
    else:
        met = value >= goal if at_least else value <= goal
    return dict(name=name, value=round(value, 3), goal=goal, met=bool(met))


def run(*, data: pathlib.Path, answers: int, quick: bool = False, log=print) -> dict:
    """The figures of the benchmark, `goals` among them."""
    limit = 100 if quick else None
    result, goals = {}, []
    parts = [(part.__name__, lambda part=part: part(data, limit)) for part in (right, speed, agreement, copies)]
    if not data.is_dir():
        log(f"no folder {data}: only the hostile answers are graded")
        goals += [dict(name=name, value=None, goal=None, met=None) for name, _ in parts]
        parts = []
    parts.append(("hostile", lambda: hostile(2000 if quick else answers, log)))
    for name, part in parts:
        log(name)
        result[name], added = part()
        for goal in added:
            log(f"  {'met' if goal['met'] else 'MISSED'}: {goal['name']}: {goal['value']} (goal {goal['goal']})")
        for key, value in result[name].items():
            log(f"  {key}: {value}")
        goals += added
    return result | dict(goals=goals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small part of everything")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT.parent / "shared" / "data", help="the problem sets")
    parser.add_argument("--answers", type=int, default=100_000, help="hostile answers")
    arguments = parser.parse_args()
    log = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    figures = run(data=arguments.data, answers=arguments.answers, quick=arguments.quick, log=log)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
