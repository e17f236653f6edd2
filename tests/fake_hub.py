"""A server on this machine that answers as the Hugging Face hub does: what models and data sets are made of, their
files, and uploads. HF_ENDPOINT leads there."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator

_REPO = r"(?:/api)?/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
_FILE = r"/(?:(?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)"


class FakeHub:
    """Repositories by ("models" or "datasets", id): {revision: {file: bytes}}; a revision's commit is its content's
    hash.

    asked: (method, path) of every request. uploaded: {(kind, id): {"private": ..., "files": {...}}}. token: the one
    that uploads need. seconds: that a file takes.
    """

    def __init__(self, token: str = "hf_secret"):
        self.repos: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.uploaded: dict[tuple[str, str], dict] = {}
        self.token, self.seconds = token, 0.0
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size) if size else b""
                hub.asked.append((self.command, self.path))
                status, headers, content = hub.answer(self.command, self.path, self.headers, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do

            def log_message(self, *_) -> None:
                """Nothing on the tests' terminal."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, kind: str, id: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Makes a revision of a repository; its commit."""
        self.repos.setdefault((kind, id), {})[revision] = files
        return commit(files)

    def add_folder(self, kind: str, id: str, folder: pathlib.Path, revision: str = "main") -> str:
        """The same with the files of a folder."""
        files = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
        return self.add(kind, id, files, revision)

    def environment(self, home: pathlib.Path, **more: str) -> dict[str, str]:
        """That of a process which takes this for the hub, with an empty cache in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return kept | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **more}

    def answer(self, method: str, path: str, headers, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, content) for a request."""
        path = urllib.parse.unquote(path.split("?")[0])
        if match := re.fullmatch(rf"{_REPO}/revision/(?P<rev>.+)", path):
            return self._of_revision(match, lambda files: self._info(match["id"], files))
        if (match := re.fullmatch(_REPO, path)) and (repo := self.repos.get((match["kind"], match["id"]))):
            return 200, {}, json.dumps(self._info(match["id"], repo["main"])).encode()
        if match := re.fullmatch(rf"{_REPO}/tree/(?P<rev>.+)", path):
            return self._of_revision(match, lambda files: [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()])
        if match := re.fullmatch(rf"{_FILE}/resolve/(?P<rev>[^/]+)/(?P<file>.+)", path):
            return self._file(match, method)
        return self._upload(method, path, headers, body)

    def _info(self, id: str, files: dict[str, bytes]) -> dict:
        names = [{"rfilename": name} for name in files]
        return {"id": id, "sha": commit(files), "private": id in self.private, "siblings": names}

    def _find(self, match) -> dict[str, bytes] | str:
        """The files of a revision, or the hub's code for why there are none."""
        if match["id"] in self.gated:
            return "GatedRepo"
        repo = self.repos.get((match["kind"] or "models", match["id"]))
        if repo is None:
            return "RepoNotFound"
        by_commit = {commit(files): files for files in repo.values()}
        found = repo.get(match["rev"], by_commit.get(match["rev"]))
        return "RevisionNotFound" if found is None else found

    def _of_revision(self, match, make) -> tuple[int, dict[str, str], bytes]:
        files = self._find(match)
        return _refused(files) if isinstance(files, str) else (200, {}, json.dumps(make(files)).encode())

    def _file(self, match, method: str) -> tuple[int, dict[str, str], bytes]:
        files = self._find(match)
        if isinstance(files, str):
            return _refused(files)
        if match["file"] not in files:
            return _refused("EntryNotFound")
        content = files[match["file"]]
        time.sleep(self.seconds * (method == "GET"))
        return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit(files)}, content

    def _upload(self, method: str, path: str, headers, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """A repository made, and files put into it, all as a part of the commit's request."""
        if headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {}, b'{"error": "Invalid username or password."}'
        if path == "/api/whoami-v2":
            return 200, {}, json.dumps({"type": "user", "name": "user", "orgs": []}).encode()
        if path == "/api/validate-yaml":
            return 200, {}, b'{"errors": [], "warnings": []}'
        if path == "/api/repos/create":
            wanted = json.loads(body)
            id = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
            if ("models", id) in self.uploaded:
                return 409, {}, json.dumps({"error": "exists", "url": f"{self.url}/{id}"}).encode()
            files = self.repos.setdefault(("models", id), {"main": {}})["main"]
            private = wanted.get("private", wanted.get("visibility") == "private")  # by the library's version
            self.uploaded["models", id] = {"private": private, "files": files}
            if private:
                self.private.add(id)
            return 200, {}, json.dumps({"url": f"{self.url}/{id}", "id": id, "name": id}).encode()
        match = re.fullmatch(rf"{_REPO}/(?P<what>preupload|commit)/(?P<rev>.+)", path)
        if match is None or (match["kind"], match["id"]) not in self.uploaded:
            return _refused("RepoNotFound")
        if match["what"] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return 200, {}, json.dumps({"files": files}).encode()
        repo = self.uploaded[match["kind"], match["id"]]
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "header":
                repo["message"] = line["value"]["summary"]
            if line["key"] == "deletedFile":
                del repo["files"][line["value"]["path"]]
            if line["key"] == "file":
                repo["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        found = commit(repo["files"])
        url = f"{self.url}/{match['id']}/commit/{found}"
        return 200, {}, json.dumps({"commitUrl": url, "commitOid": found, "success": True}).encode()


def commit(files: dict[str, bytes]) -> str:
    """40 digits that depend on the files alone."""
    found = hashlib.sha1()
    for name, content in sorted(files.items()):
        found.update(f"{name} {len(content)} ".encode() + content)
    return found.hexdigest()


def _refused(code: str) -> tuple[int, dict[str, str], bytes]:
    status = 403 if code == "GatedRepo" else 404
    return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"


@contextlib.contextmanager
def serving(**options) -> Iterator[FakeHub]:
    """A hub that answers."""
    hub = FakeHub(**options)
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
