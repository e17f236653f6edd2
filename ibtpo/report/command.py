"""What a run did: a page with its curves and its trees, one figure of its curves, or a picture of one of its trees.

    python -m ibtpo.report runs/tiny                                  # runs/tiny/report.html
    python -m ibtpo.report runs/tiny runs/grpo --out=compare.html     # several runs side by side
    python -m ibtpo.report runs/tiny runs/grpo --out=compare.png      # the figure alone; .svg and .pdf too
    python -m ibtpo.report runs/tiny --tree=train:20:0 --out=tree.svg # a saved tree; .png and .pdf too

Runs that differ in the seed alone are drawn as one curve with an interval. The table of the runs is printed.
"""

import argparse
import os
from collections.abc import Sequence

from ibtpo import metrics as metrics_lib
from ibtpo.arguments import Parser, program
from ibtpo.errors import UserError, one_line
from ibtpo.report.runs import run_names, summarize, summary_table
from ibtpo.whole_files import write_text

PAGE = "report.html"  # in the first run's workdir
_PAGES = ("html", "htm")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; what cannot be used ends it with one line and code 2."""
    parser = Parser(
        prog=program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder of a run; several are compared")
    parser.add_argument("--workdir", action="append", default=[], help="the same as RUN")
    parser.add_argument("--name", action="append", help="name of a run in the report, one per run")
    parser.add_argument("--out", help=f"the page (.html) or picture; default: {PAGE} in the first run's folder")
    parser.add_argument("--trees", type=int, default=200, help="most trees on the page; 0: all that are saved")
    parser.add_argument("--tree", help="draw this tree: train or eval, update and place, as in train:20:0")
    parser.add_argument("--colour", default="value", help="what colours it: value, J, eta1, eta2 or A")
    arguments = parser.parse_args(argv)
    workdirs = [*arguments.runs, *arguments.workdir]
    if not workdirs:
        parser.error("name the folder of a run")
    names = arguments.name or run_names(workdirs)
    out = arguments.out or os.path.join(workdirs[0], PAGE if arguments.tree is None else "tree.svg")
    try:
        check_runs(workdirs, names)
        print(_write(workdirs, names, out, arguments))
    except UserError as error:
        parser.fail(str(error))
    except OSError as error:
        parser.fail(f"--out={out} cannot be written ({error.strerror or error}): name another file")


def _write(workdirs: Sequence[str], names: Sequence[str], out: str, arguments: argparse.Namespace) -> str:
    """Writes the page or picture; what there is to print."""
    if arguments.trees < 0:
        raise UserError(f"--trees={arguments.trees} must be 0 (all) or more")
    kind = os.path.splitext(out)[1][1:].lower()
    if os.path.isdir(out):
        raise UserError(f"--out={out} is a folder: name a file that ends in .html or .png")
    if arguments.tree is not None:
        from ibtpo.report.picture import draw_tree, find_tree

        _check_picture(out, kind)
        content, tree = find_tree(workdirs[0], arguments.tree)
        return f"tree: {draw_tree(content, tree, out, colour=arguments.colour)}"
    table = summary_table([summarize(workdir, name) for workdir, name in zip(workdirs, names)])
    if kind in _PAGES:
        from ibtpo.report import groups, page

        html, problems = page.report_page([groups.load(*run) for run in zip(workdirs, names)], arguments.trees)
        write_text(out, html)
        notes = "".join(f"note: {problem}\n" for problem in problems)
        return f"{table}\n\n{notes}page: {out} ({len(html.encode(errors='replace')) / 1e6:.1f} MB)"
    from ibtpo.report.figure import learning_curve

    _check_picture(out, kind)
    return f"{table}\n\nfigure: {learning_curve(workdirs, out, names=names)}"


def _check_picture(out: str, kind: str) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    if (kind or "png") not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"--out={out} is no page and no kind of picture: name a file that ends in .html, .png or .svg")


def check_runs(workdirs: Sequence[str], names: Sequence[str]) -> None:
    """Raises a UserError where a run or its name cannot be used."""
    if len(names) != len(workdirs):
        raise UserError(f"--name: {len(names)} names for {len(workdirs)} runs: give one name per run")
    for workdir in workdirs:
        file = os.path.join(workdir, metrics_lib.FILE_NAME)
        if not metrics_lib.exist(workdir):
            raise UserError(f"{file}: no such file; name the folder of a run")
        try:
            empty = not any(metrics_lib.read(workdir))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{file} cannot be read ({one_line(error)}): is it that of a run?") from error
        if empty:
            raise UserError(f"{file} has no row of metrics: the run has not got that far, or it is another file")
