"""The rule of each key of a configuration: its type, a test of its value and that test in words."""

import json
import math
import re
import string
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ibtpo import choices, hub, own_code
from ibtpo.config.methods import METHODS
from ibtpo.data.published import BENCHMARKS, DATASETS
from ibtpo.models.presets import PRESETS
from ibtpo.rewards.terms import parse_terms


@dataclass(frozen=True)
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
    except (ValueError, RecursionError):
        return None
    right = isinstance(found, list) and all(isinstance(x, str) and x and is_text(x) for x in found)
    return found if right else None


# Whole numbers are int32 on the devices.
MOST = 2**31 - 1
# Numbers are float32 there: the sizes of those that are not 0 keep their products and quotients finite, and themselves
# apart from 0.
TINY, HUGE = 1e-30, 1e30


def as_float32(x: float) -> float:
    """The nearest float32; infinite beyond them."""
    try:
        return struct.unpack("f", struct.pack("f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def _whole(low: int, high: int = MOST) -> Rule:
    return Rule(int, lambda x: low <= x <= high, f"a whole number of at least {low} and at most {high:,}")


def _real(test: Callable[[float], bool], words: str, least: float = TINY, most: float = HUGE) -> Rule:
    """test: of the number as a float32. least, most: of its size where it is not 0."""
    ends = f"{words} and at most {most:g}" if most < HUGE else words
    ends += f" (and {least:g} or more where it is not 0)" if least <= TINY else f", {least:g} or more"

    def right(x: float) -> bool:
        return math.isfinite(x) and (x == 0 or least <= abs(x) <= most) and test(as_float32(x))

    return Rule(float, right, f"a number {ends}")


def _one_of(*names: str) -> Rule:
    return Rule(str, lambda x: x in names, "one of " + ", ".join(names), names)


def _one_of_or_own(*names: str) -> Rule:
    words = f"one of {', '.join(names)}, or {own_code.WORDS}"
    return Rule(str, lambda x: x in names or own_code.is_path(x), words, names)


def is_text(x: str) -> bool:
    """Whether it is UTF-8, which half a surrogate pair (an argument of other bytes) is not, and no file name or text
    ends within it."""
    try:
        return b"\0" not in x.encode()
    except UnicodeEncodeError:
        return False


# A weight or bound of more than this is a slip, and its products would leave float32.
_POSITIVE = _real(lambda x: x > 0, "above 0", most=1e6)
_NOT_NEGATIVE = _real(lambda x: x >= 0, "of at least 0", most=1e6)
_FRACTION = _real(lambda x: 0 <= x < 1, "from 0 up to, not including, 1 as a float32")
_PROBABILITY = _real(lambda x: 0 < x <= 1, "above 0 and at most 1")
# Logits are divided by it, and so are their gradients.
_TEMPERATURE = _real(lambda x: x > 0, "above 0", least=1e-3, most=1e3)
_SWITCH = Rule(bool, lambda x: True, "true or false")
_TEXT = Rule(str, is_text, "text in UTF-8 without a zero byte")
_NAME = Rule(str, lambda x: bool(x.strip()) and is_text(x), "text that is not empty, in UTF-8 without a zero byte")
_SEPARATOR = Rule(str, lambda x: bool(x) and is_text(x), "text that is not empty, in UTF-8 without a zero byte")
_AXIS = Rule(
    int, lambda x: x == -1 or 1 <= x <= MOST, "a whole number of at least 1, or -1 for all remaining devices"
)
_DTYPE = _one_of(*choices.DTYPES)
_REVISION = Rule(str, hub.is_revision, 'a branch, a tag or a commit of 40 digits, or "" for main')
_FILE_SOURCE = re.compile(r"(jsonl|parquet):.*\S.*", re.DOTALL)
_TFDS_SOURCES = tuple(f"tfds:{name}" for name in (*choices.GENERATED, *DATASETS))


def _is_evaluation_set(name: str) -> bool:
    return name in BENCHMARKS or _is_file_source(name)


def _is_file_source(name: str) -> bool:
    return _FILE_SOURCE.fullmatch(name) is not None and is_text(name)


def _is_named_source(name: str) -> bool:
    kind, _, rest = name.partition(":")
    return (kind == "hf" and hub.is_id(rest)) or (kind == "reasoning_gym" and rest.isidentifier())


def _is_object(text: str) -> bool:
    try:
        return is_text(text) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _are_benchmarks(text: str) -> bool:
    names = [part.strip() for part in text.split(",")]
    return not text or (set(names) <= set(BENCHMARKS) and len(set(names)) == len(names))


def _num_groups(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError, ValueError):
        return -1


def _are_terms(text: str) -> bool:
    weights = parse_terms(text)
    return weights is not None and all(abs(weight) <= 1e6 for weight in weights.values())


def _formats_question(template: str) -> bool:
    """Whether {question} is in it, and no other field or format of one."""
    try:
        fields = [tuple(field) for _, *field in string.Formatter().parse(template)]
    except ValueError:
        return False
    plain = (("question", "", None), (None, None, None))
    return is_text(template) and plain[0] in fields and all(field in plain for field in fields)


RULES: dict[str, Rule] = {
    "method": _one_of(*METHODS),
    "compilation_cache": _TEXT,
    "model.path": Rule(
        str,
        lambda x: bool(x.strip()) and is_text(x),
        "a folder in Hugging Face format, e.g. assets/qwen3-tiny, or an id of the hub, e.g. Qwen/Qwen3-0.6B",
    ),
    "model.revision": _REVISION,
    "model.preset": Rule(str, lambda x: x == "" or x in PRESETS, f'"" or one of {", ".join(PRESETS)}', tuple(PRESETS)),
    "model.dtype": _DTYPE,
    "model.param_dtype": _DTYPE,
    "model.remat": _one_of(*choices.REMATS),
    "model.lora_rank": _whole(0),
    "model.lora_alpha": _POSITIVE,
    "model.lora_targets": _one_of(*choices.LORA_TARGETS),
    "data.source": Rule(
        str,
        lambda x: _is_file_source(x) or x in _TFDS_SOURCES or _is_named_source(x),
        f"jsonl:<path>, parquet:<path>, hf:<owner>/<name>, reasoning_gym:<name> or one of {', '.join(_TFDS_SOURCES)}",
        _TFDS_SOURCES,
    ),
    "data.files": _TEXT,
    "data.subset": _TEXT,
    "data.revision": _REVISION,
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
    "data.separator": _SEPARATOR,
    "data.step_rule": _one_of(*choices.STEP_RULES),
    "data.moved_steps": _real(lambda x: 0 <= x <= 1, "from 0 to 1"),
    "data.difficulty": _one_of(*choices.DIFFICULTIES),
    "data.options": Rule(str, lambda x: not x or _is_object(x), 'a JSON object, \'{"min_terms": 3}\', or "" for none'),
    "data.limit": _whole(0),
    "tree.strategy": _one_of_or_own(*choices.STRATEGIES),
    "tree.initial": _whole(1),
    "tree.rounds": _whole(1),
    "tree.top_k": _whole(1),
    "tree.branch": _whole(1),
    "tree.beta": _POSITIVE,
    "tree.ratio_power": Rule(int, lambda x: x in choices.RATIO_POWERS, " or ".join(map(str, choices.RATIO_POWERS))),
    "tree.confidence": _one_of(*choices.CONFIDENCES),
    "tree.value": _one_of(*choices.VALUES),
    "tree.branch_value": _one_of(*choices.VALUES),
    "tree.child_weight": _one_of(*choices.CHILD_WEIGHTS),
    "tree.rebranch": _whole(0),
    "tree.sibling_penalty": _NOT_NEGATIVE,
    "tree.explore": _NOT_NEGATIVE,
    "tree.surprise": _NOT_NEGATIVE,
    "tree.extra_rounds": _whole(0),
    "tree.lag": _whole(0),
    "tree.root": _one_of(*choices.ROOTS),
    "tree.min_new_tokens": _whole(1),
    "tree.segment_tokens": _whole(1),
    "sampling.temperature": _TEMPERATURE,
    "sampling.top_k": _whole(0),
    "sampling.top_p": _PROBABILITY,
    "sampling.min_p": _FRACTION,
    "sampling.max_new_tokens": _whole(1),
    "sampling.stop_tokens": Rule(
        str,
        lambda x: not x or (is_text(x) and all(part.strip() for part in x.split(","))),
        'special tokens of the tokenizer separated by commas, or "" for its own end-of-sequence tokens',
    ),
    "sampling.stop_strings": Rule(
        str,
        lambda x: stop_strings(x) is not None,
        """a JSON list of texts, '["</answer>"]', or "" for none""",
    ),
    "sampling.slots": _whole(1),
    "sampling.pages": _whole(0),
    "sampling.memory_share": _PROBABILITY,
    "sampling.page_size": Rule(int, lambda x: 1 <= x <= 2**20 and x & (x - 1) == 0, "a power of two, at most 2**20"),
    "sampling.chunk": _whole(1),
    "sampling.questions_in_flight": _whole(0),
    "sampling.deterministic": _SWITCH,
    "loss.advantage": _one_of_or_own(*choices.ADVANTAGES),
    "loss.clip_low": _PROBABILITY,
    "loss.clip_high": _POSITIVE,
    "loss.dual_clip": _real(lambda x: x == 0 or x > 1, "above 1, or 0 for off,", most=1e6),
    "loss.objective": _one_of(*choices.OBJECTIVES),
    "loss.entropy_bonus": _NOT_NEGATIVE,
    "loss.entropy_advantage": _NOT_NEGATIVE,
    "loss.importance_cap": _NOT_NEGATIVE,
    "loss.max_old_probability": _PROBABILITY,
    "loss.kl": _NOT_NEGATIVE,
    "loss.ib_weight": _NOT_NEGATIVE,
    "loss.ib_confidence": _one_of(*choices.IB_CONFIDENCES),
    "loss.aggregation": _one_of(*choices.AGGREGATIONS),
    "loss.shared_tokens": _one_of(*choices.SHARED_TOKENS),
    "loss.deviation": _one_of(*choices.DEVIATIONS),
    "loss.group_of_one": _one_of(*choices.GROUPS_OF_ONE),
    "loss.value_center": _one_of(*choices.VALUE_CENTERS),
    "loss.skip_zero_advantages": _SWITCH,
    "loss.whiten_advantages": _SWITCH,
    "loss.mask_uniform_groups": _SWITCH,
    "loss.mask_truncated": _SWITCH,
    "reward.kind": _one_of_or_own(*choices.REWARDS),
    "reward.unevaluated": _SWITCH,
    "reward.terms": Rule(
        str,
        _are_terms,
        f'names with weights, "format:0.1,length:-0.05", of {", ".join(choices.TERMS)}, of 1e6 at most, or "" for none',
    ),
    "reward.overlong_share": _real(lambda x: 0 <= x <= 1, "from 0 to 1"),
    "reward.overlong_penalty": _POSITIVE,
    "reward.workers": _whole(1, 1024),  # processes
    # Below, a loaded machine would decide which answers are right.
    "reward.timeout": _real(lambda x: x > 0, "of seconds above 0", least=0.01, most=86_400),
    "reward.memory_mb": _whole(256),  # the imports of a worker take 130 of them
    "optimizer.learning_rate": _real(lambda x: x > 0, "above 0", most=1e9),
    "optimizer.schedule": _one_of(*choices.SCHEDULES),
    "optimizer.warmup_steps": _whole(0),
    "optimizer.b1": _FRACTION,
    "optimizer.b2": _FRACTION,
    # A parameter without a gradient is divided by it alone.
    "optimizer.eps": _real(lambda x: x > 0, "above 0", least=1e-20, most=1),
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.clip_norm": _NOT_NEGATIVE,
    "optimizer.first_moment_dtype": _DTYPE,
    "train.steps": _whole(1),
    "train.questions_per_step": _whole(1),
    "train.seed": Rule(int, lambda x: 0 <= x < 2**32, "a whole number from 0 to 2**32 - 1"),
    "train.row_tokens": _whole(0),
    "train.max_skipped": _whole(0),
    "train.host_timeout": _real(lambda x: 5 <= x <= 86400, "from 5 to 86400"),
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
    "eval.temperature": _TEMPERATURE,
    "eval.top_k": _whole(0),
    "eval.top_p": _PROBABILITY,
    "eval.min_p": _FRACTION,
    "checkpoint.dir": _TEXT,
    "checkpoint.every": _whole(1),
    "checkpoint.keep": _whole(1),
    "checkpoint.grace_seconds": _NOT_NEGATIVE,
    "log.every": _whole(1),
    "log.tensorboard": _SWITCH,
    "log.wandb": _SWITCH,
    "log.trackio": _SWITCH,
    "log.project": Rule(
        str,
        lambda x: is_text(x) and 0 < len(x) <= 128 and not set(x) & set("/\\#?%:"),
        "a name of 1 to 128 characters without / \\ # ? % :",
    ),
    "log.run_name": Rule(str, lambda x: is_text(x) and len(x) <= 100, "at most 100 characters of text"),
    "log.trees": _whole(0),
    "log.trees_every": _whole(0),
    "log.tree_files": _whole(2),
}
