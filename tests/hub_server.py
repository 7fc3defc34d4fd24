"""A small Hub on the loopback interface: enough of its protocol for the real client to push and to download.

It keeps repositories in memory: create, branch, validate-yaml, preupload, LFS batch and upload, commit, info
and resolve. Large files are those whose name ends in .safetensors. `with HubServer() as hub` starts it, and
HF_ENDPOINT points clients at `hub.url`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopbackTokenThatMayWrite"
READER = "hf_loopbackTokenThatMayRead"
USER = "tester"


@dataclass
class Repository:
    """Branches, each a list of commits (oid, files), newest last."""

    private: bool
    branches: dict[str, list[tuple[str, dict[str, bytes]]]]
    messages: list[str] = field(default_factory=list)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The last commit of a branch, or the commit of that oid."""
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = [commit for branch in self.branches.values() for commit in branch]
        return next((commit for commit in commits if commit[0] == revision), None)


class HubServer:
    """The server, its content (`repositories`, `blobs`) and what it was asked (`requests`)."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.authorizations: set[str | None] = set()
        self.fail_next: dict[str, int] = {}  # the path's end -> the status to answer with
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def add(self, repo_id: str, *, private: bool = False) -> Repository:
        """Make a repository with an empty first commit, as the Hub does."""
        first = hashlib.sha1(repo_id.encode()).hexdigest()
        self.repositories[repo_id] = Repository(private, {"main": [(first, {})]})
        return self.repositories[repo_id]


class RefusedError(Exception):
    """An answer other than 200, with the Hub's error code."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        self.hub.authorizations.add(self.headers.get("Authorization"))
        try:
            self._route(path, body)
        except RefusedError as refused:
            headers = {"X-Error-Message": refused.message} | (
                {"X-Error-Code": refused.code} if refused.code else {}
            )
            self._send(refused.status, json.dumps({"error": refused.message}).encode(), headers)

    def _route(self, path: str, body: bytes) -> None:
        for end in [end for end in self.hub.fail_next if path.endswith(end)]:
            # A server that repeats what it was sent must not bring a client to show its token.
            sent = self.headers.get("Authorization")
            raise RefusedError(self.hub.fail_next.pop(end), f"failing on purpose; you sent {sent}")
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                method(self, body, **match.groupdict())
                return
        raise RefusedError(404, "no such address")

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _require(self, *tokens: str) -> None:
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given not in {TOKEN, READER}:
            raise RefusedError(401, "Invalid username or password.")
        if given not in tokens:
            raise RefusedError(403, "this token may not write")

    def _repository(self, repo: str) -> Repository:
        if repo not in self.hub.repositories:
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return self.hub.repositories[repo]

    def create(self, body: bytes) -> None:
        self._require(TOKEN)
        asked = json.loads(body)
        repo_id = f"{asked['organization'] or USER}/{asked['name']}"
        if repo_id in self.hub.repositories:
            answer = {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo_id}"}
            self._send(409, json.dumps(answer).encode(), {"Content-Type": "application/json"})
            return
        self.hub.add(repo_id, private=asked.get("visibility") == "private")
        self._json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        if not content.startswith("---\n"):
            self._json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        elif "base_model: /" in content:
            errors = {"errors": [{"message": '"base_model" must be the id of a repository'}], "warnings": []}
            self._send(400, json.dumps(errors).encode(), {"Content-Type": "application/json"})
        else:
            self._json({"errors": [], "warnings": []})

    def info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        self._require(TOKEN, READER)
        found = self._repository(repo)
        commit = found.at(revision or "main")
        if commit is None:
            raise RefusedError(404, "Invalid rev id", "RevisionNotFound")
        siblings = [{"rfilename": name} for name in commit[1]]
        self._json({"id": repo, "sha": commit[0], "private": found.private, "siblings": siblings})

    def branch(self, body: bytes, repo: str, revision: str) -> None:
        self._require(TOKEN)
        branches = self._repository(repo).branches
        if revision in branches:
            raise RefusedError(409, "Reference already exists")
        branches[revision] = list(branches["main"])
        self._json({})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        self._require(TOKEN)
        if self._repository(repo).at(revision) is None:
            raise RefusedError(404, "Invalid rev id", "RevisionNotFound")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        self._require(TOKEN)
        self._repository(repo)
        objects = []
        for asked in json.loads(body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.blobs:
                verify = {"href": f"{self.hub.url}/lfs/verify/{asked['oid']}"}
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"},
                    "verify": verify,
                }
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(422, "the content is not what its hash says")
        self.hub.blobs[oid] = body
        self._json({})

    def lfs_verify(self, body: bytes, oid: str) -> None:
        if len(self.hub.blobs.get(oid, b"")) != json.loads(body)["size"]:
            raise RefusedError(404, "no such object")
        self._json({})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        self._require(TOKEN)
        found = self._repository(repo)
        parent = found.at(revision)
        if parent is None:
            raise RefusedError(404, "Invalid rev id", "RevisionNotFound")
        files = dict(parent[1])
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                found.messages.append(value["summary"])
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        oid = hashlib.sha1(parent[0].encode() + body).hexdigest()
        found.branches[revision].append((oid, files))
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True})

    def resolve(self, body: bytes, repo: str, revision: str, name: str) -> None:
        found = self._repository(repo)
        if found.private and self.headers.get("Authorization") is None:
            # The Hub does not tell strangers that there is something to see.
            raise RefusedError(401, "Invalid username or password.", "RepoNotFound")
        commit = found.at(revision)
        if commit is None:
            raise RefusedError(404, "Invalid rev id", "RevisionNotFound")
        if name not in commit[1]:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        content = commit[1][name]
        headers = {"X-Repo-Commit": commit[0], "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self._send(200, content, headers)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = (
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{_REPO}/branch/(?P<revision>.+)", _Handler.branch),
    (rf"POST /api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"POST /api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    (rf"GET /api/models/{_REPO}", _Handler.info),
    (rf"GET /api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"POST /lfs/verify/(?P<oid>[0-9a-f]{64})", _Handler.lfs_verify),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    (rf"(?:HEAD|GET) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
)
