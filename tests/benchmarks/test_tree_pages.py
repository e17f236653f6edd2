"""The benchmark of tree pages runs and measures what it says."""

import json

import pytest

from benchmarks import tree_pages
from tests.chromium import find


@pytest.mark.slow
def test_pages_are_measured(tmp_path):
    find()  # or skip
    found = tree_pages.main(["--quick", f"--json={tmp_path / 'x.json'}"])
    assert json.loads((tmp_path / "x.json").read_text()) == found and len(found) == 3
    for name, figures in found.items():
        assert figures["megabytes"] > 0.01 and figures["open"] > 0 and figures["frame"] > 0
        assert figures["nodes"] > (10 if name.endswith("100") else 64)
