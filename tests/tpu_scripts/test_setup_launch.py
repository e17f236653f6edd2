"""setup.sh, launch.sh, worker.sh and fetch.sh in whole runs on pretended workers."""

import json
import os
import re
import signal
import subprocess
import tarfile

from tests.tpu_scripts.world import (
    LAUNCH,
    POD,
    RUN,
    exit_code,
    wait_for,
)


def test_setup_installs_code_model_and_data_on_every_worker(world):
    (world.checkout / "problems").mkdir()
    (world.checkout / "problems" / "train.jsonl").write_text("{}")
    (world.checkout / "untracked.py").write_text("")
    world.write("execute", "")
    world.commit()
    (world.checkout / "later.py").write_text("")
    for worker in (0, 1):  # of an earlier setup: a file that is gone from the code, and things to keep
        (world.worker(worker) / "models").mkdir(parents=True)
        (world.worker(worker) / "stale.py").write_text("")
        (world.worker(worker) / "models" / "kept").write_text("")
    out = world("setup", *RUN, "--topology=v5e:2x4", "--model=Org/M", "--data=problems", HF_TOKEN="secret").stdout
    for worker in (0, 1):
        home = world.worker(worker)
        assert {p.name for p in home.iterdir()} >= {"tpu_scripts", ".venv", "models", "data", "untracked.py"}
        assert not (home / "stale.py").exists() and not (home / "later.py").exists()
        assert (home / "models" / "kept").exists() and (home / "data" / "train.jsonl").exists()
        assert (home / "models" / "M" / "downloaded").read_text() == (
            "download Org/M --local-dir models/M --exclude original/* token=\n"
        )
        assert f"worker {worker}: 8 chips, 4 of them here" in out


def test_setup_keeps_the_token_out_of_sight(world):
    """It travels as a file of mode 600 and is in no command; both copies are gone afterwards."""
    world.commit()
    world.write("execute", "")
    home = world.path / "workers" / "0"
    home.mkdir(parents=True)
    (home / ".ibtpo_hf_token").write_text("secret")  # where scp puts it; the stub's scp only records
    result = world("setup", *RUN, "--model=Org/M", HF_TOKEN="secret")
    assert "secret" not in result.stdout + result.stderr + json.dumps(world.calls)
    assert (world.path / "copied").read_text() == "secret" and (world.path / "copied_mode").read_text() == "0o600"
    assert "token=secret" in (world.worker() / "models" / "M" / "downloaded").read_text()
    assert not (home / ".ibtpo_hf_token").exists()
    assert not list(world.checkout.glob("build/**/hf_token"))


def test_setup_refuses_uncommitted_changes_and_archives_the_commit(world):
    world.commit()
    (world.checkout / "requirements-tpu.txt").write_text("changed")
    assert "uncommitted changes" in world("setup", *RUN, code=1).stderr
    assert world.calls == []
    world("setup", *RUN, "--allow-dirty")
    with tarfile.open(world.path / "gs/b/r/code.tar.gz") as tar:
        assert tar.extractfile("requirements-tpu.txt").read() == b""


def test_setup_reports_missing_chips_and_missing_data(world):
    world.commit()
    world.write("execute", "")
    world.write("chips", "4")
    result = world("setup", *RUN, "--topology=v5e:2x4", code=1)
    assert "JAX sees 4 chips, the topology has 8" in result.stderr
    assert "--data=nowhere: no such folder" in world("setup", *RUN, "--data=nowhere", code=2).stderr


def test_setup_leaves_a_busy_pod_alone(pod):
    pod.write("train", "sleep 60")
    pod("launch", *LAUNCH)
    (pod.worker() / "marker").write_text("")
    assert "run r is running here" in pod("setup", *RUN, code=1).stderr
    assert (pod.worker() / "marker").exists()
    pod("launch", *RUN, "--stop")


def test_launch_starts_the_same_command_on_every_worker(pod):
    pod.write("train", 'printf "<%s>" "$@"; echo to stderr >&2; echo platform=$JAX_PLATFORMS')
    pod("launch", *LAUNCH, "--model=Org/M", "--", "--config.x=a 'b' $c")
    train = ["-m", "ibtpo.train", "--config=c.py", "--workdir=runs/r", "--config.checkpoint.dir=gs://b/r/checkpoints"]
    expected = "".join(f"<{a}>" for a in [*train, "--config.model.path=models/M", "--config.x=a 'b' $c"])
    for worker in (0, 1):
        assert exit_code(pod, worker) == "0"
        log = (pod.worker(worker) / "jobs/r/train.log").read_text()
        assert expected in log and "to stderr" in log and "platform=tpu,cpu" in log
        assert f"worker {worker}: ended with exit code 0" in log
        names = [p.name for p in (pod.path / "gs/b/r/logs").iterdir()]
        assert sum(re.fullmatch(rf"worker-{worker}-\d{{8}}T\d{{6}}Z\.log", name) is not None for name in names) == 1


def test_a_second_start_is_refused_and_the_first_goes_on(pod):
    pod.write("train", "sleep 60")
    pod("launch", *LAUNCH)
    pids = [(pod.worker(w) / "jobs/r/pid").read_text() for w in (0, 1)]
    assert "run r is running here" in pod("launch", *LAUNCH, code=1).stderr
    # Another run too: the chips are taken.
    other = [*POD, "--bucket=b", "--run=other", "--config=c.py"]
    assert "run r is running here" in pod("launch", *other, code=1).stderr
    # And on the worker itself, should two launches race.
    flags = ["--run=r", "--remote=gs://b/r", "--", "true"]
    env = pod.env | {"IBTPO_WORKER": "0"}
    direct = subprocess.run(["bash", str(pod.worker() / "tpu_scripts/worker.sh"), "start", *flags], env=env)
    assert direct.returncode == 3
    status = pod("launch", *RUN, "--status").stdout.splitlines()
    for worker in (0, 1):
        assert status[worker].startswith(f"worker={worker} state=running pid={pids[worker].strip()} exit=- step=- ")
    assert "run r is stopped" in pod("launch", *RUN, "--stop").stdout
    assert exit_code(pod) == "143"
    assert "is not running" in pod("launch", *RUN, "--stop").stdout


def test_stop_ends_a_job_that_ignores_the_signal(pod):
    pod.write("train", "trap '' TERM; echo ready; while :; do sleep 0.2; done")
    pod.env["IBTPO_STOP_SECONDS"] = "1"
    pod("launch", *LAUNCH)
    wait_for(lambda: "ready" in (pod.worker() / "jobs/r/train.log").read_text())
    pod("launch", *RUN, "--stop")
    assert exit_code(pod) == "137"
    assert "state=exited pid=- exit=137" in pod("launch", *RUN, "--status").stdout


def test_a_crash_leaves_its_code_and_follow_passes_it_on(pod):
    pod.write("train", "echo working; sleep 1; exit 7")
    result = pod("launch", *LAUNCH, "--follow", code=7)
    assert "working" in result.stdout
    assert "working" in pod("launch", *RUN, "--log", code=7).stdout
    assert exit_code(pod, 1) == "7"
    assert pod.verbs()[-1] == "ssh 0 log"


def test_worker_zero_copies_the_workdir_while_running_and_at_the_end(pod):
    row = """printf '{"step": %s, "train/loss": 1}\\n' """
    pod.write(
        "train",
        f"mkdir -p runs/r/checkpoints/1; echo x > runs/r/checkpoints/1/x; {row} 1 >> runs/r/metrics.jsonl;"
        f"while [ ! -e ../go ]; do sleep 0.05; done; {row} 2 >> runs/r/metrics.jsonl; exit 4",
    )
    pod("launch", *LAUNCH)
    bucket = pod.path / "gs/b/r/workdir"
    wait_for(lambda: (bucket / "metrics.jsonl").exists())
    wait_for(lambda: "step=1 sync=ok" in pod("launch", *RUN, "--status").stdout)
    for worker in (0, 1):
        (pod.worker(worker).parent / "go").write_text("")
    assert exit_code(pod) == "4"
    assert (bucket / "metrics.jsonl").read_text().count("\n") == 2
    assert not (bucket / "checkpoints").exists()
    assert "state=exited pid=- exit=4 step=2 sync=ok" in pod("launch", *RUN, "--status").stdout


def test_a_failed_copy_is_reported(pod):
    pod.write("train", "sleep 0.5")
    pod("launch", *LAUNCH)
    pod.write("refuse", "storage rsync")
    assert exit_code(pod) == "0"
    assert "sync=failed" in pod("launch", *RUN, "--status").stdout
    assert "copying to gs://b/r failed (try 3 of 3)" in (pod.worker() / "jobs/r/train.log").read_text()


def test_the_workdir_is_restored_on_every_worker_before_the_start(pod):
    (pod.path / "gs/b/r/workdir").mkdir(parents=True)
    (pod.path / "gs/b/r/workdir/config.json").write_text("restored")
    pod.write("train", "cat runs/r/config.json")
    pod("launch", *LAUNCH)
    for worker in (0, 1):
        assert exit_code(pod, worker) == "0"
        assert "restored" in (pod.worker(worker) / "jobs/r/train.log").read_text()


def test_an_unreadable_bucket_stops_the_start_everywhere(pod):
    pod.write("refuse", "storage ls")
    pod.write("train", "sleep 60")
    result = pod("launch", *LAUNCH, code=1)
    assert "gs://b/r cannot be read" in result.stderr and "did not start on every worker" in result.stderr
    assert pod.verbs() == ["ssh all idle", "ssh all start", "storage ls", "storage ls", "ssh all stop"]


def test_a_worker_that_restarted_under_the_job_is_lost(pod):
    pod.write("train", "sleep 60")
    pod("launch", *LAUNCH)
    os.killpg(int((pod.worker(1) / "jobs/r/pid").read_text()), signal.SIGKILL)
    wait_for(lambda: "worker=1 state=lost" in pod("launch", *RUN, "--status").stdout)


def test_fetch_makes_a_local_workdir(pod):
    pod.write("train", "echo hello; echo '{\"step\": 1}' > runs/r/metrics.jsonl")
    pod("launch", *LAUNCH)
    assert exit_code(pod, 0) + exit_code(pod, 1) == "00"
    pod("fetch", *RUN, "--workers")
    run = pod.checkout / "runs/r"
    assert (run / "metrics.jsonl").exists() and len(list((run / "logs").glob("worker-*.log"))) == 2
    assert all("hello" in (run / f"logs/now/{worker}.log").read_text() for worker in (0, 1))


def test_fetch_of_an_unknown_run_says_so(world):
    assert "has the run written anything yet" in world("fetch", "--bucket=b", "--run=r", code=1).stderr
