import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo import report
from ibtpo.metrics import MetricWriter

NAMES = ("avg_rate", "avg_rate_initial", "eff_rate", "ib_score", "cov", "entropy", "kl", "loss")


def make_run(path, steps=60, seed=0, leave_out=()):
    """Metrics of a made-up run: an evaluation every 10 updates and the training metrics of each."""
    rng = np.random.default_rng(seed)
    with MetricWriter(path, tensorboard=False) as writer:
        for step in range(steps + 1):
            if step % 10 == 0:
                share = 0.25 + 0.5 * step / steps
                rows = {"avg_at_k": share, "avg_low": share - 0.05, "avg_high": share + 0.05, "k": 8}
                writer.write(step, {f"eval/{n}": x for n, x in rows.items() if f"eval/{n}" not in leave_out})
            if step:
                row = {f"train/{name}": rng.normal() for name in NAMES}
                row |= {"train/generated_tokens": 1000.0 * step, "time/elapsed_s": 2.0 * step}
                writer.write(step, {n: x for n, x in row.items() if n not in leave_out})
    return path


def png_size(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def figure_of(monkeypatch, *arguments, **options):
    """The matplotlib figure that learning_curve draws."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    report.learning_curve(*arguments, **options)
    return figures[0]


def test_read_run(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(2, {"x": 1.0})
        writer.write(1, {"x": 0.5, "y": float("nan")})
        writer.write(2, {"x": 3.0})  # written again: the later row counts
    run = report.read_run(tmp_path)
    np.testing.assert_array_equal(run["x"][0], [1, 2])
    np.testing.assert_array_equal(run["x"][1], [0.5, 3.0])
    np.testing.assert_array_equal(run["y"][1], [np.nan])


def test_generated_tokens_counts_updates_before_the_evaluation():
    run = {"train/generated_tokens": (np.array([1, 2, 4]), np.array([10.0, 20.0, 40.0]))}
    np.testing.assert_array_equal(report.generated_tokens(run, np.array([0, 1, 3, 4, 9])), [0, 10, 20, 40, 40])
    assert report.generated_tokens({}, np.array([0])) is None


@given(st.lists(st.one_of(st.floats(-100, 100), st.just(float("nan"))), min_size=1, max_size=30), st.integers(1, 9))
def test_smooth_is_the_mean_of_the_neighbours(values, window):
    values = np.array(values)
    result = report.smooth(values, window)
    for i in range(len(values)):
        reach = min(window // 2, i, len(values) - 1 - i)
        part = values[i - reach : i + reach + 1]
        known = part[~np.isnan(part)]
        np.testing.assert_allclose(result[i], known.mean() if len(known) else np.nan, atol=1e-9)


def test_smooth_keeps_a_straight_line():
    line = np.linspace(-1, 3, 40)
    np.testing.assert_allclose(report.smooth(line, 9), line, atol=1e-12)


def test_curves_are_the_metrics(tmp_path, monkeypatch):
    """The curves are the logged values, with the evaluation's interval, against updates and against tokens."""
    workdir = make_run(tmp_path / "a")
    figure = figure_of(monkeypatch, workdir, tmp_path / "x.png")
    by_update, by_tokens = figure.axes[:2]
    steps = np.arange(0, 61, 10)
    np.testing.assert_allclose(by_update.lines[0].get_xydata(), np.stack([steps, 0.25 + 0.5 * steps / 60], axis=1))
    np.testing.assert_allclose(by_tokens.lines[0].get_xdata(), 1000 * steps)
    box = by_update.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([box[:, 1].min(), box[:, 1].max()], [0.2, 0.8])
    assert by_update.get_title() == "Held-out avg@8"


def test_no_text_overlaps(tmp_path):
    """Titles, labels, ticks and legends of all panels are apart from one another."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    workdirs = [make_run(tmp_path / name, seed=i) for i, name in enumerate(["ibtpo", "grpo", "random_tree"])]
    figures = []
    original = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path: (figures.append(figure), original(figure, path))[1])
        report.learning_curve(workdirs, tmp_path / "x.png")
    width, height = png_size(tmp_path / "x.png")
    boxes = []
    for text in figures[0].findobj(Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent()
            if box.width and 0 <= box.x0 <= width:
                boxes.append((text.get_text(), box))
    boxes = [(text, box) for text, box in boxes if box.y1 > 0 and box.y0 < height]
    titles = [text for text, _ in boxes if len(text) > 8]
    assert len(titles) >= 12
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
        for other, other_box in boxes[i + 1 :]:
            # Tick labels outside the view limits are not drawn, yet stacked on the last one.
            if len(text) > 8 or len(other) > 8:
                assert not box.shrunk(0.98, 0.9).overlaps(other_box), (text, other)


@pytest.mark.parametrize(
    "leave_out",
    [
        (),
        ("train/generated_tokens",),
        ("train/cov", "train/kl"),
        ("eval/avg_low", "eval/k"),
        ("eval/avg_at_k", *(f"train/{name}" for name in NAMES)),
    ],
)
def test_missing_metrics_are_left_out(tmp_path, leave_out):
    workdir = make_run(tmp_path / "a", leave_out=leave_out)
    assert report.learning_curve(workdir, tmp_path / "x.png") == str(tmp_path / "x.png")
    assert png_size(tmp_path / "x.png") == (1650, 902)


def test_values_that_are_not_finite_do_not_stop_the_drawing(tmp_path, monkeypatch):
    with MetricWriter(tmp_path / "a", tensorboard=False) as writer:
        for step in range(100):
            writer.write(step, {"train/kl": float("nan"), "train/entropy": float("inf") if step % 3 else 1.0})
    figure = figure_of(monkeypatch, tmp_path / "a", tmp_path / "x.png")
    assert [t.get_text() for t in figure.axes[3].texts] == ["not logged"]
    assert len(figure.axes[5].lines) == 2 and len(figure.axes) == 6


def test_run_names_tell_runs_apart():
    assert report.run_names(["runs/a", "runs/b/"]) == ["a", "b"]
    assert report.run_names(["x/run", "y/run"]) == ["x/run", "y/run"]


def test_summary_table():
    rows = [
        {"method": "ibtpo", "avg": 0.123456, "tokens": 12345},
        {"method": "grpo", "avg": float("nan"), "seconds": 2.0},
    ]
    assert report.summary_table(rows).splitlines() == [
        "method     avg  tokens  seconds",
        "------  ------  ------  -------",
        "ibtpo   0.1235  12,345        -",
        "grpo         -       -        2",
    ]
    assert report.summary_table([]) == ""


def test_command_line(tmp_path, repo_root):
    make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)
    out = tmp_path / "new" / "x.png"
    program = [sys.executable, "-m", "ibtpo.report"]
    arguments = [f"--workdir={tmp_path / 'a'}", f"--workdir={tmp_path / 'b'}", f"--out={out}"]
    result = subprocess.run([*program, *arguments], cwd=repo_root, capture_output=True, text=True, check=True)
    header, _, first, second, *_ = result.stdout.splitlines()
    assert header.split()[:2] == ["run", "updates"]
    assert first.split()[:4] == ["a", "60", "0.25", "0.75"] and second.split()[0] == "b"
    assert "0.700..0.800" in first and "60,000" in first
    assert png_size(out) == (1650, 902)

    result = subprocess.run([*program, "--workdir=no_such_run"], cwd=repo_root, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "no_such_run" in result.stderr
