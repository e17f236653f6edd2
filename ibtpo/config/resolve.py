"""From a configuration with open keys to one that is complete, checked and locked."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from ibtpo import own_code
from ibtpo.config.keys import ConfigError, did_you_mean, flatten, nearest_key, shown, unflatten
from ibtpo.config.methods import METHODS
from ibtpo.config.rules import MOST, RULES, Rule


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
    _check_keys(flat, RULES, "configs.base.get_config()")
    _check_value("method", flat["method"], RULES["method"])
    for key, value in METHODS[flat["method"]].items():
        if flat[key] is None:
            flat[key] = value
    resolved = unflatten({key: _check_value(key, value, RULES[key]) for key, value in flat.items()})
    _check_combinations(resolved, training)
    return resolved.lock()


def resolve_by(rules: Mapping[str, Rule], origin: str) -> Callable[[ConfigDict], ConfigDict]:
    """The `resolve` of a program with keys of its own: every key is there and every value within its rule.

    Args:
      origin: where a configuration with all keys comes from.
    """

    def resolve(config: ConfigDict) -> ConfigDict:
        flat = flatten(config)
        _check_keys(flat, rules, origin)
        return unflatten({key: _check_value(key, value, rules[key]) for key, value in flat.items()}).lock()

    return resolve


def _check_keys(flat: Mapping[str, Any], rules: Mapping[str, Rule], origin: str) -> None:
    for key in flat:
        if key not in rules:
            raise ConfigError(f"unknown key {key}={shown(flat[key])}: {nearest_key(key, rules)}")
    for key in rules:
        if key not in flat:
            raise ConfigError(f"missing key {key}: start the config from {origin}, which has them all")


def _check_value(key: str, value: Any, rule: Rule) -> Any:
    """`value` in the type of its rule (an int becomes a float where a float is due)."""
    if rule.type is float and type(value) is int:
        value = float(value) if abs(value) < 2**53 else value
    # bool is a subclass of int, and `steps = True` is never meant.
    if type(value) is not rule.type or not rule.test(value):
        raise ConfigError(f"{key}={shown(value)} must be {rule.words}{did_you_mean(value, rule.choices)}")
    return value


def _check_combinations(config: ConfigDict, training: bool) -> None:
    """Raises a ConfigError where values that are right by themselves cannot work together."""
    if config.data.system_prompt and not config.data.chat_template:
        raise ConfigError(
            f"data.system_prompt={config.data.system_prompt!r} has no place without a chat template: set "
            "data.chat_template=True, or put the text into data.prompt"
        )
    for key in own_code.PARAMETERS:
        section, name = key.split(".")
        if own_code.is_path(config[section][name]):
            own_code.find(key, config[section][name])
    _check_tree(config)
    _check_loss(config)
    _check_updates(config)
    _check_lengths(config, training)
    _check_mesh(config)


def _check_tree(config: ConfigDict) -> None:
    tree, sampling = config.tree, config.sampling
    if responses_per_question(tree) < 2:
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


def _check_loss(config: ConfigDict) -> None:
    if config.loss.dual_clip and config.loss.objective != "clip":
        raise ConfigError(
            f"loss.dual_clip={config.loss.dual_clip} bounds loss.objective='clip' only, not "
            f"{config.loss.objective!r}: set it to 0"
        )
    if config.loss.deviation == "bernoulli" and (config.reward.terms or config.reward.overlong_share):
        raise ConfigError(
            "loss.deviation='bernoulli' is the variance of rewards in [0, 1], out of which reward.terms="
            f"{config.reward.terms!r} and reward.overlong_share={config.reward.overlong_share} move them: set these to "
            "\"\" and 0, or loss.deviation to 'sample'"
        )
    if config.loss.objective == "gspo" and (config.loss.importance_cap or config.loss.entropy_advantage):
        raise ConfigError(
            f"loss.objective='gspo' has no loss.importance_cap={config.loss.importance_cap} and no "
            f"loss.entropy_advantage={config.loss.entropy_advantage}: set both to 0"
        )


def _check_updates(config: ConfigDict) -> None:
    train = config.train
    updates = train.steps * train.epochs * train.minibatches
    if updates > MOST:
        raise ConfigError(
            f"train.steps={train.steps} with train.epochs={train.epochs} and train.minibatches={train.minibatches} are "
            f"{updates:,} updates, which are counted up to {MOST:,}: lower one of the three"
        )
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


def _check_lengths(config: ConfigDict, training: bool) -> None:
    sampling, train = config.sampling, config.train
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
            f"sampling.max_new_tokens = {longest} tokens: set it to 0 (as the longest tree of a step needs) or "
            f"at least {longest}"
        )


def _check_mesh(config: ConfigDict) -> None:
    mesh = config.mesh
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
    """Raises a ConfigError where `shards` shards of rows do not divide the counts split over them."""
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
