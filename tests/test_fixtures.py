"""The tests' own fixtures: a checkout without its tiny model fails the tests that need it."""

import pytest

from tests import conftest


@pytest.mark.parametrize("fixture", ["tiny_model_dir", "tiny_tokenizer_dir"])
def test_a_missing_tiny_model_fails(fixture, tmp_path, monkeypatch):
    monkeypatch.setattr(conftest, "ROOT", tmp_path)
    with pytest.raises(pytest.fail.Exception, match=r"qwen3-tiny has no .*tokenizer\.json: check out"):
        getattr(conftest, fixture).__wrapped__()
