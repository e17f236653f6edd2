"""Writes a run's policy as a Hugging Face directory that transformers loads.

    python -m ibtpo.export --config=configs/tiny.py --workdir=runs/tiny --out=exports/tiny

The newest checkpoint is taken, or that of --step: of config.checkpoint.dir if it is set, as in training; else of the
workdir, or the checkpoint.dir that its config.json names. Architecture, tokenizer files, chat templates and
generation_config.json are those of config.model.path. A short model card, README.md, says what the folder holds.
"""

import json
from pathlib import Path

from absl import flags

from ibtpo import config as config_lib
from ibtpo.compilation_cache import enable_compilation_cache
from ibtpo.errors import UserError
from ibtpo.models.locate import model_folder

_OUT = flags.DEFINE_string("out", None, "folder to write")
_STEP = flags.DEFINE_integer("step", None, "update whose checkpoint is exported; default: the newest")


def export(config, workdir: str, out: str, step: int | None = None) -> None:
    """Writes the policy saved at `step` (None: the newest) of a run to the folder `out`.

    Its checkpoints are in config.checkpoint.dir or, where that is "", found from the workdir (`checkpoints.find`).
    On several hosts all call this, and an error on one is raised on all.

    Raises:
      UserError: no model, no checkpoint, or one of another model.
    """
    from flax import nnx  # these come after the command line

    from ibtpo import checkpoints, parallel
    from ibtpo.models import hf
    from ibtpo.policy import load_policy

    with parallel.together():
        run = config.checkpoint.dir or workdir
        step = checkpoints.latest_step(run) if step is None else step
        policy = load_policy(config, mesh=parallel.use_mesh(config.mesh))
    with parallel.together():
        params = checkpoints.load_params(run, policy.params, step)
    facts = {
        "Base model": config.model.preset or Path(config.model.path).name,
        "Method": config.method,
        "Updates": f"{step:,}",
        "Problems": config.data.source.rpartition("/")[2],
        "Prompt": f"`{json.dumps(config.data.prompt)}`" + ", in the chat template" * config.data.chat_template,
    }
    hf.save(nnx.merge(policy.graphdef, params), out, tokenizer_from=model_folder(config.model.path), facts=facts)


def main(config, workdir: str) -> None:
    if not _OUT.value:
        raise UserError("--out is missing: name the folder to write the model to")
    config_lib.check_folder("--out", _OUT.value)
    if not config.checkpoint.dir:
        config_lib.check_run("--workdir", workdir)
    enable_compilation_cache(config)
    export(config, workdir, _OUT.value, _STEP.value)
    print(f"written: {_OUT.value}")


if __name__ == "__main__":
    config_lib.run(main, writes_workdir=False)
