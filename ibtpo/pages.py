"""Pages that load nothing: one HTML file with its style, its scripts and its data inside.

Data is hostile text (responses). It is held as base64 of compressed JSON, which a script unpacks when it is needed and
puts in place as text, never as markup; a content security policy allows the page's own scripts, by their hashes, and
no request.
"""

import base64
import functools
import hashlib
import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

_FOLDER = pathlib.Path(__file__).parent / "templates"


def pack(value: Any) -> Markup:
    """JSON, compressed, in base64: letters, digits, +, / and = only, whatever the texts hold. NaN is refused."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii"))


@functools.cache
def asset(name: str) -> str:
    """A file of `templates/`."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def render(template: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), **values: Any) -> str:
    """A page. Its template gets `style`, `scripts` (texts) and `script_hashes`, beside `values`, which are escaped.

    styles, scripts: files of `templates/`, in order; style.css comes first.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    texts = [asset(name) for name in scripts]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return environment.get_template(template).render(
        style=Markup("".join(map(asset, ("style.css", *styles)))),
        scripts=[Markup(text) for text in texts],
        script_hashes=Markup(" ".join(f"'sha256-{digest}'" for digest in hashes)),
        **values,
    )
