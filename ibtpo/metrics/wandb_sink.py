"""A run at Weights & Biases, https://docs.wandb.ai.

The x axis is a metric of its own, `update`: rows that a resumed run makes up for are older than the newest, and
wandb drops what is logged to an older step. Of the machine only what wandb measures of its load is sent: no code, no
console, no command line, no git, no list of packages, no environment variables.
"""

import html
from collections.abc import Mapping
from typing import Any

# Seconds after which rows are in wandb's own file: those of a process that is killed before are lost.
_PRIVATE: dict[str, Any] = {"x_transaction_log_flush_interval": 0.1}


def open_run(project: str, name: str, id: str, workdir: str, config: Mapping[str, Any]) -> "WandbRun":
    """Begins the run `id`, or continues it. WANDB_MODE and wandb's other settings hold.

    project, name: as they are shown there. workdir: its subfolder `wandb` gets wandb's files. config: the hparams.
    """
    import wandb

    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        host="",
        save_code=False,
        silent=True,
        x_disable_meta=True,
        x_save_requirements=False,
        **{name: value for name, value in _PRIVATE.items() if name in wandb.Settings.model_fields},
    )
    run = wandb.init(
        project=project, name=name, id=id, resume="allow", dir=workdir, config=dict(config), settings=settings
    )
    run.define_metric("update")
    run.define_metric("*", step_metric="update")
    return WandbRun(run)


class WandbRun:
    """A `Sink` (`ibtpo.metrics.sinks`)."""

    def __init__(self, run: Any):
        self._run = run
        self.where = run.dir.removesuffix("/files") if run.offline else run.url

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"update": step, **values})

    def text(self, step: int, name: str, text: str) -> None:
        import wandb

        page = f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
        self._run.log({"update": step, name: wandb.Html(page, inject=False)})

    def close(self) -> None:
        self._run.finish()
