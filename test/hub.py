"""A hub on this machine: the part of huggingface.co's HTTP interface that huggingface_hub and `bitvla inspect --remote` use."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "owner/model"
LARGE = 4096  # bytes: files that are longer lie, as on the hub, on another server


class Hub:
    """Serves a folder as REPOSITORY, under the revisions main and v1. large files are redirected to a second server.

    sent: bytes of each file's content that went out, by name. asked: revisions and files, in the order of requests. stalls: names of
    files of which half is sent, and then no more until the hub is closed. ranges: whether it knows them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: dict[str, int] = {}
        self.asked: list[str] = []
        self.stalls: set[str] = set()
        self.ranges = True
        self.closed = threading.Event()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) for _ in range(2)]
        self.url, self.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closed.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def files(self) -> dict[str, int]:
        return {str(file.relative_to(self.folder)): file.stat().st_size for file in sorted(self.folder.rglob("*")) if file.is_file()}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            if match := re.fullmatch(rf"/api/models/{REPOSITORY}(/revision/(?P<revision>.+))?", path):
                self.describe(match["revision"] or "main")
            elif match := re.fullmatch(rf"/api/models/{REPOSITORY}/tree/[^/]+", path):
                self.reply_json([{"type": "file", "path": name, "size": size, "oid": _oid(name)} for name, size in hub.files().items()])
            elif match := re.fullmatch(rf"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", path):
                self.resolve(match["name"], body)
            elif match := re.fullmatch(r"/store/(?P<name>.+)", path):
                self.content(match["name"], body)
            else:
                self.refuse(404, "RepoNotFound")

        def describe(self, revision: str) -> None:
            hub.asked.append(revision)
            if revision not in ("main", "v1", COMMIT):
                self.refuse(404, "RevisionNotFound")
                return
            siblings = [{"rfilename": name, "size": size, "blobId": _oid(name)} for name, size in hub.files().items()]
            self.reply_json({"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})

        def resolve(self, name: str, body: bool) -> None:
            size = hub.files().get(name)
            if size is None:
                self.refuse(404, "EntryNotFound")
            elif size <= LARGE:
                self.content(name, body)
            else:
                self.send_response(302)
                self.metadata(name)
                self.send_header("X-Linked-Size", str(size))
                self.send_header("X-Linked-Etag", f'"{_oid(name)}"')
                self.send_header("Location", f"{hub.store}/store/{name}")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def content(self, name: str, body: bool) -> None:
            data = (hub.folder / name).read_bytes()
            size, wanted = len(data), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted and hub.ranges:
                begin, end = int(wanted[1]), min(size, int(wanted[2]) + 1 if wanted[2] else size)
                data = data[begin:end]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
            else:
                self.send_response(200)
            self.metadata(name)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not body:
                return
            if name in hub.stalls:
                data = data[: len(data) // 2]
            hub.sent[name] = hub.sent.get(name, 0) + len(data)
            self.wfile.write(data)
            if name in hub.stalls:
                self.wfile.flush()
                hub.closed.wait()

        def metadata(self, name: str) -> None:
            self.send_header("ETag", f'"{_oid(name)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def reply_json(self, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _oid(name: str) -> str:
        return hashlib.sha1((hub.folder / name).read_bytes()).hexdigest()

    return Handler
