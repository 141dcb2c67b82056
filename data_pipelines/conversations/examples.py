"""A conversation or a pair as documents, of which a part is scored.

What workers need to encode records is here and in `block_encoder`, apart from the commands: so a worker starts at once.
"""

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_pipelines.conversations.chat_formats import parse_conversation
from data_pipelines.conversations.dialogue_text import LeftMarks
from data_pipelines.conversations.preference_formats import EQUAL, Pair, read_pair
from gptjax.tokenization.chat import ChatEncoder, MaskedTokens, encode_together, mark, to_ids
from gptjax.tokenization.messages import SKIPPED, InvalidRecord, UselessRecord, has_reasoning
from gptjax.tokenization.tokenizer import Tokenizer

EMPTY_MESSAGE = "conversations have an empty message, which was kept"
REPEATED_ROLE = "conversations have two messages of one role in a row, which were kept as two turns"
REASONING = "pairs have reasoning beside a content, which was left out"
EMPTY_IN_PAIR = "pairs have an empty message, which was kept"
MARKS = "conversations have marks of turns inside a content, such as those of a template, which were kept as text"
MARKS_IN_PAIR = f"pairs{MARKS.removeprefix('conversations')}"
NO_CHAT = f"{SKIPPED}messages, for which the tokenizer has no tokens"
TURNS_FOR_TEXT = (
    "it has messages, and the pairs at the beginning are plain text, so the tokenizer got no tokens of a chat. Give it "
    "them: python -m data_pipelines.extend_tokenizer --help."
)
AS_TURNS = "--as-turns makes turns of them"
TEXT_FOR_CHATS = f"pairs are plain text and not turns, though the tokenizer is for chats: {AS_TURNS}"


class Example(NamedTuple):
    """Documents that belong together; examples with the same key are for the same split. `notes` are counted."""

    key: str
    documents: list[MaskedTokens]
    notes: tuple[str, ...] = ()


def find_key(messages: Any) -> str:
    """What decides the split: all messages of a conversation, or the prompt of a pair."""
    if isinstance(messages, str):
        return repr(messages)
    # What `repr` of the list gives, in a third of the time.
    return f"[{', '.join(f'Message(role={role!r}, content={content!r})' for role, content in messages)}]"


@dataclass(frozen=True)
class EncodeConversation:
    """A record as a document."""

    encoder: ChatEncoder
    renamed: Mapping[str, str]

    @functools.cached_property
    def marks(self) -> LeftMarks:
        """Those of turns, and of the template that is written."""
        return LeftMarks(self.encoder.template.special_tokens)

    def __call__(self, record: Any, where: str) -> Example:
        messages, unscored, left_out = parse_conversation(record, where=where, renamed=self.renamed)
        found = {
            EMPTY_MESSAGE: not all(message.content.strip() for message in messages),
            REPEATED_ROLE: any(one.role == other.role for one, other in itertools.pairwise(messages)),
            MARKS: self.marks.are_in_any(messages),
        }
        document = self.encoder.encode_conversation(messages, unscored=unscored)
        notes = (*left_out, *(note for note, is_true in found.items() if is_true))
        return Example(find_key(messages), [document], notes)


@dataclass(frozen=True)
class EncodePair:
    """A record as two documents."""

    tokenizer: Tokenizer
    renamed: Mapping[str, str]
    as_turns: bool = False
    """Whether plain texts become turns."""

    @functools.cached_property
    def chat(self) -> ChatEncoder:
        """Made when it is needed: plain text needs no special tokens of a chat."""
        return ChatEncoder(self.tokenizer)

    @functools.cached_property
    def marks(self) -> LeftMarks:
        """Those of turns, and of the template that is written."""
        return LeftMarks(self.chat.template.special_tokens)

    def __call__(self, record: Any, where: str) -> Example:
        (prompt, *completions), left_out = self._read(record, where)
        documents = [self._encode(prompt, completion) for completion in completions]
        if documents[0].tokens.tobytes() == documents[1].tokens.tobytes():
            raise UselessRecord(EQUAL)
        is_text = isinstance(prompt, str)
        said = [] if is_text else [*prompt, *itertools.chain(*completions)]
        given = [item for value in record.values() if isinstance(value, list) for item in value]
        found = {
            REASONING: any(map(has_reasoning, given)),
            TEXT_FOR_CHATS: is_text and self.tokenizer.chat_template is not None,
            EMPTY_IN_PAIR: not all(message.content.strip() for message in said),
            MARKS_IN_PAIR: not is_text and self.marks.are_in_any(said),
        }
        return Example(find_key(prompt), documents, (*left_out, *(note for note, is_true in found.items() if is_true)))

    def find_key(self, record: Any, where: str) -> str:
        """The key of a record's example, which is not encoded."""
        return find_key(self._read(record, where)[0].prompt)

    def _read(self, record: Any, where: str) -> tuple[Pair, tuple[str, ...]]:
        is_for_text = self.tokenizer.chat_template is None
        pair, left_out = read_pair(
            record, where=where, renamed=self.renamed, keeps_text=is_for_text, as_turns=self.as_turns
        )
        if is_for_text and isinstance(pair.prompt, list):
            raise InvalidRecord(f"{where}: {TURNS_FOR_TEXT}", NO_CHAT)
        return pair, left_out

    def _encode(self, prompt: Any, completion: Any) -> MaskedTokens:
        if isinstance(prompt, list):
            return self.chat.encode_conversation([*prompt, *completion], scored_from=len(prompt))
        begin, end = to_ids(self.tokenizer.begin_of_text), to_ids(self.tokenizer.end_of_text)
        text = encode_together(self.tokenizer, prompt, completion)
        return MaskedTokens.concatenate([mark(begin, False), text, mark(end, True)])
