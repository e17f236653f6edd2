r"""Keeps the problems that a model solves now and then, of which it can learn.

    python -m ibtpo.filter --config=configs/tiny.py --workdir=runs/filtered
    python -m ibtpo.train --config=configs/tiny.py --workdir=runs/sanity \
        --config.data.source=jsonl:runs/filtered/kept.jsonl --config.eval.every=0

Samples --samples responses to each problem of data.source's training split (--split: to another) with the model of
config.model.path, as training does by the `sampling` section, and writes those that are solved with a share of --low to
--high, both included, to kept.jsonl in the workdir, one JSON object a line with the share.

Problems that are never or always solved teach nothing: their advantages are 0. A run on the others is the "sanity run"
of arXiv 2510.26788: what can be learnt is there, so that its training accuracy must rise.

The workdir gets an evaluation (docs/evaluation.md) with every response. A command that was killed goes on with what it
has; with other bounds nothing is sampled again.
"""

import functools

from absl import flags

from ibtpo import config as config_lib
from ibtpo.errors import UserError

_SAMPLES = flags.DEFINE_integer("samples", 8, "responses to each problem")
_LOW = flags.DEFINE_float("low", 0.2, "least share of right responses of a problem that is kept")
_HIGH = flags.DEFINE_float("high", 0.8, "largest share")
_SPLIT = flags.DEFINE_string("split", None, "split of data.source; default: data.train_split")


def main(config, workdir: str) -> None:
    samples, low, high = _SAMPLES.value, _LOW.value, _HIGH.value
    if samples < 1:
        raise UserError(f"--samples={samples}: at least one response to each problem, e.g. 8")
    if not 0 <= low <= high <= 1:
        raise UserError(f"--low={low:g} --high={high:g}: shares from 0 to 1, the lower one first, e.g. 0.2 and 0.8")
    from ibtpo.evaluation.filtering import Bounds, filter_problems

    filter_problems(config, workdir, Bounds(low, high), samples=samples, split=_SPLIT.value or "")


if __name__ == "__main__":
    # Rows of training limit no prompt here.
    config_lib.run(main, resolve=functools.partial(config_lib.resolve, training=False))
