"""Conversations to token shards with marks of what is scored: `python -m data_pipelines.prepare_chat --help`.

    python -m data_pipelines.prepare_chat --source=chat.jsonl --tokenizer=gpt2 --output=data/chat
    python -m data_pipelines.prepare_chat --source=chat.csv --tokenizer=bpe:1024 --output=data/chat
    python -m data_pipelines.prepare_chat --source=alpaca.json --tokenizer=runs/mine --split=none --output=data/chat
    python -m data_pipelines.prepare_chat --source='chats/*.parquet' --tokenizer=data/tokenizer --output=data/chat

A record is one of these, in JSON lines, a JSON array (.json), Parquet or a table:

    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}     OpenAI
    [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]                   a bare list
    {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}         ShareGPT
    {"instruction": "Add.", "input": "2+2", "output": "4"}                                         Alpaca
    {"prompt": "2+2?", "completion": "4"}                                                          pairs
    {"contents": [{"role": "user", "parts": [{"text": "2+2?"}]}, {"role": "model", …}]}            Gemini
    {"chat_messages": [{"sender": "human", "text": "2+2?"}, {"sender": "assistant", …}]}           Claude's export
    {"mapping": {…}, "current_node": "…"}                                                          ChatGPT's export
    {"text": "### Human: 2+2?### Assistant: 4"}                                                    marks in a text
    {"conversation": [{"system": "Add.", "input": "2+2?", "output": "4"}]}                         xtuner
    {"context": "2+2=4", "question": "2+2?", "answers": {"text": ["4"]}}                           SQuAD

and the fields of P3, Natural Instructions, MOSS, Glaive, CAMEL, TriviaQA, Nectar, UltraFeedback and distilabel.

There is at most one system message, the first; the user follows. Two messages of one role in a row stay two turns.
Each conversation becomes a document in the chat template, which is saved beside the tokenizer. Scored are the
assistant's messages and their ends. A tokenizer without the template's tokens gets them.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from data_pipelines.conversations.block_encoder import ExampleKind
from data_pipelines.conversations.chat_formats import FIELDS, parse_conversation
from data_pipelines.conversations.examples import EncodeConversation, find_key
from data_pipelines.encode.bpe_trainer import describe_fewer, train_bpe_on_documents
from data_pipelines.encode.encoder import DEFAULT_LIMITS, Limits
from data_pipelines.readers.fields import list_columns
from data_pipelines.readers.records import BLOCK_BYTES
from data_pipelines.runtime.options import find_model, run_command
from data_pipelines.scored_shards import ExampleSplit, PrepareScored, note_added_tokens, prepare_scored
from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.data.fitting_flags import CHAT_FLAGS, FittingFlags
from gptjax.data.manifest import Manifest
from gptjax.tokenization.chat import ChatEncoder
from gptjax.tokenization.chat_template import (
    CHAT_TEMPLATE_FILE,
    CHATML,
    NANOCHAT,
    ChatTemplate,
    Message,
    load_chat_template,
)
from gptjax.tokenization.tokenizer import Tokenizer

LEARNED = re.compile(r"bpe:\d+")
TEMPLATES = {"chatml": CHATML, "nanochat": NANOCHAT}


@dataclass(frozen=True, kw_only=True)
class PrepareChat(PrepareScored):
    """Tokenise conversations into shards, on all cores. After a kill the same command continues."""

    train_flags: ClassVar[FittingFlags] = CHAT_FLAGS
    tokenizer: str
    """`gpt2`, `gpt2:DIR`, a tokenizer.json, a directory with one, or `bpe:SIZE`, learned from these conversations."""
    template: str | None = None
    """Chat template: chatml, nanochat, or a chat_template.json. By default the tokenizer's own, or else chatml."""
    system_prompt: str | None = None
    """System message of conversations that have none. It becomes part of the template."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None:
            find_template(self.template)

    @property
    def is_learned(self) -> bool:
        """Whether the tokenizer is learned from these conversations."""
        return LEARNED.fullmatch(self.tokenizer) is not None

    @property
    def learned_size(self) -> int:
        """Ids that a learned tokenizer should have; 0 for one that is given."""
        return int(self.tokenizer.removeprefix("bpe:")) if self.is_learned else 0

    def describe_start(self) -> str:
        """A model with other ids cannot be the start, so one is named only where it may exist."""
        if self.is_learned or find_model(self.tokenizer) is not None:
            return ""
        return "\nor the same with --init-from=RUN, a run or a saved model that has this tokenizer"


def find_template(name: str) -> ChatTemplate:
    """A template by its name, or by a file or directory that holds one. Raises `UserError` if there is none."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = expand_path(name)
    path = path / CHAT_TEMPLATE_FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"--template={name}: wanted {', '.join(TEMPLATES)}, or a {CHAT_TEMPLATE_FILE} (docs/chat.md).")
    try:
        return load_chat_template(path, advice="Copy one from prepared data and edit it (docs/chat.md).")
    except UserError as error:
        raise UserError(f"--template={name}: {error}") from None


def _learn_tokenizer(request: PrepareChat, split: ExampleSplit) -> Tokenizer:
    """A BPE of the training part's messages, with the tokens of the template."""
    template = CHATML if request.template is None else find_template(request.template)
    texts = _iter_messages(request, split)
    tokenizer = train_bpe_on_documents(
        itertools.chain([next(texts)], texts),
        vocab_size=request.learned_size,
        special_tokens=template.special_tokens,
    )
    return tokenizer if request.end_of_text is None else tokenizer.with_end_of_text(request.end_of_text)


def _iter_messages(request: PrepareChat, split: ExampleSplit) -> Iterator[bytes]:
    """The messages of the training part. Raises `UserError` where there are none, with what is wrong with the first."""
    wrong, unused = list[str](), {"train", "val"}
    for messages in _iter_conversations(request, wrong):
        side = split.rule.choose_split(find_key(messages).encode())
        unused.discard(side)
        if side == "train":
            yield from (message.content.encode() for message in messages)
    if "train" in unused:
        advice = "" if "val" in unused else f" Use {request.suggest_splits(request.effective_split)}."
        raise UserError(f"source {request.source}: holds no usable conversations for training.{advice}{''.join(wrong)}")


def _iter_conversations(request: PrepareChat, wrong: list[str]) -> Iterator[list[Message]]:
    """The usable conversations; what is wrong with the first other one is put into `wrong`."""
    for block in request.sources["source"].iter_blocks(_list_fields(request), BLOCK_BYTES):
        for where, record in block.read():
            try:
                if isinstance(record, UserError):
                    raise record
                yield parse_conversation(record, where=where, renamed=request.renamed).messages
            except UserError as error:
                wrong[:] = wrong or [f" {error}"]


def _list_fields(request: PrepareChat) -> tuple[str, ...]:
    return (*FIELDS, *list_columns(request.renamed))


def _make_split(request: PrepareChat) -> ExampleSplit:
    def read_key(record: Any, where: str) -> str:
        return find_key(parse_conversation(record, where=where, renamed=request.renamed).messages)

    return ExampleSplit(request, _list_fields(request), read_key)


def prepare_chat(request: PrepareChat, *, limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """Prepare the data unless it exists already; prints a summary."""
    with request.start_workers(limits) as workers:
        split = _make_split(request)
        return prepare_scored(request, _make_kind(request, split), split, workers=workers, limits=limits)


def _make_kind(request: PrepareChat, split: ExampleSplit) -> ExampleKind:
    given = _learn_tokenizer(request, split) if request.is_learned else request.load_tokenizer()
    template = (given.chat_template or CHATML) if request.template is None else find_template(request.template)
    if request.system_prompt is not None:
        template = replace(template, system_prompt=request.system_prompt)
    tokenizer = given.with_chat_template(template)
    # Names that the headers of its own template have and it lacks stay text, as they were in the data before these.
    if request.template is not None or not {*template.role_tokens} <= {*tokenizer.specials}:
        tokenizer = tokenizer.with_special_tokens(template.special_tokens)
    encode = EncodeConversation(ChatEncoder(tokenizer), request.renamed)
    notes = (*note_added_tokens(given, tokenizer), *describe_fewer(tokenizer, request.learned_size))
    return ExampleKind("chat", "conversations", tokenizer, encode, _list_fields(request), notes)


if __name__ == "__main__":
    run_command(prepare_chat, PrepareChat)
