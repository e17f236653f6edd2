"""Uploads of an exported folder to the Hugging Face hub.

The token is huggingface_hub's own business (`hf auth login`, HF_TOKEN); nothing here keeps it, and whatever is said of
an error has no text of that form.
"""

import os
import re
from dataclasses import dataclass
from typing import Any

from ibtpo import hub
from ibtpo.errors import RunFailure, UserError, one_line

# What an export writes. Weights of an earlier upload that the new one has not would be read with it.
FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md")
_STALE = ("*.safetensors", "*.safetensors.index.json")
_TOKEN = re.compile(r"hf_\w+|Bearer \S+")


@dataclass(frozen=True)
class Target:
    """A model on the hub that may be written to."""

    id: str
    public: bool

    @classmethod
    def checked(cls, id: str | None, *, public: bool) -> "Target | None":
        """The target of --push, None without it; asked before anything is computed.

        Raises:
          UserError: no such form of an id, no token or one that the hub refuses, no network, or a model that is public
            where `public` is not said.
        """
        if id is None:
            if public:
                raise UserError("--public belongs to --push: name the model, --push=user/name")
            return None
        if not hub.is_id(id):
            raise UserError(f"--push={id!r} is no name of a model on the hub: give user/name")
        library = hub.library()
        if library.get_token() is None:
            raise UserError(f"--push={id}: no token: log in with `hf auth login`, or set HF_TOKEN")
        target = cls(id, public)
        try:
            library.HfApi().whoami()
            private = target._private(library)
        except Exception as error:  # as in `hub`: which kinds they are differs from version to version
            raise UserError(
                f"--push={id}: the hub does not take the token, or cannot be reached ({_said(error)}): log in with `hf "
                "auth login`, or leave --push out and upload the folder later"
            ) from error
        if private is False and not public:
            raise UserError(f"--push={id}: that model is public: give --public to write to it, or choose another name")
        return target

    def upload(self, folder: str | os.PathLike) -> str:
        """Uploads the folder in one commit, and makes the model before where it is not there; returns its address.

        Raises:
          RunFailure: it failed; the folder is there.
        """
        library = hub.library()
        api = library.HfApi()
        try:
            api.create_repo(self.id, private=not self.public, exist_ok=True)
            api.upload_folder(
                repo_id=self.id,
                folder_path=folder,
                commit_message="Export of ibtpo",
                allow_patterns=list(FILES),
                ignore_patterns=[".*"],
                delete_patterns=list(_STALE),
            )
        except Exception as error:
            private = "" if self.public else " --private"
            raise RunFailure(
                f"--push={self.id}: {folder} is written and was not uploaded ({_said(error)}): run the same command "
                f"again, or `hf upload {self.id} {folder} .{private}`"
            ) from error
        return f"{api.endpoint}/{self.id}" + " (private)" * (not self.public)

    def _private(self, library: Any) -> bool | None:
        """Whether the model that is there is private; None where there is none."""
        try:
            return bool(library.HfApi().model_info(self.id).private)
        except library.errors.RepositoryNotFoundError:
            return None


def _said(error: BaseException) -> str:
    """The error in a line, without anything that looks like a token."""
    return _TOKEN.sub("...", one_line(error))
