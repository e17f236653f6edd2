"""The questions that an evaluation has finished so far, on disk as they come, so that a killed one keeps what it has.

<benchmark>/partial.jsonl: the origin of the results in the first line, then a line for each question with its
responses' tokens, ends and rewards, and, for the few whose trees are kept, the log-probabilities. Responses are read
from it as from the sampler, so that the results are those of an evaluation that was not interrupted. The file goes when
the benchmark is written.
"""

import base64
import binascii
import json
import pathlib
import zlib
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import IO, Any, cast

import numpy as np

from ibtpo.data.problems import Problem
from ibtpo.policy import Policy
from ibtpo.sampling import SampledTree
from ibtpo.tree import Response, Tree, build_tree

PARTIAL = "partial.jsonl"


def _pack(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 1)).decode()


def _unpack(text: str, dtype: type) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype)


class Partial:
    """The file of one benchmark. finished: {question id: its responses}, read when it is made; their log-probabilities
    are 0 but for those of `shown`. Use as a context manager.

    Args:
      folder: of the benchmark; made with the first question.
      origin: of the results (`suite.origin`). A file of another is replaced, with one line that says so.
      samples: the responses of a question.
      shown: ids of the questions whose log-probabilities are kept.
      active: False reads and writes nothing: on every host but the first.
    """

    def __init__(
        self, folder: pathlib.Path, origin: Mapping, samples: int, shown: Collection[int] = (), *, active: bool = True
    ):
        self._path, self._origin, self._active = folder / PARTIAL, json.loads(json.dumps(origin)), active
        self._samples, self._shown = samples, frozenset(shown)
        self._file: IO[str] | None = None
        self.finished: dict[int, list[Response]] = self._read() if active else {}

    def __enter__(self) -> "Partial":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self) -> dict[int, list[Response]]:
        if not self._path.is_file():
            return {}
        found: dict[int, list[Response]] = {}
        with self._path.open("rb") as file:
            # Half a line, of a process that was killed while it wrote, is no question.
            lines = (line for line in file if line.endswith(b"\n"))
            try:
                origin = json.loads(next(lines, b"null"))
            except ValueError:
                origin = None
            if origin != self._origin:
                print(f"{self._path}: questions of another checkpoint, configuration or version are sampled anew")
                self._path.unlink()
                return {}
            for line in lines:
                try:
                    record = json.loads(line)
                    responses = [_response(i, *fields) for i, fields in enumerate(record["responses"])]
                    if type(record["id"]) is int and len(responses) == self._samples:
                        found[record["id"]] = responses
                except (ValueError, KeyError, TypeError, zlib.error, binascii.Error):
                    continue
        return found

    def add(self, sampled: SampledTree) -> None:
        """Writes a question that is finished; it is in the file, whole, when this returns."""
        id = sampled.question.id
        if not self._active or id in self.finished:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new = not self._path.is_file()
            if not new:
                _end_line(self._path)
            self._file = self._path.open("a", encoding="ascii")
            if new:
                self._file.write(json.dumps(self._origin) + "\n")
        responses = [_fields(response, id in self._shown) for response in sampled.responses]
        self._file.write(json.dumps({"id": id, "responses": responses}) + "\n")
        self._file.flush()

    def trees(self, policy: Policy, problems: Collection[Problem], config: Any) -> list[SampledTree]:
        """The finished ones of these problems as the sampler gave them; those that are not shown without a tree."""
        found = []
        for problem in problems:
            if (responses := self.finished.get(problem.id)) is not None:
                question = policy.question(problem.id, problem, config.data)
                tree = cast(Tree, None)  # it takes long to build, and nobody reads it
                if problem.id in self._shown:
                    tree = build_tree(question.tokens, responses, policy.codec.step_ends)
                found.append(SampledTree(question, tree, responses))
        return found


def _fields(response: Response, log_probs: bool) -> list:
    tokens = _pack(np.asarray(response.tokens, np.int32))
    drawn = _pack(np.asarray(response.log_probs, np.float32)) if log_probs else ""
    return [tokens, response.finish, float(response.reward), drawn]


def _response(index: int, tokens: str, finish: str, reward: float, log_probs: str) -> Response:
    """A response of an independent group."""
    ids = _unpack(tokens, np.int32)
    drawn = _unpack(log_probs, np.float32) if log_probs else np.zeros(len(ids), np.float32)
    if not len(ids) or len(drawn) != len(ids) or finish not in ("stop", "length"):
        raise ValueError("no response")
    return Response(index, -1, 0, 0, ids, drawn, finish, float(reward))


def _end_line(path: pathlib.Path) -> None:
    """Takes half a line off the end of a file."""
    with path.open("rb+") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
