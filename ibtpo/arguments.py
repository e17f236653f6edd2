"""Command lines without a configuration."""

import argparse
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argparse parser that says what is wrong in one line, as the other commands do, and ends with code 2."""

    def error(self, message: str) -> NoReturn:
        self.fail(f"{message}; see {self.prog} --help")

    def fail(self, message: str) -> NoReturn:
        """Ends the command for another reason."""
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
