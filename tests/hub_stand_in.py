"""A small stand-in for the Hub on 127.0.0.1, for the real `huggingface_hub` client.

It speaks the parts of the HTTP API that pushing and loading use: repositories, branches, commits
of regular and LFS files, listings, and downloads with the headers that name commit and etag.
Writing, and reading what is private, need the token.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_stand_in"
LFS_FROM = 1 << 16  # bytes; smaller files are part of the commit


class Repository:
    """Commits of files: path to (content, is LFS)."""

    def __init__(self, *, private: bool) -> None:
        self.private = private
        self.commits: dict[str, dict[str, tuple[bytes, bool]]] = {}
        self.branches: dict[str, str] = {}
        self.commit("main", {})

    def commit(self, branch: str, tree: dict[str, tuple[bytes, bool]]) -> str:
        """A new commit at the tip of a branch; its hash."""
        text = f"{self.branches.get(branch)} {sorted(tree)} {len(self.commits)}"
        sha = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - a name, as git's
        self.commits[sha] = tree
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> str | None:
        """The commit that a branch or a hash names."""
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


class Hub:
    """What the server holds, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.uploads: list[str] = []  # of LFS objects, by hash
        self.requests: list[str] = []
        self.refused_commits = 0  # how many commits to answer with 500 from now on


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            status, headers, content = self._answer(path, body)
        except Refused as refused:
            status, headers, content = refused.status, {"X-Error-Code": refused.code}, b"{}"
            headers["X-Error-Message"] = str(refused)
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers = {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - names of the base class

    def _answer(self, path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            return self._large(parts, body)
        if parts[:2] == ["api", "whoami-v2"]:
            self._needs_token()
            return 200, {}, {"type": "user", "name": "user", "orgs": [], "auth": {}}
        if parts[:3] == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if parts[:2] == ["api", "validate-yaml"]:
            card = json.loads(body)
            faults = _faults_of_card(card["content"], card.get("repoType", "model"))
            return 200, {}, {"errors": faults, "warnings": []}
        if parts[:2] == ["api", "models"]:
            return self._api(f"{parts[2]}/{parts[3]}", parts[4:], body)
        if parts[:2] == ["api", "spaces"]:
            return self._api(f"spaces/{parts[2]}/{parts[3]}", parts[4:], body)
        if len(parts) > 4 and parts[0] == "spaces" and parts[3] == "resolve":
            return self._resolve("/".join(parts[:3]), parts[4], "/".join(parts[5:]))
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            return self._batch(f"{parts[0]}/{parts[1]}".removesuffix(".git"), json.loads(body))
        if len(parts) > 3 and parts[2] == "resolve":
            return self._resolve(f"{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
        raise Refused(404, message=f"the stand-in does not know {path}")

    # ---- reading ----

    def _repository(self, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        allowed = repository is not None and (not repository.private or self._has_token())
        if repository is None or not allowed:
            raise Refused(404 if self._has_token() else 401, "RepoNotFound")
        return repository

    def _tree(self, name: str, revision: str) -> tuple[str, dict[str, tuple[bytes, bool]]]:
        repository = self._repository(name)
        sha = repository.at(revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound")
        return sha, repository.commits[sha]

    def _resolve(self, name: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        sha, tree = self._tree(name, revision)
        if path not in tree:
            raise Refused(404, "EntryNotFound")
        content, large = tree[path]
        etag = hashlib.sha256(content).hexdigest() if large else _blob(content)
        return 200, {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}, content

    def _api(self, name: str, rest: list[str], body: bytes) -> tuple[int, dict[str, str], Any]:
        what = rest[0] if rest else "revision"
        revision = rest[1] if len(rest) > 1 else "main"
        if what == "revision":
            sha, tree = self._tree(name, revision)
            files = [{"rfilename": path} for path in sorted(tree)]
            private = self.hub.repositories[name].private
            about = {"_id": name, "id": name, "modelId": name, "sha": sha, "siblings": files}
            return 200, {}, {**about, "private": private, "tags": [], "downloads": 0, "likes": 0}
        if what == "tree":
            return 200, {}, self._listing(name, revision, "/".join(rest[2:]))
        self._needs_token()
        if what == "preupload":
            asked = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LFS_FROM else "regular",
                    "shouldIgnore": False,
                }
                for file in asked
            ]
            return 200, {}, {"files": modes}
        if what == "branch":
            repository = self._repository(name)
            if revision in repository.branches:
                raise Refused(409)
            repository.branches[revision] = repository.branches["main"]
            return 200, {}, {}
        if what == "commit":
            return self._commit(name, revision, [json.loads(line) for line in body.splitlines()])
        raise Refused(404, message=f"the stand-in does not know {what}")

    def _listing(self, name: str, revision: str, folder: str) -> list[dict[str, Any]]:
        _, tree = self._tree(name, revision)
        inside = {
            path: f for path, f in tree.items() if path.startswith(f"{folder}/" if folder else "")
        }
        if not inside and folder:
            raise Refused(404, "EntryNotFound")
        entries = []
        for path, (content, large) in sorted(inside.items()):
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
            entry["oid"] = _blob(content)
            if large:
                sha = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return entries

    # ---- writing ----

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _needs_token(self) -> None:
        if not self._has_token():
            raise Refused(401, message="Invalid username or password.")

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        self._needs_token()
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if asked.get("type") == "space":
            if asked.get("sdk") != "gradio":
                raise Refused(400, message="a Space needs an sdk")
            name = f"spaces/{name}"
        url = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            return 409, {}, {**url, "error": "You already created this model repo"}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private=private)
        return 200, {}, url

    def _batch(self, name: str, asked: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        self._needs_token()
        self._repository(name)
        objects = []
        for stored_object in asked["objects"]:
            entry = {"oid": stored_object["oid"], "size": stored_object["size"]}
            if stored_object["oid"] not in self.hub.stored:
                url = f"{self.hub.url}/lfs/{stored_object['oid']}"
                entry["actions"] = {
                    "upload": {"href": url},
                    "verify": {"href": f"{url}/verify"},
                }
            objects.append(entry)
        return 200, {}, {"transfer": "basic", "objects": objects}

    def _large(self, parts: list[str], body: bytes) -> tuple[int, dict[str, str], Any]:
        if parts[-1] == "verify":
            if json.loads(body)["oid"] not in self.hub.stored:
                raise Refused(404)
            return 200, {}, {}
        if hashlib.sha256(body).hexdigest() != parts[1]:
            raise Refused(422, message="the content has another hash")
        self.hub.stored[parts[1]] = body
        self.hub.uploads.append(parts[1])
        return 200, {}, {}

    def _commit(
        self, name: str, branch: str, lines: list[dict[str, Any]]
    ) -> tuple[int, dict[str, str], Any]:
        if self.hub.refused_commits:
            self.hub.refused_commits -= 1
            raise Refused(500, message="out of order")
        repository = self._repository(name)
        tree = dict(repository.commits[repository.branches[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = (base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                tree[value["path"]] = (self.hub.stored[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
            elif line["key"] != "header":
                raise Refused(400, message=f"the stand-in does not know {line['key']}")
        sha = repository.commit(branch, tree)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        return 200, {}, {"success": True, "commitOid": sha, "commitUrl": url}


def _faults_of_card(content: str, kind: str) -> list[dict[str, str]]:
    """What is wrong with the metadata of a card, as far as the stand-in knows."""
    _, head, _ = content.split("---\n", 2)
    metadata = yaml.safe_load(head)
    needed = {"model": ("library_name", "pipeline_tag", "tags"), "space": ("title", "sdk")}
    faults = [key for key in needed[kind] if key not in metadata]
    for entry in metadata.get("model-index", []):
        if not all({"task", "dataset", "metrics"} <= set(result) for result in entry["results"]):
            faults.append("model-index")
    return [{"message": f"{fault} is missing or wrong"} for fault in faults]


def _blob(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


@contextmanager
def running() -> Iterator[Hub]:
    """The stand-in, listening while the context lasts."""
    hub = Hub()
    handler = type("Handler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
