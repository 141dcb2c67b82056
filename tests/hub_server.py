"""A stand-in for the Hugging Face hub on loopback: its addresses, redirects, ranges and hashes, and faults at will."""

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + 34 * "0"


@dataclass
class Hub:
    """One data set repository: `files` by path; those longer than `large` bytes are kept as LFS objects."""

    repository: str
    files: dict[str, bytes]
    large: int = 1000
    page: int = 3
    """Entries in one page of the listing."""
    commit: str = COMMIT
    endpoint: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range header of every request for content."""
    authorized: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Authorization header of every request."""
    cut_after: list[int] = field(default_factory=list)
    """For the next requests for content: close the connection after so many bytes."""
    stop_after: int | None = None
    """For the next request for content: send so many bytes and no more until `go_on` is set."""
    go_on: threading.Event = field(default_factory=threading.Event)
    refuse: list[int] = field(default_factory=list)
    """Status codes with which the next requests are refused."""
    ranges: bool = True
    served: dict[str, bytes] = field(default_factory=dict)
    """Content that is sent in place of the true one."""

    def tree(self) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = [{"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}]
        for path, content in self.files.items():
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
            if len(content) > self.large:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer until the end of the block; `hub.endpoint` says where."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None: ...

        def do_GET(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            hub.authorized.append((parts.path, self.headers["Authorization"]))
            path = urllib.parse.unquote(parts.path)
            resolve = f"/datasets/{hub.repository}/resolve/{hub.commit}/"
            if hub.refuse:
                self.answer(hub.refuse.pop(0))
            elif parts.path == f"/api/datasets/{hub.repository}/revision/main":
                self.answer(200, json.dumps({"id": hub.repository, "sha": hub.commit}).encode())
            elif parts.path == f"/api/datasets/{hub.repository}/tree/{hub.commit}":
                self.tree(dict(urllib.parse.parse_qsl(parts.query)))
            elif path.startswith(resolve) and path.removeprefix(resolve) in hub.files:
                self.answer(302, Location=f"/storage/{urllib.parse.quote(path.removeprefix(resolve))}")
            elif path.startswith("/storage/"):
                self.content(path.removeprefix("/storage/"))
            else:
                self.answer(404)

        def tree(self, query: dict[str, str]) -> None:
            """A page of few entries, and a link to the next one."""
            assert query["recursive"] == "true"
            begin, entries = int(query.get("cursor", 0)), hub.tree()
            end = begin + hub.page
            link = f'<{hub.endpoint}{self.path}&cursor={end}>; rel="next"' if end < len(entries) else ""
            self.answer(200, json.dumps(entries[begin:end]).encode(), Link=link)

        def content(self, path: str) -> None:
            content = hub.served.get(path, hub.files[path])
            asked = self.headers["Range"]
            hub.requests.append((path, asked))
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and hub.ranges else 0
            if start and start >= len(content):
                self.answer(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            if hub.cut_after:
                rest = rest[: hub.cut_after.pop(0)]
                self.close_connection = True
            if hub.stop_after is not None:
                first, rest, hub.stop_after = rest[: hub.stop_after], rest[hub.stop_after :], None
                self.wfile.write(first)
                hub.go_on.wait(timeout=60)
            with contextlib.suppress(ConnectionError):  # the client may have been killed
                self.wfile.write(rest)

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
