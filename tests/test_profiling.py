"""--profile: which updates, and a trace that its own readers open."""

import gzip
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from ibtpo.errors import UserError
from ibtpo.profiling import Profile, phase


@pytest.mark.parametrize("text, first, last", [("10:12", 10, 12), ("10", 10, 10), ("1:30", 1, 30), ("30:30", 30, 30)])
def test_a_range_has_both_ends(text, first, last):
    profile = Profile.parse(text, 30)
    assert (profile.first, profile.last) == (first, last)
    assert Profile.parse(None, 30) == Profile()


@pytest.mark.parametrize(
    "text, words",
    [
        ("12:10", "comes before the first"),
        ("x", "like --profile=10:12"),
        ("", "like --profile=10:12"),
        (":", "like --profile=10:12"),
        ("10:", "like --profile=10:12"),
        (":12", "like --profile=10:12"),
        ("1:2:3", "like --profile=10:12"),
        ("-1:3", "like --profile=10:12"),
        ("1.5:3", "like --profile=10:12"),
        ("1e1", "like --profile=10:12"),
        ("10-12", "like --profile=10:12"),
        ("\u0661:\u0663", "like --profile=10:12"),
        ("9" * 500, "like --profile=10:12"),
        ("0:2", "count from 1"),
        ("0", "count from 1"),
        ("29:31", "the run has 30 updates"),
        ("31", "the run has 30 updates"),
    ],
)
def test_a_bad_range_is_one_line(text, words):
    with pytest.raises(UserError) as error:
        Profile.parse(text, 30)
    message = str(error.value)
    assert message.startswith("--profile=") and words in message and "\n" not in message and len(message) < 300


def test_updates_that_are_done_cannot_be_traced():
    profile = Profile.parse("3:5", 30)
    profile.check_begin(2)
    with pytest.raises(UserError, match="update 3 is done already, the run continues at 4"):
        profile.check_begin(3)
    Profile().check_begin(30)


def test_a_bad_range_ends_the_command_in_one_line(repo_root, tmp_path):
    line = [sys.executable, "-m", "ibtpo.train", "--config=tiny", "--workdir", tmp_path / "w", "--profile=12:10"]
    done = subprocess.run(line, cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --profile=12:10: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "w").exists()


def events(folder):
    """{name: [statistics of each event]} of the host's threads, by JAX's reader of traces; and the names in Perfetto's
    file."""
    [trace] = folder.glob("plugins/profile/*/*.xplane.pb")
    found = {}
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                found.setdefault(event.name.split("#")[0], []).append(dict(event.stats))
    [perfetto] = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    with gzip.open(perfetto) as file:
        named = {event.get("name", "").split("#")[0] for event in json.load(file)["traceEvents"]}
    return found, named


def run(profile, workdir, last, fails_at=None):
    add = jax.jit(lambda x: x + 1)
    try:
        for step in range(1, last + 1):
            with profile.update(workdir, step):
                with phase("sample and grade"):
                    add(jnp.ones(8)).block_until_ready()
                if step == fails_at:
                    raise InterruptedError
    finally:
        profile.close()


def test_a_trace_holds_its_updates_and_no_other(tmp_path):
    run(Profile.parse("2:3", 5), tmp_path, 5)
    found, named = events(tmp_path / "profile")
    assert [stats["step_num"] for stats in found["update"]] == [2, 3]
    assert len(found["sample and grade"]) == 2
    assert {"update", "sample and grade"} <= named


def test_a_run_that_ends_within_leaves_its_trace(tmp_path):
    with pytest.raises(InterruptedError):
        run(Profile.parse("2:4", 5), tmp_path, 5, fails_at=3)
    found, _ = events(tmp_path / "profile")
    assert [stats["step_num"] for stats in found["update"]] == [2, 3]
    run(Profile.parse("1", 5), tmp_path / "again", 1)  # nothing is left open


def test_each_of_several_hosts_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run(Profile.parse("1", 5), tmp_path, 1)
    assert events(tmp_path / "profile" / "host_1")[0]["update"]


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    def fail():
        raise OSError(28, "No space left on device")

    profile = Profile.parse("1", 5)
    stop = jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "stop_trace", fail)
    try:
        run(profile, tmp_path, 1)
    finally:
        stop()
    assert "the trace cannot be written" in caplog.text
