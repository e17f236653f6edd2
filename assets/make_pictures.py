"""Draws the README's two pictures: a question's tree, and the learning curve of a finished run.

    python assets/make_pictures.py --workdir=runs/tiny      # after make demo; writes docs/images/tree.png and curve.png

The tree is sampled from the tiny base model with fixed random numbers: of the first problems of the training set, the
one whose tree branches at most nodes. Any run of `ibtpo.train` with an evaluation has a curve.
"""

import argparse
import pathlib
import sys

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import tiny  # noqa: E402
from ibtpo import config as config_lib  # noqa: E402
from ibtpo.data.problems import load_problems  # noqa: E402
from ibtpo.ib_score import node_values  # noqa: E402
from ibtpo.policy import load_policy, make_grade, make_grader, make_sampler  # noqa: E402
from ibtpo.report import read_run  # noqa: E402
from ibtpo.sampling import SamplingParams  # noqa: E402
from ibtpo.tree import Tree, on_path  # noqa: E402

COLOURS = LinearSegmentedColormap.from_list("success", ["#e8917c", "#f6e3b4", "#7fbf9b"])
FORK, INK = "#7a3db8", "#333333"
COLUMN, ROW = 1.6, 0.33  # inches of a step and of a response


def sample(problems: int, seed: int):
    """(question, tree, text of tokens) of the problem whose tree branches at most nodes."""
    config = config_lib.resolve(tiny.get_config())
    policy = load_policy(config)
    chosen = load_problems(config.data, config.data.train_split, policy.tokenizer)[:problems]
    by_id = dict(enumerate(chosen))
    questions = [policy.question(i, p, config.data) for i, p in by_id.items()]
    with make_grader(config) as grader:
        grade = make_grade(policy, grader, by_id)
        found, _ = make_sampler(policy, config)(
            policy.params, questions, grade, key=jax.random.key(seed), sampling=SamplingParams()
        )
    best = max(range(problems), key=lambda q: (forks(found[q].tree).size, found[q].tree.rewards.std()))
    return chosen[best].question, found[best].tree, policy.text


def birth(tree: Tree) -> np.ndarray:
    """[N]: the round that made each node."""
    rounds = np.where(on_path(tree)[0], np.asarray(tree.response_round)[0][:, None], np.iinfo(np.int32).max)
    return rounds.min(0)


def forks(tree: Tree) -> np.ndarray:
    """The nodes, the question included, where a later round branched."""
    made, parent = birth(tree), np.asarray(tree.node_parent)[0]
    later = [node for node in range(1, len(parent)) if made[node] > made[parent[node]]]
    return np.unique(parent[later])


def layout(parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(column, row) of every node: depth in steps, and leaves in order with their ancestors half-way between."""
    size = len(parent)
    column, row = np.zeros(size, int), np.zeros(size)
    children: list[list[int]] = [[] for _ in range(size)]
    for node in range(1, size):
        column[node] = column[parent[node]] + 1
        children[parent[node]].append(node)
    leaves = [node for node in range(size) if not children[node]]
    row[leaves] = np.arange(len(leaves))
    for node in reversed(range(size)):
        if children[node]:
            row[node] = (row[children[node][0]] + row[children[node][-1]]) / 2
    return column, row


def draw_tree(question: str, tree: Tree, text, path: pathlib.Path) -> None:
    """Steps from left to right, coloured by p̂; a round that branched is written on its edge, a reward at its leaf."""
    parent, made = np.asarray(tree.node_parent)[0], birth(tree)
    values, branched = node_values(tree)[0], forks(tree)
    column, row = layout(parent)
    tokens, step = np.asarray(tree.tokens)[0], np.asarray(tree.step)[0]
    figure = Figure(figsize=(COLUMN * (column.max() + 1) + 0.3, ROW * (row.max() + 3.5)), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.42, column.max() + 0.75), ylim=(row.max() + 1.8, -1.7))
    axes.axis("off")
    for node in range(1, len(parent)):
        later = made[node] > made[parent[node]]
        (x0, y0), (x1, y1) = (column[parent[node]], row[parent[node]]), (column[node], row[node])
        bend = [(x0, y0), (x0 + 0.55, y0), (x0 + 0.25, y1), (x0 + 0.72, y1), (x1, y1)]
        codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO]
        colour, width = (FORK, 1.6) if later else ("#b5b5b5", 1.2)
        axes.add_patch(PathPatch(Path(bend, codes), facecolor="none", edgecolor=colour, linewidth=width, zorder=1))
        if later:
            axes.text(x1 - 0.3, y1 - 0.06, str(made[node]), color=FORK, fontsize=9, ha="right", va="bottom")
    for node in range(len(parent)):
        written = text(tokens[step == node].tolist()).strip().removeprefix("The answer is ").removesuffix(".")
        box = dict(
            boxstyle="round,pad=0.3",
            facecolor=COLOURS(values[node]),
            edgecolor=FORK if node in branched else "white",
            linewidth=1.6,
        )
        place = dict(ha="center", va="center", zorder=2)
        axes.text(column[node], row[node], written if node else "question", bbox=box, fontsize=9, color=INK, **place)
    for leaf, reward in zip(np.asarray(tree.response_node)[0], np.asarray(tree.rewards)[0]):
        colour = "#2e7d4f" if reward else "#b03a2e"
        axes.text(column[leaf] + 0.5, row[leaf], f"{reward:g}", color=colour, fontsize=11, weight="bold", va="center")
    axes.text(-0.38, -1.2, question, fontsize=11, color=INK, weight="bold", va="center")
    axes.text(column.max() + 0.5, -1.2, "reward", fontsize=9, color=INK, ha="center", va="center")
    draw_key(figure, axes, row.max() + 1.2)
    figure.savefig(path, facecolor="white")


def draw_key(figure: Figure, axes: Axes, row: float) -> None:
    """What the colours mean, below the tree."""
    place = dict(fontsize=9, va="center")
    axes.text(-0.38, row, "p̂ of a step   0", color=INK, **place)
    corners = axes.transData.transform([(0.36, row + 0.15), (1.0, row - 0.15)])
    (x0, y0), (x1, y1) = figure.transFigure.inverted().transform(corners)
    bar = figure.add_axes((x0, y0, x1 - x0, y1 - y0))
    figure.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), cax=bar, orientation="horizontal", ticks=[])
    bar.set_frame_on(False)
    axes.text(1.04, row, "1", color=INK, **place)
    axes.text(1.5, row, "purple: a node where a later round branched, and the number of the round", color=FORK, **place)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a finished run, for the curve")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "images")
    parser.add_argument("--problems", type=int, default=16, help="problems whose trees are sampled")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw_curve(arguments.workdir, arguments.out / "curve.png")
    draw_tree(*sample(arguments.problems, arguments.seed), arguments.out / "tree.png")


if __name__ == "__main__":
    main()
