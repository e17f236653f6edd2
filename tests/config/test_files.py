"""A config file that fails is one line with the place; one that takes an argument gets it."""

import pytest

from ibtpo.config import ConfigError
from tests.config_cases import parse


@pytest.mark.parametrize(
    "content, parts",
    [
        (None, ["no such file", "config.py"]),
        ("def get_config(:\n", ["line 1", "SyntaxError"]),
        ("\nimport no_such_module\n", ["line 2", "ModuleNotFoundError", "no_such_module"]),
        ("x = 1\n", ["get_config"]),
        ("def get_config():\n    return None\n", ["returned NoneType"]),
        (
            "from configs import base\ndef get_config():\n    c = base.get_config()\n    c.train.steps = 'a'\n",
            ["line 4", "TypeError", "steps"],
        ),
    ],
)
def test_one_line_for_a_wrong_config_file(tmp_path, content, parts):
    path = tmp_path / "config.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        parse(path=path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_argument_of_a_config_file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from configs import tiny\ndef get_config(method='ibtpo'):\n"
        "    c = tiny.get_config()\n    c.method = method\n    return c\n"
    )
    assert parse(path=path).loss.advantage == "ibtpo"
    assert parse(path=f"{path}:grpo").loss.advantage == "grpo"
