"""Writes a run's policy as a Hugging Face directory that transformers loads.

    python -m ibtpo.export --config=configs/tiny.py --workdir=runs/tiny --out=exports/tiny

The newest checkpoint is taken, or that of --step: of config.checkpoint.dir if it is set, as in training; else of the
workdir, or the checkpoint.dir that its config.json names. Architecture, tokenizer files, chat templates and
generation_config.json are those of config.model.path. Adapters (model.lora_rank) are merged into the model; with
--adapter they are written alone, as a folder that the PEFT library loads beside the base model. A model card,
README.md, says what the folder holds: base model, method, problems, the run's metrics, its configuration.

--push=user/name uploads the folder to the Hugging Face hub too, private unless --public is given. The token is that of
`hf auth login` or of HF_TOKEN.
"""

from absl import flags

from ibtpo import config as config_lib
from ibtpo import push
from ibtpo.compilation_cache import enable_compilation_cache
from ibtpo.errors import UserError
from ibtpo.models.locate import configured_folder

_OUT = flags.DEFINE_string("out", None, "folder to write")
_STEP = flags.DEFINE_integer("step", None, "update whose checkpoint is exported; default: the newest")
_PUSH = flags.DEFINE_string("push", None, "user/name on the Hugging Face hub that the folder is uploaded to, too")
_PUBLIC = flags.DEFINE_bool("public", False, "with --push: for everybody to see; else private")
_ADAPTER = flags.DEFINE_bool("adapter", False, "write the adapters alone, as a PEFT folder, not the merged model")


def export(
    config, workdir: str, out: str, step: int | None = None, *, adapter: bool = False, title: str = ""
) -> None:
    """Writes the policy saved at `step` (None: the newest) of a run to the folder `out`.

    adapter: its adapters alone, as a folder that PEFT reads; else adapters are merged into the model. title: of the
    model card; "": the folder's name.

    Its checkpoints are in config.checkpoint.dir or, where that is "", found from the workdir (`checkpoints.find`).
    On several hosts all call this, and an error on one is raised on all.

    Raises:
      UserError: no model, no checkpoint, or one of another model or of other adapters.
    """
    from flax import nnx  # these come after the command line

    from ibtpo import checkpoints, parallel, pinned, run_facts
    from ibtpo.models import hf
    from ibtpo.models.lora import LoraOptions
    from ibtpo.saved_policy import load_saved

    options = LoraOptions.from_config(config.model)
    if adapter and options is None:
        raise UserError("--adapter: model.lora_rank=0, a run without adapters: leave it out to export the model")
    with parallel.together():
        run = config.checkpoint.dir or workdir
        step = checkpoints.latest_step(run) if step is None else step
        mesh = parallel.use_mesh(config.mesh)
    config = pinned.of_checkpoint(config, run, step)
    policy, adapters = load_saved(config, run, step, mesh=mesh)
    facts = run_facts.facts(config, step)
    if options is not None:
        made = "" if adapter else ", merged"
        facts["Adapters"] = f"rank {options.rank}, alpha {options.alpha:g}, of {options.targets}{made}"
    about = hf.About(
        facts | run_facts.metrics(config, workdir, step),
        title=title,
        base=run_facts.base_id(config.model),
        dataset=run_facts.data_id(config.data),
        config=run_facts.shown_config(config),
    )
    if adapter and options is not None and adapters is not None:
        hf.save_adapter(adapters, options, out, base=config.model.preset or config.model.path, facts=about)
        return
    hf.save(nnx.merge(policy.graphdef, policy.params), out, tokenizer_from=configured_folder(config.model), facts=about)


def main(config, workdir: str) -> None:
    if not _OUT.value:
        raise UserError("--out is missing: name the folder to write the model to")
    config_lib.check_folder("--out", _OUT.value)
    if not config.checkpoint.dir:
        config_lib.check_run("--workdir", workdir)
    target = push.Target.checked(_PUSH.value, public=_PUBLIC.value)
    enable_compilation_cache(config)
    title = target.id if target is not None else ""
    export(config, workdir, _OUT.value, _STEP.value, adapter=_ADAPTER.value, title=title)
    print(f"written: {_OUT.value}")
    if target is not None:
        print(f"pushed: {target.upload(_OUT.value)}")


if __name__ == "__main__":
    config_lib.run(main, writes_workdir=False)
