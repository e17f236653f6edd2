"""Fixtures of the tests of data."""

import json

import pytest
from ml_collections import ConfigDict

from configs import base


@pytest.fixture
def data_config(tmp_path):
    """Makes the `data` section of configs/base.py with prepared data in a folder of the test, and changes."""

    def make(**changes) -> ConfigDict:
        config = base.get_config().data
        config.update(dir=str(tmp_path / "tfds"), **changes)
        return config

    return make


@pytest.fixture(scope="session")
def read_questions(shared_data):
    """Reads the questions of a file of real problems, with nothing of ibtpo."""

    def read(name: str) -> list[str]:
        records = [json.loads(line) for line in (shared_data / name).read_bytes().splitlines()]
        return [record.get("problem") or record["question"] for record in records]

    return read
