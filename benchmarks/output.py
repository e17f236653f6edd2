"""Where a benchmark prints."""

import sys
from collections.abc import Callable


def streams(as_json: bool) -> dict[str, Callable[[str], None]]:
    """{"log", "show"} of a benchmark's `run`: progress goes to stderr, tables to stdout, or beside the progress where
    stdout is the JSON object's."""
    tables = sys.stderr if as_json else sys.stdout
    return {
        "log": lambda text: print(text, file=sys.stderr, flush=True),
        "show": lambda text: print(text, file=tables, flush=True),
    }
