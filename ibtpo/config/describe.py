"""What every key of a configuration means, read off the file that defines them: for help and for docs/keys.md."""

import ast
import functools
import io
import re
import textwrap
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from ibtpo import packaged
from ibtpo.config.files import load
from ibtpo.config.keys import flatten, shown
from ibtpo.config.methods import METHODS
from ibtpo.config.rules import RULES, Rule
from ibtpo.config.sft_rules import SFT_RULES

_WIDTH, _INDENT = 100, " " * 6


@dataclass(frozen=True)
class Keys:
    """The keys of a program. rules: of each. name: of the config that has them all, with a comment each."""

    rules: Mapping[str, Rule]
    name: str


BASE, SFT = Keys(RULES, "base"), Keys(SFT_RULES, "tiny_sft")


@functools.cache
def comments(name: str) -> dict[str, str]:
    """{key: its comment} of the config `name`, in its order: the comment lines right above the key and the one behind
    its value, as one text; "" for a key without."""
    source = (packaged.root() / "configs" / f"{name}.py").read_text(encoding="utf-8")
    notes, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            notes[token.start[0]] = token.string.lstrip("#").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    [function] = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    sections, found = {"config": ""}, {}
    for node in function.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        key = _key(node.targets[0], sections)
        if len(node.targets) == 2 and isinstance(node.targets[1], ast.Name):
            sections[node.targets[1].id] = f"{key}."
            continue
        first = node.lineno
        while first - 1 in alone:
            first -= 1
        lines = [*range(first, node.lineno), node.end_lineno or node.lineno]
        found[key] = " ".join(notes[line] for line in lines if line in notes)
    return found


def _key(target: ast.expr, sections: Mapping[str, str]) -> str:
    if isinstance(target, ast.Attribute):
        inner = _key(target.value, sections)
        return f"{inner}{'.' * bool(inner and not inner.endswith('.'))}{target.attr}"
    return sections[target.id] if isinstance(target, ast.Name) else ""


def by_method(key: str) -> str:
    """The values that the methods give an open key, "ibtpo 'ib'; grpo, dapo 'independent'"; "" of any other key."""
    values: dict[str, list[str]] = {}
    for name, settings in METHODS.items():
        if key in settings:
            values.setdefault(repr(settings[key]), []).append(name)
    if len(values) == 1:
        return f"{next(iter(values))} for every method"
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in values.items())


def help_text(keys: Keys, config: ConfigDict, origin: str) -> str:
    """Every key with its value in `config`, its default, its comment and its choices, in the config's own order.

    Args:
      config: with keys that may be open (None): they have the value of its method.
      origin: where its values come from, in words.
    """
    values, defaults, said = flatten(config), flatten(load(keys.name)), comments(keys.name)
    method = METHODS.get(values.get("method", ""), {})
    blocks = [f"keys of the configuration, with the values of {origin}:"]
    for key in [*(k for k in said if k in values), *(k for k in values if k not in said)]:
        value, notes = values[key], []
        if value is None and key in method:
            value = method[key]
            notes.append(f"from method={values['method']}")
        elif key in defaults and defaults[key] is None:
            notes.append(f"method={values.get('method')} says {method.get(key)!r}")
        elif key in defaults and defaults[key] != value:
            notes.append(f"default {shown(defaults[key])}")
        body = said.get(key, "")
        rule = keys.rules.get(key)
        if rule and any(not re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", body) for choice in rule.choices):
            body += f"{' | ' if body else ''}{rule.words}"
        first = f"  --config.{key}={value!r}" + f"  ({'; '.join(notes)})" * bool(notes)
        lines = textwrap.wrap(
            body, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
        )
        blocks.append("\n".join([first, *lines]))
    return "\n".join(blocks)


def in_order(keys: Keys, config: ConfigDict) -> dict[str, Any]:
    """The configuration as a nested dict, its keys in the order in which the file has them, others behind."""
    values: dict[str, Any] = flatten(config)
    result: dict[str, Any] = {}
    said = [key for key in comments(keys.name) if key in values]
    for key in [*said, *(key for key in values if key not in said)]:
        *path, leaf = key.split(".")
        section = result
        for name in path:
            section = section.setdefault(name, {})
        section[leaf] = values[key]
    return result


def keys_page(keys: Keys) -> str:
    """A page of Markdown: a table for each section, a row for each key."""
    values, rows, section = flatten(load(keys.name)), [], None
    for key, comment in comments(keys.name).items():
        head = key.rpartition(".")[0]
        if head != section:
            section = head
            rows += ["", f"## {head or 'Top level'}", "", "| key | default | meaning | allowed |", "|---|---|---|---|"]
        default = by_method(key) if values[key] is None else _code(values[key])
        rows.append(f"| `{key}` | {_cell(default)} | {_cell(comment)} | {_cell(keys.rules[key].words)} |")
    return "\n".join(rows).strip() + "\n"


def _code(value: Any) -> str:
    return f"`{value!r}`"


def _cell(text: str) -> str:
    """A text in a table: bars and angle brackets mean something there."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace(">", "&gt;") for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|").replace("\n", " ")
