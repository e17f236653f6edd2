"""The command line in this process: overrides, flags, and one line for whatever is wrong."""

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from configs import tiny
from ibtpo.config import METHODS, ConfigError, flatten, parse_flags
from tests.config_cases import TINY, parse


@given(st.integers(1, 10**9), st.floats(1e-9, 1e9), st.booleans())
def test_overrides_reach_the_config(steps, rate, tensorboard):
    config = parse(
        f"--config.train.steps={steps}",
        f"--config.optimizer.learning_rate={rate!r}",
        f"--config.log.tensorboard={str(tensorboard).lower()}",
    )
    assert (config.train.steps, config.optimizer.learning_rate, config.log.tensorboard) == (steps, rate, tensorboard)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--config.train.steps", "3"], {"train.steps": 3}),
        (["-config.train.steps=3"], {"train.steps": 3}),
        (["--config.train.steps=3", "--config.train.steps=4"], {"train.steps": 4}),
        (["--config.optimizer.learning_rate=1"], {"optimizer.learning_rate": 1.0}),
        (["--config.optimizer.learning_rate=2e-5"], {"optimizer.learning_rate": 2e-5}),
        (["--config.log.tensorboard"], {"log.tensorboard": True}),
        (["--noconfig.log.tensorboard"], {"log.tensorboard": False}),
        (["--config.loss.whiten_advantages"], {"loss.whiten_advantages": True}),
        (["--config.method=treepo", "--noconfig.loss.whiten_advantages"], {"loss.whiten_advantages": False}),
        (["--config.method=gspo", "--config.loss.kl=0.001"], {"loss.kl": 0.001, "loss.clip_high": 4e-4}),
        (["--config.log.tensorboard=False"], {"log.tensorboard": False}),
        (["--config.mesh.data=-1"], {"mesh.data": -1}),
        (["--config.data.separator=\n"], {"data.separator": "\n"}),
        (["--config.data.prompt=a=b {question}"], {"data.prompt": "a=b {question}"}),
        (["--config.method=grpo"], METHODS["grpo"]),
        (["--config.method=grpo", "--config.tree.initial=12"], METHODS["grpo"] | {"tree.initial": 12}),
    ],
)
def test_forms_of_an_override(arguments, expected):
    config = flatten(parse(*arguments))
    assert {key: config[key] for key in expected} == expected


ERRORS = [
    (["--config.train.stps=3"], ["train.stps", "nearest valid key is train.steps"]),
    (["--config.steps=3"], ["nearest valid key is train.steps"]),
    (["--config.trane.steps=3"], ["nearest valid key is train.steps"]),
    (["--config.train=3"], ["train is a section", "train.steps"]),
    (["--config.train.steps=abc"], ["train.steps", "'abc'", "whole number"]),
    (["--config.train.steps=1.5"], ["train.steps", "'1.5'", "whole number"]),
    (["--config.train.steps"], ["train.steps", "whole number"]),
    (["--config.train.steps="], ["train.steps", "whole number"]),
    (["--noconfig.train.steps"], ["train.steps", "whole number"]),
    (["--config.optimizer.learning_rate=fast"], ["optimizer.learning_rate", "'fast'", "a number"]),
    (["--config.optimizer.learning_rate=nan"], ["optimizer.learning_rate=nan", "above 0"]),
    (["--config.log.tensorboard=maybe"], ["log.tensorboard", "'maybe'", "true or false"]),
    (["--config.tree.strategy=ibb"], ["tree.strategy='ibb'", "did you mean 'ib'?", "entropy"]),
    (["--config.method=grop"], ["method='grop'", "did you mean 'grpo'?"]),
    (["--config.method=drgrpo"], ["method='drgrpo'", "did you mean 'dr_grpo'?"]),
    (["--train.steps=3"], ["did you mean --config.train.steps?"]),
    (["config.train.steps=3"], ["did you mean --config.train.steps=3?"]),
    (["--wrkdir=x"], ["wrkdir", "workdir"]),
    (["something"], ["unexpected argument 'something'"]),
]


@pytest.mark.parametrize("arguments, parts", ERRORS, ids=lambda x: x[0] if len(x) == 1 else "")
def test_one_line_for_a_wrong_command_line(arguments, parts):
    with pytest.raises(ConfigError) as caught:
        parse(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_flags_and_keys_of_the_program_itself():
    values = flags.FlagValues()
    flags.DEFINE_integer("answer", 42, "an option of one command", flag_values=values)
    config, _ = parse_flags(
        ["program", f"--config={TINY}", "--workdir=w", "--answer=7", "--config.train.steps=2"],
        resolve=None,
        flag_values=values,
    )
    assert values.answer == 7 and config.train.steps == 2
    assert config.tree.strategy is None  # not resolved
    # A second command line in the same process starts from the file again.
    config, _ = parse_flags(["program", f"--config={TINY}", "--workdir=w"], resolve=None, flag_values=values)
    assert config.train.steps == tiny.get_config().train.steps


@pytest.mark.parametrize("argument", ["--checkpoint=x", "-checkpoint=x", "--checkpoint", "--fast", "--nofast"])
def test_a_flag_of_another_command_is_refused(argument):
    """Importing a command's module defines its flags for the whole process."""
    values = flags.FlagValues()
    flags.DEFINE_string("checkpoint", None, "of another command", flag_values=values, module_name="ibtpo.evaluate")
    flags.DEFINE_bool("fast", False, "of another command", flag_values=values, module_name="ibtpo.evaluate")
    line = ["program", f"--config={TINY}", "--workdir=w", argument]
    with pytest.raises(ConfigError) as caught:
        parse_flags(line, command="ibtpo.train", flag_values=values)
    message = str(caught.value)
    name = "fast" if "fast" in argument else "checkpoint"
    assert message == f"{argument}: unknown flag: --{name} belongs to ibtpo.evaluate, not to this command"
    line = line[:-1] + ["--checkpoint=x", "--nofast"]
    parse_flags(line, command="ibtpo.evaluate", flag_values=values)
    assert values.checkpoint == "x" and values.fast is False


def test_workdir_is_optional_where_the_program_says_so():
    assert parse_flags(["p", f"--config={TINY}"], needs_workdir=False, flag_values=flags.FlagValues())[1] is None
