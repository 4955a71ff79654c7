"""A small Hub over real HTTP, with repositories, a second host for large files, and faults.

`Hub` answers like huggingface.co, with metadata in the headers of a redirect, error codes in
`X-Error-Code`, ranges, and Git LFS. Large files come from another host name (`localhost` instead of
`127.0.0.1`), so that the client sees two hosts. Each request for the bytes of a file uses up the
next fault of the list.
"""

import base64
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The server; a fault is truncate, reset, stall, swap, wrong, drip, endless, or a status.

    `metadata` lists headers that replace the true ones, an entry for each request.
    """

    def __init__(self) -> None:
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.hub = self
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.reset()

    def reset(self) -> None:
        """Restore the initial state of the server."""
        _sha256.cache_clear()
        self.repos: dict[str, dict[str, bytes]] = {}
        self.files: dict[str, bytes] = {}
        self.newer = b""
        self.gated: set[str] = set()
        self.tokens: dict[str, str] = {}
        self.faults: list[Any] = []
        self.head_faults: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.seconds_per_chunk = 0.0
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.uploads: dict[str, bytes] = {}

    def url(self, name: str) -> str:
        """Return the address of a file outside of all repositories."""
        return f"{self.endpoint}/files/{name}"

    def counts(self) -> Counter[str]:
        """Count the requests by method and first part of the path."""
        return Counter(f"{m} {p.split('/')[1]}" for m, p, _ in self.requests)

    def ranges(self) -> list[str]:
        """Return the `Range` headers of all requests, in order."""
        return [headers["range"] for _, _, headers in self.requests if "range" in headers]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: Hub

    def handle_error(self, *_args: object) -> None:
        """Ignore errors, because tests kill clients on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    uploads: ClassVar[dict[str, str]] = {}

    def log_message(self, *_args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        hub = self.server.hub
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.note()
        if self.path.startswith("/api/repos/create"):
            values = json.loads(data)
            name = f"{values['organization']}/{values['name']}"
            hub.repos.setdefault(name, {})
            return self.send_json({"url": f"{hub.endpoint}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(data)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            return self.send_json({"files": [m | {"shouldIgnore": False} for m in modes]})
        if "/commit/" in self.path:
            for line in data.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    hub.uploads[entry["value"]["path"]] = content
            repo = "/".join(self.path.split("/")[3:5])
            hub.repos[repo] |= hub.uploads
            return self.send_json(
                {
                    "commitUrl": f"{hub.endpoint}/{repo}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                    "success": True,
                    "hookOutput": "",
                }
            )
        return self.fail(404)

    def note(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.hub.requests.append((self.command, self.path, headers))

    def answer(self, *, body: bool) -> None:
        hub = self.server.hub
        self.note()
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "cdn":
            data = {_sha256(d): d for r in hub.repos.values() for d in r.values()}
            return self.send_bytes(data[parts[1]], body=body)
        if parts[0] == "files":
            data = hub.files.get("/".join(parts[1:]))
            return self.fail(404) if data is None else self.send_bytes(data, body=body)
        if parts[0] == "api":
            return self.api(parts)
        named = 3 if parts[0] == "datasets" else 2
        repo, revision = "/".join(parts[:named]), parts[named + 1]
        name = "/".join(parts[named + 2 :])
        if hub.head_faults:
            status, headers = hub.head_faults.pop(0)
            return self.fail(status, headers=headers)
        if repo in hub.gated:
            return self.fail(401, "GatedRepo")
        token = hub.tokens.get(repo)
        if repo not in hub.repos or (
            token and self.headers.get("Authorization") != f"Bearer {token}"
        ):
            return self.fail(401, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.fail(404, "RevisionNotFound")
        if name not in hub.repos[repo]:
            return self.fail(404, "EntryNotFound")
        data = hub.repos[repo][name]
        sha256 = _sha256(data)
        lies = hub.metadata.pop(0) if hub.metadata else {}
        if name.endswith((".json", ".md")):
            etag = lies.pop("ETag", hashlib.sha1(data).hexdigest())
            headers = {"X-Repo-Commit": COMMIT} | lies
            return self.send_bytes(data, body=body, etag=etag, headers=headers)
        self.send_response(302)
        for key, value in {
            "Location": f"http://localhost:{hub.port}/cdn/{sha256}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{sha256}"',
            "X-Linked-Size": str(len(data)),
            "ETag": f'"{sha256[:32]}"',
            "Content-Length": "0",
            **lies,
        }.items():
            self.send_header(key, value)
        self.end_headers()
        return None

    def api(self, parts: list[str]) -> None:
        hub = self.server.hub
        repo = "/".join(parts[2:4] if parts[1] == "models" else parts[1:4])
        if repo not in hub.repos:
            return self.fail(401, "RepoNotFound")
        if parts[4:5] == ["tree"]:
            held = hub.repos[repo].items()
            return self.send_json(
                [{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in held]
            )
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "lfs": {
                    "sha256": _sha256(data),
                    "size": len(data),
                    "pointerSize": 130,
                },
            }
            for name, data in hub.repos[repo].items()
        ]
        return self.send_json(
            {
                "id": repo,
                "sha": COMMIT,
                "siblings": siblings,
                "private": False,
                "tags": ["license:mit"],
                "cardData": {"license": "mit"},
            }
        )

    def send_json(self, values: Any) -> None:
        data = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def fail(
        self, status: int, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "Access to this is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_bytes(
        self,
        data: bytes,
        *,
        body: bool,
        etag: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        fault = self.server.hub.faults.pop(0) if body and self.server.hub.faults else None
        if isinstance(fault, tuple):
            return self.fail(fault[0], headers=fault[1])
        start = 0
        tag = f'"{etag or hashlib.md5(data).hexdigest()}"'
        same = self.headers.get("If-Range") in (None, tag)
        if (asked := self.headers.get("Range")) and etag is None and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return self.fail(416)
        part = data[start:]
        if fault == "wrong":
            part = bytes(len(part))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("ETag", tag)
        if fault == "endless":  # no Content-Length, and data until the client gives up
            self.close_connection = True
            self.end_headers()
            with suppress(ConnectionError):
                for _ in range(10_000):
                    self.wfile.write(bytes(100_000))
            return None
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            with suppress(ConnectionError):
                self.send_part(part, fault)
        return None

    def send_part(self, part: bytes, fault: Any) -> None:
        pause = self.server.hub.seconds_per_chunk
        if fault == "swap":  # the file is replaced while it is sent
            self.server.hub.files = dict.fromkeys(self.server.hub.files, self.server.hub.newer)
        if fault in ("truncate", "reset", "stall", "swap"):
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            time.sleep(0.05)
            if fault == "stall":
                time.sleep(3)  # longer than the client waits
            if fault == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()
            return
        step = len(part) // 8 + 1 if fault == "drip" else 1 << 16
        for start in range(0, len(part), step):
            self.wfile.write(part[start : start + step])
            if fault == "drip":
                self.wfile.flush()
            time.sleep(0.1 if fault == "drip" else pause)


@cache
def _sha256(data: bytes) -> str:
    """Cached, because tests request files repeatedly and a client waits only a second."""
    return hashlib.sha256(data).hexdigest()


def cached_blobs(cache: Path) -> list[Path]:
    """Return the complete files of the Hub's cache."""
    return [path for path in cache.glob("models--*/blobs/*") if not path.name.startswith(".")]
