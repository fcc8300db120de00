"""A Hub on loopback, for tests: models in memory, one branch, the true client, real sockets.

    with Hub() as hub:
        sha = hub.publish("owner/name", folder)
        point_client_at(hub.url, cache, monkeypatch)      # this process
        subprocess.run(..., env=client_environment(hub.url, cache))    # another one
        assert hub.log == [("HEAD", "/owner/name/resolve/main/config.json"), ...]

Reads (`resolve`, model info, trees, listing) and writes (create, preupload, LFS, commit) are those
of the client's downloads and uploads. Xet, branches, pull requests and rate limits are not here.

    hub.fail("PUT", "/lfs/", 500)             # answers so the next time, then as usual
    hub.fail("GET", "model.safetensors")      # breaks the connection halfway
    hub.corrupt.add("model.safetensors")      # another content under the same hash, size kept
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_test"
BIG = (".safetensors", ".bin", ".pt", ".npz", ".parquet")


def client_environment(url: str, cache: Path) -> dict[str, str]:
    """Environment of a process whose Hub is at `url`; the client reads it when it is imported."""
    return {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(cache),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def point_client_at(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client of this process, imported long ago, talk to `url`."""
    from huggingface_hub import constants

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


# --------------------------------------------------------------------------- what is stored


@dataclass(frozen=True)
class Commit:
    """One state of a repository; its name follows from message and content."""

    files: Mapping[str, bytes]
    message: str = "initial commit"

    @property
    def sha(self) -> str:
        content = [(path, hashlib.sha1(data).hexdigest()) for path, data in self.files.items()]
        return hashlib.sha1(repr((self.message, sorted(content))).encode()).hexdigest()


@dataclass
class Repo:
    """Commits of `main`, oldest first."""

    commits: list[Commit] = field(default_factory=lambda: [Commit({})])
    private: bool = False

    def at(self, revision: str) -> Commit | None:
        if revision in ("main", "HEAD"):
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.sha == revision), None)


def is_lfs(path: str, size: int) -> bool:
    return size >= 10_240 or path.endswith(BIG)


def etag(path: str, data: bytes) -> str:
    return (hashlib.sha256 if is_lfs(path, len(data)) else hashlib.sha1)(data).hexdigest()


def oid(path: str, data: bytes) -> str:
    """By which the client tells that a file has not changed: git's own, or that of the content."""
    if is_lfs(path, len(data)):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server; `log` lists every request as (verb, path)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.corrupt: set[str] = set()
        self.faults: list[tuple[str, str, int | None]] = []

    def fail(self, verb: str, place: str, status: int | None = None, times: int = 1) -> None:
        """Let the next requests whose path holds `place` fail: so answered, or cut halfway."""
        self.faults += [(verb, place, status)] * times

    def fault_of(self, verb: str, path: str) -> tuple[str, str, int | None] | None:
        for fault in self.faults:
            if fault[0] == verb and fault[1] in path:
                self.faults.remove(fault)
                return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about connections that broke on purpose."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def publish(self, name: str, folder: Path) -> str:
        """Put a folder's files into a repository, without a client; returns the commit."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
        repo = self.repos.setdefault(name, Repo())
        repo.commits.append(Commit(files, f"publish {len(repo.commits)}"))
        return repo.commits[-1].sha

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


# --------------------------------------------------------------------------- what is answered


class Refused(Exception):
    """An answer other than success; the client picks its exception from X-Error-Code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    """One request: the first route whose pattern fits answers it with the pattern's groups."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.server.log.append((self.command, path))
        self.fault = self.server.fault_of(self.command, path)
        if self.fault and self.fault[2] is None and self.command in ("POST", "PUT"):
            self.rfile.read(16)
            return self.cut()
        self.content = self.read_body() if self.command in ("POST", "PUT") else b""
        try:
            if self.fault and self.fault[2]:
                raise Refused(self.fault[2], "", "the test wants it so")
            self.answer(path)
        except Refused as no:
            head = {"X_Error_Code": no.code, "X_Error_Message": no.message}
            self.send(no.status, {"error": no.message}, **head)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def cut(self) -> None:
        """Close the connection, as a cable that is pulled."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, path: str) -> None:
        for pattern, needs_token, answer in ROUTES:
            if match := re.fullmatch(pattern, path):
                if needs_token and not self.has_token():
                    raise Refused(401, "", "Invalid username or password.")
                return answer(self, *match.groups())
        raise Refused(404, "", f"this test double has no route for {path}")

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, code: int, body: Any = b"", **headers: object) -> None:
        if not isinstance(body, bytes):
            body, headers["Content_Type"] = json.dumps(body).encode(), "application/json"
        self.send_response(code)
        for key, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.fault and self.fault[2] is None:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            return self.cut()
        if self.command != "HEAD":
            self.wfile.write(body)
        return None

    def commit_of(self, name: str, revision: str | None) -> Commit:
        if name not in self.server.repos:  # the real Hub hides private repositories with a 401 too
            raise Refused(401, "RepoNotFound", "Repository not found")
        if self.server.repos[name].private and not self.has_token():
            raise Refused(401, "RepoNotFound", "Repository not found")
        commit = self.server.repos[name].at(revision or "main")
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ------------------------------------------------------------ reading

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit = self.commit_of(name, revision)
        if path not in commit.files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data = commit.files[path]
        head = {"X_Repo_Commit": commit.sha, "ETag": f'"{etag(path, data)}"'}
        if path in self.server.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.command == "GET":
            start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
            place = f"bytes {start}-{end}/{len(data)}"
            self.send(206, data[start : end + 1], Content_Range=place, **head)
        else:
            self.send(200, data, Accept_Ranges="bytes", **head)

    def model_info(self, name: str, revision: str | None = None) -> None:
        about = self.info(name, self.commit_of(name, revision))
        self.send(200, {**about, "private": self.server.repos[name].private})

    def models(self) -> None:
        wanted = self.query.get("author")
        names = [n for n in sorted(self.server.repos) if wanted in (None, n.partition("/")[0])]
        self.send(200, [self.info(n, self.server.repos[n].commits[-1]) for n in names])

    def tree(self, name: str, revision: str, folder: str | None = None) -> None:
        files = self.commit_of(name, revision).files
        start = f"{folder}/" if folder else ""
        inside = [path for path in sorted(files) if path.startswith(start)]
        if self.query.get("recursive", "").lower() != "true":  # folders instead of what they hold
            inside = list(dict.fromkeys(start + p[len(start) :].split("/")[0] for p in inside))
        self.send(200, [
            self.entry(path, files[path]) if path in files
            else {"type": "directory", "path": path, "size": 0, "oid": ""}
            for path in inside
        ])  # fmt: skip

    def paths_info(self, name: str, revision: str) -> None:
        files = self.commit_of(name, revision).files
        wanted = files.keys() & parse_qs(self.content.decode()).get("paths", [])
        self.send(200, [self.entry(path, files[path]) for path in sorted(wanted)])

    @staticmethod
    def info(name: str, commit: Commit) -> dict[str, Any]:
        readme = commit.files.get("README.md", b"").decode()
        head = re.match(r"---\n(.*?)\n---", readme, re.DOTALL)
        card = yaml.safe_load(head[1]) if head else {}
        when = "2026-01-01T00:00:00.000Z"
        return {
            "_id": commit.sha[:24],
            "id": name,
            "modelId": name,
            "author": name.partition("/")[0],
            "sha": commit.sha,
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "createdAt": when,
            "lastModified": when,
            "tags": card.get("tags", []),
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
            "cardData": card,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }

    @staticmethod
    def entry(path: str, data: bytes) -> dict[str, Any]:
        oid, size = hashlib.sha1(data).hexdigest(), len(data)
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 130}
        entry = {"type": "file", "path": path, "size": size, "oid": oid}
        return {**entry, "lfs": lfs} if is_lfs(path, size) else entry

    # ------------------------------------------------------------ writing

    def whoami(self) -> None:
        self.send(200, {"type": "user", "name": "tester", "orgs": []})

    def valid_yaml(self) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def create(self) -> None:
        wish = json.loads(self.content)
        name = f"{wish.get('organization') or 'tester'}/{wish['name']}"
        link = f"{self.server.url}/{name}"
        if name in self.server.repos:
            self.send(409, {"error": "You already created this repo", "url": link})
        else:
            self.server.repos[name] = Repo(
                private=wish.get("private") or wish.get("visibility") == "private"
            )
            self.send(200, {"url": link, "name": name, "id": name})

    def preupload(self, name: str, revision: str) -> None:
        there = self.commit_of(name, revision).files
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_lfs(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
                "oid": oid(file["path"], there[file["path"]]) if file["path"] in there else None,
            }
            for file in json.loads(self.content)["files"]
        ]
        self.send(200, {"files": modes})

    def lfs_batch(self) -> None:
        wanted = json.loads(self.content)["objects"]
        places = {
            item["oid"]: {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
            for item in wanted
            if item["oid"] not in self.server.blobs
        }
        objects = [
            {**item, "actions": places[item["oid"]]} if item["oid"] in places else item
            for item in wanted
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise Refused(400, "", "content does not match its oid")
        self.server.blobs[oid] = self.content
        self.send(200)

    def commit(self, name: str, revision: str) -> None:
        files, message = dict(self.commit_of(name, revision).files), ""
        for line in self.content.splitlines():
            kind, value = (item := json.loads(line))["key"], item["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif kind == "deletedFile":
                files.pop(value["path"], None)
        after = Commit(files, message)
        self.server.repos[name].commits.append(after)
        url = f"{self.server.url}/{name}/commit/{after.sha}"
        self.send(200, {"success": True, "commitOid": after.sha, "commitUrl": url})


_NAME = r"([^/]+/[^/]+)"
_KIND = "(?:models|datasets)"
ROUTES: tuple[tuple[str, bool, Callable[..., None]], ...] = (  # pattern, needs a token, answer
    (rf"/(?:datasets/)?{_NAME}/resolve/([^/]+)/(.+)", False, Handler.resolve),
    ("/api/models", False, Handler.models),
    (rf"/api/{_KIND}/{_NAME}(?:/revision/([^/]+))?", False, Handler.model_info),
    (rf"/api/{_KIND}/{_NAME}/tree/([^/]+)(?:/(.*))?", False, Handler.tree),
    (rf"/api/{_KIND}/{_NAME}/paths-info/([^/]+)", False, Handler.paths_info),
    ("/api/whoami-v2", True, Handler.whoami),
    ("/api/validate-yaml", False, Handler.valid_yaml),
    ("/api/repos/create", True, Handler.create),
    (rf"/api/models/{_NAME}/preupload/([^/]+)", True, Handler.preupload),
    (rf"/{_NAME[1:-1]}\.git/info/lfs/objects/batch", True, Handler.lfs_batch),
    ("/lfs/([0-9a-f]{64})", False, Handler.lfs_put),
    (rf"/api/models/{_NAME}/commit/([^/]+)", True, Handler.commit),
)
