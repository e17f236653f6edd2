"""From a config file and a command line to one checked, complete and locked configuration.

    python -m ibtpo.train --config=configs/tiny.py --workdir=runs/tiny --config.train.steps=3

A method is a named set of values for the keys that the config left open (`METHODS`); an explicit value wins. Whatever
is wrong with a configuration is said before anything heavy is imported, in one line, with exit code 2.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from ibtpo.data.published import BENCHMARKS, DATASETS
from ibtpo.models.presets import PRESETS
from ibtpo.rewards import REWARDS
from ibtpo.rewards.terms import TERMS, parse_terms

# What every method is where it says nothing else: the paper's loss.
_SHARED: dict[str, Any] = {
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
# Eight independent responses; GRPO.
_FLAT = _SHARED | {
    "tree.strategy": "independent",
    "tree.initial": 8,
    "tree.rounds": 1,
    "tree.top_k": 1,
    "tree.branch": 1,
    "loss.advantage": "grpo",
}
# Twelve responses, as many as IB-TPO's, in three rounds.
_TREE = _SHARED | {"tree.initial": 4, "tree.rounds": 3, "tree.top_k": 4, "tree.branch": 1}
_CLIP_HIGHER = {"loss.clip_high": 0.28, "loss.aggregation": "token_mean", "loss.kl": 0.0}

# Sources and what differs from them: docs/method.md, section 6.
METHODS: dict[str, dict[str, Any]] = {
    "ibtpo": _SHARED
    | {
        "tree.strategy": "ib",
        "tree.initial": 4,
        "tree.rounds": 9,
        "tree.top_k": 1,
        "tree.branch": 1,
        "loss.advantage": "ibtpo",
    },
    "grpo": _FLAT,
    "dr_grpo": _FLAT | {"loss.advantage": "dr_grpo", "loss.aggregation": "fixed_length"},
    "dapo": _FLAT | _CLIP_HIGHER | {"reward.overlong_share": 0.25, "train.refills": 9},
    "rloo": _FLAT | {"loss.advantage": "rloo"},
    "gspo": _FLAT | {"loss.objective": "gspo", "loss.clip_low": 3e-4, "loss.clip_high": 4e-4, "loss.kl": 0.0},
    "cispo": _FLAT | {"loss.objective": "cispo", "loss.aggregation": "token_mean"},
    "sapo": _FLAT | {"loss.objective": "sapo"},
    "ibro": _FLAT | {"loss.entropy_advantage": 5e-3},
    "treerl": _TREE | {"tree.strategy": "entropy", "loss.advantage": "treerl"},
    "treepo": _TREE
    | _CLIP_HIGHER
    | {"tree.strategy": "fixed_width", "loss.advantage": "treepo", "loss.whiten_advantages": True},
    "tree_grpo": _TREE | {"tree.strategy": "random", "loss.advantage": "tree_grpo"},
    "spo_tree": _TREE | {"tree.strategy": "fixed_width", "loss.advantage": "spo_tree", "loss.max_old_probability": 0.9},
    "treerpo": _TREE | {"tree.strategy": "fixed_width", "loss.advantage": "treerpo"},
}

SAVED_NAME = "config.json"
# Keys that may change when a run is resumed: how long and how closely watched, never what is learnt. (train.steps only
# where no schedule ends with it.)
RESUMABLE = ("train.steps", "log.", "eval.", "checkpoint.")


class ConfigError(ValueError):
    """A configuration that cannot run; the message is one line naming key, value, rule and way out."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Type of a key's value, the test it must pass and that test in words."""

    type: type
    test: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()


def stop_strings(text: str) -> list[str] | None:
    """The texts of `sampling.stop_strings`; None if it is not a list of texts, or one of them is empty."""
    try:
        found = json.loads(text or "[]")
    except ValueError:
        return None
    right = isinstance(found, list) and all(isinstance(x, str) and x for x in found)
    return found if right else None


def _whole(low: int) -> Rule:
    return Rule(int, lambda x: x >= low, f"a whole number of at least {low}")


def _real(test: Callable[[float], bool], words: str) -> Rule:
    return Rule(float, lambda x: math.isfinite(x) and test(x), f"a number {words}")


def _one_of(*choices: str) -> Rule:
    return Rule(str, lambda x: x in choices, "one of " + ", ".join(choices), choices)


_POSITIVE = _real(lambda x: x > 0, "above 0")
_NOT_NEGATIVE = _real(lambda x: x >= 0, "of at least 0")
_FRACTION = _real(lambda x: 0 <= x < 1, "from 0 up to, not including, 1")
_PROBABILITY = _real(lambda x: 0 < x <= 1, "above 0 and at most 1")
_SWITCH = Rule(bool, lambda x: True, "true or false")
_TEXT = Rule(str, lambda x: True, "text")
_NAME = Rule(str, bool, "text that is not empty")
_AXIS = Rule(int, lambda x: x == -1 or x >= 1, "a whole number of at least 1, or -1 for all remaining devices")
_DTYPE = _one_of("float32", "bfloat16")
_FILE_SOURCE = re.compile(r"(jsonl|parquet):.+")
_TFDS_SOURCES = ("tfds:chained_arithmetic", *(f"tfds:{name}" for name in DATASETS))


def _is_evaluation_set(name: str) -> bool:
    return name in BENCHMARKS or _FILE_SOURCE.fullmatch(name) is not None


def _are_benchmarks(text: str) -> bool:
    names = [part.strip() for part in text.split(",")]
    return not text or (set(names) <= set(BENCHMARKS) and len(set(names)) == len(names))


RULES: dict[str, Rule] = {
    "method": _one_of(*METHODS),
    "model.path": Rule(str, bool, "a folder in Hugging Face format, e.g. assets/qwen3-tiny"),
    "model.preset": Rule(str, lambda x: x == "" or x in PRESETS, f'"" or one of {", ".join(PRESETS)}', tuple(PRESETS)),
    "model.dtype": _DTYPE,
    "model.param_dtype": _DTYPE,
    "model.remat": _one_of("none", "attention", "full"),
    "data.source": Rule(
        str,
        lambda x: _FILE_SOURCE.fullmatch(x) is not None or x in _TFDS_SOURCES,
        f"jsonl:<path>, parquet:<path> or one of {', '.join(_TFDS_SOURCES)}",
        _TFDS_SOURCES,
    ),
    "data.files": _TEXT,
    "data.check_rows": _SWITCH,
    "data.dir": _TEXT,
    "data.train_split": _NAME,
    "data.eval_split": _NAME,
    "data.decontaminate": Rule(
        str,
        lambda x: not x or all(_is_evaluation_set(part.strip()) for part in x.split(",")),
        f"names separated by commas, each jsonl:<path>, parquet:<path> or one of {', '.join(BENCHMARKS)}",
        BENCHMARKS,
    ),
    "data.question_field": _NAME,
    "data.answer_field": _NAME,
    "data.answer_pattern": Rule(
        str,
        lambda x: x in ("", "boxed") or _num_groups(x) == 1,
        'a regular expression with exactly one group, "boxed", or "" for the whole field',
    ),
    "data.prompt": Rule(
        str,
        lambda x: _formats_question(x),
        "a format text with {question} in it and every other brace doubled",
    ),
    "data.chat_template": _SWITCH,
    "data.system_prompt": _TEXT,
    "data.max_prompt_tokens": _whole(1),
    "data.separator": _NAME,
    "data.difficulty": _one_of("easy", "normal", "hard"),
    "data.limit": _whole(0),
    "tree.strategy": _one_of("ib", "random", "entropy", "fixed_width", "independent"),
    "tree.initial": _whole(1),
    "tree.rounds": _whole(1),
    "tree.top_k": _whole(1),
    "tree.branch": _whole(1),
    "tree.beta": _POSITIVE,
    "tree.ratio_power": Rule(int, lambda x: x in (1, 2), "1 or 2"),
    "tree.confidence": _one_of("geometric_mean", "joint"),
    "tree.value": _one_of("leaf_mean", "backup"),
    "tree.root": _one_of("all", "initial"),
    "tree.min_new_tokens": _whole(1),
    "tree.segment_tokens": _whole(1),
    "sampling.temperature": _POSITIVE,
    "sampling.top_k": _whole(0),
    "sampling.top_p": _PROBABILITY,
    "sampling.min_p": _FRACTION,
    "sampling.max_new_tokens": _whole(1),
    "sampling.stop_tokens": Rule(
        str,
        lambda x: not x or all(part.strip() for part in x.split(",")),
        'special tokens of the tokenizer separated by commas, or "" for its own end-of-sequence tokens',
    ),
    "sampling.stop_strings": Rule(
        str,
        lambda x: stop_strings(x) is not None,
        """a JSON list of texts, '["</answer>"]', or "" for none""",
    ),
    "sampling.slots": _whole(1),
    "sampling.pages": _whole(0),
    "sampling.page_size": Rule(int, lambda x: x >= 1 and x & (x - 1) == 0, "a power of two"),
    "sampling.chunk": _whole(1),
    "sampling.questions_in_flight": _whole(0),
    "loss.advantage": _one_of(
        "ibtpo", "grpo", "dr_grpo", "rloo", "treerl", "treepo", "tree_grpo", "spo_tree", "treerpo"
    ),
    "loss.clip_low": _real(lambda x: 0 < x < 1, "above 0 and below 1"),
    "loss.clip_high": _POSITIVE,
    "loss.dual_clip": _real(lambda x: x == 0 or x > 1, "above 1, or 0 for off"),
    "loss.objective": _one_of("clip", "cispo", "sapo", "gspo"),
    "loss.entropy_bonus": _NOT_NEGATIVE,
    "loss.entropy_advantage": _NOT_NEGATIVE,
    "loss.importance_cap": _NOT_NEGATIVE,
    "loss.max_old_probability": _PROBABILITY,
    "loss.kl": _NOT_NEGATIVE,
    "loss.ib_weight": _NOT_NEGATIVE,
    "loss.ib_confidence": _one_of("behaviour", "reference"),
    "loss.aggregation": _one_of("response_mean", "token_mean", "fixed_length"),
    "loss.whiten_advantages": _SWITCH,
    "loss.mask_uniform_groups": _SWITCH,
    "loss.mask_truncated": _SWITCH,
    "reward.kind": _one_of(*REWARDS),
    "reward.terms": Rule(
        str,
        lambda x: parse_terms(x) is not None,
        f'names with weights, "format:0.1,length:-0.05", of {", ".join(TERMS)}, or "" for none',
    ),
    "reward.overlong_share": _real(lambda x: 0 <= x <= 1, "from 0 to 1"),
    "reward.overlong_penalty": _POSITIVE,
    "reward.workers": _whole(1),
    "reward.timeout": _POSITIVE,
    "reward.memory_mb": _whole(1),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.schedule": _one_of("constant", "linear", "cosine"),
    "optimizer.warmup_steps": _whole(0),
    "optimizer.b1": _FRACTION,
    "optimizer.b2": _FRACTION,
    "optimizer.eps": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.clip_norm": _NOT_NEGATIVE,
    "optimizer.first_moment_dtype": _DTYPE,
    "train.steps": _whole(1),
    "train.questions_per_step": _whole(1),
    "train.seed": Rule(int, lambda x: 0 <= x < 2**32, "a whole number from 0 to 2**32 - 1"),
    "train.row_tokens": _whole(0),
    "train.max_skipped": _whole(0),
    "train.epochs": _whole(1),
    "train.minibatches": _whole(1),
    "train.refills": _whole(0),
    "train.rows_per_step": _whole(1),
    "train.token_block": _whole(1),
    "mesh.data": _AXIS,
    "mesh.fsdp": _AXIS,
    "mesh.tensor": _AXIS,
    "eval.every": _whole(0),
    "eval.benchmarks": Rule(
        str,
        _are_benchmarks,
        f'names separated by commas, each once, of {", ".join(BENCHMARKS)}, or "" for the held-out split',
    ),
    "eval.questions": _whole(0),
    "eval.samples": _whole(1),
    "eval.temperature": _POSITIVE,
    "eval.top_k": _whole(0),
    "eval.top_p": _PROBABILITY,
    "eval.min_p": _FRACTION,
    "checkpoint.dir": _TEXT,
    "checkpoint.every": _whole(1),
    "checkpoint.keep": _whole(1),
    "log.every": _whole(1),
    "log.tensorboard": _SWITCH,
}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"section.key": value} of a nested configuration, in its own order."""
    result = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            result.update(flatten(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result


def unflatten(flat: Mapping[str, Any]) -> ConfigDict:
    """The nested configuration of {"section.key": value}."""
    config = ConfigDict()
    for path, value in flat.items():
        *sections, key = path.split(".")
        section = config
        for name in sections:
            if name not in section:
                section[name] = ConfigDict()
            section = section[name]
        section[key] = value
    return config


def responses_per_question(tree: ConfigDict) -> int:
    """G = initial + (rounds - 1) top_k branch, the responses sampled for one question."""
    return tree.initial + (tree.rounds - 1) * tree.top_k * tree.branch


def resolve(config: ConfigDict, *, training: bool = True) -> ConfigDict:
    """The complete configuration: placeholders filled from `method`, every value checked, locked. Idempotent.

    Args:
      training: whether rows are packed; without it (evaluation) train.row_tokens limits nothing.

    Raises:
      ConfigError: an unknown or missing key, a value of the wrong type or outside its rule, or values that
        cannot work together.
    """
    flat = flatten(config)
    for key in flat:
        if key not in RULES:
            raise ConfigError(f"unknown key {key}={flat[key]!r}: {_nearest_key(key, RULES)}")
    for key in RULES:
        if key not in flat:
            raise ConfigError(f"missing key {key}: start the config from configs.base.get_config(), which has them all")
    _check_value("method", flat["method"])
    for key, value in METHODS[flat["method"]].items():
        if flat[key] is None:
            flat[key] = value
    flat = {key: _check_value(key, value) for key, value in flat.items()}
    _check_combinations(flat, training)
    return unflatten(flat).lock()


def _check_value(key: str, value: Any) -> Any:
    """`value` in the type of its rule (an int becomes a float where a float is due)."""
    rule = RULES[key]
    if rule.type is float and type(value) is int:
        value = float(value)
    # bool is a subclass of int, and `steps = True` is never meant.
    if type(value) is not rule.type or not rule.test(value):
        raise ConfigError(f"{key}={value!r} must be {rule.words}{_did_you_mean(value, rule.choices)}")
    return value


def _check_combinations(flat: Mapping[str, Any], training: bool) -> None:
    config = unflatten(flat)
    tree, sampling, train, mesh = config.tree, config.sampling, config.train, config.mesh
    if config.data.system_prompt and not config.data.chat_template:
        raise ConfigError(
            f"data.system_prompt={config.data.system_prompt!r} has no place without a chat template: set "
            "data.chat_template=True, or put the text into data.prompt"
        )
    num_responses = responses_per_question(tree)
    if num_responses < 2:
        raise ConfigError(
            f"tree.initial={tree.initial} with tree.rounds={tree.rounds} samples one response per question, and "
            "every advantage is 0: set tree.initial to 2 or more"
        )
    if tree.min_new_tokens > sampling.max_new_tokens:
        raise ConfigError(
            f"tree.min_new_tokens={tree.min_new_tokens} is more than sampling.max_new_tokens="
            f"{sampling.max_new_tokens}, so no node could branch: lower it"
        )
    if tree.strategy == "fixed_width" and tree.segment_tokens > sampling.max_new_tokens:
        raise ConfigError(
            f"tree.segment_tokens={tree.segment_tokens} is more than sampling.max_new_tokens="
            f"{sampling.max_new_tokens}, so no path would ever branch: lower it"
        )
    if config.loss.dual_clip and config.loss.objective != "clip":
        raise ConfigError(
            f"loss.dual_clip={config.loss.dual_clip} bounds loss.objective='clip' only, not "
            f"{config.loss.objective!r}: set it to 0"
        )
    if config.loss.objective == "gspo" and (config.loss.importance_cap or config.loss.entropy_advantage):
        raise ConfigError(
            f"loss.objective='gspo' has no loss.importance_cap={config.loss.importance_cap} and no "
            f"loss.entropy_advantage={config.loss.entropy_advantage}: set both to 0"
        )
    updates = train.steps * train.epochs * train.minibatches
    if config.optimizer.warmup_steps > updates:
        raise ConfigError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} is more than the run's {updates} updates "
            f"(train.steps={train.steps}, train.epochs and train.minibatches of each): the warm-up must end within the "
            f"run; set it to {updates} or less"
        )
    if train.minibatches > train.questions_per_step:
        raise ConfigError(
            f"train.minibatches={train.minibatches} is more than train.questions_per_step={train.questions_per_step}: "
            "a minibatch has one tree at least"
        )
    longest = config.data.max_prompt_tokens + sampling.max_new_tokens
    pages = -(-longest // sampling.page_size)
    if 0 < sampling.pages < pages:
        raise ConfigError(
            f"sampling.pages={sampling.pages} of {sampling.page_size} tokens cannot hold one response of "
            f"data.max_prompt_tokens + sampling.max_new_tokens = {longest} tokens: set it to 0 (automatic) or at "
            f"least {pages}"
        )
    if training and 0 < train.row_tokens < longest:
        raise ConfigError(
            f"train.row_tokens={train.row_tokens} cannot hold one response of data.max_prompt_tokens + "
            f"sampling.max_new_tokens = {longest} tokens: set it to 0 (as long as each batch's longest tree needs) or "
            f"at least {longest}"
        )
    open_axes = [name for name in ("data", "fsdp", "tensor") if mesh[name] == -1]
    if len(open_axes) > 1:
        raise ConfigError(
            f"mesh.{open_axes[0]}=-1 and mesh.{open_axes[1]}=-1: only one axis can take all remaining devices; "
            "give the other its size"
        )
    # With an open axis the number of shards is known on the machine only, where `Trainer` makes the mesh.
    shards = mesh.data * mesh.fsdp
    if shards > 0:
        check_split(config, shards)


def check_split(config: ConfigDict, shards: int) -> None:
    """Raises a ConfigError where so many shards of rows do not divide what is split over them."""
    for key, count in (
        ("sampling.slots", config.sampling.slots),
        ("sampling.pages", config.sampling.pages),
        ("train.rows_per_step", config.train.rows_per_step),
    ):
        if count % shards:
            raise ConfigError(
                f"{key}={count} cannot be split over mesh.data x mesh.fsdp = {shards} shards: set it to a multiple "
                f"of {shards}, e.g. {-(-count // shards) * shards}"
            )


def _num_groups(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error:
        return -1


def _formats_question(template: str) -> bool:
    try:
        return "\0" in template.format(question="\0")
    except (KeyError, IndexError, ValueError, AttributeError):
        return False


def _did_you_mean(value: Any, choices: Sequence[str]) -> str:
    if not choices:
        return ""
    folded = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(str(value).lower(), folded, n=1, cutoff=0.5)
    return f"; did you mean {folded[matches[0]]!r}?" if matches else ""


def _nearest_key(key: str, keys: Sequence[str] | Mapping[str, Any]) -> str:
    """A sentence that leads from a wrong key to the right one."""
    inside = [k for k in keys if k.startswith(key + ".")]
    if inside:
        return f"{key} is a section; set one of its keys: {', '.join(inside)}"
    same_leaf = [k for k in keys if k.split(".")[-1] == key.split(".")[-1]]
    matches = difflib.get_close_matches(key, list(keys), n=1, cutoff=0.0)
    nearest = same_leaf[0] if len(same_leaf) == 1 else (matches or [""])[0]
    return f"the nearest valid key is {nearest}"


# --- command line ---------------------------------------------------------------------------------------------------


def load(path: str) -> ConfigDict:
    """The configuration of a file: Python with `get_config()` (`path:text` calls get_config(text)), or saved JSON.

    Raises:
      ConfigError: no such file, or the file fails; with the line that failed.
    """
    name, *argument = [path] if os.path.isfile(path) else path.split(":", 1)
    if not os.path.isfile(name):
        raise ConfigError(
            f"--config={path}: no such file (looked in {os.getcwd()}); give the path of a config, e.g. configs/tiny.py"
        )
    try:
        if name.endswith(".json"):
            with open(name, encoding="utf-8") as file:
                config = ConfigDict(json.load(file))
        else:
            spec = importlib.util.spec_from_file_location("_ibtpo_config_file", name)
            if spec is None or spec.loader is None:
                raise TypeError("the name must end in .py or .json")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            config = module.get_config(*argument)
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config() returned {type(config).__name__}, not a ConfigDict; is `return` missing?")
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == os.path.abspath(name)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        place = f"{name}, line {line}" if line else name
        message = " ".join(str(error).split())
        raise ConfigError(f"--config={path}: {place}: {type(error).__name__}: {message}") from error
    return config


_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<key>[^=]*)(=(?P<value>.*))?", re.DOTALL)
_PARSERS = {
    int: (flags.IntegerParser(), "a whole number (int)", "3"),
    float: (flags.FloatParser(), "a number (float)", "0.5"),
    bool: (flags.BooleanParser(), "true or false (bool)", "true"),
}


def _type_of(config: ConfigDict, key: str) -> type:
    """The type of a key's values, open or not."""
    *sections, leaf = key.split(".")
    for name in sections:
        config = config[name]
    return config.get_type(leaf)


def _check_override(config: ConfigDict, no: bool, key: str, value: str | None, argument: str) -> None:
    """Raises a ConfigError that names key and type before absl would stop with a message of its own."""
    keys = flatten(config)
    if key not in keys:
        raise ConfigError(f"{argument}: unknown key {key}; {_nearest_key(key, keys)}")
    kind = _type_of(config, key)
    parser, words, example = _PARSERS.get(kind, (None, "text", '"..."'))
    if value is None and kind is bool:
        return
    if value is None or no:
        raise ConfigError(f"{argument}: {key} needs {words} after '=', e.g. --config.{key}={example}")
    try:
        if parser is not None:
            parser.parse(value)
    except (ValueError, TypeError):
        raise ConfigError(f"{argument}: {key} needs {words}, not {value!r}; e.g. --config.{key}={example}") from None


def _split_command_line(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --config and every other argument."""
    path, rest, pending = None, [], False
    for argument in arguments:
        if pending:
            path, pending = argument, False
        elif argument in ("--config", "-config"):
            pending = True
        elif argument.startswith(("--config=", "-config=")):
            path = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    return path, rest


def parse_flags(
    argv: Sequence[str] | None = None,
    *,
    resolve: Callable[[ConfigDict], ConfigDict] | None = resolve,
    needs_workdir: bool = True,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> tuple[ConfigDict, str | None]:
    """(config, workdir) of a command line; flags that the program has defined through absl are parsed too.

    Args:
      argv: program name and arguments; None: sys.argv.
      resolve: completes and checks the configuration; None for a program with keys of its own (the configuration
        is then locked as it is).
      needs_workdir: whether --workdir must be given; the workdir is None without it.
      flag_values: where absl keeps the flags.

    Raises:
      ConfigError: anything wrong on the command line or in the configuration.
    """
    program, *arguments = sys.argv if argv is None else argv
    path, rest = _split_command_line(arguments)
    if not path:
        raise ConfigError("--config is missing: name a config file, e.g. --config=configs/tiny.py")
    config = load(path)

    index = 0
    while index < len(rest):
        argument = rest[index]
        if match := _OVERRIDE.fullmatch(argument):
            value = match["value"]
            following = rest[index + 1] if index + 1 < len(rest) else None
            is_bool = match["key"] in flatten(config) and _type_of(config, match["key"]) is bool
            if value is None and not match["no"] and not is_bool and following and not following.startswith("-"):
                value, index = following, index + 1
            _check_override(config, bool(match["no"]), match["key"], value, argument)
        index += 1

    if "config" in flag_values:  # a second call in one process
        for name in [n for n in flag_values if n == "config" or n.startswith("config.")]:
            delattr(flag_values, name)
    command = [program, *rest]
    holder = config_flags.DEFINE_config_dict(
        "config", config, "a config file; --config.section.key=value overrides a key", flag_values, sys_argv=command
    )
    if "workdir" not in flag_values:
        flags.DEFINE_string(
            "workdir", None, "folder of checkpoints, metrics and the saved config", flag_values=flag_values
        )
    try:
        leftover = flag_values(command)[1:]
        workdir = flag_values["workdir"].value
    except flags.Error as error:
        raise ConfigError(_explain_unknown_flag(" ".join(str(error).split()), config)) from None
    if leftover:
        example = f"; did you mean --{leftover[0].lstrip('-')}?" if "=" in leftover[0] else ""
        raise ConfigError(f"unexpected argument {leftover[0]!r}: options start with two dashes{example}")
    if needs_workdir and not workdir:
        raise ConfigError("--workdir is missing: name the folder of the run, e.g. --workdir=runs/tiny")
    config = holder.value
    return (config.lock() if resolve is None else resolve(config)), workdir or None


def _explain_unknown_flag(message: str, config: ConfigDict) -> str:
    """absl's message, with the hint that a key of the configuration is written --config.key."""
    name = re.search(r"'([^']+)'", message)
    key = name[1].split("=")[0] if name else ""
    return f"{message.rstrip('.')}; did you mean --config.{key}?" if key in flatten(config) else message


def _print_help(path: str | None) -> None:
    """Usage, and the keys with their values where a config is named; needs no flag to be right."""
    main = sys.modules["__main__"]
    print((main.__doc__ or "").strip())
    spec = getattr(main, "__spec__", None)
    program = f"python -m {spec.name}" if spec else f"python {os.path.basename(sys.argv[0])}"
    print(f"\nusage: {program} --config=FILE --workdir=FOLDER [--config.section.key=value ...] [flags]\n")
    print(flags.FLAGS.main_module_help() or "")
    for key, value in flatten(load(path)).items() if path else ():
        print(f"  --config.{key}={value!r}")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Within it, a ValueError or FileNotFoundError (a bad checkpoint, data file or value) ends the program as a
    ConfigError does: for setting a run up, where such errors are about what the user gave."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def run(
    main: Callable[[ConfigDict, str], None],
    *,
    resolve: Callable[[ConfigDict], ConfigDict] | None = resolve,
    needs_workdir: bool = True,
) -> None:
    """Entry point of every command: main(config, workdir) with the command line's configuration.

    A ConfigError, of the command line or raised by `main`, is printed in one line and ends the program with code 2.
    `--help` prints the program's docstring, its flags and, with --config, every key. See `parse_flags` for the options.
    """
    parsed: list[Any] = []

    def parser(argv: Sequence[str]) -> list[str]:
        if any(argument in ("--help", "-help", "-h", "-?", "--helpfull", "--helpshort") for argument in argv):
            _print_help(_split_command_line(argv[1:])[0])
            sys.exit(0)
        parsed.extend(parse_flags(argv, resolve=resolve, needs_workdir=needs_workdir))
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries report every file they open
        return list(argv[:1])

    try:
        app.run(lambda _: main(*parsed), flags_parser=parser)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# --- the configuration of a run on disk -----------------------------------------------------------------------------


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (old value, new value)} of the keys that differ and change what a run means; a key that one side
    lacks counts as None there. Keys of RESUMABLE are left out."""
    old, new = flatten(old), flatten(new)
    decays = new.get("optimizer.schedule", "constant") != "constant"
    resumable = tuple(key for key in RESUMABLE if not (decays and key == "train.steps"))
    keys = [*new, *(key for key in old if key not in new)]
    return {
        key: (old.get(key), new.get(key))
        for key in keys
        if old.get(key) != new.get(key) and not key.startswith(resumable)
    }


def load_saved(workdir: str) -> ConfigDict | None:
    """The configuration that `save` wrote into a workdir, None where there is none."""
    path = os.path.join(workdir, SAVED_NAME)
    return load(path) if os.path.isfile(path) else None


def check_same(place: str, old: Mapping[str, Any], new: Mapping[str, Any], way_out: str) -> None:
    """Raises a ConfigError, with what else helps, if `place` holds a run of another configuration (`diff`)."""
    differences = diff(old, new)
    if differences:
        listed = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in differences.items())
        raise ConfigError(
            f"{place} belongs to a run with another configuration ({listed}): {way_out}, or give "
            f"{'this key its' if len(differences) == 1 else 'these keys their'} old value to resume it"
        )


def save(config: ConfigDict, workdir: str, *, write: bool = True) -> None:
    """Writes the configuration as workdir/config.json, or checks it against the one that is there.

    Args:
      config: a resolved configuration.
      workdir: made if missing.
      write: False on all hosts but the first: check only.

    Raises:
      ConfigError: the workdir holds a run whose configuration differs in a key outside RESUMABLE.
    """
    path, saved = os.path.join(workdir, SAVED_NAME), load_saved(workdir)
    if saved is not None:
        check_same(path, saved, config, "choose a new --workdir")
    if write:
        os.makedirs(workdir, exist_ok=True)
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(config.to_dict(), file, indent=2)
            file.write("\n")
        os.replace(path + ".tmp", path)
