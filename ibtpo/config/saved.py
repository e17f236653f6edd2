"""The configuration that a run keeps on disk, and the changes allowed when the run is resumed."""

import json
import os
from collections.abc import Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from ibtpo.config.files import load
from ibtpo.config.keys import ConfigError, flatten
from ibtpo.whole_files import write_text

SAVED_NAME = "config.json"

FREE = "free"  # changes nothing that is learnt
ROUNDING = "rounding"  # the same formulas in another order or shape: results agree up to rounding; said when resuming
REFUSED = "refused"  # another run

_ALGORITHM = "part of the algorithm"
_PROMPTS = "which problems the policy is trained on, or their prompts and answers"
_SHAPES = "how many responses are decoded side by side; the tokens drawn follow from key, question and position"
_WHERE = "where files are"

_MOST_LISTED = 12  # differences in a message

# Changes allowed when a run is resumed: {key, or section for all its keys: (class, reason)}; a key's own entry comes
# before its section's. docs/resuming.md is this table for readers.
CHANGES: dict[str, tuple[str, str]] = {
    "method": (REFUSED, _ALGORITHM),
    "compilation_cache": (FREE, "where compiled programs are kept"),
    "model.path": (REFUSED, "names the model; weights come from the checkpoint, so another one would be ignored"),
    "model.revision": (REFUSED, "which commit of an id of the hub is the model"),
    "model.preset": (FREE, "a check of the model's sizes"),
    "model.dtype": (REFUSED, "the precision of all activations and of the reference's weights"),
    "model.param_dtype": (REFUSED, "the type of the saved parameters and of the optimizer's state"),
    "model.remat": (ROUNDING, "the parts that the backward pass computes again"),
    "model.lora_rank": (REFUSED, "which parameters are trained"),
    "model.lora_alpha": (REFUSED, "what the adapters are multiplied by"),
    "model.lora_targets": (REFUSED, "which parameters are trained"),
    "data": (REFUSED, _PROMPTS),
    "data.files": (FREE, f"{_WHERE}; data.source names the set, and the problems themselves are compared"),
    "data.check_rows": (FREE, "whether another number of rows is an error; the problems themselves are compared"),
    "data.dir": (FREE, f"{_WHERE}; the problems themselves are compared"),
    "data.eval_split": (FREE, "the problems evaluated"),
    "tree": (REFUSED, _ALGORITHM),
    "sampling": (REFUSED, "the tokens drawn, and where a response ends"),
    "sampling.slots": (ROUNDING, _SHAPES),
    "sampling.pages": (ROUNDING, _SHAPES),
    "sampling.memory_share": (ROUNDING, _SHAPES),
    "sampling.page_size": (ROUNDING, "the pieces in which attention reads the cache"),
    "sampling.chunk": (ROUNDING, "how often the host looks in; a response that was put back is computed anew"),
    "sampling.questions_in_flight": (ROUNDING, _SHAPES),
    "sampling.deterministic": (ROUNDING, "when a question's next round begins, and so which sequences share a batch"),
    "loss": (REFUSED, _ALGORITHM),
    "reward": (REFUSED, "which responses are right, and by how much"),
    "reward.workers": (FREE, "how many processes grade"),
    "reward.timeout": (REFUSED, "an answer that takes longer is wrong"),
    "reward.memory_mb": (REFUSED, "an answer that needs more is wrong"),
    "optimizer": (REFUSED, _ALGORITHM),
    "train.steps": (FREE, "how long the run is; refused where optimizer.schedule ends with it"),
    "train.questions_per_step": (REFUSED, _ALGORITHM),
    "train.epochs": (REFUSED, _ALGORITHM),
    "train.minibatches": (REFUSED, _ALGORITHM),
    "train.refills": (REFUSED, _ALGORITHM),
    "train.seed": (REFUSED, "all draws"),
    "train.max_skipped": (FREE, "when the run gives up"),
    "train.host_timeout": (FREE, "when the run gives another host up"),
    "train.row_tokens": (ROUNDING, "how trees are laid into rows"),
    "train.rows_per_step": (ROUNDING, "the parts in which an update's gradient is summed"),
    "train.token_block": (ROUNDING, "the pieces in which the logits are computed"),
    "mesh": (ROUNDING, "over which devices arrays are split; sums over them are in another order"),
    "eval": (FREE, "the problems evaluated, and how often"),
    "checkpoint": (FREE, "how often the run is saved, and where"),
    "log": (FREE, "the records written"),
}

# What runs that were saved before there was such a key have done.
EARLIER = {
    "model.lora_rank": 0,
    "model.lora_alpha": 32.0,
    "model.lora_targets": "all",
    "model.revision": "",
    "data.step_rule": "separator",
    "data.moved_steps": 0.0,
    "data.revision": "",
    "data.subset": "",
    "data.options": "",
}


def kind_of_change(key: str) -> str:
    """The effect of a change of `key` on a resumed run: FREE, ROUNDING or REFUSED; REFUSED for an unknown key."""
    return (CHANGES.get(key) or CHANGES.get(key.split(".")[0]) or (REFUSED, ""))[0]


def diff(old: Mapping[str, Any], new: Mapping[str, Any], kind: str = REFUSED) -> dict[str, tuple[Any, Any]]:
    """{key: (old value, new value)} of the keys that differ and whose change is of this kind (`kind_of_change`); a key
    that one side lacks counts as None there, or as in EARLIER. train.steps is REFUSED where a schedule ends with it."""
    before, after = EARLIER | flatten(old), EARLIER | flatten(new)
    own = {"train.steps": REFUSED} if after.get("optimizer.schedule", "constant") != "constant" else {}
    keys = [*after, *(key for key in before if key not in after)]
    return {
        key: (before.get(key), after.get(key))
        for key in keys
        if before.get(key) != after.get(key) and (own.get(key) or kind_of_change(key)) == kind
    }


def load_saved(workdir: str) -> ConfigDict | None:
    """The configuration that `save` wrote into a workdir, None where there is none.

    Raises:
      ConfigError: it is damaged.
    """
    path = os.path.join(workdir, SAVED_NAME)
    try:
        return load(path) if os.path.lexists(path) else None
    except ConfigError as error:
        reason = str(error).removeprefix(f"--config={path}: ").removesuffix(": correct the file")
        raise ConfigError(
            f"{path}, the configuration of the run there, is damaged ({reason}): restore it or, to go on with the "
            "configuration given, delete it; or choose a new --workdir"
        ) from error


def _listed(differences: Mapping[str, tuple[Any, Any]]) -> str:
    shown = [f"{key}: {old!r} -> {new!r}" for key, (old, new) in differences.items()]
    more = f"; and {len(shown) - _MOST_LISTED} more" if len(shown) > _MOST_LISTED else ""
    return "; ".join(shown[:_MOST_LISTED]) + more


def _refuse_another(place: str, old: Mapping[str, Any], new: Mapping[str, Any], way_out: str) -> None:
    differences = diff(old, new)
    if differences:
        raise ConfigError(
            f"{place} belongs to a run with another configuration ({_listed(differences)}): {way_out}, or give "
            f"{'this key its' if len(differences) == 1 else 'these keys their'} old value to resume it"
        )


def check_same(place: str, old: Mapping[str, Any], new: Mapping[str, Any], way_out: str) -> None:
    """For a run that is resumed from `place`: a refused change is an error, one of rounding is warned of in one line.

    Raises:
      ConfigError: `place` holds a run of another configuration (`diff`); with `way_out`.
    """
    _refuse_another(place, old, new, way_out)
    rounding = diff(old, new, ROUNDING)
    if rounding:
        logging.warning(
            "%s is resumed with %s: results differ by rounding from those of an uninterrupted run (docs/resuming.md)",
            place,
            _listed(rounding),
        )


def save(config: ConfigDict, workdir: str, *, write: bool = True) -> None:
    """Writes the configuration as workdir/config.json, or checks it against the one that is there.

    Args:
      config: a resolved configuration.
      workdir: made if missing.
      write: False on all hosts but the first: check only.

    Raises:
      ConfigError: the workdir holds a run whose configuration differs in a key that may not change (CHANGES).
    """
    path, saved = os.path.join(workdir, SAVED_NAME), load_saved(workdir)
    if saved is not None:
        _refuse_another(path, saved, config, "choose a new --workdir")
    if write:
        write_text(path, json.dumps(config.to_dict(), indent=2) + "\n")
