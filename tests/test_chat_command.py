"""The terminal chat, with a real model and with one that echoes."""

import io
import json
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from chat_models import Echo, write_chat_run

from gptjax.chat import TerminalChat, main
from gptjax.serving.conversation import Conversation
from gptjax.tokenization.tokenizer import load_tokenizer

Patch: TypeAlias = pytest.MonkeyPatch
Capture: TypeAlias = pytest.CaptureFixture


def run_lines(monkeypatch: Patch, *lines: str, echo: Echo | None = None) -> Conversation:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    conversation = Conversation(echo or Echo(context_length=200))
    TerminalChat(conversation).run()
    return conversation


def test_lines_that_are_typed_are_answered_or_obeyed(monkeypatch: Patch, capsys: Capture, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("years of work")
    lines = (
        "/save",
        "Hi",
        "",
        "/save a.jsonl",
        "Ho",
        "/save",
        "/save mine.jsonl",
        "/reset",
        "/oops",
        "Ha",
        "/quit",
        "no",
    )
    conversation = run_lines(monkeypatch, *lines)
    out, err = capsys.readouterr()
    assert out == "assistant: Hi\nassistant: Ho\nassistant: Ha\n"
    assert "nothing has been said yet" in err
    assert "mine.jsonl exists" in err
    assert "there is no command /oops" in err
    assert (tmp_path / "mine.jsonl").read_text() == "years of work"
    saved = json.loads((tmp_path / "a.jsonl").read_text())["messages"]
    assert [message["content"] for message in saved] == ["Hi", "Hi", "Ho", "Ho"]
    assert [message.content for message in conversation.messages] == ["Ha", "Ha"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_control_characters_of_an_answer_do_not_reach_a_terminal(
    monkeypatch: Patch, capsys: Capture, is_terminal: bool
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    conversation = run_lines(monkeypatch, "\x1b[2J\ta\x9bé", "/quit")
    assert (
        capsys.readouterr().out
        == "assistant: " + (r"\x1b[2J" "\ta" r"\x9bé" if is_terminal else "\x1b[2J\ta\x9bé") + "\n"
    )
    assert conversation.messages[1].content == "\x1b[2J\ta\x9bé"


def test_ctrl_c_stops_an_answer_and_not_the_chat(monkeypatch: Patch, capsys: Capture) -> None:
    conversation = Conversation(Echo())
    whole = conversation.answer

    def interrupted(text: str) -> Any:
        parts = whole(text)
        yield next(parts)
        parts.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(conversation, "answer", interrupted)
    TerminalChat(conversation).answer("hello")
    out, err = capsys.readouterr()
    assert (out, err) == ("assistant: h", "\n(stopped)\n")
    assert [message.content for message in conversation.messages] == ["hello", "h"]


def test_command_talks_with_a_run(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    run = write_chat_run(tmp_path / "run")
    assert load_tokenizer(run).chat_template is not None
    outs = []
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.StringIO("Hi\nAnd?\n" + "x" * 99 + "\n"))
        main([f"--checkpoint={run}", "--max-new-tokens=5", "--system-prompt=S"])
        out, err = capsys.readouterr()
        outs.append(out)
        assert out.count("assistant: ") == 2
        assert "the model's context has 64. Shorten it." in err
    assert outs[0] == outs[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-new-tokens=0"], "--max-new-tokens is 0"),
        (["--port=70000"], "--port is 70000"),
        (["--temperature=-1"], "temperature is -1"),
    ],
)
def test_wrong_options_are_named(capsys: Capture, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--checkpoint=nowhere", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
