"""
A Hub on this machine: what `huggingface_hub` 2 asks of one to create a repository, upload, commit, list and download.

No maintained package offers that: mirrors serve downloads alone. Large files go by Git LFS; Xet has to be switched off.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


_REPOSITORY = r"(?P<repository>[^/]+/[^/]+)"
_ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/models/{_REPOSITORY}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{_REPOSITORY}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/{_REPOSITORY}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", rf"/lfs/{_REPOSITORY}/(?P<oid>[0-9a-f]+)", "lfs_upload"),
    ("GET", rf"/api/models/{_REPOSITORY}", "info"),
    ("GET", rf"/api/models/{_REPOSITORY}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", rf"/api/models/{_REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", "tree"),
    ("HEAD", rf"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", rf"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


@dataclass
class Fault:
    """The next `times` requests whose method and path match fail with a status, or break off after some bytes."""

    pattern: str
    status: int | None = None
    break_after: int | None = None
    times: int = 1


@dataclass
class Repository:
    """Commits, oldest first: each has all files of its revision."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=lambda: [(f"{0:040x}", {})])

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]


class HubServer(ThreadingHTTPServer):
    """`repositories` by id; `requests` as `"METHOD path"`, a range appended; `faults` are used up in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Serves until the block ends."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _RefusedError(Exception):
    def __init__(self, status: int, code: str, message: str = ""):
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._dispatch("GET")

    def do_HEAD(self) -> None:
        self._dispatch("HEAD")

    def do_POST(self) -> None:
        self._dispatch("POST")

    def do_PUT(self) -> None:
        self._dispatch("PUT")

    def _dispatch(self, method: str) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        # Read whole, so that the connection can be used again whatever becomes of the request.
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self._chunk, b""))
        else:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(url.path)
        with self.server.lock:
            self.server.requests.append(" ".join(filter(None, (method, path, self.headers.get("Range")))))
            self.fault = next(
                (each for each in self.server.faults if each.times and re.search(each.pattern, f"{method} {path}")),
                None,
            )
            if self.fault:
                self.fault.times -= 1
            try:
                if self.fault and self.fault.status:
                    raise _RefusedError(self.fault.status, "Fault", "as the test asked")
                for verb, pattern, name in _ROUTES:
                    if verb == method and (match := re.fullmatch(pattern, path)):
                        answer = getattr(self, f"_{name}")(**match.groupdict())
                        break
                else:
                    raise _RefusedError(404, "NoRoute", path)
            except _RefusedError as refused:
                answer = refused
        if isinstance(answer, _RefusedError):
            headers = {"X-Error-Code": answer.code, "X-Error-Message": answer.message}
            self._send(answer.status, json.dumps({"error": answer.message}).encode(), headers)
        elif isinstance(answer, tuple):
            self._send(*answer)
        else:
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.break_after is not None:
            self.wfile.write(content[: self.fault.break_after])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(content)

    def _repository(self, name: str) -> Repository:
        if name not in self.server.repositories:
            raise _RefusedError(404, "RepoNotFound", f"no repository {name}")
        return self.server.repositories[name]

    def _files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]]:
        held = self._repository(repository)
        for oid, files in held.commits:
            if revision == oid:
                return oid, files
        if revision != "main":
            raise _RefusedError(404, "RevisionNotFound", revision)
        return held.commits[-1]

    def _create(self) -> Any:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if name in self.server.repositories:
            return 409, json.dumps({"error": "exists", "url": f"{self.server.url}/{name}"}).encode(), {}
        self.server.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return {"url": f"{self.server.url}/{name}", "name": name}

    def _validate_yaml(self) -> Any:
        text = json.loads(self.body)["content"]
        if not text.startswith("---\n"):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]}
        return {"errors": [], "warnings": []}

    def _preupload(self, repository: str, revision: str) -> Any:
        _, files = self._files(repository, revision)
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            entry = {"path": path, "shouldIgnore": False, "uploadMode": "lfs" if _is_large(path) else "regular"}
            answers.append(entry | ({"oid": _oid(path, files[path])} if path in files else {}))
        return {"files": answers}

    def _lfs_batch(self, repository: str) -> Any:
        self._repository(repository)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.url}/lfs/{repository}/{asked['oid']}", "header": {}}
            known = asked["oid"] in self.server.objects
            objects.append(asked | ({} if known else {"actions": {"upload": upload}}))
        return {"transfer": "basic", "objects": objects}

    def _lfs_upload(self, repository: str, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusedError(400, "BadObject", "the content is not what its name says")
        self.server.objects[oid] = self.body
        return {}

    def _commit(self, repository: str, revision: str) -> Any:
        held = self._repository(repository)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", held.head) != held.head:
            raise _RefusedError(412, "PreconditionFailed", "a commit has happened since")
        files = dict(held.files)
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise _RefusedError(400, "MissingObject", value["path"])
                files[value["path"]] = self.server.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                raise _RefusedError(400, "BadOperation", kind)
        oid = hashlib.sha1(self.body + held.head.encode()).hexdigest()
        held.commits.append((oid, files))
        return {"commitUrl": f"{self.server.url}/{repository}/commit/{oid}", "commitOid": oid}

    def _info(self, repository: str, revision: str = "main") -> Any:
        oid, files = self._files(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        return {"id": repository, "sha": oid, "siblings": siblings, "private": self._repository(repository).private}

    def _tree(self, repository: str, revision: str, folder: str | None) -> Any:
        _, files = self._files(repository, revision)
        inside = {path: content for path, content in files.items() if folder is None or path.startswith(f"{folder}/")}
        if folder is not None and not inside:
            raise _RefusedError(404, "EntryNotFound", folder)
        return [
            {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
            | (
                {"lfs": {"oid": _oid(path, content), "size": len(content), "pointerSize": 1}}
                if _is_large(path)
                else {}
            )
            for path, content in sorted(inside.items())
        ]

    def _resolve(self, repository: str, revision: str, path: str) -> Any:
        oid, files = self._files(repository, revision)
        if path not in files:
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid}
        content = files[path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_oid(path, content)}"', "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return 206, content[first : last + 1], headers
        return 200, content, headers


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors") or path == "tokenizer.json"


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(path: str, content: bytes) -> str:
    """What clients compare their own file with: the digest of LFS objects, git's of others."""
    return hashlib.sha256(content).hexdigest() if _is_large(path) else _git_oid(content)
