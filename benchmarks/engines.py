"""Samplers as processes that read jobs and print results: ours, and peers in environments of their own."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "benchmarks"
# Name: (script, options of its pip install).
PEERS = {
    "transformers": ("transformers_generate.py", []),
    "tunix": ("tunix_sampler.py", ["--no-deps"]),
}


class EngineError(RuntimeError):
    """A process of an engine ended with an error."""


def run_jobs(command: list[str], jobs: list[dict], *, devices: int = 1) -> list[dict]:
    """The results of the jobs, run by one process in their order; with JAX, the cores make `devices` devices."""
    env = os.environ | dict(JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT), TOKENIZERS_PARALLELISM="false")
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    result = subprocess.run(command, input=json.dumps(jobs), env=env, capture_output=True, text=True, timeout=3600)
    if result.returncode:
        raise EngineError("\n".join(result.stderr.splitlines()[-5:]) or f"exit code {result.returncode}")
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines[-len(jobs) :]]


def our_command() -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / "workload.py")]


def peer_python(name: str, pip_options: list[str], log) -> str:
    """The interpreter of a peer's environment; made anew if its requirements have changed or it is not there."""
    requirements = ROOT / "benchmarks" / "peers" / f"requirements-{name}.txt"
    venv = FOLDER / f"venv-{name}"
    python, stamp = venv / "bin" / "python", venv / "installed"
    digest = hashlib.sha256(f"{sys.version}\n{requirements.read_text()}".encode()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != digest:
        log(f"installing {name} in {venv.relative_to(ROOT)}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *pip_options]
        subprocess.run([*install, "-r", str(requirements)], stdout=sys.stderr, check=True)
        stamp.write_text(digest)
    return str(python)


def peer_command(name: str, log) -> list[str]:
    """The command of a peer; installs it if need be."""
    script, pip_options = PEERS[name]
    return [peer_python(name, pip_options, log), str(ROOT / "benchmarks" / "peers" / script)]
