"""A hub of Hugging Face on localhost: the part of its protocol that `huggingface_hub` speaks to push and load models.

Files have one address each: the client loses the headers of an answer that redirects to its own host.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

TOKEN = "hf_of_the_tests"
LARGE = (".safetensors",)  # files that go the way of LFS
Files = dict[str, bytes]


class Repository:
    """Branches of commits: each is all files of one moment."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: dict[str, Files] = {}
        self.branches: dict[str, str] = {}
        self.commit("main", {".gitattributes": b""})

    def commit(self, branch: str, files: Files) -> str:
        digest = hashlib.sha1(repr((branch, len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[digest] = files
        self.branches[branch] = digest
        return digest

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


class FakeHub(ThreadingHTTPServer):
    """Repositories by `org/name`; who writes, or reads a private one, needs the token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.blobs: Files = {}  # by SHA-256
        self.asked: list[str] = []  # method and path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repository: str, revision: str = "main") -> Files:
        """What a repository holds, without what the hub itself puts in."""
        found = self.repositories[repository]
        whole = found.commits[str(found.find(revision))]
        return {name: content for name, content in whole.items() if name != ".gitattributes"}


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        for pattern, name in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                getattr(self, name)(body, **found.groupdict())
                return
        self._fail(404, "")

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _fail(self, status: int, code: str) -> None:
        self._answer({"error": code or "not here"}, status, **({"X-Error-Code": code} if code else {}))

    def _signed_in(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._fail(401, "")
        return False

    def _repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        if found and (not found.private or self.headers.get("Authorization") == f"Bearer {TOKEN}"):
            return found
        self._fail(404, "RepoNotFound")
        return None

    def _commit(self, name: str, revision: str) -> tuple[str, Files] | None:
        if not (repository := self._repository(name)):
            return None
        if (digest := repository.find(revision)) is None:
            self._fail(404, "RevisionNotFound")
            return None
        return digest, repository.commits[digest]

    def create(self, body: bytes) -> None:
        if self._signed_in():
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            told = {"url": f"{self.server.url}/{name}", "name": name}
            if name in self.server.repositories:
                self._answer({"error": "it is there", **told}, 409)
                return
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.repositories[name] = Repository(private)
            self._answer(told)

    def branch(self, body: bytes, name: str, revision: str) -> None:
        if self._signed_in() and (repository := self._repository(name)):
            if revision in repository.branches:
                self._fail(409, "")
                return
            repository.branches[revision] = repository.branches["main"]
            self._answer({})

    def validate(self, body: bytes) -> None:
        card = json.loads(body)["content"]
        try:
            fields = yaml.safe_load(card.split("---\n")[1])
            errors = [key for key in ("license", "library_name") if not isinstance(fields.get(key), str)]
        except (yaml.YAMLError, IndexError) as error:
            errors = [str(error)]
        self._answer({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if self._signed_in() and self._commit(name, revision):
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
            self._answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def batch(self, body: bytes, name: str) -> None:
        if self._signed_in() and self._repository(name):
            objects = json.loads(body)["objects"]
            upload = {o["oid"]: {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}} for o in objects}
            self._answer({"transfer": "basic", "objects": [{**o, "actions": upload[o["oid"]]} for o in objects]})

    def store(self, body: bytes, oid: str) -> None:
        fits = hashlib.sha256(body).hexdigest() == oid
        if fits:
            self.server.blobs[oid] = body
        self._answer({}, 200 if fits else 400)

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if not self._signed_in() or not (found := self._commit(name, revision)):
            return
        files = dict(found[1])
        for line in body.splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif told["key"] == "deletedFile":
                files.pop(value["path"])
        digest = self.server.repositories[name].commit(revision, files)
        self._answer({"commitUrl": f"{self.server.url}/{name}/commit/{digest}", "commitOid": digest})

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        if found := self._commit(name, revision):
            private = self.server.repositories[name].private
            siblings = [{"rfilename": file} for file in found[1]]
            self._answer({"id": name, "modelId": name, "sha": found[0], "private": private, "siblings": siblings})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        if found := self._commit(name, revision):
            self._answer([{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in found[1].items()])

    def resolve(self, body: bytes, name: str, revision: str, file: str) -> None:
        if not (found := self._commit(name, revision)):
            return
        digest, files = found
        if file not in files:
            self._answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=digest)
            return
        self._answer(files[file], ETag=f'"{_oid(files[file])}"', X_Repo_Commit=digest)

    def log_message(self, *_: Any) -> None: ...


_REPO = r"(?P<name>[\w.-]+/[\w.-]+)"
ROUTES = (
    ("POST /api/repos/create", "create"),
    ("POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{_REPO}/branch/(?P<revision>.+)", "branch"),
    (rf"POST /api/models/{_REPO}/preupload/(?P<revision>.+)", "preupload"),
    (rf"POST /api/models/{_REPO}/commit/(?P<revision>.+)", "commit"),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/(?P<oid>\w+)", "store"),
    (rf"GET /api/models/{_REPO}", "info"),
    (rf"GET /api/models/{_REPO}/revision/(?P<revision>.+)", "info"),
    (rf"GET /api/models/{_REPO}/tree/(?P<revision>[^/]+)", "tree"),
    (rf"(GET|HEAD) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "resolve"),
)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that ends with the block."""
    hub = FakeHub()
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def be_known(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process take a hub for the hub: the client has read its environment when it was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol for large files, of another server
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
