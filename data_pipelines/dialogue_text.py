"""Conversations that are written as one text with marks of who speaks, as many sets for fine-tuning are."""

import re
from typing import NamedTuple

from gptjax.tokenization.messages import ROLE_NAMES


class Marks(NamedTuple):
    """How a text marks its turns: `speaker` has the role as its group, `end` may stand behind a turn."""

    speaker: re.Pattern[str]
    end: str = ""


_NAMES = "system|user|human|prompter|assistant|gpt|bot|ai"
KINDS = (
    Marks(re.compile(rf"<\|im_start\|>({_NAMES})\n"), "<|im_end|>"),
    Marks(re.compile(rf"<\|({_NAMES})\|>\n?"), "</s>"),
    Marks(re.compile(r"### ?(system|human|user|assistant|instruction|input|response) ?:[ \n]?", re.IGNORECASE)),
    Marks(re.compile(r"(?:^|\n)(Human|User|Assistant|AI|Bot|System): ?")),
)
"""ChatML, Zephyr's, Guanaco's and Alpaca's, HH-RLHF's. What stands before the first turn is the system's."""
_LLAMA_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_ROLES = ROLE_NAMES | {"instruction": "user", "input": "input", "response": "assistant"}


def split_dialogue(text: str) -> list[dict[str, str]] | None:
    """Messages under OpenAI's names; None for a text in which not both a user and an assistant speak."""
    candidates = [_split_llama(text)] if "[INST]" in text else (_split(text, kind) for kind in KINDS)
    has_both = lambda turns: {"user", "assistant"} <= {message["role"] for message in turns}
    return next(filter(has_both, candidates), None)


def _split(text: str, kind: Marks) -> list[dict[str, str]]:
    before, *parts = kind.speaker.split(text)
    messages = [{"role": "system", "content": before.strip()}] if before.strip(" \n") not in ("", "<s>") else []
    for name, content in zip(parts[::2], parts[1::2], strict=True):
        role, content = _ROLES[name.lower()], _strip_end(content, kind.end)
        if role == "input" and messages:  # Alpaca's, which belongs to the instruction
            messages[-1]["content"] += f"\n\n{content}" if content else ""
        elif content or role == "user":
            messages.append({"role": "user" if role == "input" else role, "content": content})
    return messages


def _strip_end(content: str, end: str) -> str:
    content = content.strip()
    for mark in (end, "<|endoftext|>", "</s>"):
        content = content.removesuffix(mark).rstrip() if mark else content
    return content


def _split_llama(text: str) -> list[dict[str, str]]:
    messages = list[dict[str, str]]()
    for turn in text.split("[INST]")[1:]:
        question, _, answer = turn.partition("[/INST]")
        if not messages and (system := _LLAMA_SYSTEM.match(question)):
            messages.append({"role": "system", "content": system[1].strip()})
            question = question[system.end() :]
        messages.append({"role": "user", "content": question.strip()})
        if answer := _strip_end(answer.rstrip().removesuffix("<s>"), "</s>"):
            messages.append({"role": "assistant", "content": answer})
    return messages
