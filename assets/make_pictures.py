"""Draws the pictures of README.md and docs/report.md from finished runs, into docs/images.

    python assets/make_pictures.py --workdir=runs/demo                        # after make demo: tree.png, curve.png
    python assets/make_pictures.py --workdir=runs/demo --failed=runs/too_fast # viewer*.png, report.png, reading.png too

The second needs Chromium. --failed is the demo with a learning rate 30 times as high
(make demo WORKDIR=runs/too_fast DEMO_ARGS=--config.optimizer.learning_rate=0.03).
"""

import argparse
import pathlib
import sys
import tempfile

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ibtpo.report import draw_tree, read_run, write_report  # noqa: E402
from ibtpo.report.picture import find_tree  # noqa: E402

INK = "#333333"


def draw_curve(workdir: pathlib.Path, path: pathlib.Path) -> None:
    """Held-out avg@k with its interval, and the reward of the unguided responses in training."""
    run = read_run(workdir)
    steps, accuracy = run["eval/avg_at_k"]
    low, high = run["eval/avg_low"][1], run["eval/avg_high"][1]
    k = int(run["eval/k"][1][-1])
    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*run["train/avg_rate_initial"], color="#b5b5b5", linewidth=1.2, label="training, unguided responses")
    axes.fill_between(steps, low, high, color="#1f6fb2", alpha=0.15, linewidth=0, label="95 % interval")
    axes.plot(steps, accuracy, "o-", color="#1f6fb2", linewidth=2, markersize=5, label=f"held out, avg@{k}")
    for x, y in zip(steps, accuracy):
        place = dict(textcoords="offset points", ha="center", fontsize=9, color=INK)
        axes.annotate(f"{100 * y:.1f} %", (x, y), (0, 14), **place)
    axes.set(xlabel="update", ylabel="share correct", ylim=(min(low) - 0.05, max(high) + 0.06))
    axes.margins(x=0.06)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path, facecolor="white")


def photograph(runs: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Pages of the runs in headless Chromium: the first run's trees, and the curves of all."""
    from tests.chromium import Browser

    workdirs, names = list(runs.values()), list(runs)
    with tempfile.TemporaryDirectory() as folder:
        one, all_runs = (pathlib.Path(folder) / name for name in ("one.html", "all.html"))
        write_report(workdirs[:1], one, names=names[:1])
        write_report(workdirs, all_runs, names=names)
        browser = Browser(pathlib.Path(folder) / "profile")

        def shoot(page: pathlib.Path, name: str, *, at: str = "body", act: str = "0", **options) -> None:
            browser.open(page, **options)
            browser.wait("view?.model && document.querySelector('figure.curve path')")
            browser.run(f"document.querySelector('{at}').scrollIntoView(); {act}")
            browser.picture(out / name)

        middle = "view.pick(view.model.data.parent[view.model.data.leaf.at(-1)])"
        shoot(one, "viewer.png", at="#trees", act=middle, size=(1320, 800))
        shoot(one, "viewer-dark.png", at="#trees", act=f"view.colourBy('J'); {middle}", size=(1320, 800), dark=True)
        shoot(one, "viewer-phone.png", at="#trees", act=middle, size=(390, 844))
        shoot(one, "report.png", size=(1320, 960))
        shoot(all_runs, "reading.png", at="#curves", size=(1320, 960))
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a finished run")
    parser.add_argument("--tree", default="train:25:0", help="the saved tree that is drawn (python -m ibtpo.report)")
    parser.add_argument("--failed", type=pathlib.Path, help="a run whose learning rate is 30 times too high")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw_curve(arguments.workdir, arguments.out / "curve.png")
    draw_tree(*find_tree(arguments.workdir, arguments.tree), arguments.out / "tree.png")
    if arguments.failed:
        photograph({"demo": arguments.workdir, "30 × the learning rate": arguments.failed}, arguments.out)


if __name__ == "__main__":
    main()
