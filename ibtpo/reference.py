"""The pages of all keys and of all metrics, made from the code.

    python -m ibtpo.reference docs     # writes docs/keys.md and docs/metrics.md
"""

import pathlib
from collections.abc import Sequence

from ibtpo.arguments import Parser, program
from ibtpo.config.describe import BASE, keys_page
from ibtpo.metrics.meanings import metrics_page

_MADE = "<!-- Made by `python -m ibtpo.reference docs`; a test compares it with the code. -->"


def pages() -> dict[str, str]:
    """{file name: content}."""
    keys = f"""# Keys of a configuration

{_MADE}

Every key of `configs/base.py` in its order, set by `--config.<key>=<value>`. `python -m ibtpo.train --help
--config=FILE` lists them with the values of a config, `--print_config` prints the resolved configuration. Where a
default names methods, `method` decides, and a value that is set wins. [paper] marks a value that the paper reports,
[ours] a choice of this project ([method](method.md)).

"""
    metrics = f"""# Metrics of a run

{_MADE}

Each row of `metrics.jsonl` has those of its step; TensorBoard shows the same under the same names. A healthy run is one
that learns, and whose numbers say that nothing is broken.

"""
    return {"keys.md": keys + keys_page(BASE), "metrics.md": metrics + metrics_page()}


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the pages into the folder that the command line names."""
    parser = Parser(prog=program(), description="Writes the pages of all keys and of all metrics.")
    parser.add_argument("folder", help="folder of the pages, docs in a checkout")
    folder = pathlib.Path(parser.parse_args(argv).folder)
    if not folder.is_dir():
        parser.fail(f"{folder}: no such folder; name the one of the documents")
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
        print(f"written: {folder / name}")


if __name__ == "__main__":
    main()
