"""Preferences to pairs of documents, for DPO and its like: `python -m data_pipelines.prepare_preferences --help`.

    python -m data_pipelines.prepare_preferences --source=pairs.jsonl --tokenizer=data/chat --output=data/pairs
    python -m data_pipelines.prepare_preferences --source=hh.jsonl.gz --tokenizer=runs/sft --split=none --output=data/hh

A record is one of these, in JSON lines, a JSON array (.json) or Parquet; LIST is a list of messages:

    {"prompt": LIST, "chosen": LIST, "rejected": LIST}           messages
    {"chosen": LIST, "rejected": LIST}                           the messages that both begin with are the prompt
    {"prompt": "2+2?", "chosen": LIST, "rejected": LIST}         UltraFeedback, binarized
    {"chosen": "\\n\\nHuman: 2+2?\\n\\nAssistant: 4", "rejected": …}  HH-RLHF
    {"prompt": "2+2=", "chosen": "4", "rejected": "5"}           plain text
    {"prompt": …, "response_0": …, "response_1": …, "better_response_id": 0}  SafeRLHF; so SHP, LMSYS, AlpacaFarm

Messages become conversations in the tokenizer's chat template; scored are the assistant's messages in the completion.
Plain text becomes `<|endoftext|>`, prompt and completion, `<|endoftext|>`; scored are the completion and the end, and a
token that straddles the border. `gptjax.data.preferences` reads the pairs.
"""

import contextlib
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data_pipelines.conversations.preference_formats import EQUAL, FIELDS, parse_pair
from data_pipelines.encode.encoder import DEFAULT_LIMITS, Limits
from data_pipelines.readers.records import find_record_files, iter_blocks
from data_pipelines.runtime.options import run_command
from data_pipelines.scored_shards import Example, ExampleKind, PrepareScored, note_added_tokens, prepare_scored
from gptjax.core.errors import UserError
from gptjax.data.manifest import Manifest
from gptjax.data.preferences import KIND
from gptjax.tokenization.chat import ChatEncoder, MaskedTokens, encode_together, mark, to_ids, with_chatml
from gptjax.tokenization.chat_template import CHATML
from gptjax.tokenization.messages import UselessRecord, has_reasoning
from gptjax.tokenization.tokenizer import Tokenizer

REASONING = "pairs have reasoning beside a content, which was left out"
EMPTY_MESSAGE = "pairs have an empty message, which was kept"
TEXT_FOR_CHATS = "pairs are plain text and not turns, though the tokenizer is for chats"


@dataclass(frozen=True, kw_only=True)
class PreparePreferences(PrepareScored):
    """Tokenise pairs of completions into shards, on all cores; pairs with equal prompts are in the same split.

    After a kill the same command continues."""

    train_flags: ClassVar[str] = "--config=modern_253m_dpo --init-from=RUN"


@dataclass(frozen=True)
class EncodePair:
    """A record as two documents."""

    tokenizer: Tokenizer
    renamed: Mapping[str, str]

    @functools.cached_property
    def chat(self) -> ChatEncoder:
        """Made when it is needed: plain text needs no special tokens of a chat."""
        return ChatEncoder(self.tokenizer)

    def __call__(self, record: Any, where: str) -> Example:
        prompt, *completions = parse_pair(record, where=where, renamed=self.renamed)
        documents = [self._encode(prompt, completion) for completion in completions]
        if documents[0].tokens.tobytes() == documents[1].tokens.tobytes():
            raise UselessRecord(EQUAL)
        is_text = isinstance(prompt, str)
        said = [] if is_text else [*prompt, *itertools.chain(*completions)]
        given = [item for value in record.values() if isinstance(value, list) for item in value]
        found = {
            REASONING: any(map(has_reasoning, given)),
            TEXT_FOR_CHATS: is_text and self.tokenizer.chat_template is not None,
            EMPTY_MESSAGE: not all(message.content.strip() for message in said),
        }
        return Example(repr(prompt), documents, tuple(note for note, is_true in found.items() if is_true))

    def _encode(self, prompt: Any, completion: Any) -> MaskedTokens:
        if isinstance(prompt, list):
            return self.chat.encode_conversation([*prompt, *completion], scored_from=len(prompt))
        begin, end = to_ids(self.tokenizer.begin_of_text), to_ids(self.tokenizer.end_of_text)
        text = encode_together(self.tokenizer, prompt, completion)
        return MaskedTokens.concatenate([mark(begin, False), text, mark(end, True)])


def prepare_preferences(request: PreparePreferences, *, limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """Prepare the data unless it exists already; prints a summary."""
    given = request.load_tokenizer()
    tokenizer = with_chatml(given)
    if tokenizer.chat_template is None and _begins_with_turns(request):
        tokenizer = given.with_special_tokens(CHATML.special_tokens).with_chat_template(CHATML)
    encode, fields = EncodePair(tokenizer, request.renamed), (*FIELDS, *request.renamed)
    kind = ExampleKind(KIND, "pairs", tokenizer, encode, fields, note_added_tokens(given, tokenizer))
    return prepare_scored(request, kind, limits=limits)


def _begins_with_turns(request: PreparePreferences) -> bool:
    """Whether the first usable pair consists of messages, for which the tokenizer needs the tokens of a chat."""
    for path in find_record_files(request.source):
        for block in iter_blocks(path, fields=(*FIELDS, *request.renamed)):
            for where, record in block.read():
                with contextlib.suppress(UserError):
                    return isinstance(parse_pair(record, where=where, renamed=request.renamed).prompt, list)
    return False


if __name__ == "__main__":
    run_command(prepare_preferences, PreparePreferences)
