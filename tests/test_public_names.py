"""The names that `ibtpo` itself offers."""

import importlib
import subprocess
import sys

import pytest

import ibtpo


@pytest.mark.parametrize("name", [name for name in ibtpo.__all__ if name not in ("__version__", "ib_score")])
def test_every_public_name_is_that_of_its_module(name):
    found = getattr(ibtpo, name)
    assert found is getattr(importlib.import_module(ibtpo._MODULE_OF[name]), name)
    assert found.__doc__ and name in dir(ibtpo)


def test_ib_score_is_the_module_whoever_imports_it_first():
    assert ibtpo.ib_score is importlib.import_module("ibtpo.ib_score")
    assert callable(ibtpo.ib_score.ib_score)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'tree_sampler'"):
        ibtpo.tree_sampler  # noqa: B018
    with pytest.raises(ImportError):
        from ibtpo import tree_sampler  # noqa: F401


def test_importing_the_package_loads_neither_jax_nor_numpy():
    code = "import ibtpo, sys; assert ibtpo.__version__; sys.exit(bool({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
