"""A saved tree as a picture for a paper: SVG, PDF or PNG, by matplotlib. Its form is that of the viewer."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from ibtpo.errors import UserError
from ibtpo.saved_trees import FOLDER, TreeFile, list_files, read_file

COLOURS = {
    "value": "p̂, share that ends right",
    "J": "IB-Score J",
    "eta1": "information gain η1",
    "eta2": "confidence η2",
    "A": "advantage A",
}
_LOW, _MIDDLE, _HIGH = "#e48038", "#e2e2db", "#1a6fa8"  # told apart by every common form of colour blindness
_FORK, _INK, _LINE = "#7a3db8", "#1c1f23", "#b5b5b5"
_COLUMN, _ROW = 1.55, 0.34  # inches of a step and of a response
_LETTERS = 15  # of a step's text in its box


def find_tree(workdir: str | os.PathLike, name: str) -> tuple[TreeFile, Mapping[str, Any]]:
    """The tree that `name`, like "train:20:0" (kind, update, place), is in a run's workdir.

    Raises:
      UserError: there is none of that name, or its file cannot be read.
    """
    files = {(kind, step): path for step, kind, path in list_files(os.path.join(workdir, FOLDER))}
    match = re.fullmatch(r"(train|eval):(\d+):(\d+)", name)
    if match is None or (match[1], int(match[2])) not in files:
        saved = ", ".join(f"{kind}:{step}:0" for kind, step in list(files)[-6:]) or "none"
        raise UserError(f"--tree={name}: no such tree in {workdir}; the last that are saved: {saved}")
    content = read_file(files[match[1], int(match[2])])
    if int(match[3]) >= len(content.trees):
        raise UserError(f"--tree={name}: that file has {len(content.trees)} trees, counted from 0")
    return content, content.trees[int(match[3])]


def draw_tree(
    content: TreeFile, tree: Mapping[str, Any], out: str | os.PathLike, *, colour: str = "value", fold: bool = True
) -> str:
    """Draws a tree and returns the picture's path, whose ending says its kind (.svg, .pdf, .png).

    Args:
      content: the file that the tree is of.
      tree: one of its trees.
      colour: what colours a step, a key of COLOURS.
      fold: equal siblings as one.

    Raises:
      UserError: an unknown colour.
    """
    if colour not in COLOURS:
        raise UserError(f"--colour={colour}: expected one of {', '.join(COLOURS)}")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    nodes = folded(tree, fold)
    columns, rows = max(node["depth"] for node in nodes) + 1, 1 + max(node["row"] for node in nodes)
    figure = Figure(figsize=(_COLUMN * columns + 0.6, _ROW * (rows + 2.6)), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.5, columns - 0.1), ylim=(rows + 0.9, -1.7))
    axes.axis("off")
    paint = _painter(content, tree, nodes, colour)
    texts = step_texts(content, tree)
    for node in nodes[1:]:
        _draw_edge(axes, nodes[node["parent"]], node)
    for node in nodes:
        _draw_node(axes, tree, node, texts, paint)
    question = plain(tree["question"])
    limit = int(columns * 16)
    question = question if len(question) <= limit else question[: limit - 1] + "…"
    axes.text(-0.44, -1.1, question, fontsize=10.5, color=_INK, weight="bold", va="center", parse_math=False)
    key: dict[str, Any] = dict(fontsize=8.5, va="center")
    axes.text(-0.44, rows + 0.4, f"orange to blue: {COLOURS[colour]}{paint.range}", color=_INK, **key)
    axes.text(columns - 0.25, rows + 0.4, "purple: a fork and its round", color=_FORK, ha="right", **key)
    os.makedirs(os.path.dirname(os.fspath(out)) or ".", exist_ok=True)
    # Letters stay letters, and the same tree gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ibtpo"}):
        date = {"Date": None} if os.fspath(out).endswith(".svg") else None
        figure.savefig(out, facecolor="white", metadata=date)
    return os.fspath(out)


def folded(tree: Mapping[str, Any], fold: bool) -> list[dict[str, Any]]:
    """The nodes to draw, depth first: {"members", "parent", "depth", "row", "forks", "children"}. With `fold`, siblings
    of the same tokens are one; `forks` are the rounds in which members of it were forked."""
    parent, starts = tree["parent"], _starts(tree)
    born = births(tree)
    children: list[list[int]] = [[] for _ in parent]
    for node, above in enumerate(parent[1:], 1):
        children[above].append(node)
    nodes: list[dict[str, Any]] = []
    stack: list[tuple[list[int], int, int]] = [([0], -1, 0)]
    while stack:
        members, above, depth = stack.pop()
        forks = sorted({born[m] for m in members if m and born[m] > born[parent[m]]})
        place = len(nodes)
        nodes.append(dict(members=members, parent=above, depth=depth, row=0.0, forks=forks, children=[]))
        if above >= 0:
            nodes[above]["children"].append(place)
        same: dict[Any, list[int]] = {}
        for kid in (kid for m in members for kid in children[m]):
            key = tuple(tree["tokens"][starts[kid] : starts[kid] + tree["length"][kid]]) if fold else kid
            same.setdefault(key, []).append(kid)
        stack.extend((group, place, depth + 1) for group in reversed(same.values()))
    leaves = 0
    for drawn in nodes:
        if not drawn["children"]:
            drawn["row"], leaves = float(leaves), leaves + 1
    for drawn in reversed(nodes):
        if drawn["children"]:
            drawn["row"] = (nodes[drawn["children"][0]]["row"] + nodes[drawn["children"][-1]]["row"]) / 2
    return nodes


def births(tree: Mapping[str, Any]) -> list[int]:
    """The round that made each node: the first of the responses through it."""
    born = [2**31] * len(tree["parent"])
    for leaf, made in zip(tree["leaf"], tree["round"]):
        node = leaf
        while node >= 0:
            born[node], node = min(born[node], made), tree["parent"][node]
    return born


def step_texts(content: TreeFile, tree: Mapping[str, Any]) -> list[str]:
    """The text of every node in one line; of the question "question"."""
    texts = ["question"]
    for node, start in enumerate(_starts(tree)[1:], 1):
        words = (content.vocabulary[str(token)] for token in tree["tokens"][start : start + tree["length"][node]])
        spelled = b"".join(word.encode("latin-1") for word in words if not word.startswith("\0"))
        texts.append(plain(spelled.decode("utf-8", "replace")))
    return texts


def plain(text: str) -> str:
    """A text in one line, with U+FFFD for what no file of a picture may hold: control characters, half surrogates."""
    return re.sub(r"[\0-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", " ".join(text.split()))


def _starts(tree: Mapping[str, Any]) -> list[int]:
    starts, at = [], 0
    for length in tree["length"]:
        starts.append(at)
        at += length
    return starts


class _Painter:
    """The colour of a node, and the ends of the scale in words."""

    def __init__(self, of: Callable[[Mapping[str, Any]], float | None], low: float, middle: float, high: float):
        from matplotlib.colors import LinearSegmentedColormap

        self._of, self._low, self._high = of, low, high
        share = 0.0 if middle <= low else (middle - low) / (high - low)
        stops = [(0.0, _MIDDLE), (1.0, _HIGH)] if share == 0 else [(0.0, _LOW), (share, _MIDDLE), (1.0, _HIGH)]
        self._map = LinearSegmentedColormap.from_list("tree", stops)
        self.range = f" ({low:.2f} to {high:.2f})"

    def __call__(self, node: Mapping[str, Any]) -> Any:
        value = self._of(node)
        if value is None:
            return "#ffffff"
        return self._map((value - self._low) / (self._high - self._low) if self._high > self._low else 0.5)


def _painter(content: TreeFile, tree: Mapping[str, Any], nodes: list[dict[str, Any]], colour: str) -> _Painter:
    through = [0] * len(tree["parent"])
    for leaf in tree["leaf"]:
        node = leaf
        while node >= 0:
            through[node] += 1
            node = tree["parent"][node]

    def of(node: Mapping[str, Any]) -> float | None:
        known = [m for m in node["members"] if tree[colour][m] is not None and (m or colour in ("value", "J"))]
        total = sum(through[m] for m in known)
        return sum(through[m] * tree[colour][m] for m in known) / total if total else None

    values = [value for value in map(of, nodes) if value is not None] or [0.0]
    if colour in ("value", "eta2"):
        return _Painter(of, 0.0, 0.5 if colour == "value" else 0.0, 1.0)
    if colour == "J":
        return _Painter(of, min(values), min(values), max(values))
    middle = -1 / content.options["score"]["beta"] if colour == "eta1" else 0.0
    reach = max(max(values) - middle, middle - min(values), 1e-3)
    return _Painter(of, middle - reach, middle, middle + reach)


def _draw_edge(axes: Any, above: Mapping[str, Any], node: Mapping[str, Any]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (x0, y0), (x1, y1) = (above["depth"], above["row"]), (node["depth"], node["row"])
    # From beneath the one box to beneath the other, whatever their widths.
    bend = [(x0 - 0.3, y0), (x0 + 0.55, y0), (x0 + 0.2, y1), (x0 + 0.58, y1), (x1 - 0.3, y1)]
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO]
    colour, width = (_FORK, 1.5) if node["forks"] else (_LINE, 1.1)
    axes.add_patch(PathPatch(Path(bend, codes), facecolor="none", edgecolor=colour, linewidth=width, zorder=1))
    if node["forks"]:
        some = node["forks"] if len(node["forks"]) < 4 else [node["forks"][0], "…", node["forks"][-1]]
        rounds = " ".join(map(str, some))
        box = dict(boxstyle="round,pad=0.18", facecolor=_FORK, edgecolor="none")
        axes.text(x1 - 0.46, y1, rounds, color="white", fontsize=7.5, weight="bold", ha="right", va="center", bbox=box,
                  zorder=3)  # fmt: skip


def _draw_node(
    axes: Any, tree: Mapping[str, Any], node: Mapping[str, Any], texts: list[str], paint: Callable[[Any], Any]
) -> None:
    from matplotlib.colors import to_rgb

    first, count = node["members"][0], len(node["members"])
    ends = [r for r, leaf in enumerate(tree["leaf"]) if leaf in node["members"]]
    text = texts[first]
    if ends and tree["stated"][ends[0]] is not None:
        text = plain(f"→ {tree['stated'][ends[0]]}")
    room = _LETTERS - (3 if count > 1 else 0)
    text = (text or "(end)") if len(text) <= room else text[: room - 1] + "…"
    text += f"  ×{count}" if count > 1 else ""
    colour = paint(node)
    r, g, b = to_rgb(colour)
    ink = "white" if 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2 < 0.17 else _INK
    box = dict(boxstyle="round,pad=0.32", facecolor=colour, edgecolor=_LINE, linewidth=0.5)
    place: dict[str, Any] = dict(va="center", zorder=2)
    axes.text(node["depth"] - 0.38, node["row"], text, fontsize=8.5, color=ink, bbox=box, parse_math=False, **place)
    if ends:
        reward = sum(tree["reward"][r] for r in ends) / len(ends)
        mark = "✓" if reward == 1 else "✗" if reward == 0 else f"{reward:.2f}"
        colour = "#00669c" if reward >= 0.5 else "#b34700"
        font = dict(fontsize=10, weight="bold", family="DejaVu Sans")
        axes.text(node["depth"] + 0.5, node["row"], mark, color=colour, **font, **place)
