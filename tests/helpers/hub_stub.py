"""A server on this machine that speaks the hub's HTTP paths which an adapter needs: no test needs a network.

The paths, headers and bodies are those that huggingface_hub 2.4 sends and reads: ``/api/repos/create``, ``preupload``,
``commit`` (NDJSON), ``branch``, ``/api/validate-yaml``, and ``resolve`` with HEAD and GET.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub.constants
import pytest


class Hub:
    """The repositories: ``branches[repo][branch]`` is a commit, ``commits[oid]`` its files."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.asked: list[str] = []
        self.damage: Callable[[str, bytes], bytes] = lambda name, content: content
        self.sizes: dict[str, int] = {}  # announced instead of the real ones
        self.before_get: Callable[[str], None] = lambda name: None
        self.url = ""

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds files; as if someone had pushed them."""
        old = self.branches.setdefault(repo, {}).get(branch)
        whole = {**(self.commits[old] if old else {}), **files}
        oid = hashlib.sha1(f"{repo}{len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.branches[repo][branch] = whole, oid
        return oid

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[repo][branch]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def _answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != "Bearer hf_test":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.hub.branches:
                return self._answer(409, {"error": "exists", "url": f"{self.hub.url}/{repo}"})
            self.hub.branches[repo] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(repo)
            self.hub.commit(repo, {".gitattributes": b""})
            return self._answer(200, {"url": f"{self.hub.url}/{repo}", "name": repo})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
        if found is None or found[1] not in self.hub.branches:
            return self._refuse(404, "RepoNotFound")
        repo, what, branch = found.groups()
        if what == "branch":
            if branch in self.hub.branches[repo]:
                return self._answer(409, {"error": "exists"})
            self.hub.branches[repo][branch] = self.hub.branches[repo]["main"]
            return self._answer(200)
        if branch not in self.hub.branches[repo]:
            return self._refuse(404, "RevisionNotFound")
        if what == "preupload":
            named = [each["path"] for each in json.loads(body)["files"]]
            return self._answer(
                200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]}
            )
        files = {}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                self.hub.messages.append(entry["value"]["summary"])
            else:
                assert entry["key"] == "file", entry
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        oid = self.hub.commit(repo, files, branch)
        url = f"{self.hub.url}/{repo}/commit/{oid}"
        return self._answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def do_HEAD(self) -> None:
        self._resolve()

    def do_GET(self) -> None:
        self._resolve()

    def _resolve(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+)/([^/]+)", path)
        if found is None or found[1] not in self.hub.branches:
            return self._refuse(404, "RepoNotFound")
        repo, revision, name = found.groups()
        if repo in self.hub.private and self.headers.get("Authorization") != "Bearer hf_test":
            return self._refuse(401, "RepoNotFound")
        oid = self.hub.branches[repo].get(revision, revision)
        if oid not in self.hub.commits:
            return self._refuse(404, "RevisionNotFound")
        if name not in self.hub.commits[oid]:
            return self._answer(404, {"error": "no"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
        if self.command == "GET":
            self.hub.before_get(name)
        content = self.hub.commits[oid][name]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if name in self.hub.sizes and self.command == "HEAD":
            headers["Content-Length"] = str(self.hub.sizes[name])
        return self._answer(200, self.hub.damage(name, content), headers)


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The same, and this process asks it, with a cache and a token of its own, from the folder ``tmp_path``."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.chdir(tmp_path)
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
