"""What a run did, for people: numbers and tables (`runs`), one figure (`figure`), a page with curves, differences and
every saved tree (`page`), pictures of trees (`picture`), and the trees in a notebook (`notebook`).

    python -m ibtpo.report runs/tiny runs/tiny_grpo --out=compare.html

Importing this package loads neither JAX, nor matplotlib, nor jinja2.
"""

from ibtpo.report.figure import learning_curve
from ibtpo.report.runs import generated_tokens, read_run, run_names, smooth, summarize, summary_table


def main(argv=None) -> None:
    """The command line (`ibtpo.report.command`)."""
    from ibtpo.report.command import main

    main(argv)


def write_report(workdirs, out=None, *, names=None, most_trees=200) -> str:
    """Writes the page of one or several runs (`ibtpo.report.page.write_report`)."""
    from ibtpo.report.page import write_report

    return write_report(workdirs, out, names=names, most_trees=most_trees)


def show_trees(*arguments, **options):
    """Saved or sampled trees in a notebook (`ibtpo.report.notebook.show_trees`)."""
    from ibtpo.report.notebook import show_trees

    return show_trees(*arguments, **options)


def draw_tree(*arguments, **options) -> str:
    """A picture of a saved tree, SVG, PNG or PDF (`ibtpo.report.picture.draw_tree`)."""
    from ibtpo.report.picture import draw_tree

    return draw_tree(*arguments, **options)


__all__ = [
    "draw_tree",
    "generated_tokens",
    "learning_curve",
    "main",
    "read_run",
    "run_names",
    "show_trees",
    "smooth",
    "summarize",
    "summary_table",
    "write_report",
]
