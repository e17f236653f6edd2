"""A damaged checkpoint is named and left aside, never restored; what is no damage is not taken for it.

The campaign (`benchmarks/faults/damage.py`) does this to every file; here are some of each kind.
"""

import json
import os
import shutil

import jax
import pytest
from jax import numpy as jnp

from benchmarks.faults.damage import Trial, flip, same, small_state
from ibtpo.checkpoints import Checkpoints, load_config, load_params, manifest
from ibtpo.errors import RunFailure, UserError


@pytest.fixture(scope="module", params=[False, True], ids=["all-files-summed", "arrays-alone-summed"])
def trial(request, tmp_path_factory):
    return Trial(tmp_path_factory.mktemp("trial"), large=request.param)


def test_damage_of_every_kind_falls_back_to_the_checkpoint_before(trial):
    cases, seen, outcomes = list(trial.cases()), set(), {}
    for name, kind, damage in cases:
        # One of each kind for each sort of file.
        sort = (name.rsplit("/", 1)[0], kind)
        if sort not in seen and (name.startswith(("params", "extra", "manifest")) or trial.large):
            seen.add(sort)
            outcomes[name, kind] = trial.outcome(name, kind, damage)
    assert len(outcomes) >= 10
    allowed = {"fallen back", "equal"} if trial.large else {"fallen back"}
    assert {case: outcome for case, outcome in outcomes.items() if outcome not in allowed} == {}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with three checkpoints, and their states."""
    folder = tmp_path_factory.mktemp("saved")
    states = {step: small_state(step) for step in (1, 2, 3)}
    with Checkpoints(folder, keep=3) as store:
        for step, state in states.items():
            store.save(state, {"at": step}, {"model": "small"})
    return folder, states


@pytest.fixture
def run(saved, tmp_path):
    """(a copy of them, the folder of checkpoints in it)."""
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run", tmp_path / "run" / "checkpoints"


def data_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_several_damaged_ones_are_all_set_aside(saved, run, capsys):
    workdir, folder = run
    flip(data_file(folder / "3"), 1000, 0)
    (folder / "2" / "extra.json").unlink()
    with Checkpoints(workdir, keep=3) as store:
        state, position = store.restore(small_state(0))
        assert position == {"at": 1} and same(state, saved[1][1])
        said = capsys.readouterr().out
        assert said.count("\n") == 1 and "Damaged checkpoints are set aside" in said and "from step 1." in said
        assert "2 (extra.json: it is missing), now 2.damaged" in said and "now 3.damaged" in said
        # The run goes on; what is set aside is no step and is never deleted.
        assert store.latest_step() == 1
        for step in (2, 3, 4, 5, 6):
            store.save(state.replace(step=jnp.asarray(step)), {}, {})
    assert sorted(path.name for path in folder.iterdir()) == ["2.damaged", "3.damaged", "4", "5", "6"]


def test_a_second_damaged_checkpoint_of_a_step_has_a_name_of_its_own(run):
    workdir, folder = run
    for _ in range(2):
        shutil.copytree(folder / "1", folder / "9", dirs_exist_ok=True)  # it is not step 9
        with Checkpoints(workdir) as store:
            assert store.restore(small_state(0))[1] == {"at": 3}
    assert {"9.damaged", "9.damaged-2", "3"} <= {path.name for path in folder.iterdir()}


def test_where_none_is_good_the_run_is_refused_and_nothing_moves(run):
    workdir, folder = run
    for step in (1, 2, 3):
        os.truncate(folder / str(step) / "extra.json", 0)
    for _ in range(2):  # running again says the same
        with Checkpoints(workdir) as store, pytest.raises(UserError, match=r"no checkpoint in .* can be used.*3 \(ex"):
            store.restore(small_state(0))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def test_readers_name_the_damage_and_write_nothing(run):
    workdir, folder = run
    flip(data_file(folder / "3" / "params"), 500, 7)
    before = sorted(str(path) for path in workdir.rglob("*"))
    for read in (lambda: load_params(workdir, small_state(0).params), lambda: load_config(workdir)):
        with pytest.raises(UserError, match=r"/3 is damaged \(params/.*checksum is wrong\).*steps there: 1, 2"):
            read()
    with pytest.raises(UserError, match=r"/3 is damaged \(params/"):
        load_params(folder, small_state(0).params, 3)
    assert load_config(workdir, 2) == {"model": "small"}
    assert sorted(str(path) for path in workdir.rglob("*")) == before


def test_a_step_asked_for_by_number_is_not_replaced_by_another(run):
    workdir, folder = run
    (folder / "2" / "manifest").write_text("")
    with Checkpoints(workdir) as store:
        with pytest.raises(UserError, match=r"2 \(manifest: "):
            store.restore(small_state(0), step=2)
        assert store.latest_step() == 3
    assert (folder / "2").is_dir()


@pytest.mark.parametrize(
    "error, kind, words",
    [
        (PermissionError(13, "Permission denied"), UserError, r"cannot be read \(Permission denied\): give this user"),
        (ImportError("Please install gcsfs"), UserError, r"cannot be read here \(Please install gcsfs\)"),
        (OSError(5, "Input/output error"), RunFailure, r"cannot be read \(Input/output error\); nothing in it was"),
        (TimeoutError(110, "Connection timed out"), RunFailure, r"cannot be read \(Connection timed out\)"),
    ],
)
def test_a_fault_of_the_storage_is_no_damage(run, monkeypatch, error, kind, words):
    workdir, folder = run

    def fail(*_):
        raise error

    with Checkpoints(workdir) as store:
        monkeypatch.setattr(type(store.path), "read_bytes", fail)
        with pytest.raises(kind, match=words):
            store.restore(small_state(0))
    assert (folder / "3").is_dir() and len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    "error, kind",
    [
        (ValueError("PERMISSION_DENIED: Error reading local file [os_error_code='13']"), UserError),
        (ValueError("UNAVAILABLE: Error reading gs://"), RunFailure),
        (MemoryError(), None),  # those are of the machine, not of the storage
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), None),
    ],
)
def test_arrays_that_cannot_be_read_now_are_not_damaged(run, monkeypatch, error, kind):
    import orbax.checkpoint as ocp

    def fail(*_, **__):
        try:
            raise error
        except type(error) as cause:  # as Orbax does
            raise Exception("Encountered error while reading array index") from cause

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
    with Checkpoints(run[0]) as store, pytest.raises(kind or Exception, match=None if kind else "Encountered error"):
        store.restore(small_state(0))
    assert (run[1] / "3").is_dir()


def test_a_mismatch_is_no_damage(run):
    """It is the newest that does not fit; that an older one would is no reason to take it."""
    workdir, folder = run
    wrong = small_state(0)
    wrong = wrong.replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), wrong.params))
    with Checkpoints(workdir) as store, pytest.raises(UserError, match=r"3/params does not fit this run: .*bfloat16"):
        store.restore(wrong)

    def check(_):
        raise UserError("another run's")

    with Checkpoints(workdir) as store, pytest.raises(UserError, match="another run's"):
        store.restore(small_state(0), check=check)
    assert len(list(folder.iterdir())) == 3


def test_a_checkpoint_of_an_earlier_version_is_refused_by_name(run):
    workdir, folder = run
    (folder / "3" / "manifest").unlink()
    (folder / "3" / "_CHECKPOINT_METADATA").write_text("{}")  # which Orbax's own manager wrote
    with Checkpoints(workdir) as store, pytest.raises(UserError, match=r"3 was saved by an earlier version of ibtpo"):
        store.restore(small_state(0))
    assert (folder / "3").is_dir()


def test_what_an_unfinished_save_left_is_no_checkpoint_and_goes(run):
    workdir, folder = run
    (folder / "3").rename(folder / "4.saving")
    (folder / "2").rename(folder / "2.deleting")
    (folder / "notes").mkdir()
    (folder / "07").mkdir()
    (folder / "8").write_text("a file")
    assert load_params(workdir, small_state(0).params) is not None
    with Checkpoints(workdir) as store:
        assert store.latest_step() == 1
    assert sorted(path.name for path in folder.iterdir()) == ["07", "1", "8", "notes"]


def test_on_storage_without_renaming_a_mark_says_what_is_unfinished(run, monkeypatch):
    """As on gs://, whose folders cannot be renamed at once."""
    from ibtpo.checkpoints import folders

    workdir, folder = run
    monkeypatch.setattr(folders, "renames", lambda path: False)
    (folder / "3" / "unfinished").write_text("")
    with Checkpoints(workdir, keep=2) as store:
        assert store.latest_step() == 2 and not (folder / "3").exists()
        store.save(small_state(5), {"at": 5}, {})
        assert store.restore(small_state(0))[1] == {"at": 5}
    assert sorted(path.name for path in folder.iterdir()) == ["2", "5"]
    assert "unfinished" not in json.loads((folder / "5" / "manifest").read_text().split("\n")[1])["files"]


def test_the_manifest_has_the_size_of_every_file(run):
    from etils import epath

    content = manifest.read(epath.Path(run[1] / "3"))
    files = {str(path.relative_to(run[1] / "3")): path for path in (run[1] / "3").rglob("*") if path.is_file()}
    files.pop("manifest")
    assert {name: size for name, (size, _) in content["files"].items()} == {
        name: path.stat().st_size for name, path in files.items()
    }
    assert manifest.size_of(content) == sum(path.stat().st_size for path in files.values())
