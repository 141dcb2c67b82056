"""The chat as a web page of the standard library's server: on this machine, one conversation a tab.

`/` is the page. `POST /answer`, `/stop` and `/reset` take JSON with the tab's `conversation`, and `GET /save` returns
its messages. An answer comes as lines of JSON while it is written: `text`, then one line with `done` and the number of
`turns` so far.

A page of another origin can neither read nor ask: the host and the origin of each request are checked.
"""

import errno
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gptjax.core.errors import UserError
from gptjax.serving.conversation import Conversation

PAGE = Path(__file__).with_name("page.html")
MAX_CONVERSATIONS = 100
"""The one that was used least recently is forgotten first."""
MAX_REQUEST_BYTES = 2**20
_CONVERSATION_ID = re.compile(r"[A-Za-z0-9-]{8,64}")


class Tab:
    """The conversation of a tab. One answer of it is written at a time."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.lock = threading.Lock()
        self.stopped = threading.Event()


class ChatServer(ThreadingHTTPServer):
    """Conversations by the id that a tab chose. Answers of all tabs are written one after another."""

    daemon_threads = True

    def __init__(self, begin: Callable[[], Conversation], *, host: str, port: int) -> None:
        super().__init__((host, port), Handler)
        self._begin, self._tabs, self._lock = begin, OrderedDict[str, Tab](), threading.Lock()
        self.model_lock = threading.Lock()
        self.page = PAGE.read_bytes()
        self.host = host

    @property
    def port(self) -> int:
        return self.server_address[1]

    def find_tab(self, name: Any) -> Tab:
        """The tab of this id, a new one for an unknown id. Raises `UserError` for what is no id."""
        if not isinstance(name, str) or not _CONVERSATION_ID.fullmatch(name):
            raise UserError("the request names no conversation.")
        with self._lock:
            if name not in self._tabs:
                self._tabs[name] = Tab(self._begin())
            self._tabs.move_to_end(name)
            while len(self._tabs) > MAX_CONVERSATIONS:
                self._tabs.popitem(last=False)
            return self._tabs[name]

    def answer(self, tab: Tab, message: Any, *, turns: int = 0) -> Generator[dict[str, Any], None, None]:
        """Yield the parts of an answer, then how it ended. A tab that asks again first waits for its last answer.

        `turns` is the number of turns that the page shows. If fewer are known, because the server was started again or
        other tabs have taken the place of this one, a note says so.
        """
        if not isinstance(message, str):
            raise UserError("the request has no message.")
        with tab.lock:
            tab.stopped.clear()
            is_lost = tab.conversation.num_turns < turns
            with self.model_lock:
                parts = tab.conversation.answer(message)
                try:
                    for part in parts:
                        yield {"text": part}
                        if tab.stopped.is_set():
                            break
                finally:
                    parts.close()
            notes = ["the server has lost earlier turns; the model no longer knows them"] if is_lost else []
            notes += ["stopped"] if tab.stopped.is_set() else []
            notes += [] if tab.conversation.note is None else [tab.conversation.note]
            yield {"done": True, "note": "; ".join(notes) or None, "turns": tab.conversation.num_turns}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ChatServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        url = urlsplit(self.path)
        try:
            if url.path == "/":
                self._send(200, self.server.page, "text/html; charset=utf-8")
            elif url.path == "/save":
                tab = self.server.find_tab(parse_qs(url.query).get("conversation", [""])[0])
                if not tab.conversation.messages:
                    raise UserError("there is nothing to save.")
                self._send(200, tab.conversation.to_json_line().encode(), "application/jsonl", name="chat.jsonl")
            else:
                self._send_error(404, "there is no such page.")
        except UserError as error:
            self._send_error(400, str(error))

    def do_POST(self) -> None:
        if not self._is_allowed():
            return
        try:
            request = self._read_json()
            tab = self.server.find_tab(request.get("conversation"))
            if self.path == "/answer":
                turns = request.get("turns")
                turns = turns if isinstance(turns, int) else 0
                self._stream(self.server.answer(tab, request.get("message"), turns=turns))
            elif self.path == "/stop":
                tab.stopped.set()
                self._send_json(200, {})
            elif self.path == "/reset":
                tab.stopped.set()
                with tab.lock:
                    tab.conversation.reset()
                self._send_json(200, {})
            else:
                self._send_error(404, "there is no such page.")
        except UserError as error:
            self._send_error(400, str(error))

    def log_message(self, format: str, *args: Any) -> None:
        """Write no line for each request."""

    def _is_allowed(self) -> bool:
        """Whether the request is of this page, not of another that a browser has open or of a forged name."""
        names = {"localhost", "127.0.0.1", "[::1]", self.server.host}
        host = self.headers.get("Host", "")
        is_known = self.server.host in ("0.0.0.0", "::") or host.rpartition(":")[0] in names or host in names
        origin = self.headers.get("Origin")
        if is_known and (origin is None or urlsplit(origin).netloc == host):
            return True
        self.close_connection = True
        self._send_error(403, "this page serves itself only.")
        return False

    def _read_json(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_REQUEST_BYTES:
            self.close_connection = True
            raise UserError(f"the request has {length or 'no'} bytes; wanted at most {MAX_REQUEST_BYTES:,}.")
        body = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":
            raise UserError("the request is not application/json.")
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            raise UserError("the request is not a JSON object.")
        return request

    def _stream(self, records: Generator[dict[str, Any], None, None]) -> None:
        """Send a line of JSON for each record, at once. The answer ends when the reader has gone."""
        first = next(records)  # raises before anything is sent
        self.close_connection = True
        self._send_head(200, {"Content-Type": "application/jsonl", "Cache-Control": "no-store", "Connection": "close"})
        try:
            record: dict[str, Any] | None = first
            while record is not None:
                self.wfile.write(json.dumps(record).encode() + b"\n")
                record = next(records, None)
        except OSError:
            pass
        finally:
            records.close()

    def _send_json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send_error(self, status: int, problem: str) -> None:
        self._send_json(status, {"error": problem})

    def _send(self, status: int, content: bytes, kind: str, *, name: str | None = None) -> None:
        head = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        if name is not None:
            head["Content-Disposition"] = f'attachment; filename="{name}"'
        self._send_head(status, head)
        self.wfile.write(content)

    def _send_head(self, status: int, head: dict[str, str]) -> None:
        self.send_response(status)
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        head |= {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        for header, value in head.items():
            self.send_header(header, value)
        self.end_headers()


def serve(begin: Callable[[], Conversation], *, host: str, port: int) -> None:
    """Serve until Ctrl-C. `begin` makes a conversation."""
    try:
        server = ChatServer(begin, host=host, port=port)
    except OSError as error:
        other = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise UserError(
            f"--host={host} --port={port} cannot be served: {error.strerror}. Try another {other}."
        ) from None
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0") else host
    print(f"http://{shown}:{server.port}/  (Ctrl-C ends)", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
