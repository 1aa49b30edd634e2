"""A hub on loopback: the part of the Hugging Face hub that pushing and fetching a model need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_secretOfTheTest"
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_COMMIT = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>.+)")
_PREUPLOAD = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>.+)")


class Hub:
    """The repositories: for each its commits, the last of which is ``main``."""

    def __init__(self) -> None:
        self.address = ""
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return digest and files of a revision."""
        commits = self.commits[repo]
        if revision == "main":
            return commits[-1] if commits else ("0" * 40, {})
        return next((found for found in commits if found[0] == revision), None)

    def commit(self, repo: str, changed: dict[str, bytes]) -> str:
        """Add a commit; return its digest."""
        files = dict(self.commits[repo][-1][1] if self.commits[repo] else {}) | changed
        told = repr((len(self.commits[repo]), sorted(files.items())))
        digest = hashlib.sha1(told.encode(), usedforsecurity=False).hexdigest()
        self.commits[repo].append((digest, files))
        return digest


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _refuse(self, status: int, code: str, said: str) -> None:
        self._send(status, b"{}", X_Error_Code=code, X_Error_Message=said)

    def _may(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        found = _RESOLVE.fullmatch(self.path)
        if found is None:
            self._refuse(404, "EntryNotFound", "no such page")
            return
        repo = found["repo"]
        if repo not in self.hub.commits or (self.hub.private[repo] and not self._may()):
            self._refuse(401, "RepoNotFound", "Repository not found")
            return
        revision = self.hub.files(repo, found["revision"])
        if revision is None:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        commit, files = revision
        if found["file"] not in files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        body = files[found["file"]]
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        self._send(200, body, ETag=tag, X_Repo_Commit=commit)

    def do_POST(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._may():
            self._json({"error": "Invalid username or password."}, 401)
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := _PREUPLOAD.fullmatch(self.path):
            files = json.loads(body)["files"]
            told = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in files
            ]
            self._json({"files": told, "commitOid": self.hub.files(found["repo"], "main")[0]})
        elif found := _COMMIT.fullmatch(self.path):
            self._commit(found["repo"], body)
        else:
            self._json({})  # the metadata of a card is fine

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        if repo.startswith("other/"):
            self._json({"error": "You don't have the rights to create a model here"}, 403)
            return
        address = {"url": f"{self.hub.address}/{repo}"}
        if repo in self.hub.commits:
            self._json(address, 409)
            return
        self.hub.commits[repo] = []
        self.hub.private[repo] = "private" in (
            asked.get("visibility"),
            asked.get("private") and "private",
        )
        self._json(address)

    def _commit(self, repo: str, body: bytes) -> None:
        changed = {}
        for line in body.splitlines():
            one = json.loads(line)
            if one["key"] == "file":
                value = one["value"]
                assert value["encoding"] == "base64"
                changed[value["path"]] = base64.b64decode(value["content"])
        digest = self.hub.commit(repo, changed)
        address = f"{self.hub.address}/{repo}/commit/{digest}"
        self._json({"commitOid": digest, "commitUrl": address, "success": True})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub while the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
