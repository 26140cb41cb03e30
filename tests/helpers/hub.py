"""A small server that answers as the Hugging Face hub does, for the folders that it is given."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

_LARGE = (".safetensors",)
"""Files that the hub keeps in its large file storage, and states the SHA-256 of."""


@dataclass
class Hub:
    """The server's models and faults; a request is noted as ``(method, path, range)``.

    Attributes:
        url: of the server.
        models: a folder and a commit by ``org/name``.
        status: a status and a value of ``X-Error-Code`` that every request for a model gets.
        cut: by file name, the bytes after which the connection is closed, each time.
        altered: names of files that arrive with one byte changed.
        requests: all requests so far.
    """

    url: str = ""
    models: dict[str, tuple[Path, str]] = field(default_factory=dict)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    altered: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def sent(self, name: str) -> list[str | None]:
        """Return the ranges of all requests for the content of a file."""
        gets = [(path, part) for method, path, part in self.requests if method == "GET"]
        return [part for path, part in gets if path.endswith(f"/{name}")]


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub on a free port of this machine until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Let huggingface_hub in this process ask another hub, with an empty cache and no account."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    # Below version 1 the module of downloads has the name for itself.
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Write nothing to stderr."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        self.state.requests.append((self.command, url.path, self.headers.get("Range")))
        api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4 if api else 2 :]
        if name in self.state.status:
            return self._refuse(*self.state.status[name])
        if name not in self.state.models:
            return self._refuse(404, "RepoNotFound")
        folder, commit = self.state.models[name]
        if rest and rest[1] not in (commit, "main"):
            return self._refuse(404, "RevisionNotFound")
        if not api:
            return self._file(folder / Path(*rest[2:]), commit)
        if rest and rest[0] == "tree":
            return self._json([_tree_entry(folder, path) for path in _files(folder)])
        blobs = "blobs" in parse_qs(url.query)
        siblings = [_sibling(folder, path, blobs) for path in _files(folder)]
        return self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings})

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _file(self, path: Path, commit: str) -> None:
        if not path.is_file():
            return self._refuse(404, "EntryNotFound")
        content = path.read_bytes()
        etag, size = _etag(path), len(content)
        if path.name in self.state.altered:
            content = bytes([content[0] ^ 1]) + content[1:]
        begin = 0
        if wanted := self.headers.get("Range"):
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size - begin))
        self.end_headers()
        if self.command == "HEAD":
            return None
        content = content[begin:]
        if (most := self.state.cut.get(path.name)) is not None and len(content) > most:
            self.wfile.write(content[:most])
            self.wfile.flush()
            self.close_connection = True
            return None
        self.wfile.write(content)
        return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _etag(path: Path) -> str:
    """The SHA-256 of a large file, git's SHA-1 of another one."""
    content = path.read_bytes()
    if path.suffix in _LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(folder: Path, path: Path, blobs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path.relative_to(folder).as_posix()}
    if blobs:
        size = path.stat().st_size
        entry |= {"size": size, "blobId": _etag(path)}
        if path.suffix in _LARGE:
            pointer = hashlib.sha1(path.name.encode()).hexdigest()
            entry |= {"blobId": pointer}
            entry["lfs"] = {"sha256": _etag(path), "size": size, "pointerSize": 134}
    return entry


def _tree_entry(folder: Path, path: Path) -> dict[str, Any]:
    found = _sibling(folder, path, True)
    entry = {
        "type": "file",
        "path": found["rfilename"],
        "size": found["size"],
        "oid": found["blobId"],
    }
    if "lfs" in found:
        entry["lfs"] = {"oid": found["lfs"]["sha256"], "size": found["size"], "pointerSize": 134}
    return entry
