"""Talk with a model that was trained on chats: `python -m gptjax.chat --help`.

    python -m gptjax.chat --checkpoint=runs/chat_cpu_dpo
    python -m gptjax.chat --checkpoint=runs/chat_cpu_dpo --web --port=8000
    python -m gptjax.chat --checkpoint=runs/chat_cpu_dpo --temperature=0 --system-prompt="Answer in one word."

Often given:

    --checkpoint        a run, the directory of a model that transformers saved, or hf:OWNER/REPO
    --web               a page in the browser instead of the terminal
    --temperature       0 takes the likeliest token
    --system-prompt     what the model is told before the conversation
    --max-new-tokens    tokens of an answer at most
"""

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gptjax.cli.command_line import parse_options
from gptjax.core.compile_cache import enable_compile_cache
from gptjax.core.errors import UserError, escape_controls, exit_on_user_error
from gptjax.core.files import expand_path, write_atomically
from gptjax.serving.conversation import Conversation
from gptjax.serving.text_generation import GenerationOptions, TextGenerator
from gptjax.serving.web import serve
from gptjax.sharding.devices import start_backend

HELP = """/reset        forget the conversation
/save [FILE]  write it as a line of JSON, which prepare_chat reads
/help         show this
/quit         end; so does Ctrl-D. Ctrl-C stops an answer."""


@dataclass(frozen=True, kw_only=True)
class Chat(GenerationOptions):
    """Talk with a model that was trained on chats, in the terminal or in a browser."""

    temperature: float = 0.8
    """Divides the logits. 0 always takes the likeliest token."""
    system_prompt: str | None = None
    """System message, instead of the one that the chat template may have."""
    max_new_tokens: int | None = None
    """Tokens of an answer at most. Default: 256, or as many as fit the model's context."""
    web: bool = False
    """Serve a web page instead, on this machine only. Each tab is a conversation."""
    host: str = "127.0.0.1"
    """Address of the web page. Others can reach it on 0.0.0.0, without a password."""
    port: int = 8000
    """Port of the web page. 0 takes a free one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens is {self.max_new_tokens}; ask for at least 1.")
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port is {self.port}; it lies between 0 and {2**16 - 1}.")


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        words = sys.argv[1:] if argv is None else argv
        options = parse_options(Chat, words, prog="python -m gptjax.chat", introduction=__doc__ or "")
        enable_compile_cache()
        start_backend()
        generator = TextGenerator.open(options)

        def begin() -> Conversation:
            return Conversation(generator, options.system_prompt, options.max_new_tokens)

        if options.web:
            begin()  # refuses a model without a chat template before a browser is opened
            serve(begin, host=options.host, port=options.port)
        else:
            TerminalChat(begin()).run()


class TerminalChat:
    """Reads messages and commands from standard input, and prints answers while they are written."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self._is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._saved_to: Path | None = None

    def run(self) -> None:
        """Until the input ends."""
        if self._is_terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (arrow keys and history in input())
        print("/help lists the commands; /quit or Ctrl-D ends.", file=sys.stderr)
        while (line := self._read()) is not None:
            try:
                if not line.strip():
                    continue
                if line.startswith("/"):
                    if not self.run_command(*line[1:].split(maxsplit=1)):
                        break
                else:
                    self.answer(line)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)

    def answer(self, text: str) -> None:
        """Print an answer. Ctrl-C stops it; what was said stays in the history."""
        parts = self.conversation.answer(text)
        print(self._label("assistant: "), end="", flush=True)
        try:
            for part in parts:
                print(escape_controls(part), end="", flush=True)
            print(flush=True)  # before a note, which goes to another stream
        except KeyboardInterrupt:
            parts.close()
            print("\n(stopped)", file=sys.stderr, flush=True)
        if self.conversation.note is not None:
            print(f"({self.conversation.note})", file=sys.stderr, flush=True)

    def run_command(self, name: str = "", argument: str = "") -> bool:
        """Do what a command says; False if the chat ends."""
        match name:
            case "quit" | "exit":
                return False
            case "reset":
                self.conversation.reset()
                self._saved_to = None  # what is said from now on is another conversation
                print("(a new conversation)", file=sys.stderr)
            case "save":
                print(f"(saved as {self.save(argument.strip())})", file=sys.stderr)
            case "help":
                print(HELP, file=sys.stderr)
            case _:
                raise UserError(
                    f"there is no command /{name}. /help lists the commands. A blank before it makes it a message."
                )
        return True

    def save(self, name: str) -> Path:
        """Write the conversation to a new file, or again to the one of this chat."""
        if not self.conversation.messages:
            raise UserError("nothing has been said yet.")
        path = expand_path(name or self._saved_to or time.strftime("chat-%Y%m%d-%H%M%S.jsonl"))
        if path.exists() and path != self._saved_to:
            raise UserError(f"{path} exists. Choose another name: /save FILE.")
        try:
            write_atomically(path, self.conversation.to_json_line())
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from None
        self._saved_to = path
        return path

    def _read(self) -> str | None:
        try:
            return input(self._label("you: ") if self._is_terminal else "")
        except (EOFError, KeyboardInterrupt):
            print()
            return None

    def _label(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self._is_terminal else text


if __name__ == "__main__":
    main()
