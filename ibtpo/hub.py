"""Models and data sets by their id on the Hugging Face hub: the commit that a name stands for, and its files.

A revision is pinned as `name@commit`, "main@0123...": what was asked for and the 40 digits that it meant then. The pin
is part of a run's saved configuration, so that the run goes on with the same files wherever it is resumed.

huggingface_hub fetches: into its cache (HF_HOME), one process of a host at a time, the others wait for the file. It
reads the cache alone where the hub cannot be reached or HF_HUB_OFFLINE is set. Nothing here imports JAX, and
huggingface_hub is imported where it is used.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from ibtpo.errors import UserError, one_line
from ibtpo.messages import hushed_import

T = TypeVar("T")
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(rf"{_PART}/{_PART}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9_][\w./-]{0,199}(@[0-9a-f]{40})?", re.ASCII)
DEFAULT = "main"
# First parts of paths that are no owner of anything: a slip in such a path asks nobody.
_FOLDERS = ("assets", "checkpoints", "configs", "data", "exports", "models", "problems", "runs")

# A model's own files: no copies in other formats, which lie in folders or end otherwise.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
TOKENIZER_FILES = tuple(pattern for pattern in MODEL_FILES if pattern != "*.safetensors")


def is_id(name: str) -> bool:
    """Whether it has the form of an id, owner/name; nothing is asked."""
    return _ID.fullmatch(name) is not None and "--" not in name and ".." not in name


def is_revision(text: str) -> bool:
    """Whether it may be a branch, a tag, a commit, or a pin; "" is the default."""
    return not text or (_REVISION.fullmatch(text) is not None and ".." not in text)


def commit_of(revision: str) -> str:
    """The commit of a pin, or the one that a revision is itself; "" where it is a name."""
    last = revision.rpartition("@")[2]
    return last if _COMMIT.fullmatch(last) else ""


def agrees(asked: str, pinned: str) -> bool:
    """Whether a pin answers what is asked for: the same name, the same commit, or the pin itself."""
    return bool(pinned) and (asked or DEFAULT) in (pinned, *pinned.split("@"))


@dataclass(frozen=True)
class Repo:
    """A model or data set on the hub.

    key: of the configuration that names it. value: as it is written there. revision_key: that of its revision.
    instead: the option that a local folder goes to. local: where `hf download` puts it in the advice.
    """

    id: str
    kind: str  # "model" or "dataset"
    key: str
    value: str
    revision_key: str
    instead: str
    local: str

    @classmethod
    def model(cls, id: str, key: str = "model.path", value: str = "") -> "Repo":
        """Of model.path, or of another `key` with this value."""
        option = key if key.startswith("--") else f"--config.{key}"
        return cls(id, "model", key, value or id, "model.revision", option, f"models/{id.partition('/')[2]}")

    @classmethod
    def dataset(cls, id: str) -> "Repo":
        """Of data.source=hf:<id>."""
        value, local = f"hf:{id}", f"problems/{id.partition('/')[2]}"
        return cls(id, "dataset", "data.source", value, "data.revision", "--config.data.files", local)

    def pin(self, asked: str) -> str:
        """The revision `asked` with its commit; where the hub cannot be reached, that of the cache.

        Raises:
          UserError: the hub has no such thing, or cannot be reached and the cache has none.
        """
        if commit_of(asked):
            return asked
        name = asked or DEFAULT

        def ask() -> str:
            hub = library()
            try:
                found = hub.HfApi().repo_info(self.id, repo_type=self.kind, revision=name).sha
                self._note(hub, name, found)
            except hub.errors.RevisionNotFoundError:
                raise
            except Exception as error:
                found = self._cached(hub, name)
                if not found:
                    raise error
                if not _is_offline():
                    logging.warning(
                        "%s=%s: the hub cannot be asked (%s); %s is taken as the cache knows it, %s",
                        self.key, self.value, _reason(error), name, found,
                    )  # fmt: skip
            return f"{name}@{found}"

        return self._or_say(name, ask)

    def _cached(self, hub: Any, name: str) -> str:
        """The commit that a name was when something of it was last fetched; "" where the cache has nothing of it."""
        with contextlib.suppress(Exception):
            folder = hub.snapshot_download(
                self.id, repo_type=self.kind, revision=name, allow_patterns=[], local_files_only=True
            )
            return Path(folder).name
        return ""

    def _note(self, hub: Any, name: str, commit: str) -> None:
        """Notes in the cache which commit the name is, as a download by name does: later there may be no network."""
        from huggingface_hub.file_download import repo_folder_name

        folder = repo_folder_name(repo_id=self.id, repo_type=self.kind)
        with contextlib.suppress(OSError):  # a cache that is read only
            file = Path(hub.constants.HF_HUB_CACHE, folder, "refs", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(commit, encoding="utf-8")

    def files(self, revision: str) -> list[str]:
        """Names of all files of a revision, which is asked of the hub.

        Raises:
          UserError: as `pin`.
        """
        where = commit_of(revision) or revision or DEFAULT

        def ask() -> list[str]:
            found = library().HfApi().repo_info(self.id, repo_type=self.kind, revision=where)
            return [file.rfilename for file in found.siblings or ()]

        return self._or_say(revision, ask)

    def file(self, name: str, revision: str) -> Path:
        """One file, in the cache.

        Raises:
          UserError: as `pin`.
        """
        where = commit_of(revision) or revision or DEFAULT
        return Path(
            self._or_say(
                revision, lambda: library().hf_hub_download(self.id, name, repo_type=self.kind, revision=where)
            )
        )

    def folder(self, revision: str, patterns: Sequence[str]) -> Path:
        """The folder in the cache with all files of a revision that match a pattern; fetched where they are missing.

        Raises:
          UserError: as `pin`.
        """
        where = commit_of(revision) or revision or DEFAULT

        def fetch() -> str:
            hub = library()
            wanted = dict(repo_type=self.kind, revision=where, allow_patterns=list(patterns), ignore_patterns=["*/*"])
            try:
                hub.snapshot_download(self.id, local_files_only=True, **wanted)
            except Exception:  # a hub that is not there is known at once here, where a download tries for half a minute
                hub.HfApi().repo_info(self.id, repo_type=self.kind, revision=where)
            return hub.snapshot_download(self.id, **wanted)

        return Path(self._or_say(revision, fetch))

    def _or_say(self, revision: str, act: Callable[[], T]) -> T:
        """What `act` gives; whatever it raises becomes one line with the way out."""
        try:
            return act()
        # No network, offline mode, a gated or missing thing, a proxy, a broken transfer, a full disk: which kinds of
        # error huggingface_hub and its HTTP library have for these differs from version to version.
        except Exception as error:
            raise UserError(self._refusal(revision, error)) from error

    def _refusal(self, revision: str, error: Exception) -> str:
        errors = library().errors
        what = f"{self.key}={self.value}: no folder of this name in {os.getcwd()}, and" * (self.kind == "model")
        what = what or f"{self.key}={self.value}:"
        name = commit_of(revision) or revision or DEFAULT
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{what} {self.id} on the hub has no revision {name!r}: set {self.revision_key} to one that it has"
        if isinstance(error, errors.GatedRepoError):
            return f"{what} {self.id} on the hub is gated: accept its terms there and log in with `hf auth login`"
        if isinstance(error, errors.RepositoryNotFoundError):
            return (
                f"{what} the hub has no {self.kind} {self.id}, or it is private (then log in with `hf auth login`): "
                f"correct {self.key}"
            )
        return (
            f"{what} {self.id} cannot be fetched from the hub ({_reason(error)}): where there is a network run "
            f"`{self.command(revision)}`, and with the folder here set {self.instead}={self.local}"
        )

    def command(self, revision: str) -> str:
        """The command line that fetches it by hand."""
        options = " --repo-type dataset" * (self.kind == "dataset")
        name = commit_of(revision) or revision
        options += f" --revision {name}" * (name not in ("", DEFAULT))
        return f"hf download {self.id}{options} --local-dir {self.local}"


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _reason(error: BaseException) -> str:
    """Why nothing could be fetched, in a few words: what is at the bottom of it."""
    if _is_offline():
        return "HF_HUB_OFFLINE is set"
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return one_line(error)


def library() -> Any:
    """huggingface_hub, imported; quiet where its bars would be lines of a file."""
    with hushed_import():
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils

    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub


# --- a configuration ------------------------------------------------------------------------------------------------


def _may_be_id(model: Mapping[str, Any]) -> bool:
    """Whether model.path has the form of an id, and is neither in a folder that is called so in the documents nor what
    model.preset is about."""
    path = model["path"]
    return is_id(path) and path.split("/")[0] not in _FOLDERS and model.get("preset", "") in ("", path)


def model_repo(model: Mapping[str, Any]) -> Repo | None:
    """What `model.path` names on the hub; None where it is a folder: one that is there, or that model.preset is about.

    model: the section of a configuration.
    """
    path = model["path"]
    return Repo.model(path) if _may_be_id(model) and not os.path.lexists(path) else None


def checkpoint_repo(model: Mapping[str, Any], checkpoint: str) -> Repo | None:
    """What `--checkpoint` names on the hub: hf:<owner>/<name>, or the id in model.path; None: nothing."""
    if checkpoint.startswith("hf:") and is_id(checkpoint[3:]):
        return Repo.model(checkpoint[3:], "--checkpoint", checkpoint)
    return model_repo(model) if checkpoint == model["path"] else None


def data_repo(data: Mapping[str, Any]) -> Repo | None:
    """What `data.source` names on the hub, None where it is another source or `data.files` says where its files are."""
    kind, _, id = data["source"].partition(":")
    return Repo.dataset(id) if kind == "hf" and not data["files"] else None


_NAMED: dict[str, tuple[str, Callable[[Mapping[str, Any]], Repo | None]]] = {
    "model": ("path", model_repo),
    "data": ("source", data_repo),
}


def may_need_pins(config: Any) -> bool:
    """Whether the configuration names something on the hub, or may have done so where no folder had that name."""
    return _may_be_id(config.model) or config.data.source.startswith("hf:")


def pins(
    config: Any, earlier: Mapping[str, Any] | None = None, sections: Sequence[str] = ("model", "data")
) -> dict[str, str]:
    """{"model": revision, "data": revision} that a command goes on with, of those sections that need another than they
    have.

    Args:
      config: a resolved configuration.
      earlier: that of the run which is resumed or used, whose pins hold where they answer what is asked for.
      sections: those looked at.

    Raises:
      UserError: as `Repo.pin`.
    """
    found: dict[str, str] = {}
    for section in sections:
        key, repo = _NAMED[section]
        own, before = config[section], (earlier or {}).get(section, {})
        asked, pinned = own.get("revision", ""), before.get("revision", "")
        if before.get(key) == own[key] and agrees(asked, pinned):
            revision = pinned
        elif (named := repo(own)) is not None:
            revision = named.pin(asked)
        else:
            continue
        if revision != asked:
            found[section] = revision
    return found


def with_pins(config: Any, found: Mapping[str, str]) -> Any:
    """The configuration with these revisions; itself where there are none."""
    if not found:
        return config
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        for section, revision in found.items():
            changed[section].revision = revision
    return changed.lock()
