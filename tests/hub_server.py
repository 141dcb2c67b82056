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

    def listing(self) -> dict[str, object]:
        siblings = []
        for path, content in self.files.items():
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            entry: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": blob}
            if len(content) > self.large:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": self.repository, "sha": self.commit, "siblings": siblings}


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
            elif parts.path == f"/api/datasets/{hub.repository}/revision/main" and parts.query == "blobs=true":
                self.answer(200, json.dumps(hub.listing()).encode())
            elif path.startswith(resolve) and path.removeprefix(resolve) in hub.files:
                self.answer(302, location=f"/storage/{urllib.parse.quote(path.removeprefix(resolve))}")
            elif path.startswith("/storage/"):
                self.content(path.removeprefix("/storage/"))
            else:
                self.answer(404)

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

        def answer(self, status: int, body: bytes = b"", *, location: str = "") -> None:
            self.send_response(status)
            if location:
                self.send_header("Location", location)
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
