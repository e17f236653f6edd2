"""The commands under one name: `ibtpo train ...` is `python -m ibtpo.train ...`, and so for each of them."""

import runpy
import sys

from ibtpo import __version__, arguments

COMMANDS = {
    "train": "sample trees, grade, score, update",
    "evaluate": "accuracy of a checkpoint, with intervals; --compare of two",
    "filter": "the problems that a model solves now and then, as JSON lines",
    "export": "a run's policy in Hugging Face format",
    "report": "one page: curves, differences, saved trees; a table of runs",
    "sft": "supervised training on worked solutions",
    "compile-check": "whether a run fits a TPU pod, and what it costs, by the real compiler",
}


def usage() -> str:
    """What `ibtpo --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {words}" for name, words in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ibtpo COMMAND [options]",
            "",
            *lines,
            "",
            "ibtpo COMMAND --help says what a command takes; ibtpo --version names the version.",
            "A first run: ibtpo train --config=tiny --workdir=runs/tiny",
        ]
    )


def main() -> None:
    """The command `ibtpo`; python -m ibtpo is the same."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("--help", "-help", "-h", "help"):
        print(usage())
        return
    if command in ("--version", "-V"):
        print(f"ibtpo {__version__}")
        return
    name = command.replace("_", "-")
    if name not in COMMANDS:
        parser = arguments.Parser(prog="ibtpo")
        parser.error(f"{arguments.shown(command)} is no command: it is one of {', '.join(COMMANDS)}")
    arguments.set_program(f"ibtpo {name}")
    sys.argv[1:] = rest
    # As python -m runs it: the command is the main module, with its own docstring and flags.
    runpy.run_module(f"ibtpo.{name.replace('-', '_')}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
