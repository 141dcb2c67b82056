"""The web chat over HTTP: answers stream, tabs are apart, stop works, and other pages are refused."""

import http.client
import json
import threading
from collections.abc import Iterator

import pytest
from chat_models import Echo

from gptjax.core.errors import UserError
from gptjax.serving.conversation import Conversation
from gptjax.serving.web import MAX_CONVERSATIONS, ChatServer, serve

TAB, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(Echo(context_length=200)) as server:
        yield server


class serving:
    """A server in a thread."""

    def __init__(self, echo: Echo) -> None:
        self.server = ChatServer(lambda: Conversation(echo), host="127.0.0.1", port=0)

    def __enter__(self) -> ChatServer:
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self.server

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def request(
    server: ChatServer, path: str, content: object = None, *, method: str | None = None, **headers: str
) -> tuple[int, str]:
    """Status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    body = None if content is None else content if isinstance(content, str) else json.dumps(content)
    kind = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, kind)
    response = connection.getresponse()
    status, text = response.status, response.read().decode()
    connection.close()
    return status, text


def ask(server: ChatServer, message: object, tab: str = TAB, **more: object) -> list[dict]:
    status, text = request(server, "/answer", {"conversation": tab, "message": message, **more})
    assert status == 200, text
    return [json.loads(line) for line in text.splitlines()]


def test_answers_come_in_parts_and_tabs_are_apart(server: ChatServer) -> None:
    assert ask(server, "Hé") == [{"text": "H"}, {"text": "é"}, {"done": True, "note": None, "turns": 1}]
    ask(server, "other", OTHER)
    _, saved = request(server, f"/save?conversation={TAB}")
    assert [message["content"] for message in json.loads(saved)["messages"]] == ["Hé", "Hé"]
    assert request(server, "/reset", {"conversation": TAB})[0] == 200
    status, saved = request(server, f"/save?conversation={TAB}")
    assert (status, json.loads(saved)) == (400, {"error": "there is nothing to save."})
    assert "<title>gptjax chat</title>" in request(server, "/")[1]


def test_stop_ends_an_answer(server: ChatServer) -> None:
    tab = server.find_tab(TAB)
    records = server.answer(tab, "hello")
    assert next(records) == {"text": "h"}
    assert request(server, "/stop", {"conversation": TAB})[0] == 200
    tab.conversation.note = "the oldest turn has left"
    assert list(records) == [{"done": True, "note": "stopped; the oldest turn has left", "turns": 1}]
    assert [message.content for message in tab.conversation.messages] == ["hello", "h"]


def test_reader_who_leaves_ends_the_answer() -> None:
    may_go_on = iter([True])  # with the first token
    has_left = threading.Event()
    wait = lambda: next(may_go_on, False) or has_left.wait(timeout=300)
    with serving(Echo(context_length=4000, wait=wait)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        words = json.dumps({"conversation": TAB, "message": "x" * 3000})
        connection.request("POST", "/answer", words, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert json.loads(response.readline()) == {"text": "x"}
        response.close()
        connection.close()
        has_left.set()
        with server.find_tab(TAB).lock:  # free before all 256 tokens are written
            [_, answer] = server.find_tab(TAB).conversation.messages
        assert 0 < len(answer.content) < 200


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "message"),
    [
        ("/answer", {"conversation": TAB, "message": " "}, {}, 400, "blank"),
        ("/answer", {"conversation": TAB, "message": "x" * 300}, {}, 400, "context has 200. Shorten it."),
        ("/answer", {"conversation": TAB}, {}, 400, "no message"),
        ("/answer", {"conversation": "x", "message": "a"}, {}, 400, "names no conversation"),
        ("/answer", "[1]", {}, 400, "not a JSON object"),
        ("/answer", "[" * 100_000, {}, 400, "not a JSON object"),
        ("/answer", "{}", {"Content_Type": "text/plain"}, 400, "not application/json"),
        ("/answer", "{}", {"Content_Length": "99999999"}, 400, "wanted at most 1,048,576"),
        ("/other", {"conversation": TAB}, {}, 404, "no such page"),
        ("/other", None, {}, 404, "no such page"),
        ("/save", None, {}, 400, "names no conversation"),
        ("/", None, {"Host": "evil.example"}, 403, "serves itself only"),
        ("/stop", {"conversation": TAB}, {"Origin": "http://evil.example"}, 403, "serves itself only"),
    ],
)
def test_wrong_requests_are_refused(
    server: ChatServer, path: str, content: object, headers: dict[str, str], status: int, message: str
) -> None:
    found = request(server, path, content, **headers)
    assert found[0] == status
    assert message in json.loads(found[1])["error"]
    assert ask(server, "a")[0] == {"text": "a"}, "the server goes on"


def test_oldest_conversation_is_forgotten_and_its_page_is_told(server: ChatServer) -> None:
    shown = ask(server, "Hi")[-1]["turns"]
    assert ask(server, "Ho", turns=shown)[-1] == {"done": True, "note": None, "turns": 2}
    for number in range(MAX_CONVERSATIONS):
        server.find_tab(f"{number:032}")
    assert server.find_tab(TAB).conversation.messages == []
    told = ask(server, "Ha", turns=2)[-1]
    assert told == {
        "done": True,
        "note": "the server has lost earlier turns; the model no longer knows them",
        "turns": 1,
    }
    assert ask(server, "He", turns=told["turns"])[-1]["note"] is None, "it is told once"


def test_port_in_use_is_named(server: ChatServer) -> None:
    begin = lambda: Conversation(Echo())
    with pytest.raises(
        UserError, match=rf"{server.port} cannot be served: Address already in use\. Try another --port"
    ):
        serve(begin, host="127.0.0.1", port=server.port)
    with pytest.raises(UserError, match=r"--host=192\.0\.2\.1 --port=\d+ cannot be served: .*\. Try another --host\."):
        serve(begin, host="192.0.2.1", port=server.port)
