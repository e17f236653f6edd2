"""Trees against flat groups on the pods of `configs/`, by the TPU compiler and the simulated device; no TPU is needed.

    python benchmarks/pods.py [--quick] [--json] [--pods=qwen7b@v5e:4x4,...]

in the environment that `make test-tpu` makes, or any with requirements-tpu.txt.

The sampler's programs of each config are compiled for its topology, and priced by their FLOPs, bytes and exchanges on
the chip's published peaks. The real scheduler then draws train.questions_per_step questions on the simulated device,
once with the config's tree and once as 12 independent responses on as many slots and pages, for two processes: one
fitted to the paper's tokens (12 independent responses 12,035, its tree 7,592; `ibtpo/sampling/process.py`), and one
whose lengths are log-normal as those of `benchmarks/sampler.py` (standard deviation 0.5 of the logarithm), with a mean
of 940. A third run has half of the pages that the tree used at its peak, so that questions are preempted.

Last, the decode step of a model with heads of 64 on one chip: its bytes over those of weights and live KV.

--quick: the first pod alone.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.goals import make_goal  # noqa: E402

# config@topology, and the keys that the config's docstring changes there.
PODS: dict[str, dict] = {
    "qwen7b@v5e:4x4": {},
    "qwen3_8b@v5e:4x4": {},
    "llama3_8b@v5e:4x4": {},
    "qwen3_1p7b@v5e:2x4": {},
    "qwen3_14b@v5p:2x2x2": {},
    "qwen7b@v5p:2x2x2": {"mesh.fsdp": 2, "train.rows_per_step": 2},
    "qwen3_8b@v6e:4x4": {"model.remat": "attention"},
}
SMALL_HEADS = {
    "model.path": "none",
    "model.preset": "Qwen/Qwen2.5-0.5B",
    "data.source": "jsonl:none",
    "sampling.slots": 64,
    "sampling.questions_in_flight": 8,
}
MEAN_LENGTH, SIGMA = 940, 0.5
PAPERS, LOG_NORMAL = "fitted to the paper", f"log-normal, mean {MEAN_LENGTH}"
GOALS = {PAPERS: 1.45, LOG_NORMAL: 1.2}
PROGRAMS = ("serve", "prefill", "start", "decode", "release", "recompute")


def load(name: str, changes: dict):
    """The resolved configuration configs/<name>.py with changed keys."""
    from ibtpo import config as config_lib

    config = config_lib.load(str(ROOT / "configs" / f"{name}.py"))
    for key, value in changes.items():
        section, leaf = key.split(".")
        config[section][leaf] = value
    return config_lib.resolve(config)


def processes(seed: int) -> dict:
    """The two processes by name."""
    from ibtpo.sampling.process import Process

    fitted = Process(seed=seed)
    median = MEAN_LENGTH / math.exp(SIGMA**2 / 2)
    return {PAPERS: fitted, LOG_NORMAL: dataclasses.replace(fitted, length_median=median, length_sigma=SIGMA)}


def measure(pod: str, log) -> dict:
    """{process: figures} of a pod's tree over 12 independent responses, and what its programs need."""
    from ibtpo.compiler.check import check_config
    from ibtpo.compiler.step import half_the_pages, sampling_steps

    name, topology = pod.split("@")
    config = load(name, PODS[pod])
    check = check_config(config, topology, PROGRAMS, log)
    fullest = max(check.need(report) for report in check.reports.values()) / check.limit
    figures: dict = {"fullest_program": round(fullest, 3), "pages": check.sampler.total_pages}
    for kind, process in processes(config.train.seed).items():
        tree, flat = sampling_steps(check, process)
        tight = half_the_pages(check, process, tree)
        figures[kind] = {
            "over_12_independent": round(tree.responses_per_s / flat.responses_per_s, 3),
            "useful_slots": round(tree.useful, 3),
            "responses_per_s": round(tree.responses_per_s, 2),
            "sampling_s": round(tree.sampling_s, 1),
            "in_flight": tree.in_flight,
            "preemptions": tree.preemptions,
            "time_with_half_the_pages": round(tight.sampling_s / tree.sampling_s, 3),
            "preemptions_with_half_the_pages": tight.preemptions,
        }
        log(f"  {pod}, {kind}: {figures[kind]}\n")
    return figures


def small_heads(log) -> float:
    """Bytes of a decode step at head size 64 over weights and live KV, on one v5e."""
    from ibtpo.compiler.check import check_config
    from ibtpo.compiler.conclusions import decode_step

    found = decode_step(check_config(load("base", SMALL_HEADS), "v5e:1x1", ("decode",), log))
    assert found is not None
    return found["ratio"]


def run(pods: list[str], log) -> dict:
    """Figures and goals."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing here may look for an accelerator
    began, figures, goals = time.monotonic(), {}, []
    for number, pod in enumerate(pods, 1):
        log(f"[{number}/{len(pods)}, {time.monotonic() - began:.0f} s] {pod}\n")
        figures[pod] = measure(pod, log)
        for kind, goal in GOALS.items():
            found = figures[pod][kind]
            ratio = found["over_12_independent"]
            goals.append(make_goal(f"{pod}, {kind}: responses/s over 12 independent", ratio, goal, at_least=True))
            goals.append(make_goal(f"{pod}, {kind}: useful slots", found["useful_slots"], 0.85, at_least=True))
    goals.append(make_goal("decode bytes at head size 64 over weights + KV", small_heads(log), 1.25, at_least=False))
    return {"figures": figures, "goals": goals}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", default="", help="separated by commas, of " + ", ".join(PODS))
    parser.add_argument("--quick", action="store_true", help="the first pod alone")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    pods = arguments.pods.split(",") if arguments.pods else list(PODS)[: 1 if arguments.quick else None]
    for pod in pods:
        if pod not in PODS:
            parser.error(f"--pods: {pod!r} is none of {', '.join(PODS)}")
    found = run(pods, lambda text: print(text, end="", file=sys.stderr, flush=True))
    if arguments.json:
        print(json.dumps(found))
    else:
        for goal in found["goals"]:
            print(f"{'met' if goal['met'] else 'MISSED':6}  {goal['name']}: {goal['value']} (goal {goal['goal']})")


if __name__ == "__main__":
    main()
