"""The package as others get it: an sdist that is complete, a wheel made from it, and the command from an empty folder.

The environment is empty but for the wheel; the dependencies are those of the interpreter that runs the tests, whose
folder of packages is lent to it. Editable installations lent with them are not followed, so the checkout is not there.
"""

import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

from ibtpo.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def call(command, folder, **options):
    """The finished process; what it prints is text."""
    return subprocess.run(
        [str(part) for part in command], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, **options
    )


def build(kind: str, source: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """The sdist or wheel that setuptools makes of a folder; nothing is fetched."""
    out.mkdir()
    made = call([sys.executable, "-c", BUILD, f"build_{kind}", out], source)
    assert made.returncode == 0, made.stderr
    [file] = out.iterdir()
    return file


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist") / "out")


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.iterdir()
    return source


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory):
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel") / "out")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of commands of an environment with the wheel."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    assert call([sys.executable, "-m", "venv", "--without-pip", place], ROOT).returncode == 0
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text("\n".join({sysconfig.get_path(name) for name in ("purelib", "platlib")}) + "\n")
    python = place / "bin" / "python"
    options = ["--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check"]
    done = call([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], ROOT)
    assert done.returncode == 0, done.stderr
    return place / "bin"


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "--cached"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository: this is no checkout")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def test_the_sdist_has_every_file_of_the_repository(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert len(tracked()) > 400
    assert tracked() - names == set()
    assert [name for name in names if "__pycache__" in name or name.endswith(".pyc")] == []


def test_the_wheel_has_one_top_level_package_and_its_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in inside} == {"ibtpo"}
    folders = ("ibtpo/", "configs/", "assets/qwen3-")
    source = {n for n in tracked() if n.startswith(folders)}
    expected = {name if name.startswith("ibtpo/") else f"ibtpo/{name}" for name in source}
    assert len(expected) > 180 and inside == expected


FROM_ANYWHERE = """
import importlib.util, json, pathlib, ibtpo, sys
from ibtpo import config, packaged
from ibtpo.models.locate import model_folder
print(json.dumps({
    "package": ibtpo.__file__,
    "configs": importlib.util.find_spec("configs") is not None,
    "own": [config.load(name).train.steps for name in ("tiny", "configs/tiny.py", "mine.py", "configs/theirs.py")],
    "name": config.load("qwen7b").model.preset,
    "argument": config.load("theirs.py:grpo").method,
    "model": str(model_folder("assets/qwen3-tiny")),
    "left": [type(finder).__name__ for finder in sys.meta_path if type(finder).__module__.startswith("ibtpo")],
}))
"""


def test_configs_and_model_are_found_from_an_empty_folder(installed, tmp_path):
    """A config file of one's own starts from those of the package, also beside a folder `configs` of one's own."""
    (tmp_path / "mine.py").write_text(
        "from configs import tiny\ndef get_config():\n    c = tiny.get_config()\n    c.train.steps = 7\n    return c\n"
    )
    (tmp_path / "theirs.py").write_text(
        "from configs import base\ndef get_config(method):\n    c = base.get_config()\n    c.method = method\n"
        "    return c\n"
    )
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "shared.py").write_text("STEPS = 11\n")
    (tmp_path / "configs" / "theirs.py").write_text(
        "from configs import shared, tiny\ndef get_config():\n    c = tiny.get_config()\n"
        "    c.train.steps = shared.STEPS\n    return c\n"
    )
    done = call([installed / "python", "-c", FROM_ANYWHERE], tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    package = pathlib.Path(found["package"]).parent
    assert ROOT not in package.parents and installed.parent in package.parents
    assert found["own"] == [30, 30, 7, 11]
    assert found["name"] == "Qwen/Qwen2.5-7B" and found["argument"] == "grpo"
    assert found["model"] == str(package / "assets" / "qwen3-tiny")
    assert found["left"] == []
    (tmp_path / "configs" / "shared.py").unlink()
    (tmp_path / "configs" / "theirs.py").unlink()
    (tmp_path / "configs").rmdir()
    without = call([installed / "python", "-c", "import configs"], tmp_path)
    assert without.returncode == 1 and "No module named 'configs'" in without.stderr


def test_the_command_lists_its_commands_and_names_itself(installed, tmp_path):
    ibtpo = installed / "ibtpo"
    listed = call([ibtpo, "--help"], tmp_path)
    assert listed.returncode == 0 and all(f"  {name} " in listed.stdout for name in COMMANDS)
    wrong = call([ibtpo, "trian"], tmp_path)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr.startswith("error: 'trian' is no command: it is one of train, ")
    assert wrong.stderr.count("\n") == 1
    helped = call([ibtpo, "train", "--help"], tmp_path)
    assert helped.returncode == 0 and "usage: ibtpo train --config=FILE" in helped.stdout
    missing = call([ibtpo, "train", "--config=tny", "--workdir=w"], tmp_path)
    assert missing.returncode == 2 and "did you mean 'tiny'?" in missing.stderr and missing.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demo_trains_evaluates_and_reports_from_an_empty_folder(installed, tmp_path):
    """The installed command alone; the names in the configs lead to the files inside the wheel."""
    ibtpo, small = installed / "ibtpo", ["train.steps=2", "train.questions_per_step=4", "data.limit=64"]
    small += ["eval.questions=4", "eval.samples=2", "data.dir=data", "reward.workers=1", "checkpoint.every=2"]
    options = [f"--config.{change}" for change in small]
    trained = call([ibtpo, "train", "--config=tiny", "--workdir=runs/tiny", *options], tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "learning curve: " in trained.stdout and "2" in trained.stdout
    evaluated = call([ibtpo, "evaluate", "--config=tiny", "--checkpoint=runs/tiny", *options], tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert (tmp_path / "runs" / "tiny" / "evaluation" / "index.html").is_file()
    reported = call([ibtpo, "report", "--workdir=runs/tiny", "--out=curve.png"], tmp_path)
    assert reported.returncode == 0 and (tmp_path / "curve.png").stat().st_size > 1000
