"""Settings and fixtures shared by all tests.

The environment is set before anything imports JAX: tests run on the CPU unless JAX_PLATFORMS says otherwise, and
compiled programs are kept in build/jax_cache so that a second run of the suite compiles almost nothing.
"""

import os
import pathlib
import sys

import pytest
from hypothesis import HealthCheck, settings

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / "build" / "jax_cache"))
# The tests' programs are small and many: keep every one that costs more than a moment to compile.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# PyTorch, the oracle, would have its threads spin on the cores that the other test process needs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# HYPOTHESIS_PROFILE: "fixed" (the default, `make test`) draws the same examples every time, so that a failure is of the
# change at hand; "random" (`make test-slow`) draws new ones; "thorough" many new ones. No deadline: the first example
# of a property often pays for a compilation.
_COMMON = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", max_examples=25, derandomize=True, database=None, **_COMMON)
settings.register_profile("random", max_examples=25, **_COMMON)
settings.register_profile("thorough", max_examples=300, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "fixed")


@pytest.fixture(autouse=True, scope="module")
def no_mesh_is_left():
    """A program sets its mesh for the rest of its life; the next file of tests begins without one."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].set_mesh(None)


@pytest.fixture(scope="session")
def repo_root() -> pathlib.Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium (`tests.chromium`); the test is skipped without it."""
    from tests.chromium import Browser

    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of the real problem sets, ../shared/data beside the checkout; the test is skipped without it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"real problem sets not found: no folder {path}")
    return path


@pytest.fixture(scope="session")
def tiny_model_dir() -> pathlib.Path:
    """The tiny base model (weights, config and tokenizer in the Hugging Face layout), assets/qwen3-tiny. It is part of
    the checkout: tests fail without it."""
    return _with(ROOT / "assets" / "qwen3-tiny", "config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture(scope="session")
def tiny_tokenizer_dir() -> pathlib.Path:
    """The folder of the tiny model when only its tokenizer is needed."""
    return _with(ROOT / "assets" / "qwen3-tiny", "tokenizer.json")


def _with(folder: pathlib.Path, *names: str) -> pathlib.Path:
    """The folder; the test fails if a file of these names is missing in it."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        pytest.fail(f"{folder} has no {', '.join(missing)}: check out the whole repository", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_model_dir, repo_root):
    """Makes configs/tiny.py with sizes for a test; keyword arguments are dotted keys with "__" for "."."""
    from configs import tiny
    from ibtpo import config as config_lib

    def make(**changes):
        config = tiny.get_config()
        small = {
            "model.path": str(tiny_model_dir),
            "data.dir": str(repo_root / "build" / "tfds"),
            "data.limit": 64,
            "tree.initial": 3,
            "tree.rounds": 3,
            "sampling.max_new_tokens": 48,
            "sampling.slots": 3,  # two widths of the decode batch, one program each
            "sampling.questions_in_flight": 4,
            "train.steps": 4,
            "train.questions_per_step": 4,
            "train.row_tokens": 320,  # holds the largest tree: one program each of training's
            "train.rows_per_step": 2,
            "eval.every": 0,
            "eval.questions": 6,
            "eval.samples": 2,
            "checkpoint.every": 2,
            "log.tensorboard": False,
            "reward.workers": 1,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        for key, value in small.items():
            section, name = key.rsplit(".", 1) if "." in key else ("", key)
            target = config[section] if section else config
            with target.unlocked():
                target[name] = value
        return config_lib.resolve(config)

    return make
