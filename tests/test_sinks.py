"""Services beside the files of metrics: never the end of a run, nothing twice, nothing that is nobody's business."""

import json
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import threading

import pytest

from configs import base
from ibtpo.errors import UserError
from ibtpo.metrics import MetricWriter, read, sinks
from ibtpo.metrics.sinks import Guarded, Note


class Service:
    """Keeps what it is given, and fails where `fails` says so."""

    where = "here"

    def __init__(self, fails=lambda call: False):
        self.calls, self.fails = [], fails

    def _take(self, *call):
        if self.fails(call):
            raise ConnectionError("no route\nto host")
        self.calls.append(call)

    def write(self, step, values):
        self._take(step, values)

    def text(self, step, name, text):
        self._take(step, name, text)

    def close(self):
        self._take("close")


def open_sink(folder, service, **options):
    said = []
    note = Note(folder, "wandb")
    note.save()
    return Guarded("wandb", service, note, say=said.append, **options), said


def test_rows_and_texts_arrive_in_their_order(tmp_path):
    service = Service()
    sink, said = open_sink(tmp_path, service)
    with MetricWriter(tmp_path, tensorboard=False, sinks=[sink]) as writer:
        writer.write(0, {"eval/x": 0.5})
        writer.write(1, {"train/x": 1.0})
        writer.text(1, "samples/train", "a text")
        writer.write(1, {"eval/x": 0.25})
    sink.close()
    assert service.calls == [
        (0, {"eval/x": 0.5}),
        (1, {"train/x": 1.0}),
        (1, "samples/train", "a text"),
        (1, {"eval/x": 0.25}),
        ("close",),
    ]
    assert said == []


def test_a_failing_service_is_said_once_counted_and_no_end_of_the_run(tmp_path):
    service = Service(fails=lambda call: call[0] in (2, 3, 4))
    sink, said = open_sink(tmp_path, service)
    with MetricWriter(tmp_path, tensorboard=False, sinks=[sink]) as writer:
        for step in range(1, 7):
            writer.write(step, {"train/x": float(step)})
    sink.close()
    assert [row["step"] for row in read(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [call[0] for call in service.calls] == [1, 5, 6, "close"]
    assert sink.failures == 3 and len(said) == 2
    assert said[0] == (
        "warning: Weights & Biases did not take a row (ConnectionError: no route to host); the run goes on, and "
        "metrics.jsonl has every row"
    )
    assert said[1] == "warning: Weights & Biases did not take 3 rows and texts; metrics.jsonl has every row"


def test_a_service_that_hangs_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "_WAITING", 5)
    go_on = threading.Event()
    service = Service(fails=lambda call: not go_on.wait(60))
    sink, said = open_sink(tmp_path, service, close_seconds=0.05)
    for step in range(20):
        sink.write(step, {"train/x": 1.0})
    sink.close()
    assert sink.failures >= 20 - 6  # one under way, five wait
    assert "answers too slowly" in said[0] and "did not take everything in 0.05 s" in said[-1]
    go_on.set()


def test_a_resumed_run_goes_on_there_and_sends_nothing_twice(tmp_path):
    """Killed after row 5 with a checkpoint of update 3; the service had got neither row 5 nor the text of update 4."""
    first = Service(fails=lambda call: call[0] == 5 or (call[0] == 4 and len(call) == 3))
    sink, _ = open_sink(tmp_path, first)
    with MetricWriter(tmp_path, tensorboard=False, resume_step=-1, sinks=[sink]) as writer:
        for step in range(1, 6):
            writer.write(step, {"train/x": float(step)})
            writer.text(step, "samples/train", f"of {step}")
    sink.close()
    name = json.loads((tmp_path / "wandb.json").read_text())["id"]

    second = Service()
    sink, _ = open_sink(tmp_path, second)
    with MetricWriter(tmp_path, tensorboard=False, resume_step=3, sinks=[sink]) as writer:
        for step in range(4, 8):
            writer.write(step, {"train/x": float(step)})
            writer.text(step, "samples/train", f"of {step}")
    sink.close()
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == name
    sent = [call[:2] for call in first.calls + second.calls if call[0] != "close" and "train/x" in call[1]]
    assert [step for step, _ in sent] == [1, 2, 3, 4, 5, 6, 7]
    texts = [call[0] for call in first.calls + second.calls if len(call) == 3]
    assert texts == [1, 2, 3, 4, 5, 6, 7]


def test_an_owed_evaluation_is_sent_to_a_step_whose_update_is_there(tmp_path):
    first, second = Service(), Service()
    sink, _ = open_sink(tmp_path, first)
    with MetricWriter(tmp_path, tensorboard=False, resume_step=-1, sinks=[sink]) as writer:
        writer.write(3, {"train/x": 3.0})
    sink.close()
    sink, _ = open_sink(tmp_path, second)
    with MetricWriter(tmp_path, tensorboard=False, resume_step=3, sinks=[sink]) as writer:
        writer.write(3, {"eval/x": 0.5})
    sink.close()
    assert [call for call in second.calls if call[0] == 3] == [(3, {"eval/x": 0.5})]


def test_a_service_that_is_switched_on_later_gets_the_rows_before(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"train/x": 1.0})
        writer.write(2, {"train/x": float("nan")})
    service = Service()
    sink, _ = open_sink(tmp_path, service)
    with MetricWriter(tmp_path, tensorboard=False, resume_step=2, sinks=[sink]):
        pass
    sink.close()
    assert [call[0] for call in service.calls] == [1, 2, "close"]
    assert service.calls[1][1]["train/x"] != service.calls[1][1]["train/x"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"id": "a b", "step": 1, "kinds": []}', '{"id": "ab", "step": "x", "kinds": []}', "null"]
)
def test_a_damaged_note_is_a_new_run(tmp_path, text):
    (tmp_path / "wandb.json").write_text(text)
    note = Note(tmp_path, "wandb")
    assert note.is_new and re.fullmatch("[0-9a-f]{8}", note.id) and not note.has(0, "train")


@pytest.mark.parametrize("service", ["wandb", "trackio"])
def test_a_missing_package_is_one_line_that_names_the_extra(service, monkeypatch):
    config = base.get_config()
    config.log[service] = True
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf'log\.{service}=True.*pip install "ibtpo\[{service}\]"'):
        sinks.check_installed(config.log)


def test_the_extras_exist(repo_root):
    import tomllib

    extras = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"tpu", "gpu", "test", "notebook", "wandb", "trackio"} <= set(extras)
    assert all(any(line.startswith(service) for line in extras[service]) for service in sinks.SERVICES)


def test_a_service_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    config = base.get_config()
    config.log.wandb = True
    monkeypatch.setattr(sinks, "check_installed", lambda log: None)
    monkeypatch.setitem(sinks.SERVICES, "wandb", "tests.test_sinks_no_such_module")
    with pytest.raises(UserError, match=r"log\.wandb=True: Weights & Biases cannot be used .*WANDB_MODE=offline"):
        with sinks.opened(config, str(tmp_path)):
            pass


def test_other_hosts_open_nothing(tmp_path):
    config = base.get_config()
    with sinks.opened(config, str(tmp_path)) as opened:
        assert opened == []
    config.log.wandb = True
    with sinks.opened(config, str(tmp_path), active=False) as opened:
        assert opened == []
    assert list(tmp_path.iterdir()) == []


# The real ones. What wandb writes without a network is read back by its own messages.

RUN = """
import os, sys, time
from configs import base
from ibtpo.metrics import MetricWriter, sinks
service, workdir, first, last, resume_step, killed = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
config = base.get_config()
config.log[service], config.log.run_name = True, "a run"
with sinks.opened(config, workdir) as opened, MetricWriter(workdir, False, resume_step=resume_step, sinks=opened) as w:
    for step in range(first, last + 1):
        w.write(step, {"train/x": step / 8, "train/y": float("nan")})
        w.text(step, "samples/train", f"<b>text</b> of {step}")
    if killed:
        while opened[0]._queue.qsize():
            time.sleep(0.01)
        time.sleep(3)  # wandb's own process writes every 0.1 s
        os.kill(os.getpid(), 9)
"""


def train(service, folder, repo_root, environment, *numbers):
    arguments = [sys.executable, "-c", RUN, service, folder, *map(str, numbers)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | environment
    return subprocess.run(arguments, cwd=repo_root, env=environment, capture_output=True, text=True)


def wandb_records(file: pathlib.Path):
    """The records of a file of an offline run: LevelDB's log format behind a header of 7 bytes, and in it wandb's own
    protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = file.read_bytes(), 7, []
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block too small for a header
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if kind == 0:
            break
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def history(file):
    rows = []
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            items = {".".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            rows.append({name: json.loads(value) for name, value in items.items()})
    return rows


def test_an_offline_run_of_wandb_is_read_back(tmp_path, repo_root):
    """Killed with kill -9 after update 5 and resumed from update 3: one run, every update once, and its config; no key,
    no environment, no code, no name of the machine."""
    pytest.importorskip("wandb")
    workdir = tmp_path / "run"
    workdir.mkdir()
    secrets = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "canary00", "MY_SECRET": "a-canary-in-the-environment"}
    environment = {"WANDB_MODE": "offline", **secrets}
    killed = train("wandb", workdir, repo_root, environment, 1, 5, -1, 1)
    assert killed.returncode == -9, killed.stderr
    assert killed.stderr == ""
    [file] = workdir.glob("wandb/offline-run-*/*.wandb")
    assert len(history(file)) == 10
    done = train("wandb", workdir, repo_root, environment, 4, 7, 3, 0)
    assert done.returncode == 0 and done.stderr == "", done.stderr

    files = sorted(workdir.glob("wandb/offline-run-*/*.wandb"))
    rows = [row for file in files for row in history(file)]
    assert [row["update"] for row in rows if "train/x" in row] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["train/x"] for row in rows if "train/x" in row] == [step / 8 for step in range(1, 8)]
    texts = [row for row in rows if any(name.startswith("samples/train") for name in row)]
    assert [row["update"] for row in texts] == [1, 2, 3, 4, 5, 6, 7]
    pages = [path.read_text() for path in workdir.rglob("*.html")]
    assert len(pages) == 7 and all("&lt;b&gt;text&lt;/b&gt; of" in page for page in pages)

    runs = [r.run for file in files for r in wandb_records(file) if r.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {json.loads((workdir / "wandb.json").read_text())["id"]}
    assert {(run.project, run.display_name) for run in runs} == {("ibtpo", "a run")}
    saved = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert saved["train"]["steps"] == 136 and saved["method"] == "ibtpo"
    for path in workdir.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(secret.encode() in data for secret in secrets.values()), path
    for file in files:
        assert socket.gethostname().encode() not in file.read_bytes() and b"os.environ" not in file.read_bytes()
    assert not [path for path in workdir.rglob("*") if path.suffix in (".py", ".patch") or "requirements" in path.name]


def test_a_run_of_trackio_is_read_back(tmp_path, repo_root):
    pytest.importorskip("trackio")
    import sqlite3

    environment = {"TRACKIO_DIR": str(tmp_path / "data"), "HF_HUB_OFFLINE": "1"}
    assert train("trackio", tmp_path, repo_root, environment, 1, 5, -1, 0).returncode == 0
    assert train("trackio", tmp_path, repo_root, environment, 4, 7, 3, 0).returncode == 0
    [file] = (tmp_path / "data").glob("*.db")
    with sqlite3.connect(file) as base_of_runs:
        rows = base_of_runs.execute("select step, metrics, run_name from metrics order by id").fetchall()
    assert [step for step, metrics, _ in rows if b"train/x" in metrics] == [1, 2, 3, 4, 5, 6, 7]
    assert len({name for *_, name in rows}) == 1


