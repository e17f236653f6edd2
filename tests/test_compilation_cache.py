"""Where compiled programs are kept: the config's folder, unless the environment names one."""

import os

import jax
import pytest
from ml_collections import ConfigDict

from ibtpo.compilation_cache import VARIABLE, enable_compilation_cache


@pytest.fixture
def folder(monkeypatch):
    """Reads JAX's folder; it is put back afterwards."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", "before")
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    "environment, path, expected",
    [
        (None, "~/cache", os.path.expanduser("~/cache")),
        (None, "gs://bucket/cache", "gs://bucket/cache"),
        (None, "", "before"),
        ("/mine", "~/cache", "before"),  # JAX has read the variable itself
        ("", "~/cache", "before"),
    ],
)
def test_the_folder(folder, monkeypatch, environment, path, expected):
    monkeypatch.delenv(VARIABLE, raising=False)
    if environment is not None:
        monkeypatch.setenv(VARIABLE, environment)
    enable_compilation_cache(ConfigDict({"compilation_cache": path}))
    assert folder() == expected
