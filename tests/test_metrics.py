import io
import json
import math
import os
import pty
import re
import subprocess
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.metrics import MetricWriter, Progress, read
from ibtpo.metrics.step import reduce


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def scalars(path):
    """{tag: [(step, value)]} by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 9)), min_size=1, max_size=8), st.integers(1, 7))
def test_reduce_of_parts_is_reduce_of_whole(pairs, cut):
    """Adding the (sum, weight) pairs of parts, in any split, gives the weighted mean of the whole."""

    def add(part):
        return sum(mean * weight for mean, weight in part), sum(weight for _, weight in part)

    (left, left_weight), (right, right_weight) = add(pairs[:cut]), add(pairs[cut:])
    reduced = reduce({"x": (left + right, left_weight + right_weight)})
    weights = [weight for _, weight in pairs]
    if sum(weights) == 0:
        assert reduced == {}
    else:
        expected = sum(mean * weight for mean, weight in pairs) / sum(weights)
        assert math.isclose(reduced["x"], expected, rel_tol=1e-9, abs_tol=1e-6)


def test_jsonl_and_tensorboard_agree(tmp_path):
    with MetricWriter(tmp_path, tensorboard=True) as writer:
        for step in range(3):
            writer.write(step, {"train/loss": step / 4, "train/kl": 0.5})
            assert len(rows_of(tmp_path)) == step + 1  # on disk at once
    assert rows_of(tmp_path)[2] == {"step": 2, "train/loss": 0.5, "train/kl": 0.5}
    assert scalars(tmp_path) == {
        "train/loss": [(0, 0.0), (1, 0.25), (2, 0.5)],
        "train/kl": [(0, 0.5), (1, 0.5), (2, 0.5)],
    }


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def run(path, steps, resume_step=None):
        with MetricWriter(path, tensorboard=True, resume_step=resume_step) as writer:
            for step in steps:
                writer.write(step, {"x": step * 0.5})

    run(tmp_path / "whole", range(1, 8))
    run(tmp_path / "cut", range(1, 6))  # killed after 5, but the last checkpoint is of step 3
    run(tmp_path / "cut", range(4, 8), resume_step=3)
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert scalars(tmp_path / "cut") == scalars(tmp_path / "whole")


def test_a_run_that_starts_afresh_keeps_nothing_in_its_file(tmp_path):
    """Killed before its first checkpoint: the old rows, the one of step 0 included, are written again."""
    for _ in range(2):
        with MetricWriter(tmp_path, tensorboard=True, resume_step=-1) as writer:
            writer.write(0, {"x": 0.0})
            writer.write(1, {"x": 1.0})
    assert rows_of(tmp_path) == [{"step": 0, "x": 0.0}, {"step": 1, "x": 1.0}]
    assert scalars(tmp_path) == {"x": [(0, 0.0), (1, 1.0)]}
    assert (tmp_path / "metrics.jsonl.old").read_text() == (tmp_path / "metrics.jsonl").read_text()


def test_no_tensorboard_folder_unless_asked(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"x": 1})
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_is_null(tmp_path, value):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"x": value, "y": 2.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        "step": 1,
        "x": None,
        "y": 2.0,
    }


def test_incomplete_last_line_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "x": 1.0}\n{"step": 2, "x"')
    assert [row["step"] for row in read(tmp_path)] == [1]
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(2, {"x": 2.0})
    assert rows_of(tmp_path) == [{"step": 1, "x": 1.0}, {"step": 2, "x": 2.0}]


def test_scalars_of_numpy_are_accepted(tmp_path):
    import numpy as np

    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(np.int64(3), {"x": np.float32(0.5), "n": np.int32(7)})
    assert rows_of(tmp_path) == [{"step": 3, "x": 0.5, "n": 7.0}]
    assert reduce({"x": (np.float32(1), np.float32(4))}) == {"x": 0.25}


def test_lines_are_rate_limited_and_the_last_is_always_there():
    stream = io.StringIO()
    with Progress(1000, description="train", stream=stream, line_seconds=3600) as progress:
        for step in range(1, 1001):
            progress.update(step, {"loss": 0.123456})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"train 1/1000  loss=0.1235  elapsed 0:0\d  left \S+", lines[0])
    assert re.fullmatch(r"train 1000/1000  loss=0.1235  elapsed 0:0\d  left 0:00", lines[1])


def test_time_left_ignores_steps_of_an_earlier_run(monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("ibtpo.metrics.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    Progress(60, 50, stream=stream).update(52)
    assert stream.getvalue() == "52/60  elapsed 0:10  left 0:40\n"  # 2 steps in 10 s, 8 to go


PROGRAM = """
from ibtpo.metrics import Progress
with Progress(5, description="train", line_seconds=0) as progress:
    for step in range(1, 6):
        progress.update(step, {"loss": step / 8})
    progress.print("a message")
"""


def test_plain_lines_in_a_pipe(repo_root):
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=repo_root, capture_output=True, text=True, check=True)
    lines = result.stderr.splitlines()
    assert len(lines) == 6 and lines[-1] == "a message"
    assert "\r" not in result.stderr and "\x1b" not in result.stderr
    assert [line.split("  ")[:2] for line in lines[:5]] == [[f"train {s}/5", f"loss={s / 8:.4g}"] for s in range(1, 6)]


@pytest.mark.parametrize("columns", [0, 100])  # some terminals do not know their width
def test_bar_on_a_terminal(repo_root, columns):
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, columns))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=repo_root, stdout=child, stderr=child)
    os.close(child)
    output = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        output += chunk
    os.close(parent)
    assert process.wait() == 0
    text = output.decode()
    assert "\r" in text and "100%|" in text and "5/5" in text and "loss=0.625" in text
    assert "a message\r\n" in text
