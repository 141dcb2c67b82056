"""Conversations that are written as one text with marks of who speaks, as many sets for fine-tuning are."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptjax.core.errors import quote
from gptjax.tokenization.chat_template import Message
from gptjax.tokenization.messages import ROLE_NAMES, SKIPPED, TOOL_ROLES, TOOLS, InvalidRecord, UselessRecord

_NAMES = "|".join([*ROLE_NAMES, *TOOL_ROLES])
TOKENS = {
    re.compile(rf"<\|im_start\|>({_NAMES})(?:\n|\Z)"): r"<\|im_start\|>",
    re.compile(rf"<\|start_header_id\|>({_NAMES})<\|end_header_id\|>\s*"): r"<\|(?:start|end)_header_id\|>",
    re.compile(rf"<start_of_turn>({_NAMES})(?:\n|\Z)"): r"<start_of_turn>",
    re.compile(rf"<\|({_NAMES})\|>\n?"): r"<\|\w+\|>",
    re.compile(r"\[(/?INST)\]"): r"\[/?INST\]|<</?SYS>>",
}
"""ChatML's, Llama 3's, Gemma's, Zephyr's and Phi's, Llama 2's. Each begins a turn; what no content may have of them."""
HEADINGS = re.compile(r"(?<!#)### ?(system|human|user|assistant|instruction|input|response) ?:[ \n]?", re.IGNORECASE)
SPEAKERS = re.compile(r"(?:\A|\n)(Human|User|Assistant|AI|Bot|System): ?")
CAPITALS = re.compile(r"(?:\A|\s|</s>)(SYSTEM|USER|HUMAN|ASSISTANT|FUNCTION RESPONSE): ?")
"""Guanaco's and Alpaca's, HH-RLHF's, Vicuna's and Glaive's: words that a content may have, too. A text has one name for
each role."""
MARKS = f"{SKIPPED}marks of who speaks inside a content"
BEGINS = ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>")
ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<s>")
_END = "|".join(map(re.escape, ENDS))
_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_ROLES = ROLE_NAMES | {"instruction": "user", "input": "user", "response": "assistant"}
_ROLES |= {"inst": "user", "/inst": "assistant", "function response": "function"}

_HELPSTEER2 = re.compile(r"(?:\A|\n)<extra_id_[01]>(System|User|Assistant)(?:\n|\Z)")
_WORDS = ("\n\nAssistant:", "### Assistant:", "### Response:")
_OPEN = {"role": "assistant", "content": ""}

Turns = list[dict[str, str]]


def split_dialogue(text: str, *, where: str) -> Turns | None:
    """Messages under OpenAI's names; None for a text in which not both a user and an assistant speak.

    The marks that come first in the text are those that count. Raises `UselessRecord` where a tool speaks, and
    `InvalidRecord`, beginning with `where`, where marks are left over, because they would be learned as letters.
    """
    kinds = [(first.start(), kind) for kind in (*TOKENS, HEADINGS, SPEAKERS, CAPITALS) if (first := kind.search(text))]
    for _, kind in sorted(kinds, key=lambda found: found[0]):
        turns = _split(text, kind, where=where)
        if {"user", "assistant"} <= {turn["role"] for turn in turns}:
            _check_contents(turns, kind, where=where)
            return turns
    return None


def split_speakers(text: str, *, where: str) -> Turns:
    """Messages of HH-RLHF's text, `\\n\\nHuman: …\\n\\nAssistant: …`, the empty ones among them.

    Some copies have lost the blank line at the beginning. It is one of them if the first answer has one before it.
    """
    marks = list(SPEAKERS.finditer(text))
    apart = [mark for mark in marks if _is_apart(mark)]
    answer = next((mark for mark in marks if _find_role(mark) == "assistant"), None)
    is_stripped = answer in apart and "user" in map(_find_role, apart)
    return _cut(text, _choose_marks(apart if is_stripped else _find_speakers(text, where=where)))


def split_question(text: Any, *, where: str) -> Turns | None:
    """Messages of a question in which the turns before it stand, too; None for others.

    HelpSteer2 begins with the user and has the marks `\\n<extra_id_1>Assistant\\n` and `…User\\n`. HH-RLHF's prompts
    begin with `Human:` and end with `Assistant:`. A mark at the end opens the answer and is no turn.
    """
    if not isinstance(text, str):
        return None
    first, *parts = _HELPSTEER2.split(text)
    if parts:
        later = zip(parts[::2], parts[1::2], strict=True)
        turns = [{"role": "user", "content": first}, *({"role": name.lower(), "content": said} for name, said in later)]
        turns = [turn for turn in turns[:-1] if turn["content"] or turn["role"] == "assistant"] + turns[-1:]
    elif text.lstrip().startswith("Human:") and text.rstrip().endswith("\n\nAssistant:"):
        turns = split_speakers(text, where=where)
        if turns[-1] != _OPEN:  # the name is inside a turn, because another name is the assistant's
            return None
    else:
        return None
    return turns[:-1] if turns[-1] == _OPEN else turns


@dataclass(frozen=True)
class LeftMarks:
    """What tells that a content holds turns, or the tokens `names` of a template, which are learned as letters."""

    names: tuple[str, ...]

    @functools.cached_property
    def _tokens(self) -> re.Pattern[str]:
        return re.compile("|".join([_END, *TOKENS.values(), r"<extra_id_\d>", *map(re.escape, self.names)]))

    @functools.cached_property
    def _letters(self) -> list[str]:
        """With which all of these begin: most contents have none of them."""
        return [*{"<", "[", *(name[0] for name in self.names)}]

    def are_in_any(self, messages: Sequence[Message]) -> bool:
        """Whether the content of any of the messages has one."""
        contents = [message.content for message in messages]
        text = "\0".join(contents)  # no mark has this character
        if any(word in text for word in _WORDS):
            return True
        letters = [letter for letter in self._letters if letter in text]
        return any(self._tokens.search(each) for each in contents if any(letter in each for letter in letters))


def _split(text: str, kind: re.Pattern[str], *, where: str) -> Turns:
    marks = _find_speakers(text, where=where) if kind is SPEAKERS else list(kind.finditer(text))
    turns = _cut(text, marks if kind in TOKENS else _choose_marks(marks))
    if turns and turns[0]["role"] == "user" and (system := _SYSTEM.match(turns[0]["content"])):  # Llama 2's
        question = turns[0]["content"][system.end() :].strip()
        turns = [{"role": "system", "content": system[1].strip()}, {"role": "user", "content": question}, *turns[1:]]
    return [turn for turn in turns if turn["content"] or turn["role"] not in ("system", "assistant")]


def _find_speakers(text: str, *, where: str) -> list[re.Match[str]]:
    """Names that begin a line. In a text that begins with a blank line, as HH-RLHF's do, a blank line is before each.

    Raises `InvalidRecord` where it cannot be told whether a turn begins or is quoted.
    """
    marks = list(SPEAKERS.finditer(text))
    apart = [mark for mark in marks if _is_apart(mark)]
    if text.startswith("\n\n") and {"user", "assistant"} <= {*map(_find_role, apart)}:
        return apart
    later = [_is_apart(mark) for mark in _choose_marks(marks) if mark[1] != "System"][1:]
    if any(later) and not all(later):
        raise InvalidRecord(f"{where}: some turns have a blank line before them and others have none.", MARKS)
    return marks


def _is_apart(mark: re.Match[str]) -> bool:
    """Whether a blank line is before a name."""
    return mark.start() == 0 or mark.string[mark.start() - 1] == "\n"


def _find_role(mark: re.Match[str]) -> str:
    return _ROLES[mark[1].lower()]


def _choose_marks(marks: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """Those with the name that each role has first. The system speaks at the beginning, Alpaca's input after a user."""
    roles = [_find_role(mark) for mark in marks]
    names = {role: mark[1].lower() for role, mark in reversed([*zip(roles, marks, strict=True)])}
    chosen = list[re.Match[str]]()
    for mark, role in zip(marks, roles, strict=True):
        name = mark[1].lower()
        is_input = name == "input" and chosen and chosen[-1][1].lower() == "instruction"
        if is_input or (name == names[role] and (role != "system" or not chosen)):
            chosen.append(mark)
    return chosen


def _cut(text: str, marks: Sequence[re.Match[str]]) -> Turns:
    """The text between the marks. What stands before the first is the system's."""
    if not marks:
        return []
    before = _strip(text[: marks[0].start()])
    while mark := next((mark for mark in BEGINS if before.startswith(mark)), None):
        before = before.removeprefix(mark).lstrip()
    turns: Turns = [{"role": "system", "content": before}] if before else []
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=True):
        name, content = mark[1].lower(), _strip(text[mark.end() : end])
        if name == "input" and turns and turns[-1]["role"] == "user":  # Alpaca's, which belongs to the instruction
            turns[-1]["content"] += f"\n\n{content}" if content else ""
        else:
            turns.append({"role": _ROLES.get(name, name), "content": content})
    return turns


def _strip(content: str) -> str:
    """A content without white space and without the tokens that end a turn or a text."""
    content = content.strip()
    while mark := next((mark for mark in ENDS if content.endswith(mark)), None):
        content = content.removesuffix(mark).rstrip()
    return content


def _check_contents(turns: Turns, kind: re.Pattern[str], *, where: str) -> None:
    """Refuse the marks of the text's own kind; where words are its marks, tokens may be what it is divided by."""
    left_over = re.compile("|".join([_END, *([TOKENS[kind]] if kind in TOKENS else TOKENS.values())]))
    if any(turn["role"] in TOOL_ROLES for turn in turns):
        raise UselessRecord(f"conversations {TOOLS}")
    for number, turn in enumerate(turns, start=1):
        if left := left_over.search(turn["content"]):
            shown = quote(left[0], limit=40)
            raise InvalidRecord(f"{where}: message {number} has {shown} in its content, where no turn ends.", MARKS)
