"""The rule of each key of `ibtpo.sft`, whose configuration has keys of its own."""

from ibtpo import choices
from ibtpo.config.rules import MOST, RULES, Rule, is_text

_WHOLE = Rule(int, lambda x: 1 <= x <= MOST, f"a whole number of at least 1 and at most {MOST:,}")
_FAMILIES = ("qwen3", "qwen2", "llama")
_THETA = Rule(float, lambda x: 1 < x <= 1e12, "a number above 1 and at most 1e12")
_FOLDER = Rule(str, lambda x: bool(x.strip()) and is_text(x), "a folder, e.g. assets/qwen3-tiny")
_TOKENIZER = Rule(str, _FOLDER.test, f"{_FOLDER.words}, or an id of the hub, e.g. Qwen/Qwen3-0.6B")
_SHARED = (
    "compilation_cache",
    "model.revision",
    "model.dtype",
    "model.param_dtype",
    "model.remat",
    "data.difficulty",
    "data.question_field",
    "data.prompt",
    "data.chat_template",
    "data.system_prompt",
    "data.max_prompt_tokens",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.b1",
    "optimizer.b2",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.first_moment_dtype",
    "train.steps",
    "train.seed",
    "log.every",
    "log.tensorboard",
    "log.wandb",
    "log.trackio",
    "log.project",
    "log.run_name",
)
_SIZES = ("embed_dim", "mlp_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "max_positions")

SFT_RULES: dict[str, Rule] = {
    **{key: RULES[key] for key in _SHARED},
    **{f"model.architecture.{name}": _WHOLE for name in _SIZES},
    "tokenizer": _TOKENIZER,
    "output": _FOLDER,
    "model.path": Rule(str, is_text, "a folder in Hugging Face format, an id of the hub, or \"\" for random weights"),
    "model.architecture.family": Rule(str, lambda x: x in _FAMILIES, "one of " + ", ".join(_FAMILIES), _FAMILIES),
    "model.architecture.rope_theta": _THETA,
    "model.architecture.tie_embeddings": RULES["data.chat_template"],
    "model.architecture.qk_norm": RULES["data.chat_template"],
    "data.source": Rule(
        str,
        lambda x: x in choices.WORKED or (x.startswith("jsonl:") and bool(x[6:].strip()) and is_text(x)),
        f"{', '.join(choices.WORKED)} or jsonl:<path>",
        tuple(choices.WORKED),
    ),
    "data.noise": Rule(float, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    "data.solution_field": RULES["data.question_field"],
    "train.rows": _WHOLE,
    "train.row_tokens": _WHOLE,
}
