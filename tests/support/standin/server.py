"""A server that answers the hub's HTTP interface for a folder, and serves task files beside it.

The folder holds `models/<owner>/<name>/<revision>/` and `datasets/<owner>/<name>/<revision>/`, each with the files of
that revision, and `task_files/`. A revision's commit is a hash of its files. As on the hub, files from 10 KiB are
large files whose ETag is their SHA-256 sum. Interface as documented at https://huggingface.co/docs/hub/api.

`faults.yaml` in the folder maps a repository to what is wrong with it:
    gated: 403 with the hub's code for gated models; private: 401; cut: every large file ends half-way;
    cut_once: the first answer does, and a later one goes on where it ended; corrupt: wrong bytes of the right number.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

LARGE = 10 * 1024
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@contextmanager
def serve(folder: str | Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine as long as the block runs; gives the address."""
    handler = type("Handler", (_Handler,), {"folder": Path(folder).resolve(), "cut": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _file_hash(file: Path) -> str:
    """The ETag of a file: SHA-256 of a large one, git's name of a small one."""
    status = file.stat()
    return _digest(file, status.st_size, status.st_mtime_ns)


@cache
def _digest(file: Path, size: int, changed: int) -> str:
    content = file.read_bytes()
    if size >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % size + content).hexdigest()


def commit_of(revision: Path) -> str:
    """Forty hexadecimal digits that name a revision by its files."""
    names = "\n".join(f"{f.relative_to(revision)} {_file_hash(f)}" for f in _files(revision))
    return hashlib.sha1(f"{revision.parent.name}/{revision.name}\n{names}".encode()).hexdigest()


def _files(revision: Path) -> list[Path]:
    return sorted(file for file in revision.rglob("*") if file.is_file())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    cut: set[str]

    def log_message(self, *_: object) -> None:
        """Silent: what is wrong is for the client to say."""

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/task_files/"):
            file = (self.folder / path.lstrip("/")).resolve()
            inside = file.is_relative_to(self.folder / "task_files")
            if inside and file.is_file():
                return self._send_file(file, path, None)
            return self._refuse(404, "EntryNotFound")
        if match := _API.fullmatch(path):
            kind, repository, call, revision, _ = match.groups()
        elif match := _RESOLVE.fullmatch(path):
            kind, repository, revision, name = match.groups()
            kind, call = kind or "models", "resolve"
        else:
            return self._refuse(404, "EntryNotFound")
        fault = self._faults().get(repository)
        if fault == "gated":
            return self._refuse(403, "GatedRepo")
        found = self.folder / kind / repository
        if fault == "private" or ".." in repository or not found.is_dir():
            return self._refuse(401, "RepoNotFound")  # the hub does not tell these apart either
        if (tree := self._revision(found, revision or "main")) is None:
            return self._refuse(404, "RevisionNotFound")
        if call == "resolve":
            file = tree / name
            if not file.resolve().is_relative_to(tree) or not file.is_file():
                return self._refuse(404, "EntryNotFound", commit_of(tree))
            return self._send_file(file, path, fault, commit_of(tree))
        answer = self._tree(tree, call) if call in ("tree", "paths-info") else {
            "id": repository, "sha": commit_of(tree), "private": False, "gated": False, "disabled": False, "tags": [],
            "downloads": 0, "likes": 0, "lastModified": "2025-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": f.relative_to(tree).as_posix()} for f in _files(tree)]}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    do_HEAD = do_POST = do_GET

    def _faults(self) -> dict[str, str]:
        file = self.folder / "faults.yaml"
        return yaml.safe_load(file.read_text(encoding="utf-8")) or {} if file.is_file() else {}

    def _revision(self, repository: Path, wanted: str) -> Path | None:
        return next((found for found in repository.iterdir() if wanted in (found.name, commit_of(found))), None)

    def _tree(self, tree: Path, call: str) -> list[dict]:
        files = _files(tree)
        if call == "paths-info":
            asked = json.loads(self.body)["paths"]
            files = [f for f in files if f.relative_to(tree).as_posix() in asked]
        entries = []
        for file in files:
            size, name = file.stat().st_size, _file_hash(file)
            entry = {"type": "file", "path": file.relative_to(tree).as_posix(), "size": size, "oid": name[:40]}
            if size >= LARGE:
                entry["lfs"] = {"oid": name, "size": size, "pointerSize": 134}
            entries.append(entry)
        return entries

    def _send_file(self, file: Path, path: str, fault: str | None, commit: str = "") -> None:
        content, name = file.read_bytes(), _file_hash(file)
        large = len(content) >= LARGE
        if fault == "corrupt" and large:
            content = content[:-1] + bytes([content[-1] ^ 1])
        whole = len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        end = min(int(asked[2]), whole - 1) if asked and asked[2] else whole - 1
        if start >= whole > 0:
            return self._refuse(416, "RangeNotSatisfiable")
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": commit, "X-Linked-ETag": f'"{name}"',
                   "X-Linked-Size": str(whole), "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end}/{whole}"
        cut = large and self.command != "HEAD" and (fault == "cut" or fault == "cut_once" and path not in self.cut)
        if cut:
            self.cut.add(path)
        self._send(206 if asked else 200, headers, content[start : end + 1], cut=cut)

    def _refuse(self, status: int, code: str, commit: str = "") -> None:
        of_commit = {"X-Repo-Commit": commit} if commit else {}
        self._send(status, {"X-Error-Code": code, "X-Error-Message": code} | of_commit)

    def _send(self, status: int, headers: dict[str, str], content: bytes = b"", *, cut: bool = False) -> None:
        """An answer; a `cut` one ends half-way."""
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection |= cut
