"""Command lines without a configuration, and the name of the program that runs."""

import argparse
import os
import sys
from typing import NoReturn

_program = ""


def set_program(name: str) -> None:
    """Sets the name that help and errors call this program by."""
    global _program
    _program = name


def program() -> str:
    """The program as it was called: "ibtpo train", "python -m ibtpo.train" or "python script.py"."""
    if _program:
        return _program
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {os.path.basename(sys.argv[0])}"


def shown(text: str) -> str:
    """An argument in a message, cut where it is long."""
    return repr(text if len(text) <= 100 else f"{text[:100]}...")


class Parser(argparse.ArgumentParser):
    """An argparse parser that says what is wrong in one line, as the other commands do, and ends with code 2."""

    def error(self, message: str) -> NoReturn:
        self.fail(f"{message}; see {self.prog} --help")

    def fail(self, message: str) -> NoReturn:
        """Ends the command for another reason."""
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
