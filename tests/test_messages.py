"""What a command says: warnings in one plain line, and no notices of other libraries."""

import logging
import os
import subprocess
import sys
import warnings

import pytest

from ibtpo.messages import OneLine, hushed_import


@pytest.mark.parametrize(
    "level, message, line",
    [
        (logging.WARNING, "data.source has no {split}", "warning: data.source has no {split}"),
        (logging.WARNING, "two\nlines\t of it", "warning: two lines of it"),
        (logging.ERROR, "x", "error: x"),
    ],
)
def test_a_message_is_one_line_without_date_thread_and_file(level, message, line):
    record = logging.LogRecord("absl", level, "/somewhere/file.py", 12, message, (), None)
    assert OneLine().format(record) == line


COMMAND = """
import warnings, logging
from absl import flags, logging as absl_logging
from ibtpo import config

def main(config, workdir):
    absl_logging.warning("of ours, %d", 1)
    warnings.warn("of another library")
    logging.getLogger("jax._src.x").warning("of a third")
    absl_logging.info("nothing for anybody")

config.run(main, writes_workdir=False)
"""


def test_a_command_says_warnings_plainly(repo_root, tmp_path):
    line = [sys.executable, "-c", COMMAND, "--config=tiny", f"--workdir={tmp_path}"]
    done = subprocess.run(line, cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.splitlines() == ["warning: of ours, 1", "warning: of another library", "warning: of a third"]


# As in a notebook where neither PyTorch nor ipywidgets is installed.
WITHOUT = """
import importlib.abc, importlib.util, sys, types
import IPython

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ipywidgets"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
before = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] == "torch" else before(name, package)
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
"""


def test_libraries_that_are_not_there_are_no_news(repo_root):
    """The first of the two says what would be seen otherwise."""
    pytest.importorskip("IPython")
    loud, quiet = (
        subprocess.run([sys.executable, "-c", WITHOUT + what], cwd=repo_root, capture_output=True, text=True)
        for what in ("import transformers, tqdm.auto", "import ibtpo.data.tokenizer, tqdm.auto")
    )
    assert "PyTorch was not found" in loud.stderr and "IProgress not found" in loud.stderr
    assert quiet.returncode == 0 and quiet.stderr == ""


def test_a_hushed_import_leaves_environment_and_filters_as_they_were(monkeypatch):
    for before in (None, "0"):
        monkeypatch.delenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", raising=False)
        if before is not None:
            monkeypatch.setenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", before)
        filters = list(warnings.filters)
        with hushed_import():
            assert os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] == "1"
        assert os.environ.get("TRANSFORMERS_NO_ADVISORY_WARNINGS") == before and list(warnings.filters) == filters
