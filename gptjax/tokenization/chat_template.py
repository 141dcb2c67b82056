"""The chat template as a value: role tokens, headers and the system prompt. It is saved beside the tokenizer.

A message is written as START HEADER CONTENT END AFTER. START and END are special tokens, and HEADER and AFTER are text,
in which names such as <|name|> are special tokens, too. ChatML, which inference servers and `transformers` know, is

    <|im_start|>ROLE
    CONTENT<|im_end|>

with a line end after it. `ChatTemplate.to_jinja` is the same template for `transformers`.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from gptjax.core.errors import UserError, quote
from gptjax.core.files import LARGEST_TOKENIZER, read_text, write_atomically

CHAT_TEMPLATE_FILE = "chat_template.json"
JINJA_FILE = "chat_template.jinja"
Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
FOLLOWERS: dict[str, tuple[Role, ...]] = {
    "system": ("user",),
    "user": ("user", "assistant"),
    "assistant": ("user", "assistant"),
}
"""Which messages a conversation may have behind one of a role. It begins as behind a system message."""
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"


_SPECIAL = re.compile(r"<\|[^\s<>|]+\|>")


class Message(NamedTuple):
    """One message; `role` is one of ROLES."""

    role: str
    content: str


@dataclass(frozen=True)
class RoleFormat:
    """How a message of one role is written."""

    start: str
    """A special token; empty if the message begins right behind the one that ends the message before."""
    header: str
    """Text, of which what follows its last special token is encoded together with the content."""
    end: str
    """A special token, which ends the message; empty if the next message begins with one."""
    after: str = ""
    """Text after it."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """START and END, and what looks like one in the text around them."""
        ends = (name for name in (self.start, self.end) if name)
        return *ends, *_SPECIAL.findall(self.header + self.after)

    def is_apart_from(self, following: "RoleFormat") -> bool:
        """Whether a special token stands right between a message and the one after it."""
        return bool(following.start) or bool(self.end and not self.after)


def _chatml(role: Role) -> RoleFormat:
    return RoleFormat(IM_START, f"{role}\n", IM_END, "\n")


@dataclass(frozen=True)
class ChatTemplate:
    """How conversations are written, for training, chats and export alike. The default is ChatML."""

    user: RoleFormat = _chatml("user")
    assistant: RoleFormat = _chatml("assistant")
    system: RoleFormat | None = _chatml("system")
    """None: a system message begins the first message of the user, with an empty line between."""
    system_prompt: str | None = None
    """The system message of conversations that have none."""
    begins: bool = True
    """Whether the end-of-text token comes first, as before every document of pretraining."""

    def __post_init__(self) -> None:
        known = {role: form for role in ROLES if (form := getattr(self, role)) is not None}
        if not self.assistant.end:
            raise UserError("the `end` of the assistant is empty; wanted a special token, or no answer would end.")
        for role, form in known.items():
            if form.after and not form.end:
                raise UserError(f"`after` of the {role} is {quote(repr(form.after))} without an `end` before it.")
            for other in FOLLOWERS[role]:
                if not form.is_apart_from(known[other]):
                    raise UserError(
                        f"no special token stands right between the {role}'s message and the {other}'s after it. "
                        f"Give the {other} a `start`, or the {role} an `end` without `after`."
                    )

    @property
    def formats(self) -> tuple[RoleFormat, ...]:
        """Those of the roles that have a place."""
        return tuple(form for form in (self.system, self.user, self.assistant) if form is not None)

    @property
    def role_tokens(self) -> tuple[str, ...]:
        """START and END of every role, each once: the tokens without which nothing can be written."""
        return tuple(dict.fromkeys(name for form in self.formats for name in (form.start, form.end) if name))

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The role tokens and the names in headers, each once: what new data gets. In older data, names are text."""
        return tuple(dict.fromkeys(token for form in self.formats for token in form.special_tokens))

    def iter_turns(self, messages: Sequence[Message]) -> Iterator[tuple[RoleFormat, Message]]:
        """Yield the messages as they are written: the system prompt included, or merged into the first of the user.

        Raises `UserError` for a role that has no place, and for two messages with no special token between them.
        """
        if self.system_prompt is not None and not (messages and messages[0].role == "system"):
            messages = [Message("system", self.system_prompt), *messages]
        if self.system is None and [message.role for message in messages[:2]] == ["system", "user"]:
            joined = f"{messages[0].content}\n\n{messages[1].content}"
            messages = [Message("user", joined), *messages[2:]]
        former: tuple[RoleFormat, Message] | None = None
        for message in messages:
            style = getattr(self, message.role) if message.role in ROLES else None
            if style is None:
                raise UserError(f"the chat template has no place for a message of the {message.role!r} here.")
            if former is not None and not former[0].is_apart_from(style):
                raise UserError(
                    f"the chat template has no special token between a message of the {former[1].role} and one of the "
                    f"{message.role} after it. Wanted: at most one system message, the first."
                )
            former = style, message
            yield former

    def to_jinja(self, *, begin: str | None) -> str:
        """The template in Jinja, with `{% generation %}` around what is scored. `begin` is the end-of-text token.

        `apply_chat_template` gives the same ids and mask for every content that spells no special token.
        """
        content, first = "message['content']", "messages and messages[0]['role'] == 'system'"
        parts = [_expression(_quote(begin))] if begin and self.begins else []
        if self.system is None:
            parts += [f"{{% if {first} %}}{{% set system = messages[0]['content'] %}}{{% set turns = messages[1:] %}}"]
            parts += [f"{{% else %}}{{% set system = {_quote(self.system_prompt)} %}}{{% set turns = messages %}}"]
            parts += ["{% endif %}"]
            asked = f"(system + '\\n\\n' if loop.first and system is not none else '') + {content}"
        else:
            parts, asked = [*parts, "{% set turns = messages %}"], content
            if self.system_prompt is not None:
                prompt = _turn(self.system, _quote(self.system_prompt))
                parts += [f"{{% if not ({first}) %}}{prompt}{{% endif %}}"]
        parts += ["{% for message in turns %}"]
        written = {"user": _turn(self.user, asked), "assistant": _turn(self.assistant, content, scored=True)}
        if self.system is not None:
            written["system"] = _turn(self.system, content)
        for number, (role, text) in enumerate(written.items()):
            parts += [f"{{% {'elif' if number else 'if'} message['role'] == '{role}' %}}{text}"]
        refusal = _expression("raise_exception('no place for the role ' + message['role'])")
        parts += [f"{{% else %}}{refusal}{{% endif %}}{{% endfor %}}"]
        header = _expression(_quote(self.assistant.start + self.assistant.header))
        return "".join([*parts, f"{{% if add_generation_prompt %}}{header}{{% endif %}}"])

    def to_dict(self) -> dict[str, Any]:
        """The content of `chat_template.json`."""
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if name != "begins" or not value}

    def save(self, directory: Path) -> None:
        """Write `directory/chat_template.json`."""
        content = json.dumps(self.to_dict(), ensure_ascii=False, indent=1)
        write_atomically(directory / CHAT_TEMPLATE_FILE, content)


CHATML = ChatTemplate()
NANOCHAT = ChatTemplate(
    user=RoleFormat("<|user_start|>", "", "<|user_end|>"),
    assistant=RoleFormat("<|assistant_start|>", "", "<|assistant_end|>"),
    system=None,
)
"""nanochat's: two tokens for each role, and no system role."""


def read_chat_template(directory: Path) -> ChatTemplate | None:
    """The template beside a tokenizer; None without one. Raises `UserError` for a file that holds something else.

    Processors of transformers save their Jinja under the same name, which is none of ours (`read_jinja_template`).
    """
    path = directory / CHAT_TEMPLATE_FILE
    return load_chat_template(path) if path.is_file() and _read_jinja_field(path) is None else None


def load_chat_template(path: Path, *, advice: str = "Put the file of the data back.") -> ChatTemplate:
    """The template of a file that `ChatTemplate.save` wrote. Raises `UserError` for another file."""
    try:
        content = json.loads(read_text(path))
        roles = {role: _read_format(content[role]) for role in ROLES}
        prompt, begins = content["system_prompt"], content.get("begins", True)
        if not isinstance(begins, bool):
            raise ValueError("begins is neither true nor false")
        if None in (roles["user"], roles["assistant"]) or not isinstance(prompt, str | None):
            raise ValueError("no user, no assistant, or a system prompt that is no text")
        return ChatTemplate(**cast(Any, roles), system_prompt=prompt, begins=begins)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: does not hold a chat template of gptjax ({quote(repr(error))}). {advice}") from None
    except UserError as error:
        raise UserError(f"{path}: {error} {advice}") from None


def read_jinja_template(directory: Path) -> str | None:
    """The chat template that transformers stores beside a model; None without one.

    Raises:
        UserError: its file is too large, or no text.
    """
    if (file := directory / JINJA_FILE).is_file():
        try:
            return read_text(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read as a chat template: {quote(str(error))}.") from None
    found = (_read_jinja_field(directory / name) for name in (CHAT_TEMPLATE_FILE, "tokenizer_config.json"))
    return next((template for template in found if template is not None), None)


def _read_jinja_field(path: Path) -> str | None:
    """`chat_template` of a JSON file of transformers; None if there is no such file or field."""
    try:
        template = json.loads(read_text(path, limit=LARGEST_TOKENIZER)).get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return template if isinstance(template, str) else None


def _read_format(content: Any) -> RoleFormat | None:
    if content is None:
        return None
    style = RoleFormat(**content)
    if not all(isinstance(value, str) for value in vars(style).values()):
        raise ValueError(f"a role is {str(content)[:80]!r}")
    return style


def _turn(style: RoleFormat, body: str, *, scored: bool = False) -> str:
    """A message in Jinja. A line end behind a block would be lost, so all text stands in expressions."""
    begin, end = _quote(style.start + style.header), _quote(style.end)
    after = _expression(_quote(style.after)) if style.after else ""
    if scored:
        return f"{_expression(begin)}{{% generation %}}{_expression(f'({body}) + {end}')}{{% endgeneration %}}{after}"
    return f"{_expression(f'{begin} + ({body}) + {end}')}{after}"


def _expression(text: str) -> str:
    return f"{{{{ {text} }}}}"


def _quote(text: str | None) -> str:
    """A text as a Jinja expression."""
    return "none" if text is None else json.dumps(text, ensure_ascii=False)
