"""A Hugging Face Hub in memory on 127.0.0.1, for the real client: standard library and PyYAML.

Serves what huggingface_hub and transformers ask for when they create, push, list, tag and pull model repositories, with
users, private and gated repositories, LFS, and faults on demand.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt")


@dataclass
class User:
    """Who a token belongs to."""

    name: str
    role: str = "write"  # or "read"
    gates: set[str] = field(default_factory=set)  # gated repositories that let this user in


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    data: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """What the client compares: sha256 of an LFS file, git's blob id of any other."""
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Repo:
    """A model repository: commits are trees, branches and tags point to them."""

    id: str
    private: bool = False
    gated: str | bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, tree: dict[str, Blob], title: str, branch: str = "main") -> str:
        content = repr((sorted((path, blob.oid) for path, blob in tree.items()), title, self.branches.get(branch)))
        commit = hashlib.sha1(f"{content}{len(self.commits)}".encode()).hexdigest()
        self.commits[commit], self.titles[commit] = tree, title
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


@dataclass(frozen=True)
class Request:
    """One line of the hub's log."""

    method: str
    path: str
    has_token: bool


Fault = Callable[["Request"], "int | str | None"]


class LoopbackHub:
    """The server; a context manager.

    Args:
        users: by token.

    Attributes:
        lfs: whether files with a suffix of LFS_SUFFIXES are uploaded by LFS.
        fault: called with every request; a status is answered instead, `"cut"` sends half of the body and hangs up,
            None lets the request pass.
        log: the requests so far.
    """

    def __init__(self, users: dict[str, User]):
        self.users, self.repos, self.lfs_store = users, {}, {}
        self.lfs, self.fault, self.log = True, None, []
        self.lock = threading.RLock()
        handler = type("BoundHandler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, repo_id: str, files: dict[str, bytes], branch: str = "main", **settings) -> str:
        """Commit files from the server's side, making the repository where needed; the commit."""
        repo = self.repos.setdefault(repo_id, Repo(repo_id, **settings))
        tree = dict(repo.commits.get(repo.branches.get(branch), {}))
        tree |= {path: Blob(data, self.lfs and path.endswith(LFS_SUFFIXES)) for path, data in files.items()}
        return repo.commit(tree, "from the server", branch)

    def tree(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository."""
        repo = self.repos[repo_id]
        return {path: blob.data for path, blob in repo.commits[repo.resolve(revision)].items()}

    def downloads(self) -> list[str]:
        """The files that were downloaded since the log was last cleared."""
        paths = [r.path for r in self.log if r.method == "GET" and "/resolve/" in r.path]
        return sorted(path.partition("/resolve/")[2].partition("/")[2] for path in paths)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *args) -> None:
        pass

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.body = self.read_body()
        self.cut = False
        request = Request(self.command, unquote(url.path), bool(self.headers.get("Authorization")))
        self.hub.log.append(request)
        try:
            fault = self.hub.fault(request) if self.hub.fault else None
            if isinstance(fault, int):
                raise Refusal(fault, "an injected fault")
            self.cut = fault == "cut"
            method = "GET" if self.command == "HEAD" else self.command
            for wanted, pattern, answer in ROUTES:
                match = pattern.fullmatch(url.path)
                if match and wanted == method:
                    with self.hub.lock:
                        status, headers, body = answer(
                            self, **{k: unquote(v) for k, v in match.groupdict().items() if v}
                        )
                    return self.send(status, headers, body)
            raise Refusal(404, f"no route for {request}")
        except Refusal as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            self.send(error.status, headers | {"Content-Type": "application/json"}, json.dumps(error.body).encode())
        except BrokenPipeError:
            pass

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut else body)
        if self.cut:
            self.close_connection = True

    # who may do what

    def user(self) -> User | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.users[token] if token else None

    def repo(self, repo_id: str, *, write: bool = False, content: bool = False) -> Repo:
        user, repo = self.user(), self.hub.repos.get(repo_id)
        owner = repo_id.split("/")[0]
        is_owner = user is not None and user.name == owner
        if repo is None or (repo.private and not is_owner):  # a private repository looks like a missing one
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise Refusal(401, "Invalid username or password.")
        if write and not (is_owner and user.role == "write"):
            raise Refusal(403, "you must use a write token to upload to this repository")
        if content and repo.gated and not is_owner and repo_id not in (user.gates if user else ()):
            raise Refusal(401 if user is None else 403, f"Access to model {repo_id} is restricted.", "GatedRepo")
        return repo

    @staticmethod
    def at(repo: Repo, revision: str) -> str:
        commit = repo.resolve(revision.removeprefix("refs/heads/"))
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # answers: (status, headers, body)

    def json(self, value, status: int = 200):
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def whoami(self):
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        access = {"displayName": "test", "role": user.role}
        return self.json({"type": "user", "name": user.name, "orgs": [], "auth": {"accessToken": access}})

    def create(self):
        user, wanted = self.user(), json.loads(self.body)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        owner = wanted.get("organization") or user.name
        if owner != user.name or user.role != "write":
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner}.")
        repo_id = f"{owner}/{wanted['name']}"
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repos:
            raise Refusal(409, "You already created this model repo", url=url)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repos[repo_id] = repo = Repo(repo_id, private=private)
        repo.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        return self.json({"url": url, "name": repo_id, "id": "0" * 24})

    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        match = re.match(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", content, re.DOTALL)
        errors = []
        try:
            data = yaml.safe_load(match[1]) if match else None
            if not isinstance(data, dict):
                errors = [{"message": "empty or missing yaml metadata in repo card"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        return self.json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def info(self, id: str, revision: str = "main"):
        repo = self.repo(id)
        commit = self.at(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[commit])]
        facts = {"private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0}
        facts |= {"tags": [], "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"}
        return self.json({"_id": "0", "id": id, "modelId": id, "sha": commit, "siblings": siblings, **facts})

    def tree(self, id: str, revision: str, folder: str = ""):
        repo = self.repo(id)
        tree = repo.commits[self.at(repo, revision)]
        rows = [
            {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.data)}
            | ({"lfs": {"oid": blob.oid, "size": len(blob.data), "pointerSize": 128}} if blob.lfs else {})
            for path, blob in sorted(tree.items())
            if path.startswith(folder)
        ]
        if folder and not rows:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return self.json(rows)

    def refs(self, id: str):
        repo = self.repo(id)

        def rows(kind: str, targets: dict):
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in targets.items()]

        return self.json({"branches": rows("heads", repo.branches), "tags": rows("tags", repo.tags), "converts": []})

    def tag(self, id: str, revision: str):
        repo = self.repo(id, write=True)
        repo.tags[json.loads(self.body)["tag"]] = self.at(repo, revision)
        return 200, {}, b""

    def branch(self, id: str, revision: str):
        repo = self.repo(id, write=True)
        if revision in repo.branches:
            raise Refusal(409, "Reference already exists")
        repo.branches[revision] = repo.branches["main"]
        return 200, {}, b""

    def settings(self, id: str):
        repo, wanted = self.repo(id, write=True), json.loads(self.body)
        repo.gated = wanted.get("gated", repo.gated)
        repo.private = wanted.get("private", repo.private)
        return self.json(wanted)

    def preupload(self, id: str, revision: str):
        repo = self.repo(id, write=True)
        tree = repo.commits[self.at(repo, revision)]
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if self.hub.lfs and file["path"].endswith(LFS_SUFFIXES) else "regular"
            known = {"oid": tree[file["path"]].oid} if file["path"] in tree else {}
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return self.json({"files": files})

    def lfs_batch(self, id: str):
        self.repo(id, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.lfs_store:
                upload = {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}
                entry |= {"authenticated": True, "actions": {"upload": upload}}
            objects.append(entry)
        body = json.dumps({"transfer": "basic", "objects": objects}).encode()
        return 200, {"Content-Type": "application/vnd.git-lfs+json"}, body

    def lfs_put(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content has another sha256")
        self.hub.lfs_store[oid] = self.body
        return 200, {}, b""

    def commit(self, id: str, revision: str):
        repo = self.repo(id, write=True)
        tree, title = dict(repo.commits[self.at(repo, revision)]), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "header":
                title = value["summary"]
            elif kind == "file":
                tree[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.lfs_store:
                    raise Refusal(400, f"LFS object of {value['path']} was not uploaded")
                tree[value["path"]] = Blob(self.hub.lfs_store[value["oid"]], True)
            elif kind == "deletedFile":
                tree.pop(value["path"], None)
        is_pull_request = "create_pr" in self.query
        number = next(i for i in itertools.count(1) if f"refs/pr/{i}" not in repo.branches)
        branch = f"refs/pr/{number}" if is_pull_request else revision
        if is_pull_request:
            repo.branches[branch] = repo.branches["main"]
        commit = repo.commit(tree, title, branch)
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{id}/commit/{commit}"}
        if is_pull_request:
            answer["pullRequestUrl"] = f"{self.hub.url}/{id}/discussions/{number}"
        return self.json(answer)

    def resolve(self, id: str, revision: str, path: str):
        repo = self.repo(id, content=True)
        commit = self.at(repo, revision)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        blob = repo.commits[commit].get(path)
        if blob is None:
            return 404, headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        headers["ETag"] = f'"{blob.oid}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted is None:
            return 200, headers, blob.data
        start, size = int(wanted[1]), len(blob.data)
        if start >= size:
            return 416, headers | {"Content-Range": f"bytes */{size}"}, b""
        return 206, headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"}, blob.data[start:]


_ID, _REVISION = r"(?P<id>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_API = rf"/api/models/{_ID}"
ROUTES = [
    (method, re.compile(pattern), answer)
    for method, pattern, answer in (
        ("GET", "/api/whoami-v2", _Handler.whoami),
        ("POST", "/api/repos/create", _Handler.create),
        ("POST", "/api/validate-yaml", _Handler.validate_yaml),
        ("GET", _API, _Handler.info),
        ("GET", rf"{_API}/revision/{_REVISION}", _Handler.info),
        ("GET", rf"{_API}/tree/{_REVISION}(/(?P<folder>.+))?", _Handler.tree),
        ("GET", rf"{_API}/refs", _Handler.refs),
        ("PUT", rf"{_API}/settings", _Handler.settings),
        ("POST", rf"{_API}/tag/{_REVISION}", _Handler.tag),
        ("POST", rf"{_API}/branch/{_REVISION}", _Handler.branch),
        ("POST", rf"{_API}/preupload/{_REVISION}", _Handler.preupload),
        ("POST", rf"{_API}/commit/{_REVISION}", _Handler.commit),
        ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
        ("GET", rf"/{_ID}/resolve/{_REVISION}/(?P<path>.+)", _Handler.resolve),
    )
]
