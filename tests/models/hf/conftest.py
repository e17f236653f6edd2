"""Fixtures of the tests of import and export."""

import pytest

from tests.models.reference import make_reference


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint"
    make_reference("qwen3", tied=True).save_pretrained(path)
    return path
