"""One run at a time in a folder, on one machine and on storage that several share."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ibtpo import workdir_lock
from ibtpo.errors import UserError
from ibtpo.workdir_lock import NAME, FolderLock, Owner, Times, locked

HOLDER = """
import sys, time
from ibtpo.workdir_lock import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(repo_root, tmp_path):
    """A process that holds the lock of a folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def place(folder, age=0.0, **changes):
    """The lock of another run, last renewed `age` seconds ago."""
    owner = dataclasses.replace(Owner.this_process(), token="another's", **changes)
    (folder / NAME).write_text(json.dumps(dataclasses.asdict(owner)))
    then = time.time() - age
    os.utime(folder / NAME, (then, then))
    return owner


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_is_refused_and_a_killed_one_makes_way(holder, tmp_path):
    with pytest.raises(UserError, match=rf"is in use by process {holder.pid} on \S+, since 20\d\d-.* UTC: wait for"):
        FolderLock(tmp_path).acquire()
    holder.send_signal(signal.SIGSTOP)  # it lives
    then = time.time() - 1e6
    os.utime(tmp_path / NAME, (then, then))
    with pytest.raises(UserError, match="is in use by process"):
        FolderLock(tmp_path).acquire()
    holder.kill()  # a zombie at first: nobody has waited for it
    time.sleep(0.2)
    said = []
    with FolderLock(tmp_path, say=said.append):
        [line] = said
        assert f"took over the lock of process {holder.pid} on" in line and line.endswith("its process is gone")
    assert files(tmp_path) == []


def test_it_is_given_back_at_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), FolderLock(tmp_path):
        assert files(tmp_path) == [NAME]
        raise ZeroDivisionError
    assert files(tmp_path) == []


def test_a_process_id_that_was_given_again_is_another_process(tmp_path):
    place(tmp_path, started="1")
    with FolderLock(tmp_path):
        pass
    place(tmp_path)  # this very process: it lives
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
        FolderLock(tmp_path).acquire()


@pytest.mark.parametrize("age, stale", [(0, False), (40, False), (61, True), (10**6, True)])
def test_of_another_machine_the_sign_of_life_counts(tmp_path, age, stale):
    """Whose process ids mean nothing here, even where one of the same number lives."""
    place(tmp_path, age, host="elsewhere", machine="another")
    said = []
    lock = FolderLock(tmp_path, say=said.append)
    if stale:
        with lock:
            assert "process" in said[0] and f"no sign of life for {age} seconds" in said[0]
    else:
        words = rf"process {os.getpid()} on elsewhere, since .*last sign of life {age} seconds ago.*for 60 seconds"
        with pytest.raises(UserError, match=words):
            lock.acquire()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "\0\0", '{"pid": "x", "host": 1}'])
def test_a_damaged_lock_counts_as_one_of_another_machine(tmp_path, text):
    path = tmp_path / NAME
    path.write_text(text)
    with pytest.raises(UserError, match="which is damaged"):
        FolderLock(tmp_path).acquire()
    then = time.time() - 100
    os.utime(path, (then, then))
    said = []
    with FolderLock(tmp_path, say=said.append):
        assert "took over the damaged lock" in said[0]


def test_a_clock_that_is_wrong_does_not_matter(tmp_path, monkeypatch):
    """Ages are told by the storage's clock, not by this machine's."""
    place(tmp_path, 30, host="elsewhere", machine="another")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1e6)
    with pytest.raises(UserError, match="last sign of life 30 seconds ago"):
        FolderLock(tmp_path).acquire()


def test_signs_of_life_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock._Local, "times", Times(0.05, 60))
    with FolderLock(tmp_path):
        os.utime(tmp_path / NAME, (1.0, 1.0))
        until = time.monotonic() + 10
        while os.stat(tmp_path / NAME).st_mtime == 1.0 and time.monotonic() < until:
            time.sleep(0.02)
        assert os.stat(tmp_path / NAME).st_mtime > 1.0


def test_a_run_whose_lock_was_taken_is_told_and_leaves_it(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock._Local, "times", Times(0.05, 60))
    told = []
    lost = threading.Event()

    def on_lost(line):
        told.append(line)
        lost.set()

    with FolderLock(tmp_path, on_lost=on_lost):
        other = place(tmp_path, host="elsewhere")
        assert lost.wait(10)
    assert f"another run has taken this lock (process {other.pid} on elsewhere" in told[0]
    assert Owner.parse((tmp_path / NAME).read_text()) == other


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(workdir_lock.os, "link", refuse)
    for _ in range(20):
        place(tmp_path, 100, host="elsewhere", machine="another")
        barrier, got, refused = threading.Barrier(6), [], []

        def start(barrier=barrier, got=got, refused=refused):
            lock = FolderLock(tmp_path, say=lambda line: None)
            barrier.wait()
            try:
                lock.acquire()
                got.append(lock)
            except UserError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1 and len(refused) == 5, refused
        got[0].release()
        assert files(tmp_path) == []


def test_folders_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(UserError, match=rf"the folder {folder} cannot be written \("):
            FolderLock(folder).acquire()
    (tmp_path / "run" / NAME).mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be written"):
        FolderLock(tmp_path / "run").acquire()


def test_several_folders_each_once(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    (tmp_path / "alias").symlink_to(one)
    said = []
    for folder in (one, two):
        folder.mkdir(exist_ok=True)
        place(folder, started="1")
    with locked([str(one), str(tmp_path / "alias"), str(two)], say=said.append) as release:
        assert len(said) == 1  # of the run that held both
        assert files(one) == files(two) == [NAME]
        release()
        assert files(one) == files(two) == []
    with FolderLock(two), pytest.raises(UserError, match="two is in use"), locked([str(one), str(two)]):
        pass
    assert files(one) == []


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """URLs bucket://... in a folder, with the times of remote storage but no waiting."""
    real = workdir_lock.epath.Path
    monkeypatch.setattr(workdir_lock.epath, "Path", lambda url: real(url.replace("bucket:/", str(tmp_path))))
    monkeypatch.setattr(workdir_lock._Remote, "settle", 0.05)
    return tmp_path


def test_a_url_has_a_lock_too(bucket):
    url = "bucket://run"
    (bucket / "run").mkdir()
    with FolderLock(url):
        with pytest.raises(UserError, match=rf"bucket://run is in use by process {os.getpid()} on"):
            FolderLock(url).acquire()
    assert files(bucket / "run") == []
    place(bucket / "run", 200, machine="another")
    with pytest.raises(UserError, match=r"last sign of life 200 seconds ago.*for 300 seconds"):
        FolderLock(url).acquire()
    place(bucket / "run", 301, machine="another")
    with FolderLock(url, say=lambda line: None):
        assert files(bucket / "run") == [NAME]


def test_of_two_that_write_at_once_to_a_url_the_last_has_it(bucket, monkeypatch):
    mine = FolderLock("bucket://run")
    monkeypatch.setattr(workdir_lock.time, "sleep", lambda _: place(bucket / "run"))  # while it waits
    with pytest.raises(UserError, match="is in use by"):
        mine.acquire()
