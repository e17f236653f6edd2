import copy
import itertools
import json
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import base, tiny
from ibtpo import config as config_lib
from ibtpo.config import METHODS, RULES, ConfigError, diff, flatten, load, parse_flags, resolve, save, unflatten

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = str(ROOT / "configs" / "tiny.py")

PROGRAM = """'''A program.'''
import json, sys
from ibtpo import config as config_lib
def main(config, workdir):
    if config.train.seed == 13:
        raise config_lib.ConfigError("found by the program")
    print(json.dumps({"config": config_lib.flatten(config), "workdir": workdir, "jax": "jax" in sys.modules}))
config_lib.run(main)
"""


def command(*arguments, cwd=ROOT, program=PROGRAM):
    """A program run as a user runs it; `python -c` puts the current directory on the path as `python -m` does."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def parse(*arguments, path=TINY):
    """parse_flags in this process, with flags of its own."""
    argv = ["program", f"--config={path}", "--workdir=w", *arguments]
    return parse_flags(argv, flag_values=flags.FlagValues())[0]


def runnable(**changes):
    """base.py with the two keys it leaves to the user, and changes {"section__key": value}."""
    config = base.get_config()
    config.model.path, config.data.source = "model", "jsonl:problems.jsonl"
    return unflatten(flatten(config) | {key.replace("__", "."): value for key, value in changes.items()})


# --- what the files say ---------------------------------------------------------------------------------------------


def test_every_key_has_a_rule_and_every_rule_a_key():
    assert set(flatten(base.get_config())) == set(RULES)
    assert set(flatten(tiny.get_config())) == set(RULES)


def test_names_are_those_of_the_code():
    """The command line knows the names without importing JAX; the modules that own them agree."""
    from ibtpo import advantages, optimizer, packing
    from ibtpo.data import arithmetic
    from ibtpo.sampling import strategies

    assert set(RULES["loss.advantage"].choices) == set(advantages.ADVANTAGES)
    assert set(RULES["tree.strategy"].choices) == set(strategies.STRATEGIES)
    assert set(RULES["loss.aggregation"].choices) == set(packing.AGGREGATIONS)
    assert set(RULES["optimizer.schedule"].choices) == set(optimizer.SCHEDULES)
    assert set(RULES["data.difficulty"].choices) == set(arithmetic.DIFFICULTIES)


@pytest.mark.parametrize("name", ["base.py", "tiny.py"])
def test_every_value_is_commented(name):
    """Each assignment of a value has a comment on its line or right above."""
    lines = (ROOT / "configs" / name).read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if re.match(r"    \w+(\.\w+)+ = ", line) and "ConfigDict()" not in line:
            assert "  # " in line or above.strip().startswith("#"), line


def test_values_of_the_paper():
    config = resolve(runnable())
    tree, sampling = config.tree, config.sampling
    assert (tree.strategy, tree.initial, tree.rounds, tree.top_k, tree.branch) == ("ib", 4, 9, 1, 1)
    assert config_lib.responses_per_question(tree) == 12
    assert (tree.beta, config.loss.ib_weight, config.loss.kl) == (5.0, 0.1, 0.001)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (0.7, 0.95, 20, 2048)
    assert config.optimizer.learning_rate == 1e-6


# --- resolve --------------------------------------------------------------------------------------------------------


@given(
    method=st.sampled_from(sorted(METHODS)),
    explicit=st.fixed_dictionaries(
        {},
        optional={
            "tree.strategy": st.sampled_from(RULES["tree.strategy"].choices),
            "tree.initial": st.integers(2, 9),
            "tree.rounds": st.integers(1, 9),
            "tree.top_k": st.integers(1, 4),
            "loss.advantage": st.sampled_from(RULES["loss.advantage"].choices),
            "loss.clip_high": st.sampled_from([0.2, 0.3]),
            "loss.kl": st.sampled_from([0.0, 0.001, 0.1]),
            "loss.aggregation": st.sampled_from(RULES["loss.aggregation"].choices),
            "loss.whiten_advantages": st.booleans(),
            "train.refills": st.integers(0, 2),
        },
    ),
)
def test_method_fills_what_is_open_and_explicit_values_win(method, explicit):
    config = unflatten(flatten(runnable()) | {"method": method} | explicit)
    before = copy.deepcopy(flatten(config))
    resolved = flatten(resolve(config))
    assert flatten(config) == before  # the argument is left alone
    assert {key: resolved[key] for key in METHODS[method]} == METHODS[method] | explicit
    unchanged = set(RULES) - set(METHODS[method]) - {"method"}
    assert {k: resolved[k] for k in unchanged} == {k: before[k] for k in unchanged}
    assert flatten(resolve(unflatten(resolved))) == resolved  # idempotent


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fills_what_is_open_and_nothing_else(method):
    open_keys = {key for key, value in flatten(base.get_config()).items() if value is None}
    assert set(METHODS[method]) == open_keys
    # The same keys are open in the demo, which has sizes for all of them.
    config = resolve(unflatten(flatten(tiny.get_config()) | {"method": method}))
    assert {key: flatten(config)[key] for key in open_keys} == METHODS[method]


# Where a method says nothing.
USUAL = {
    "loss.objective": "clip",
    "loss.clip_low": 0.2,
    "loss.clip_high": 0.2,
    "loss.kl": 0.001,
    "loss.aggregation": "response_mean",
    "loss.max_old_probability": 1.0,
    "loss.entropy_advantage": 0.0,
    "loss.whiten_advantages": False,
    "reward.overlong_share": 0.0,
    "train.refills": 0,
}
# What each method says of itself, beside its advantage and the branching of its trees.
STATED = {
    "ibtpo": ("ib", "ibtpo", {}),
    "grpo": ("independent", "grpo", {}),
    "dr_grpo": ("independent", "dr_grpo", {"loss.aggregation": "fixed_length"}),
    "dapo": (
        "independent",
        "grpo",
        {
            "loss.clip_high": 0.28,
            "loss.aggregation": "token_mean",
            "loss.kl": 0.0,
            "reward.overlong_share": 512 / 2048,
            "train.refills": 9,
        },
    ),
    "rloo": ("independent", "rloo", {}),
    "gspo": (
        "independent",
        "grpo",
        {"loss.objective": "gspo", "loss.clip_low": 3e-4, "loss.clip_high": 4e-4, "loss.kl": 0.0},
    ),
    "cispo": ("independent", "grpo", {"loss.objective": "cispo", "loss.aggregation": "token_mean"}),
    "sapo": ("independent", "grpo", {"loss.objective": "sapo"}),
    "ibro": ("independent", "grpo", {"loss.entropy_advantage": 5e-3}),
    "treerl": ("entropy", "treerl", {}),
    "treepo": (
        "fixed_width",
        "treepo",
        {
            "loss.clip_high": 0.28,
            "loss.aggregation": "token_mean",
            "loss.kl": 0.0,
            "loss.whiten_advantages": True,
        },
    ),
    "tree_grpo": ("random", "tree_grpo", {}),
    "spo_tree": ("fixed_width", "spo_tree", {"loss.max_old_probability": 0.9}),
    "treerpo": ("fixed_width", "treerpo", {}),
}


def test_methods_are_as_stated():
    assert set(STATED) == set(METHODS)
    for method, (strategy, advantage, settings) in STATED.items():
        config = resolve(runnable(method=method))
        assert (config.tree.strategy, config.loss.advantage) == (strategy, advantage)
        assert config_lib.responses_per_question(config.tree) == (8 if strategy == "independent" else 12)
        chosen = {key: flatten(config)[key] for key in METHODS["ibtpo"] if not key.startswith("tree.")}
        assert chosen == USUAL | {"loss.advantage": advantage} | settings
        assert config.loss.mask_uniform_groups and config.reward.overlong_penalty == 1.0


def test_the_comments_of_open_keys_name_the_methods_values():
    """What base.py says of a placeholder is what the methods fill in."""
    lines = (ROOT / "configs" / "base.py").read_text().splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"    (\w+\.\w+) = config_dict\.placeholder\(float\)", line)
        if match:
            start = number
            while lines[start - 1].strip().startswith("#"):
                start -= 1
            text = " ".join(lines[start : number + 1])
            values = {preset[match[1]] for preset in METHODS.values()}
            numbers = {float(x) for x in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)}
            assert values <= numbers, (match[1], values, numbers)


def test_resolved_config_is_locked():
    config = resolve(runnable())
    with pytest.raises((KeyError, AttributeError)):
        config.train.stps = 3


VALID = flatten(resolve(runnable()))
WRONG = {
    bool: [1, 0.5, "true", None],
    int: [True, 1.0, 1.5, "3", None, -2],
    float: [True, "0.5", None, float("nan"), float("inf"), -1.0],
    str: [True, 3, None],
}


@pytest.mark.parametrize("key", sorted(RULES))
def test_a_wrong_type_is_named(key):
    for value in WRONG[RULES[key].type]:
        if value is None and key in METHODS["ibtpo"]:
            continue  # None means "what the method says" there
        with pytest.raises(ConfigError) as caught:
            resolve(unflatten(VALID | {key: value}))
        message = str(caught.value)
        assert message.startswith(f"{key}={value!r} must be ") and "\n" not in message


@pytest.mark.parametrize("key", sorted(k for k, rule in RULES.items() if rule.choices))
def test_an_unknown_name_leads_to_the_nearest(key):
    for choice in RULES[key].choices:
        with pytest.raises(ConfigError, match=re.escape(f"did you mean {choice!r}?")):
            resolve(unflatten(VALID | {key: choice + "x"}))


WHOLE = {
    key: next((x for x in (1, 2, 0) if rule.test(float(x))), None) for key, rule in RULES.items() if rule.type is float
}


@pytest.mark.parametrize("key", sorted(key for key, value in WHOLE.items() if value is not None))
def test_float_keys_take_whole_numbers(key):
    resolved = flatten(resolve(unflatten(VALID | {key: WHOLE[key]})))[key]
    assert resolved == WHOLE[key] and type(resolved) is float


@pytest.mark.parametrize(
    "changes, key, hint",
    [
        (dict(tree__initial=1, tree__rounds=1), "tree.initial=1", "2 or more"),
        (dict(tree__min_new_tokens=4096), "tree.min_new_tokens=4096", "lower it"),
        (dict(tree__strategy="fixed_width", tree__segment_tokens=4096), "tree.segment_tokens=4096", "lower it"),
        (dict(optimizer__warmup_steps=200), "optimizer.warmup_steps=200", "136 or less"),
        (dict(loss__dual_clip=3.0, loss__objective="sapo"), "loss.dual_clip=3.0", "set it to 0"),
        (dict(loss__objective="gspo", loss__importance_cap=2.0), "loss.importance_cap=2.0", "set both to 0"),
        (dict(train__minibatches=129), "train.minibatches=129", "at least"),
        (dict(sampling__page_size=48), "sampling.page_size=48", "power of two"),
        (dict(sampling__pages=3), "sampling.pages=3", "at least 48"),
        (dict(train__row_tokens=2048), "train.row_tokens=2048", "at least 3072"),
        (dict(mesh__data=-1, mesh__fsdp=-1), "mesh.data=-1", "only one axis"),
        (dict(mesh__data=3), "sampling.slots=256", "e.g. 258"),
        (dict(mesh__data=16), "train.rows_per_step=8", "e.g. 16"),
        (dict(mesh__tensor=0), "mesh.tensor=0", "at least 1"),
        (dict(sampling__temperature=0.0), "sampling.temperature=0.0", "above 0"),
        (dict(sampling__top_p=0.0), "sampling.top_p=0.0", "above 0 and at most 1"),
        (dict(sampling__top_p=1.5), "sampling.top_p=1.5", "above 0 and at most 1"),
        (dict(loss__dual_clip=0.5), "loss.dual_clip=0.5", "above 1"),
        (dict(loss__importance_cap=-1.0), "loss.importance_cap=-1.0", "at least 0"),
        (dict(loss__max_old_probability=0.0), "loss.max_old_probability=0.0", "above 0 and at most 1"),
        (dict(reward__overlong_share=1.5), "reward.overlong_share=1.5", "from 0 to 1"),
        (dict(reward__terms="format"), "reward.terms='format'", "of format, length"),
        (dict(reward__terms="formal:0.1"), "reward.terms='formal:0.1'", "of format, length"),
        (dict(reward__terms="length:1,length:1"), "reward.terms=", '"format:0.1,length:-0.05"'),
        (dict(reward__terms="length:nan"), "reward.terms='length:nan'", "for none"),
        (dict(sampling__stop_strings="</answer>"), "sampling.stop_strings=", "a JSON list of texts"),
        (dict(sampling__stop_strings='["a", ""]'), "sampling.stop_strings=", "a JSON list of texts"),
        (dict(data__prompt="no place"), "data.prompt='no place'", "{question}"),
        (dict(data__prompt="{question} {other}"), "data.prompt=", "doubled"),
        (dict(data__answer_pattern="#### .*"), "data.answer_pattern='#### .*'", "exactly one group"),
        (dict(data__answer_pattern="(("), "data.answer_pattern='(('", "exactly one group"),
        (dict(data__source="tfds:gsm8"), "data.source='tfds:gsm8'", "did you mean 'tfds:gsm8k'?"),
        (dict(data__source="gsm8k"), "data.source='gsm8k'", "jsonl:<path>"),
        (dict(data__source="parquet:"), "data.source='parquet:'", "parquet:<path>"),
        (
            dict(data__decontaminate="math_500,math500"),
            "data.decontaminate=",
            "jsonl:<path>, parquet:<path> or one of gsm8k",
        ),
        (dict(data__decontaminate="gsm8k,"), "data.decontaminate='gsm8k,'", "separated by commas"),
        (dict(data__decontaminate="dapo_math_17k"), "data.decontaminate=", "one of gsm8k"),
        (dict(model__path=""), "model.path=''", "Hugging Face"),
    ],
)
def test_impossible_values(changes, key, hint):
    with pytest.raises(ConfigError) as caught:
        resolve(runnable(**changes))
    message = str(caught.value)
    assert key in message and hint in message and "\n" not in message


def test_rows_need_hold_a_response_in_training_only():
    """Of all limits: a benchmark's prompts may be longer than those that the rows were made for."""
    config = runnable(train__row_tokens=2048)
    assert resolve(config, training=False).train.row_tokens == 2048
    config.sampling.pages = 3
    with pytest.raises(ConfigError, match=r"sampling\.pages=3"):
        resolve(config, training=False)


def test_unknown_and_missing_keys_of_a_config_file():
    config = runnable()
    config.train.stps = 3
    with pytest.raises(ConfigError, match=r"unknown key train\.stps=3: the nearest valid key is train\.steps"):
        resolve(config)
    config = runnable()
    del config.train.seed
    with pytest.raises(ConfigError, match=r"missing key train\.seed"):
        resolve(config)


# --- command line ---------------------------------------------------------------------------------------------------


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


def test_workdir_is_optional_where_the_program_says_so():
    assert parse_flags(["p", f"--config={TINY}"], needs_workdir=False, flag_values=flags.FlagValues())[1] is None


def test_program_from_another_directory(tmp_path):
    """Absolute paths work from anywhere, the order of arguments is free, and nothing heavy is imported."""
    result = command("--config.train.steps=3", "--config", TINY, f"--workdir={tmp_path}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout)
    assert output["workdir"] == str(tmp_path) and output["config"]["train.steps"] == 3
    assert not output["jax"]


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--workdir=w"], "--config is missing"),
        ([f"--config={TINY}"], "--workdir is missing"),
        ([f"--config={TINY}", "--workdir=w", "--config.train.stps=3"], "train.steps"),
        ([f"--config={TINY}", "--workdir=w", "--config.train.seed=13"], "found by the program"),
    ],
)
def test_program_stops_with_one_line_and_code_2(arguments, part):
    result = command(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(r"error: .*\n", result.stderr) and part in result.stderr


def test_program_help():
    result = command("--help", f"--config={TINY}")
    assert result.returncode == 0
    assert result.stdout.startswith("A program.") and "--config.train.steps=" in result.stdout


# --- the configuration on disk --------------------------------------------------------------------------------------


def test_saved_config_is_a_config_file(tmp_path):
    """Saved, loaded and resolved again, a configuration is the same, types included."""
    config = resolve(tiny.get_config())
    save(config, str(tmp_path))
    again = parse(path=tmp_path / "config.json")
    assert flatten(again) == flatten(config)
    assert {k: type(v) for k, v in flatten(again).items()} == {k: type(v) for k, v in flatten(config).items()}


def changed(key):
    value = VALID[key]
    if isinstance(value, bool):
        return not value
    return value * 2 if isinstance(value, int | float) and value else "other" if isinstance(value, str) else 1


@pytest.mark.parametrize("key", sorted(RULES))
def test_resume_accepts_exactly_the_keys_that_do_not_change_the_run(tmp_path, key):
    old, new = unflatten(VALID), unflatten(VALID | {key: changed(key)})
    save(old, str(tmp_path))
    if key == "train.steps" or key.split(".")[0] in ("log", "eval", "checkpoint"):
        save(new, str(tmp_path))
        assert flatten(load(str(tmp_path / "config.json")))[key] == changed(key)
    else:
        with pytest.raises(ConfigError) as caught:
            save(new, str(tmp_path))
        message = str(caught.value)
        assert f"({key}: {VALID[key]!r} -> {changed(key)!r})" in message
        assert "new --workdir" in message and "\n" not in message
        assert flatten(load(str(tmp_path / "config.json"))) == VALID  # the old one is kept


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_ends_with_the_run_fixes_its_length(schedule):
    old = VALID | {"optimizer.schedule": schedule}
    assert diff(old, old | {"train.steps": changed("train.steps")}) == {
        "train.steps": (VALID["train.steps"], changed("train.steps"))
    }


def test_diff_lists_keys_that_one_side_lacks():
    old, new = ConfigDict({"a": 1, "b": {"c": 2}}), ConfigDict({"a": 1, "b": {"d": 3}})
    assert diff(old, new) == {"b.d": (None, 3), "b.c": (2, None)}


def test_save_on_other_hosts_only_checks(tmp_path):
    save(resolve(tiny.get_config()), str(tmp_path / "new"), write=False)
    assert not (tmp_path / "new").exists()
