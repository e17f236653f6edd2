"""What somebody sees who watches a run: the terminal, TensorBoard and a trace, each by its own reader."""

import os
import re
import subprocess
import sys

import pytest

from ibtpo import metrics
from ibtpo.metrics.samples import MOST_BYTES
from tests.test_profiling import events

# The sizes of `tiny_config`, whose programs are compiled already where other tests have run.
SMALL = {
    "data.limit": 64,
    "tree.initial": 3,
    "tree.rounds": 3,
    "sampling.max_new_tokens": 48,
    "sampling.slots": 3,
    "sampling.questions_in_flight": 4,
    "train.steps": 3,
    "train.questions_per_step": 4,
    "train.row_tokens": 320,
    "train.rows_per_step": 2,
    "eval.every": 3,
    "eval.questions": 6,
    "eval.samples": 2,
    "log.trees_every": 2,
    "reward.workers": 1,
}


@pytest.fixture(scope="module")
def watched(repo_root, tmp_path_factory):
    """(what the command printed, what it said beside it, its workdir)."""
    workdir = tmp_path_factory.mktemp("watched") / "run"
    line = [sys.executable, "-m", "ibtpo.train", "--config=tiny", f"--workdir={workdir}", "--profile=2:3"]
    line += [f"--config.{key}={value}" for key, value in SMALL.items()]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(line, cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, workdir


PERCENT = r"\d+\.\d %"
ACCURACY = rf"held-out avg@2 = {PERCENT}, 95 % interval \d+\.\d \.\. \d+\.\d"


def test_the_terminal_has_the_runs_lines_and_no_other(watched):
    """Accuracy in percent everywhere, the baseline first; a time left from the second update on."""
    printed, said, _ = watched
    assert re.search(r"^compiling \d+ programs? \(.*\): \d+ s$", printed, re.MULTILINE)
    lines = [line for line in said.splitlines() if not line.startswith("compiling ")]
    number = rf"train accuracy={PERCENT}  eff-rate={PERCENT}  entropy=\S+  elapsed \S+"
    expected = [
        rf"baseline, update 0: {ACCURACY}",
        r"first 12 responses: \d+ % stop, \d+ % state an answer, \d+ % are right, .*",
        rf"updates 1/3  {number}  left \?",
        rf"updates 3/3  {number}  left 0:00",
        rf"update 3: {ACCURACY}",
    ]
    lines = [line for line in lines if not line.startswith("updates 2/3")]  # of a slow machine
    assert len(lines) == len(expected), said
    for line, form in zip(lines, expected):
        assert re.fullmatch(form, line), line


def test_tensorboard_reads_scalars_texts_and_the_configuration(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    workdir = watched[2]
    found = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3]
    for name in ("time/sampled_tokens_per_s", "time/trained_tokens_per_s"):
        assert all(event.value > 0 for event in found.Scalars(name))
    steps = {"samples/train": [2, 3], "tree/train": [2, 3], "samples/eval": [0, 3], "tree/eval": [0, 3]}
    for name, expected in steps.items():
        texts = found.Tensors(f"{name}/text_summary")
        assert [event.step for event in texts] == expected
        shown = [event.tensor_proto.string_val[0].decode() for event in texts]
        assert all(len(text.encode()) <= 2 * MOST_BYTES and "[" in text for text in shown)
    assert "reward" in found.Tensors("samples/train/text_summary")[0].tensor_proto.string_val[0].decode()
    saved = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(saved).hparams
    assert hparams["train.steps"].number_value == 3 and hparams["method"].string_value == "ibtpo"


def test_the_trace_holds_the_phases_of_its_updates(watched):
    found, named = events(watched[2] / "profile")
    assert [stats["step_num"] for stats in found["update"]] == [2, 3]
    phases = {"sample and grade", "dispatch decode", "wait for tokens", "grade", "pack", "optimizer step"}
    assert phases <= set(found) and phases <= named
    assert len(found["sample and grade"]) == len(found["optimizer step"]) == 2
    assert "evaluate" not in found


def test_rows_have_rates(watched):
    rows = [row for row in metrics.read(watched[2]) if "train/loss" in row]
    assert all(row["time/trained_tokens_per_s"] > 0 and "time/mfu" not in row for row in rows)
