"""What an export's model card says of the run behind it: rows of name and value, metrics, and the configuration.

Nothing that says where files are on somebody's machine is among them, and no key of a service.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ibtpo import config as config_lib
from ibtpo import hub
from ibtpo import metrics as metrics_lib
from ibtpo.data.published import DATASETS
from ibtpo.errors import UserError
from ibtpo.evaluation import files, tables

_SECTIONS = ("method", "model.", "data.", "tree.", "sampling.", "loss.", "reward.", "optimizer.", "train.")


def base_id(model: Mapping[str, Any]) -> str:
    """The id on the hub of a run's base model, of its `model` section; "" where it is only known as a folder."""
    return model["preset"] or (model["path"] if hub.model_repo(model) is not None else "")


def facts(config: Any, step: int) -> dict[str, str]:
    """Rows of a card: base model, method, updates, problems and prompt."""
    base = base_id(config.model) or pathlib.Path(config.model.path).name
    revision = hub.commit_of(config.model.revision) if base_id(config.model) else ""
    rows = {
        "Base model": base,
        "Revision": f"`{revision}`" * bool(revision),
        "Method": config.method,
        "Updates": f"{step:,}",
        "Problems": problems(config.data),
        "Prompt": f"`{json.dumps(config.data.prompt)}`" + ", in the chat template" * config.data.chat_template,
    }
    return {name: value for name, value in rows.items() if value}


def problems(data: Any) -> str:
    """The set that a run was trained on: its title, its id, or a file's name without its folder."""
    kind, _, name = data.source.partition(":")
    if kind == "tfds" and name in DATASETS:
        return DATASETS[name].title
    if kind == "hf":
        return "@".join(filter(None, (name, hub.commit_of(data.revision))))
    return os.path.basename(name) if kind in ("jsonl", "parquet") else data.source


def data_id(data: Any) -> str:
    """The id on the hub of the set that a run was trained on; "" where it has none."""
    kind, _, name = data.source.partition(":")
    if kind == "tfds" and name in DATASETS:
        return DATASETS[name].repo
    return name if kind == "hf" else ""


def _without_folder(source: str) -> str:
    """jsonl:/home/me/a.jsonl -> jsonl:a.jsonl; a name of a set as it is."""
    kind, colon, path = source.partition(":")
    return f"{kind}:{os.path.basename(path)}" if colon and kind.strip() in ("jsonl", "parquet") else source


def metrics(config: Any, workdir: str | os.PathLike, step: int) -> dict[str, str]:
    """Rows of what the run has measured: the held-out accuracy at `step`, or last before, with the first one; and each
    benchmark of an evaluation of this step in the workdir."""
    rows: dict[str, str] = {}
    if metrics_lib.exist(workdir):
        found = [row for row in metrics_lib.read(workdir) if "eval/avg_at_k" in row and row["step"] <= step]
        if found:
            at = {row["step"]: tables.accuracy_line(row) for row in (found[0], found[-1])}
            rows["Held out"] = "; ".join(f"update {number}: {line}" for number, line in at.items())
    try:
        evaluated = files.read_summary(pathlib.Path(workdir) / "evaluation")
    except (UserError, OSError):
        return rows
    if evaluated.get("checkpoint", {}).get("step") == step:
        for name, summary in evaluated.get("benchmarks", {}).items():
            shown = (f"{row['metric']} {row['value']} ({row['95 % interval']})" for row in tables.metric_rows(summary))
            rows[f"Evaluation: {name}"] = f"{summary['questions']:,} questions; {', '.join(shown)}"
    return rows


def shown_config(config: Any) -> str:
    """The configuration as JSON: what was trained and how. Paths have no folders, and keys that say where files are or
    what is recorded are left out."""
    shown = {}
    for key, value in config_lib.flatten(config).items():
        if not key.startswith(_SECTIONS) or key in ("data.files", "data.dir"):
            continue
        shown[key] = value
    shown["model.path"] = config.model.path if base_id(config.model) else pathlib.Path(config.model.path).name
    for key in ("data.source", "data.decontaminate"):
        shown[key] = ",".join(map(_without_folder, shown[key].split(",")))
    return json.dumps(shown, indent=1, ensure_ascii=False)
