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

from ibtpo.errors import RunFailure
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


GARBAGE = {
    "half a line": b'{"step": 2, "x": 1',
    "the end of one": b'"x": 1.0}',
    "binary": bytes(range(128, 160)),
    "zeros": b"\0" * 30,
    "empty": b"",
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "NaN": b'{"step": 2, "x": NaN}',
    "infinity": b'{"step": 2, "x": -Infinity}',
    "overflow": b'{"step": 2, "x": 1e999}',
    "no step": b'{"x": 1.0}',
    "a step alone": b'{"step": 2}',
    "a step that is text": b'{"step": "2", "x": 1.0}',
    "a step that is true": b'{"step": true, "x": 1.0}',
    "a step below 0": b'{"step": -2, "x": 1.0}',
    "half a step": b'{"step": 2.5, "x": 1.0}',
    "text": b'{"step": 2, "x": "high"}',
    "nested": b'{"step": 2, "x": {"y": 1}}',
    "deep": b"[" * 100_000,
    "two rows in one line": b'{"step": 2, "x": 1.0}{"step": 2, "x": 1.0}',
    "a page of the web": b"<html></html>",
    "digits without end": b'{"step": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_left_out_with_one_warning(tmp_path, caplog, garbage):
    """By the reader, and by a resumed run, which writes a whole file again."""
    good = [{"step": 1, "x": 1.0}, {"step": 2, "x": None}]
    lines = [json.dumps(good[0]).encode(), garbage, json.dumps(good[1]).encode()]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    for resume in (False, True):
        caplog.clear()
        if resume:
            with MetricWriter(tmp_path, tensorboard=False, resume_step=2) as writer:
                writer.write(3, {"x": 3.0})
        else:
            assert list(read(tmp_path)) == good
        [record] = caplog.records
        assert record.getMessage() == f"{tmp_path / 'metrics.jsonl'}: line 2 is no row of metrics: left out"
    assert rows_of(tmp_path) == [*good, {"step": 3, "x": 3.0}]


def test_much_garbage_is_one_warning(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b"?\n" * 4 + b'{"step": 5, "x": 1}\n' + b"?\n" * 4)
    assert list(read(tmp_path)) == [{"step": 5, "x": 1}]
    [record] = caplog.records
    assert record.getMessage().endswith("lines 1, 2, 3, 4, 6 and 3 more are no rows of metrics: left out")


def test_a_file_without_a_row_is_for_the_caller_to_name(tmp_path, caplog):
    """So that an error about it comes alone; a resumed run says what it does with the file."""
    (tmp_path / "metrics.jsonl").write_bytes(b"<html>\n</html>\n")
    assert list(read(tmp_path)) == [] and caplog.records == []
    MetricWriter(tmp_path, tensorboard=False, resume_step=2).close()
    [record] = caplog.records
    assert record.getMessage().endswith("metrics.jsonl: no line is a row of metrics: kept as metrics.jsonl.old")
    assert (tmp_path / "metrics.jsonl.old").read_bytes() == b"<html>\n</html>\n" and rows_of(tmp_path) == []


def test_a_row_that_only_tensorboard_has_is_written_once(tmp_path):
    """A run was killed between the two files, in the evaluation that it owed to the step it had resumed from."""

    def write(resume_step, **rows):
        with MetricWriter(tmp_path, tensorboard=True, resume_step=resume_step) as writer:
            for step, row in rows.items():
                writer.write(int(step[1:]), row)

    write(-1, _1={"train/x": 1.0}, _2={"train/x": math.inf})
    with MetricWriter(tmp_path, tensorboard=True, resume_step=2) as writer:
        writer._events.write(2, {"eval/y": 0.5, "train/z": 4.0})
    write(2, _2={"eval/y": 0.5, "train/z": 4.0})
    write(2, _3={"train/x": 3.0})
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 2, 3]
    found = scalars(tmp_path)
    assert {name: found[name] for name in ("eval/y", "train/z")} == {"eval/y": [(2, 0.5)], "train/z": [(2, 4.0)]}
    [(_, first), (step, second), third] = found["train/x"]
    assert (first, step, third) == (1.0, 2, (3, 3.0)) and math.isnan(second)


KILLED = """
import os, sys
from ibtpo.metrics import MetricWriter
workdir, first, last, resume_step = sys.argv[1], *map(int, sys.argv[2:])
writer = MetricWriter(workdir, resume_step=resume_step)
for step in range(first, last + 1):
    writer.write(step, {f"x{i}": step + i / 8 for i in range(40)})
os.kill(os.getpid(), 9)
"""


def test_a_kill_loses_nothing_of_either_file(repo_root, tmp_path):
    """Killed right after a row of many scalars, three times: TensorBoard has what metrics.jsonl has, once."""
    for first, last, resume_step in ((1, 5, -1), (4, 7, 3), (8, 9, 7)):
        arguments = [sys.executable, "-c", KILLED, tmp_path, *map(str, (first, last, resume_step))]
        assert subprocess.run(arguments, cwd=repo_root).returncode == -9
    steps = list(range(1, 10))
    assert [row["step"] for row in rows_of(tmp_path)] == steps
    found = scalars(tmp_path)
    assert found == {f"x{i}": [(step, step + i / 8) for step in steps] for i in range(40)}


def test_half_a_record_of_tensorboard_hides_nothing(tmp_path):
    """A kill in the middle of a record, which ends its file."""
    with MetricWriter(tmp_path, resume_step=-1) as writer:
        writer.write(1, {"x": 1.0})
        writer.write(2, {"x": 2.0})
    [file] = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with MetricWriter(tmp_path, resume_step=1) as writer:
        writer.write(2, {"x": 2.0})
        writer.write(3, {"x": 3.0})
    assert scalars(tmp_path) == {"x": [(1, 1.0), (2, 2.0), (3, 3.0)]}


def test_a_disk_that_is_full_is_one_line(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.write(1, {"x": 1.0})

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        def close(self):
            raise OSError(28, "No space left on device")

    writer._file.close()
    writer._file = Full()
    with pytest.raises(RunFailure, match=r"metrics\.jsonl cannot be written \(No space left on device\)"):
        writer.write(2, {"x": 2.0})
    writer.close()
    assert rows_of(tmp_path) == [{"step": 1, "x": 1.0}]


def test_scalars_of_numpy_are_accepted(tmp_path):
    import numpy as np

    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(np.int64(3), {"x": np.float32(0.5), "n": np.int32(7)})
    assert rows_of(tmp_path) == [{"step": 3, "x": 0.5, "n": 7.0}]
    assert reduce({"x": (np.float32(1), np.float32(4))}) == {"x": 0.25}


@pytest.mark.parametrize("seconds, lines", [(0, ["compiling 1/3", "compiling 2/3"]), (3600, [])])
def test_a_brief_loop_leaves_nothing_behind(seconds, lines):
    stream = io.StringIO()
    with Progress(3, description="compiling", stream=stream, line_seconds=seconds, brief=True) as progress:
        for step in (1, 2, 3):
            progress.update(step)
    assert [line.split("  ")[0] for line in stream.getvalue().splitlines()] == lines


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


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 90, 120, 200])
def test_the_bar_fits_the_terminal_and_says_the_time_left_first(columns, monkeypatch):
    """A line that is wider wraps, and every refresh leaves a copy of it."""
    monkeypatch.setattr(os, "get_terminal_size", lambda fileno: os.terminal_size((columns, 24)))
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, columns))
    with open(child, "w") as stream:
        metrics = {"train accuracy": "48.4 %", "eff-rate": "93.8 %", "entropy": 0.30112, "{odd}": "{x}"}
        with Progress(3000, description="updates", stream=stream) as progress:
            progress._start -= 4000
            progress._from = (0, progress._start)
            progress.update(1500, metrics)
            progress._bar.refresh()  # it redraws ten times a second at most
        progress._bar = None
    output = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:  # the other end is closed, and everything was read
            break
        output += chunk
        if not chunk:
            break
    os.close(parent)
    line = [line for line in output.decode().replace("\n", "\r").split("\r") if "50%" in line][-1].rstrip()
    assert len(line) < columns and re.match(r"updates: +50%[ |]", line)
    if columns >= 60:
        assert re.search(r"[█▏▎▍▌▋▊▉] *\| 1500/3000 \[1:06:4\d, left 1:06:4\d\]", line)
    shown = [name for name in metrics if f"  {name}=" in line]
    assert shown == list(metrics)[: {20: 0, 40: 0, 60: 0, 80: 0, 90: 1, 120: 3, 200: 4}[columns]]
