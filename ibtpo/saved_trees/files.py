"""Files of trees: one per time at which some were saved, `workdir/trees/<kind>_<step>.json.gz`.

A file is gzip-compressed JSON, one object:

    format       "ibtpo trees"
    version      1
    kind         "train": trees of an update, or "eval": of an evaluation, whose responses are independent
    step         updates done when they were sampled
    options      the options of scores and advantages (`advantages.AdvantageOptions`), the name of the advantage, and
                 confidence_of: whose probabilities A_IB took (loss.ib_confidence)
    vocabulary   {token id: its bytes, one character of code 0 to 255 each}; a special token's name after a zero byte
    trees        a list of

        problem, question, answer   id, text, reference answer
        prompt                      token ids
        parent     [N] of each node, -1 for the question, node 0; nodes lie depth first
        length     [N] generated tokens of each node; 0 of the question
        tokens     [T] generated tokens, node after node
        log_probs  [T] their negative log-probabilities under the policy that drew them, in units of 1e-4
        leaf, round, reward, cut, stated
                   [R] of each response: last node, round, reward, whether it was cut off, the answer it states or null
        value, eta1, eta2, weight, J, A
                   [N] p̂, η1 and η2 of a node, its weight in its parent's mean, J (null without children), and the
                   advantage; A_low and A_high where responses through a node have different ones

A number has 7 significant digits. What a file holds is checked when it is read, so that nothing behind it has to.
"""

import gzip
import json
import math
import os
import pathlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ibtpo.errors import RunFailure, UserError, one_line
from ibtpo.whole_files import replacing

FOLDER = "trees"
FORMAT, VERSION = "ibtpo trees", 1
KINDS = ("train", "eval")
LOG_PROB_UNIT = 1e-4
_NAME = re.compile(r"(train|eval)_(\d{8,})\.json\.gz")
_MOST_BYTES = 2**29  # of a file, unpacked: a damaged or hostile one must not fill the memory


@dataclass(frozen=True)
class TreeFile:
    """The contents of a file."""

    version: int
    kind: str
    step: int
    options: Mapping[str, Any]
    vocabulary: Mapping[str, str]
    trees: Sequence[Mapping[str, Any]]


def write_file(path: str | os.PathLike, content: TreeFile) -> None:
    """Writes a file, complete or not at all; the same contents give the same bytes."""
    text = json.dumps({"format": FORMAT, **vars(content)}, separators=(",", ":"))
    with replacing(path) as part:
        part.write_bytes(gzip.compress(text.encode("ascii"), 9, mtime=0))


def read_file(path: str | os.PathLike) -> TreeFile:
    """The contents of a file.

    Raises:
      UserError: it is not there, of another version, damaged, or no file of trees.
    """
    try:
        with gzip.open(path) as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise UserError(f"{path} unpacks to more than {_MOST_BYTES >> 20} MiB, which no file of trees does")
        found = json.loads(data)
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there") from error
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged, or no file of trees ({one_line(error)}): delete it") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} is no file of trees: delete it")
    if found.get("version") != VERSION:
        raise UserError(
            f"{path} has version {str(found.get('version'))[:20]} of the format of trees, and this program reads "
            f"version {VERSION}: read it with the program that wrote it"
        )
    try:
        return _checked(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged, or no file of trees ({one_line(error)}): delete it") from error


def _checked(found: Mapping[str, Any]) -> TreeFile:
    """The contents, with everything that a reader relies on; raises where something is not as it should be."""
    _need(found["kind"] in KINDS and _is_whole(found["step"]), "kind or step")
    score = found["options"]["score"]
    _need(_is_number(score["beta"]) and _is_number(found["options"]["ib_weight"]), "options")
    _need(score["ratio_power"] in (1, 2), "options.score.ratio_power")
    vocabulary = found["vocabulary"]
    words = all(isinstance(x, str) and (not x or max(map(ord, x)) < 256) for x in vocabulary.values())
    _need(words and all(key.isdigit() for key in vocabulary), "vocabulary")
    _need(isinstance(found["trees"], list), "trees")
    for tree in found["trees"]:
        _check_tree(tree, vocabulary)
    return TreeFile(**{name: found[name] for name in TreeFile.__dataclass_fields__})


def _check_tree(tree: Mapping[str, Any], vocabulary: Mapping[str, str]) -> None:
    nodes, responses = len(tree["parent"]), len(tree["leaf"])
    _need(nodes > 0 and responses > 0, "a tree without nodes or responses")
    _need(_is_whole(tree["problem"]) and all(isinstance(tree[x], str) for x in ("question", "answer")), "question")
    _need(tree["parent"][0] == -1 and all(0 <= p < n for n, p in enumerate(tree["parent"][1:], 1)), "parent")
    lengths = tree["length"]
    _need(len(lengths) == nodes and all(map(_is_whole, lengths)) and sum(lengths) == len(tree["tokens"]), "length")
    tokens = {*tree["tokens"], *tree["prompt"]}
    _need(all(_is_whole(token) and str(token) in vocabulary for token in tokens), "tokens")
    _need(len(tree["log_probs"]) == len(tree["tokens"]) and all(map(_is_whole, tree["log_probs"])), "log_probs")
    for name in ("value", "eta1", "eta2", "weight", "A", "A_low", "A_high"):
        column = tree.get(name, ()) if name.startswith("A_") else tree[name]
        _need(len(column) == (nodes if name in tree else 0) and all(map(_is_number, column)), name)
    _need(len(tree["J"]) == nodes and all(j is None or _is_number(j) for j in tree["J"]), "J")
    for name, test in (("leaf", _is_whole), ("round", _is_whole), ("cut", _is_whole), ("reward", _is_number)):
        _need(len(tree[name]) == responses and all(map(test, tree[name])), name)
    _need(all(0 < leaf < nodes for leaf in tree["leaf"]), "leaf")
    _need(len(tree["stated"]) == responses and all(x is None or isinstance(x, str) for x in tree["stated"]), "stated")


def _need(right: bool, what: str) -> None:
    if not right:
        raise ValueError(f"{what} is not as it should be")


def _is_whole(x: Any) -> bool:
    return type(x) is int and 0 <= x < 2**53


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def list_files(folder: str | os.PathLike) -> list[tuple[int, str, pathlib.Path]]:
    """(step, kind, path) of the files of a folder, in order of steps; other names are left alone."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(match, pathlib.Path(folder) / name) for name in names if (match := _NAME.fullmatch(name))]
    return sorted((int(match[2]), match[1], path) for match, path in found)


class TreeFolder:
    """The folder `trees` of a run's workdir: written at its first host, and bounded.

    A resumed run drops the files of steps after `resume_step`, which it will write again. Of one kind, `most` files are
    kept: where there would be more, the one goes whose neighbours are closest to each other, never the first or the
    last, so that those that stay cover the run evenly.

    Args:
      workdir: the folder is made in it when the first file is written.
      most: files of each kind, at least 2.
      resume_step: the last step whose files are kept; -1 for none.
      active: False writes and deletes nothing: on every host of a run but the first.

    Raises:
      RunFailure: the folder cannot be written; so does `write`.
    """

    def __init__(self, workdir: str | os.PathLike, most: int, *, resume_step: int = -1, active: bool = True):
        self.path, self.active, self._most = pathlib.Path(workdir) / FOLDER, active, max(most, 2)
        if not active:
            return
        try:
            for step, _, path in list_files(self.path):
                if step > resume_step:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise self._failure(error) from error

    def write(self, content: TreeFile) -> None:
        """Writes a file; one of the same kind and step is replaced."""
        if not self.active:
            return
        try:
            write_file(self.path / f"{content.kind}_{content.step:08}.json.gz", content)
            self._thin(content.kind)
        except OSError as error:
            raise self._failure(error) from error

    def _thin(self, kind: str) -> None:
        files = [(step, path) for step, of, path in list_files(self.path) if of == kind]
        while len(files) > self._most:
            gaps = [after[0] - before[0] for before, after in zip(files, files[2:])]
            _, path = files.pop(1 + gaps.index(min(gaps)))
            path.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> RunFailure:
        return RunFailure(
            f"{error.filename or self.path} cannot be written ({error.strerror or error}): run the same command again "
            "when it can, to continue from the newest checkpoint; log.trees=0 saves no trees"
        )
