"""Whether a run can be repeated bit by bit with sampling.deterministic, what it costs, and what holds without it.

Runs with eight slots and four questions in flight are made twice, once more with a kill -9 in the middle, and on two
devices; rows of metrics and parameters are compared bit by bit. For the cost, the sampler of configs/tiny.py draws the
same questions with and without it, in turn: with the arithmetic's own grader, and with grades that take longer than a
decode chunk.
"""

import contextlib
import pathlib
import statistics
import time
from collections.abc import Callable

from benchmarks.faults import harness, slow_train
from benchmarks.goals import make_goal

SLOTS = {"sampling.slots": 8, "train.steps": 4, "checkpoint.every": 1}
DETERMINISTIC = SLOTS | {"sampling.deterministic": True}
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def run(*, quick: bool, say: Callable[[str], None]) -> dict:
    """Goals: differences found, all 0. figures: the same without it; the cost as ratios of the sampler's time."""
    pairs = {
        "two runs": (DETERMINISTIC, None, False),
        "a run killed and resumed, and an unbroken one": (DETERMINISTIC, None, True),
        "two runs on two devices": (DETERMINISTIC, TWO_DEVICES, False),
        "without it: two runs": (SLOTS, None, False),
    }
    found = {}
    with harness.folder() as folder:
        for number, (name, (changes, environment, kill)) in enumerate(pairs.items()):
            if quick and number == 2:
                continue
            one, other = folder / f"{number}a", folder / f"{number}b"
            _train(one, changes, environment)
            if kill:
                _kill_after(other, changes, 2)
            _train(other, changes, environment)
            found[name] = harness.differences(one, other)
            say(f"{name}: {len(found[name])} differences{': ' if found[name] else ''}{'; '.join(found[name][:2])}")
    goals = [
        make_goal(f"differences, {name}", len(different), 0, at_least=False)
        for name, different in found.items()
        if not name.startswith("without")
    ]
    cost = _cost(rounds=3 if quick else 15, say=say)
    return {"goals": goals, "figures": {"differences": {n: len(d) for n, d in found.items()}, "time_ratio": cost}}


def _command(workdir: pathlib.Path, changes: dict) -> list[str]:
    return ["-m", slow_train.__name__, *harness.train_command(workdir, changes)[2:]]


def _train(workdir: pathlib.Path, changes: dict, environment: dict[str, str] | None) -> None:
    ended = harness.run(_command(workdir, changes), 600, environment)
    if ended.code != 0:
        raise RuntimeError(f"a run of {workdir.name} ended with {ended.code}: {ended.output[-2000:]}")


def _kill_after(workdir: pathlib.Path, changes: dict, step: int) -> None:
    """Kills a run as soon as its metrics have this step."""
    with harness.Process(_command(workdir, changes)) as process:
        path = workdir / "metrics.jsonl"
        while process.running and not (path.is_file() and f'"step": {step}' in path.read_text()):
            time.sleep(0.02)
        process.kill()


def _cost(*, rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """Median over rounds of the sampler's time with it over that without it, in turn; by how grades come."""
    import jax

    from configs import tiny
    from ibtpo import config as config_lib
    from ibtpo.data.datasets import load_training
    from ibtpo.policy import load_policy, make_grade, make_grader, make_sampler
    from ibtpo.sampling import SamplingParams

    config = tiny.get_config()
    config.model.path, config.data.dir = str(harness.SMALL["model.path"]), str(harness.SMALL["data.dir"])
    config = config_lib.resolve(config)
    policy = load_policy(config)
    problems = load_training(config.data, policy.tokenizer)[: config.train.questions_per_step]
    questions = [policy.question(p.id, p, config.data) for p in problems]
    samplers = {}
    for deterministic in (False, True):
        with config.unlocked():
            config.sampling.deterministic = deterministic
        samplers[deterministic] = make_sampler(policy, config)
    at_once, slowly = contextlib.nullcontext(), slow_train.delayed_grades()
    medians = {}
    for name, delay in {"grades at once": at_once, f"up to {1000 * slow_train.SECONDS:.0f} ms": slowly}.items():
        ratios = []
        with delay, make_grader(config) as grader:
            grade = make_grade(policy, grader, {p.id: p for p in problems})
            for number in range(-1, rounds):  # the first compiles
                spent = {}
                for deterministic in (False, True) if number % 2 else (True, False):
                    began = time.perf_counter()
                    key, sampling = jax.random.key(number + 1), SamplingParams.from_config(config.sampling)
                    samplers[deterministic](policy.params, questions, grade, key=key, sampling=sampling)
                    spent[deterministic] = time.perf_counter() - began
                if number >= 0:
                    ratios.append(spent[True] / spent[False])
                    say(f"cost, {name}, round {number + 1}/{rounds}: {ratios[-1]:.3f}")
        medians[name] = round(statistics.median(ratios), 3)
    return medians
