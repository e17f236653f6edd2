"""Every row of the table of bad inputs is refused in its one line, and leaves nothing behind (docs/reliability.md)."""

import re

import pytest

from benchmarks.faults import inputs
from benchmarks.faults.bad_folders import SETUPS

ROWS = inputs.cases()


def test_the_table():
    assert len(ROWS) >= 300
    assert {case.command for case in ROWS} == {"train", "evaluate", "export", "sft", "report", "compile_check"}
    assert {case.setup for case in ROWS} - {None} <= set(SETUPS)
    assert len({(case.command, *case.arguments, case.setup) for case in ROWS}) == len(ROWS)
    for case in ROWS:
        assert case.why and re.compile(case.expected)
        assert not re.fullmatch(case.expected, "") and not re.fullmatch(case.expected, "this cannot be used")


@pytest.mark.parametrize("case", [case for case in ROWS if case.in_process], ids=lambda case: case.why)
def test_a_row(case, tmp_path):
    assert inputs.here(case, tmp_path) == ""


@pytest.mark.parametrize("case", list(inputs.spread(ROWS, inputs.QUICK_PROCESSES)), ids=lambda case: case.why)
def test_a_row_as_a_process(case):
    assert inputs.as_process(case)[0] == ""


@pytest.mark.parametrize(
    "code, stderr, after, part",
    [
        (None, "", set(), "hung"),
        (0, "", set(), "exit code 0"),
        (1, "error: the value x is wrong\n", set(), "exit code 1"),
        (2, "", set(), "0 lines"),
        (2, "error: the value x is wrong\nmore\n", set(), "2 lines"),
        (2, "Traceback\n", set(), "1 lines"),
        (2, "error: another\n", set(), "another line"),
        (2, "error: the value x is wrong\n", {"work"}, "left work"),
        (2, "error: the value x is wrong\n", {"work/error.log"}, ""),
        (2, "error: the value x is wrong\n", set(), ""),
    ],
)
def test_what_counts_as_right(code, stderr, after, part):
    case = inputs.Case("train", [], None, "the value x .*", "a value")
    found = inputs.fault(case, code, stderr, set(), after)
    assert part in found and bool(found) == bool(part)
