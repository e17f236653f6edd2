"""What a config.json asks of the decoder: each field is computed, known not to matter, or refused by name.

The lists cover every field that transformers 5 reads for the three families: those of LlamaConfig, Qwen2Config,
Qwen3Config and PreTrainedConfig, and those that its attention masks, caches and loading look up by name. A test
compares them with the installed classes.
"""

from typing import Any, NoReturn

from ibtpo.errors import UserError

ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
}
# Read by `read_fields` and computed, or refused there.
COMPUTED = frozenset(
    """architectures auto_map head_dim hidden_size intermediate_size layer_types max_position_embeddings
    max_window_layers model_type num_attention_heads num_hidden_layers num_key_value_heads
    original_max_position_embeddings rms_norm_eps rope_parameters rope_scaling rope_theta sliding_window
    tie_word_embeddings use_sliding_window vocab_size""".split()
)
# Whatever their value, the logits are the same: of training with PyTorch, of other heads, of files and of generation.
NO_EFFECT = frozenset(
    """attention_dropout attn_implementation bos_token_id chunk_size_feed_forward distributed_config dtype eos_token_id
    experts_implementation gradient_checkpointing id2label init_std initializer_factor initializer_range label2id
    name_or_path num_labels output_attentions output_hidden_states pad_token_id pretraining_tp problem_type return_dict
    sep_token_id tie_last_hidden_states torch_dtype transformers_version use_cache _commit_hash""".split()
)
_NONE, _ONE = (None,), (1.0, None)
# Field: the values under which the decoder computes the checkpoint's model. Absent is always one of them; null only
# where it is listed, for transformers takes it for another value or fails.
REQUIRED = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "attention_bias": (False,),  # in these families it also adds a bias to the output projection
    "mlp_bias": (False,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "partial_rotary_factor": _ONE,
    "per_layer_config": _NONE,
    "attention_chunk_size": _NONE,
    "kv_sharing_modes": _NONE,
    "logits_mup_width_multiplier": _NONE,
    "unpadded_vocab_size": _NONE,
    "text_config": _NONE,  # transformers takes the sizes of the text model from these
    "decoder": _NONE,
    "generator": _NONE,
    "text_encoder": _NONE,
    "transformers_weights": _NONE,  # another file of weights than the usual ones
    "fusion_config": _NONE,
    "quantization_config": _NONE,
    "quantization": _NONE,  # MLX's
    "compression_config": _NONE,
    # Fields of other architectures. transformers stores them unread, but whoever wrote them means another computation.
    "num_experts": _NONE,
    "num_local_experts": _NONE,
    "attn_logit_softcapping": _NONE,
    "final_logit_softcapping": _NONE,
    "query_pre_attn_scalar": _NONE,
    "clip_qkv": _NONE,
    "attention_multiplier": _ONE,
    "embedding_multiplier": _ONE,
    "residual_multiplier": _ONE,
    "logits_scaling": _ONE,
    "logit_scale": _ONE,
    "scale_emb": _ONE,
    "use_bidirectional_attention": (False, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
}

_DEFAULT_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_LLAMA3_ROPE = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
_MOST, _LARGE = 2**31, 1e30  # beyond the numbers of any model
_OWN_CODE = ("AutoConfig", "AutoModel")


def read_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` from the contents of a config.json, in the layout of transformers 4 or 5.

    Where a field is absent the family's default in transformers 5 counts, except for the sizes, which must be there.
    rope_scaling is None or a dictionary of `RopeScaling`'s fields.

    Raises:
      UserError: a field is missing, of a wrong type, or asks for something the decoder does not compute; one line
        that names the field, its value and the supported ones.
    """
    family = _present(config, "model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        refuse("model_type", family, f"one of {sorted(ARCHITECTURES)}")
    _refuse_other_models(config, family)
    num_layers, hidden = _whole(config, "num_hidden_layers"), _whole(config, "hidden_size")
    heads = _whole(config, "num_attention_heads")
    _refuse_windows(config, family, num_layers)
    kv_heads = config.get("num_key_value_heads") if family == "llama" else _present(config, "num_key_value_heads")
    max_positions = _whole(config, "max_position_embeddings", 2048 if family == "llama" else 32_768)
    rope_theta, rope_scaling = _rope(config, max_positions)
    return dict(
        family=family,
        vocab_size=_whole(config, "vocab_size"),
        embed_dim=hidden,
        mlp_dim=_whole(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=heads if kv_heads is None else _whole(config, "num_key_value_heads"),
        head_dim=_head_dim(config, family, hidden, heads),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_eps=_number(config, "rms_norm_eps", default=1e-6),
        tie_embeddings=_flag(config, "tie_word_embeddings"),
        qk_norm=family == "qwen3",
        qkv_bias=family == "qwen2",
        max_positions=max_positions,
    )


def refuse(field: str, value: Any, supported: str) -> NoReturn:
    """Raises the error about a field of config.json."""
    shown = repr(value) if len(repr(value)) <= 200 else f"{repr(value)[:200]}..."
    raise UserError(f"config.json: {field} = {shown} is not supported; supported: {supported}")


def _refuse_other_models(config: dict[str, Any], family: str) -> None:
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        refuse("architectures", architectures, f"a list of {ARCHITECTURES[family]!r}")
    # A reward model or classifier of the family has another head, or none.
    for architecture in architectures:
        if architecture != ARCHITECTURES[family]:
            refuse("architectures", architecture, repr(ARCHITECTURES[family]))
    for name, supported in REQUIRED.items():
        if name in config and config[name] not in supported:
            refuse(name, config[name], "absent" if supported[0] is None else f"{supported[0]!r}")
    code = config.get("auto_map") or {}
    if not isinstance(code, dict) or any(name.startswith(_OWN_CODE) for name in code):
        # The publisher's Python files say what is computed, and transformers runs them if it is told to trust them.
        refuse("auto_map", code, "a model without code of its own; remove auto_map where that code changes nothing")


def _refuse_windows(config: dict[str, Any], family: str, num_layers: int) -> None:
    """Every layer attends to all tokens before. `layer_types` decides, and where it is absent Qwen's window, which
    covers the layers from max_window_layers on: a window over no layer is no window."""
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            length = f" ({len(kinds)} entries)" if isinstance(kinds, list) else ""
            refuse(f"layer_types{length}", kinds, f"an entry for each of num_hidden_layers = {num_layers}, or absent")
        for kind in kinds:
            if kind != "full_attention":
                refuse("layer_types", kind, "'full_attention' on every layer")
    elif family == "llama":
        if config.get("sliding_window") is not None:  # transformers' caches keep that many tokens, its masks do not
            refuse("sliding_window", config["sliding_window"], "absent")
    else:
        used, window = _flag(config, "use_sliding_window"), config.get("sliding_window", 4096)
        if _whole(config, "max_window_layers", 28, least=0) < num_layers and used and window is not None:
            refuse("sliding_window", window, "use_sliding_window false")


def _head_dim(config: dict[str, Any], family: str, hidden: int, heads: int) -> int:
    if family == "qwen3":
        return _whole(config, "head_dim", 128)
    given = config.get("head_dim") if family == "llama" else config.get("head_dim", "absent")
    if (given in (None, "absent") or family == "llama") and hidden % heads:
        refuse("hidden_size", hidden, f"a multiple of num_attention_heads = {heads}")
    # Qwen2 divides the width where head_dim is absent, but transformers fails where it is null.
    if given == "absent" or (given is None and family == "llama"):
        return hidden // heads
    return _whole(config, "head_dim")


def _rope(config: dict[str, Any], max_positions: int) -> tuple[float, dict[str, Any] | None]:
    """(rope_theta, scaling). As in transformers, `rope_scaling` (its layout 4) comes before `rope_parameters` (5), and
    what is not in the one taken is at the top, never in the other."""
    for where in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(where), dict | None):
            refuse(where, config[where], "an object, or absent")
    where = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(where) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        refuse(f"{where}.rope_type", kind, "'default' or 'llama3'")
    for name in rope:
        # Parameters of another kind, or of each kind of layers.
        if name not in _DEFAULT_ROPE and not (kind == "llama3" and name in _LLAMA3_ROPE):
            refuse(f"{where}.{name}", rope[name], f"absent beside rope_type {kind!r}")
    if "partial_rotary_factor" in rope and rope["partial_rotary_factor"] != 1:
        refuse(f"{where}.partial_rotary_factor", rope["partial_rotary_factor"], "1.0")
    theta = _number(rope, "rope_theta", where) if "rope_theta" in rope else _number(config, "rope_theta", default=1e4)
    unread = (config.get("rope_parameters") or {}).get("rope_theta", theta)
    if unread != theta:
        raise UserError(
            f"config.json: rope_scaling comes before rope_parameters, so that rope_theta is {theta}, but "
            f"rope_parameters.rope_theta = {unread!r}: write all in one of the two"
        )
    return theta, None if kind == "default" else _llama3(config, rope, where, max_positions)


def _llama3(config: dict[str, Any], rope: dict[str, Any], where: str, max_positions: int) -> dict[str, Any]:
    low, high = _number(rope, "low_freq_factor", where), _number(rope, "high_freq_factor", where)
    if low >= high:
        refuse(f"{where}.low_freq_factor", low, f"less than high_freq_factor = {high}")
    # A length beside the rope's own comes first, as in transformers.
    name = "original_max_position_embeddings"
    length = _whole(config, name) if name in config else _whole(rope, name, max_positions, where=where)
    factor = _number(rope, "factor", where)
    return dict(factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_positions=length)


def _present(config: dict[str, Any], name: str, where: str = "config.json") -> Any:
    if name not in config:
        raise UserError(f"{where} has no field {name!r}: fetch the model's config.json again")
    return config[name]


def _whole(config: dict[str, Any], name: str, default: int | None = None, *, least: int = 1, where: str = "") -> int:
    value = config.get(name, default) if default is not None else _present(config, name, where or "config.json")
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < _MOST:
        refuse(f"{where}.{name}" if where else name, value, f"a whole number of {least} or more, below 2^31")
    return value


def _number(config: dict[str, Any], name: str, where: str = "", *, default: float | None = None) -> float:
    value = config.get(name, default) if default is not None else _present(config, name, where or "config.json")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < _LARGE:
        refuse(f"{where}.{name}" if where else name, value, "a positive number")
    return float(value)


def _flag(config: dict[str, Any], name: str) -> bool:
    value = config.get(name, False)
    if not isinstance(value, bool):
        refuse(name, value, "true or false")
    return value
