"""The tree viewer in a notebook: Jupyter, Colab, or any other that shows HTML."""

import html
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from ibtpo.errors import UserError
from ibtpo.report.page import trees_page
from ibtpo.saved_trees import FOLDER, TreeFile, list_files, read_file


def show_trees(
    trees: str | os.PathLike | TreeFile | Sequence[TreeFile], *, height: int = 900, title: str = "Trees"
) -> Any:
    """The viewer as the value of a cell (an `IPython.display.HTML`); it needs no network.

        show_trees("runs/tiny")                                  # the trees that a run saved
        show_trees(tree_file("train", 0, trees, problems, policy, config))     # `ibtpo.saved_trees.record`

    Args:
      trees: a run's workdir, a file of trees, or the contents of some.
      height: of the viewer, in pixels.

    Raises:
      UserError: there are no trees, or a file of them cannot be read.
    """
    from IPython.display import HTML

    page = trees_page(_found(trees), title)
    # A document of its own: its styles and the notebook's do not mix, and no text of a response leaves it.
    frame = f'<div><iframe srcdoc="{html.escape(page, quote=True)}" style="width:100%;height:{int(height)}px;border:0"'
    return HTML(f'{frame} title="{html.escape(title, quote=True)}"></iframe></div>')


def _found(trees: Any) -> list[tuple[str, TreeFile]]:
    if isinstance(trees, TreeFile):
        trees = [trees]
    if not isinstance(trees, str | os.PathLike):
        return [(_source(content), content) for content in trees]
    path = pathlib.Path(trees)
    files = [path] if path.is_file() else [file for _, _, file in list_files(path / FOLDER)]
    if not files:
        way_out = "name the workdir of a run with log.trees above 0, or a file of trees"
        raise UserError(f"{path} has no saved trees: {way_out}")
    return [(_source(content), content) for content in map(read_file, files)]


def _source(content: TreeFile) -> str:
    return f"evaluation at update {content.step}" if content.kind == "eval" else f"update {content.step}"
