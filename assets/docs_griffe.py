"""An extension of griffe (mkdocs.yml): docstrings are plain text, in which nothing is HTML or a link of Markdown."""

import re

import griffe

_CODE = re.compile(r"(`[^`\n]+`)")
_TAG = re.compile(r"<(?=[A-Za-z/])")
_REFERENCE = re.compile(r"\](?=\[)")


class PlainText(griffe.Extension):
    """`<name>` and `[q][n]` are shown as they stand."""

    def on_object(self, *, obj, **_) -> None:
        """As griffe calls it for each object."""
        if obj.docstring is not None:
            parts = _CODE.split(obj.docstring.value)
            obj.docstring.value = "".join(
                part if part.startswith("`") else _REFERENCE.sub(r"]&#8203;", _TAG.sub("&lt;", part)) for part in parts
            )
