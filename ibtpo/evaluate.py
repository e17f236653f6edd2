r"""Accuracy of a checkpoint on any number of benchmarks: avg@k, pass@k and maj@k with 95 % intervals.

    python -m ibtpo.evaluate --config=configs/tiny.py --checkpoint=runs/tiny
    python -m ibtpo.evaluate --config=configs/qwen3_8b.py --checkpoint=runs/qwen3_8b \
        --config.eval.benchmarks=gsm8k,math_500,aime_2024
    python -m ibtpo.evaluate --compare=runs/one --compare=runs/other

--checkpoint is the workdir of a run or its checkpoint.dir (the newest checkpoint; the architecture and the tokenizer
come from config.model.path), a Hugging Face directory, or hf:<owner>/<name> of the hub. Where config.model.path is "",
the model is that directory, or the one that the workdir's config.json names. A workdir without checkpoints of its own
leads to the checkpoint.dir that its config.json names. Responses are independent, eval.samples per question. Without
eval.benchmarks the held-out split of data.source is evaluated.

Prints a table per benchmark and one over all, and writes them to --workdir (default: <checkpoint>/evaluation), with
every response and its verdict as JSON lines and as a page to browse. A benchmark that is there already, from the same
checkpoint, settings and problems, is not sampled again; of one that was killed half-way its finished questions are not.

--compare, given twice, names two such folders, or workdirs that have one: it prints the paired differences, second
minus first, with 95 % intervals, and needs no model. See docs/evaluation.md.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from ibtpo import config as config_lib
from ibtpo import hub
from ibtpo.arguments import Parser, program
from ibtpo.errors import UserError
from ibtpo.models.locate import is_model_folder, model_folder

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "workdir of a run, or a folder in Hugging Face format")


def resolve(config: ConfigDict) -> ConfigDict:
    """The configuration resolved for evaluation, with the model that is beside the checkpoint where it names none: that
    of a Hugging Face folder or an id of the hub, or of the run in a workdir."""
    checkpoint = _CHECKPOINT.value
    if checkpoint and not str(config.model.path).strip():
        if (repo := hub.checkpoint_repo(config.model, checkpoint)) is not None:
            config.model.path = repo.id
        elif is_model_folder(checkpoint):
            config.model.path = os.fspath(checkpoint)
        elif os.path.isdir(checkpoint) and (saved := config_lib.load_saved(checkpoint)) is not None:
            model = saved.get("model", {})
            config.model.path, config.model.revision = model.get("path", ""), model.get("revision", "")
    # A benchmark may need longer prompts than the rows of training hold.
    return config_lib.resolve(config, training=False)


def main(config, workdir: str | None) -> None:
    checkpoint = _CHECKPOINT.value
    if not checkpoint:
        raise UserError("--checkpoint is missing: name a run's workdir or a Hugging Face folder")
    if hub.checkpoint_repo(config.model, checkpoint) is not None:
        if not workdir:
            raise UserError(f"--checkpoint={checkpoint} is on the hub: name a local --workdir for results")
    elif model_folder(checkpoint) == pathlib.Path(checkpoint):
        config_lib.check_run("--checkpoint", checkpoint)
    if "://" in checkpoint and not workdir:
        raise UserError(f"--checkpoint={checkpoint} is remote: name a local --workdir for results")
    if not workdir and os.path.isdir(checkpoint):
        config_lib.check_folder("--workdir", os.path.join(checkpoint, "evaluation"))
    from ibtpo.evaluation.suite import evaluate_checkpoint

    evaluate_checkpoint(config, checkpoint, workdir)


def compare(arguments: Sequence[str]) -> None:
    """The command with --compare; whatever is wrong ends it with one line and code 2."""
    from ibtpo.evaluation import compare as comparison

    parser = Parser(prog=program(), allow_abbrev=False)
    parser.add_argument("--compare", action="append", required=True, metavar="FOLDER", help="evaluation; give two")
    folders = parser.parse_args(arguments).compare
    if len(folders) != 2:
        parser.error(f"--compare must be given twice, not {len(folders)} times: it names the two evaluations")
    try:
        print(comparison.compare(*folders))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    if any(argument.split("=")[0] == "--compare" for argument in sys.argv[1:]):
        compare(sys.argv[1:])
    else:
        config_lib.run(main, resolve=resolve, needs_workdir=False)
