"""A save is complete or it failed, which is said in one line and ends the run: nothing hangs, nothing is lost."""

import contextlib
import importlib.util
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import threading

import pytest
from jax import numpy as jnp

from benchmarks.faults.damage import same, small_state
from ibtpo.checkpoints import Checkpoints, check_writable
from ibtpo.checkpoints.saving import Saving
from ibtpo.errors import RunFailure, UserError


@contextlib.contextmanager
def largest_file(size):
    """Within it no file may grow beyond `size` bytes: the kernel refuses the write, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 600, 5_000, 100_000])
def test_a_save_that_finds_no_room_is_said_and_leaves_what_was_there(tmp_path, size):
    with Checkpoints(tmp_path, keep=2) as store:
        store.save(small_state(1), {"at": 1}, {})
        with largest_file(size), pytest.raises(RunFailure) as failed:
            store.save(small_state(2), {"at": 2}, {})
        assert f"{tmp_path}/checkpoints/2 could not be saved (File too large): step 1 is complete;" in str(failed.value)
        assert "\n" not in str(failed.value)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
        assert same(store.restore(small_state(0))[0], small_state(1))
        # With room again the same step is saved.
        store.save(small_state(2), {"at": 2}, {})
        assert store.restore(small_state(0))[1] == {"at": 2}


def test_a_folder_that_is_gone_or_replaced_fails_the_save(tmp_path):
    with Checkpoints(tmp_path) as store:
        (tmp_path / "checkpoints").rmdir()
        (tmp_path / "checkpoints").write_text("a file")
        with pytest.raises(RunFailure, match=r"could not be saved \(Not a directory\): nothing was saved before"):
            store.save(small_state(1), {}, {})


def test_the_first_error_is_not_hidden_by_a_failed_save(tmp_path, monkeypatch, caplog):
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path) as store:
        monkeypatch.setattr(store, "wait", lambda: (_ for _ in ()).throw(RunFailure("checkpoint 3 could not be saved")))
        1 / 0  # noqa: B018
    assert "checkpoint 3 could not be saved" in caplog.text


def test_a_failure_in_the_background_is_found_at_the_next_look(tmp_path, monkeypatch):
    """As on accelerators, where a save goes on beside the next update."""
    monkeypatch.setattr("ibtpo.checkpoints.store.jax.default_backend", lambda: "tpu")
    release, complete = threading.Event(), Saving._complete

    def slowly(self):
        release.wait(60)
        if self.step == 2:
            raise OSError(28, "No space left on device")
        complete(self)

    monkeypatch.setattr(Saving, "_complete", slowly)
    with Checkpoints(tmp_path) as store:
        store.check()
        store.save(small_state(1), {}, {})
        store.check()  # it is under way
        assert store.latest_step() is None and [p.name for p in store.path.iterdir()] == ["1.saving"]
        release.set()
        store.wait()
        store.check()
        assert store.latest_step() == 1
        store.save(small_state(2), {}, {})
        store._saving._thread.join(60)
        with pytest.raises(RunFailure, match=r"2 could not be saved \(No space left on device\): step 1 is complete"):
            store.check()
        store.check()  # it is said once
    assert [p.name for p in store.path.iterdir()] == ["1"]


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(Saving, "_complete", lambda self: {}["typo"])
    with Checkpoints(tmp_path) as store, pytest.raises(KeyError, match="typo"):
        store.save(small_state(1), {}, {})
    assert list(store.path.iterdir()) == []


PROGRAM = """
import resource, sys
from benchmarks.faults.damage import small_state
from ibtpo.checkpoints import Checkpoints
from ibtpo.errors import RunFailure
try:
    with Checkpoints(sys.argv[1]) as store:
        store.save(small_state(1), {}, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        store.save(small_state(2), {}, {})
except RunFailure as error:
    print(f"error: {error}")
    sys.exit(1)
"""


def test_a_process_whose_save_failed_ends_with_one_line(tmp_path, repo_root):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=repo_root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,  # it hung for ever
    )
    [line] = done.stdout.splitlines()
    assert done.returncode == 1 and line.startswith("error: checkpoint ") and "(File too large)" in line
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


@pytest.mark.parametrize("open_it", [Checkpoints, check_writable])
def test_a_folder_that_cannot_be_written_to_is_refused_at_the_start(tmp_path, monkeypatch, open_it):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"no checkpoint can be written to .*file.* \(a file is in its place\)"):
            open_it(tmp_path, folder=folder)
    with largest_file(0), pytest.raises(UserError, match=r"\(File too large\): make it a folder with room"):
        open_it(tmp_path, folder=tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []
    with pytest.raises(UserError, match=r"\(File name too long\)"):
        open_it(tmp_path, folder=tmp_path / ("x" * 300))
    if importlib.util.find_spec("gcsfs") is None:
        with pytest.raises(UserError, match=r"gs://bucket/run .*gcsfs.*install requirements-tpu\.txt, make it"):
            open_it(tmp_path, folder="gs://bucket/run")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "write_bytes", denied)
    monkeypatch.setattr("etils.epath.gpath.PosixGPath.write_bytes", denied, raising=False)
    with pytest.raises(UserError, match=r"\(Permission denied\)"):
        open_it(tmp_path, folder=tmp_path / "read-only")


def test_a_run_that_had_saved_does_not_begin_anew_without_a_word(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with Checkpoints(workdir) as store:
        store.check_nothing_lost()  # nothing was
        store.save(small_state(4), {}, {})
    assert json.loads((workdir / "last_checkpoint.json").read_text())["step"] == 4
    shutil.rmtree(workdir / "checkpoints" / "4")
    with Checkpoints(workdir) as store, pytest.raises(UserError, match=r"had saved step 4 in .*/checkpoints: bring"):
        store.check_nothing_lost()
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "last_checkpoint.json").write_text("not JSON")
    with Checkpoints(workdir) as store, pytest.raises(UserError, match=r"says that this run has saved some"):
        store.check_nothing_lost()
    (workdir / "last_checkpoint.json").unlink()
    (workdir / "checkpoints" / "4.damaged").mkdir()
    with Checkpoints(workdir) as store, pytest.raises(UserError, match=r"set aside \(4\.damaged\): bring them back"):
        store.check_nothing_lost()


def test_the_step_counts_from_the_state(tmp_path):
    """A step that is saved already stays as it is."""
    with Checkpoints(tmp_path, keep=2) as store:
        store.save(small_state(1), {"at": 1}, {})
        store.save(small_state(2).replace(step=jnp.asarray(1)), {"at": "again"}, {})
        assert store.restore(small_state(0))[1] == {"at": 1}
