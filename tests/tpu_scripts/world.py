"""A pretended cloud: a stub gcloud, pods whose workers are folders of this machine, and what the scripts did there."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

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
LAUNCH = [*RUN, "--config=c.py"]
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


def exit_code(world, worker: int = 0, run: str = "r") -> str:
    path = world.worker(worker) / "jobs" / run / "exit_code"
    wait_for(path.exists)
    return path.read_text().strip()


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
