"""A local stand-in for the Hugging Face hub, as far as `huggingface_hub` needs it to list and fetch a data set, and to
upload a model."""

import base64
import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest


@dataclass
class Hub:
    """One data set repository: `files` by path; those longer than `large` bytes are LFS objects."""

    repository: str
    files: dict[str, bytes]
    large: int = 1000
    commit: str = "c0ffee" + 34 * "0"
    endpoint: str = ""
    gated: bool = False
    served: dict[str, bytes] = field(default_factory=dict)
    """Content sent in place of the true one."""
    requests: list[str] = field(default_factory=list)
    """Every request: paths of files for their content, other addresses with their method."""
    tokens: set[str | None] = field(default_factory=set)
    """Authorization headers seen."""
    uploaded: dict[str, bytes] = field(default_factory=dict)
    """Files of commits to the model repository of this name."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by SHA-256."""
    refused: str | None = None
    """A path that is answered with 403."""

    def describe(self) -> dict[str, object]:
        siblings: list[dict[str, object]] = []
        for path, content in self.files.items():
            sibling: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": hash_blob(content)}
            if len(content) > self.large:
                digest = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        return {"id": self.repository, "sha": self.commit, "siblings": siblings}


def hash_blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@contextlib.contextmanager
def serving(hub: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Answer until the end of the block, as the hub of this process and its children; caches lie in `directory`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None: ...

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.tokens.add(self.headers["Authorization"])
            api, files = f"/api/datasets/{hub.repository}", f"/datasets/{hub.repository}/resolve/{hub.commit}/"
            if path == f"{api}/revision/main":
                self.answer(200, json.dumps(hub.describe()).encode())
            elif path.startswith(files) and path.removeprefix(files) in hub.files:
                self.answer_file(path.removeprefix(files))
            elif path == "/api/whoami-v2" and path != hub.refused:
                self.answer(200, b'{"name": "someone", "type": "user", "orgs": []}')
            else:
                self.answer(404, **{"X-Error-Code": "RepoNotFound"})  # pyright: ignore[reportArgumentType]

        do_HEAD = do_GET

        def do_PUT(self) -> None:
            hub.objects[self.path.removeprefix("/object/")] = self.read_body()
            self.answer(200)

        def do_POST(self) -> None:
            path, body = urllib.parse.urlsplit(self.path).path, self.read_body()
            hub.requests.append(path)
            hub.tokens.add(self.headers["Authorization"])
            respond = {
                "/api/repos/create": lambda: {"url": f"{hub.endpoint}/{hub.repository}"},
                "/api/validate-yaml": lambda: {"warnings": [], "errors": []},
                f"/api/models/{hub.repository}/preupload/main": lambda: self.choose_uploads(json.loads(body)),
                f"/{hub.repository}.git/info/lfs/objects/batch": lambda: self.locate_objects(json.loads(body)),
                f"/api/models/{hub.repository}/commit/main": lambda: self.commit(body),
            }
            if path == hub.refused or path not in respond:
                self.answer(403, b'{"error": "not yours"}')
            else:
                self.answer(200, json.dumps(respond[path]()).encode())

        def read_body(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"] or 0))

        def choose_uploads(self, request: dict[str, list[dict[str, str]]]) -> dict[str, object]:
            mode = lambda path: "lfs" if path.endswith(".safetensors") else "regular"
            chosen = [{"path": f["path"], "uploadMode": mode(f["path"])} for f in request["files"]]
            return {"files": [file | {"shouldIgnore": False} for file in chosen]}

        def locate_objects(self, request: dict[str, list[dict[str, object]]]) -> dict[str, object]:
            upload = lambda one: {"upload": {"href": f"{hub.endpoint}/object/{one['oid']}"}}
            return {"transfer": "basic", "objects": [one | {"actions": upload(one)} for one in request["objects"]]}

        def commit(self, body: bytes) -> dict[str, object]:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.uploaded[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    hub.uploaded[line["value"]["path"]] = hub.objects[line["value"]["oid"]]
            return {"commitOid": hub.commit, "commitUrl": f"{hub.endpoint}/{hub.repository}/commit/{hub.commit}"}

        def answer_file(self, path: str) -> None:
            content = hub.served.get(path, hub.files[path])
            if hub.gated:
                self.answer(403, **{"X-Error-Code": "GatedRepo"})  # pyright: ignore[reportArgumentType]
                return
            if self.command == "GET":
                hub.requests.append(path)
            self.answer(200, content, **{"ETag": f'"{hash_blob(content)}"', "X-Repo-Commit": hub.commit})

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    connect(hub.endpoint, directory, monkeypatch)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def connect(endpoint: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `endpoint` the hub. `huggingface_hub` reads the environment once, so its constants change, too."""
    cache = str(directory / "huggingface")
    for name, value in {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": cache, "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GPTJAX_CACHE", str(directory / "cache"))
    constants = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": cache,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # the client asks for a token of that store first
    }
    for name, value in constants.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
