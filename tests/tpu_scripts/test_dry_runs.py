"""Dry runs print what the real runs call; docs/tpu.md and gcloud's own parser agree with them."""

import json
import os
import re
import shlex
import shutil
import subprocess

import pytest

from tests.tpu_scripts.world import (
    COMMANDS,
    ROOT,
    SCRIPTS,
    dry_cases,
    parse_dry_run,
)


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
