"""Folders are tried before anything is computed, and nothing is left of the attempt; what ends a command is logged."""

import os
import pathlib
import threading

import pytest

from ibtpo.config import ERROR_LOG, ConfigError, check_folder
from ibtpo.config.folders import log_error
from ibtpo.errors import UserError
from tests.config.test_program import command
from tests.config_cases import TINY


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_that_can_be_made_is_not_left(tmp_path):
    check_folder("--workdir", str(tmp_path / "a" / "b" / "c"))
    assert everything(tmp_path) == []
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    check_folder("--workdir", str(tmp_path / "there"))
    check_folder("--workdir", str(tmp_path / "there" / "more"))
    assert everything(tmp_path) == ["there", "there/file"]


def test_a_relative_folder_and_odd_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "./run", "a/../run", "run with blanks", "läufe", "-run", "r" * 255):
        check_folder("--workdir", name)
    assert everything(tmp_path) == []


@pytest.mark.parametrize(
    "name, part",
    [
        ("file", "is no folder"),
        ("file/run", "is no folder"),
        ("link/run", "is no folder"),
        ("x" * 256, "too long"),
        ("/".join(["x" * 200] * 30), "too long"),
        ("run\0", "no name of a folder"),
        (" ", "no name of a folder"),
        ("gs://bucket/run", "is remote"),
        ("/proc/run", "cannot be made"),
        ("/proc/self/run", "cannot be"),
        ("/sys/run", "cannot be"),
        ("/dev/null/run", "is no folder"),
    ],
)
def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, name, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError) as caught:
        check_folder("--workdir", name)
    message = str(caught.value)
    assert message.startswith("--workdir=") and part in message and "\n" not in message and "name a " in message
    assert everything(tmp_path) == ["file", "link"]


def test_hosts_that_look_at_the_same_time_do_not_refuse_one_another(tmp_path):
    folder, errors = tmp_path / "shared" / "run", []

    def look():
        try:
            for _ in range(10):
                check_folder("--workdir", str(folder))
        except ConfigError as error:
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Who makes a folder may find another's probe in it when it goes: an empty folder may stay, and no file.
    assert errors == [] and all(path.is_dir() for path in tmp_path.rglob("*"))


def test_the_log_gets_the_command_and_the_traceback_and_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", "--config.data.prompt=a b"])
    for text in ("one", "two"):
        try:
            raise UserError(text)
        except UserError as error:
            log_error(str(tmp_path), error)
    log = (tmp_path / ERROR_LOG).read_text()
    assert log.count("program '--config.data.prompt=a b'\nTraceback (most recent call last)") == 2
    assert log.index("UserError: one") < log.index("UserError: two")
    (tmp_path / ERROR_LOG).write_text("x" * 2**23)
    log_error(str(tmp_path), UserError("three"))
    assert (tmp_path / ERROR_LOG).stat().st_size < 2**12
    log_error(str(tmp_path / "nowhere"), UserError("four"))
    log_error(None, UserError("five"))
    assert everything(tmp_path) == [ERROR_LOG]


@pytest.mark.parametrize("seed, code, text", [(14, 2, "UserError"), (15, 1, "ValueError"), (16, 1, "RunFailure")])
def test_whatever_ends_a_run_is_in_its_log_if_it_has_a_folder(tmp_path, seed, code, text):
    (tmp_path / "there").mkdir()
    for name in ("there", "nowhere"):
        result = command(f"--config={TINY}", f"--workdir={tmp_path / name}", f"--config.train.seed={seed}")
        assert result.returncode == code
    log = (tmp_path / "there" / ERROR_LOG).read_text()
    assert "Traceback" in log and text in log and f"--config.train.seed={seed}" in log
    assert everything(tmp_path) == ["there", f"there/{ERROR_LOG}"]


def test_a_refused_command_line_touches_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    result = command(f"--config={TINY}", f"--workdir={tmp_path / 'there'}", "--config.train.seed=-1")
    assert result.returncode == 2
    result = command(f"--config={TINY}", f"--workdir={tmp_path / 'new'}", "--config.train.seed=13")
    assert result.returncode == 2 and pathlib.Path(TINY).is_file()
    assert everything(tmp_path) == ["there"] and os.path.isdir(tmp_path)
