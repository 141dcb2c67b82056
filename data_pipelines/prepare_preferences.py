"""Preferences to pairs of documents, for DPO and its like: `python -m data_pipelines.prepare_preferences --help`.

    python -m data_pipelines.prepare_preferences --source=pairs.jsonl --tokenizer=data/chat --output=data/pairs

A line is `{"prompt": ..., "chosen": ..., "rejected": ...}`. Three lists of messages become conversations in the
template of `gptjax.tokenization.chat`; scored are the assistant's messages in the completion; the tokenizer needs the
template's special tokens. Three strings become `<|endoftext|>`, prompt and completion, `<|endoftext|>`; scored are
the completion and the end, and a token that straddles the border. `gptjax.data.preferences` reads the pairs.
"""

import functools
from dataclasses import dataclass
from typing import Any

from data_pipelines.runtime.options import run_command
from data_pipelines.scored_shards import Example, ExampleKind, PrepareScored, UselessRecord, prepare_scored
from gptjax.core.errors import UserError
from gptjax.data.manifest import Manifest
from gptjax.data.preferences import KIND
from gptjax.tokenization.chat import (
    CHAT_TOKENS,
    ChatEncoder,
    MaskedTokens,
    Message,
    check_turns,
    check_utf8,
    encode_together,
    mark,
    read_messages,
    to_ids,
)
from gptjax.tokenization.chat_template import CHATML
from gptjax.tokenization.tokenizer import load_tokenizer

FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class PreparePreferences(PrepareScored):
    """Tokenise pairs of completions into shards, in one process; pairs with equal prompts are in the same split.

    After a kill the same command begins again."""


def prepare_preferences(request: PreparePreferences) -> Manifest:
    """Prepare the data unless it exists already; prints a summary."""
    tokenizer = load_tokenizer(request.tokenizer)
    if tokenizer.chat_template is None and set(CHAT_TOKENS) <= set(tokenizer.specials):
        tokenizer = tokenizer.with_chat_template(CHATML)
    encoder = functools.cache(lambda: ChatEncoder(tokenizer))  # plain text needs no special tokens of a chat
    end = to_ids(tokenizer.end_of_text)

    def encode_document(prompt: Any, completion: Any) -> MaskedTokens:
        if isinstance(prompt, list):
            return encoder().encode_conversation([*prompt, *completion], scored_from=len(prompt))
        text = encode_together(tokenizer, prompt, completion)
        return MaskedTokens.concatenate([mark(end, False), text, mark(end, True)])

    def encode(record: dict[str, Any], where: str) -> Example:
        prompt, *completions = _parse(record, where)
        return Example(repr(prompt), [encode_document(prompt, completion) for completion in completions])

    return prepare_scored(request, ExampleKind(KIND, "pairs", tokenizer, encode))


def _parse(record: dict[str, Any], where: str) -> list[str] | list[list[Message]]:
    """The three fields of a record; raises `UserError` for an invalid preference."""
    values: dict[str, Any] = {field: record.get(field) for field in FIELDS}
    kinds = {type(value) for value in values.values()}
    if kinds not in ({str}, {list}):
        found = ", ".join("none" if value is None else type(value).__name__ for value in values.values())
        raise UserError(f'{where}: wanted "prompt", "chosen", "rejected" as three strings or three lists, got {found}.')
    if values["chosen"] == values["rejected"]:
        raise UselessRecord("pairs skipped: chosen and rejected are equal")
    if kinds == {list}:
        return _parse_messages(values, where)
    for field, text in values.items():
        if not text.strip():
            raise UserError(f'{where}: "{field}" is blank.')
    return [check_utf8(text, where=f'{where}: "{field}"') for field, text in values.items()]


def _parse_messages(values: dict[str, Any], where: str) -> list[list[Message]]:
    parsed = {field: read_messages(value, where=f'{where}: "{field}"') for field, value in values.items()}
    prompt = parsed["prompt"]
    for field in FIELDS[1:]:
        check_turns([*prompt, *parsed[field]], where=f'{where}: "prompt" with "{field}"')
        if prompt[-1].role != "user" or parsed[field][-1].role != "assistant":
            raise UserError(f'{where}: wanted a "prompt" that the user ends, and a "{field}" that the assistant ends.')
    return list(parsed.values())


if __name__ == "__main__":
    run_command(prepare_preferences, PreparePreferences)
