"""Preferences to pairs of documents, for DPO and its like: `python -m data_pipelines.prepare_preferences --help`.

    python -m data_pipelines.prepare_preferences --source=pairs.jsonl --tokenizer=data/chat --output=data/pairs

A line is `{"prompt": ..., "chosen": ..., "rejected": ...}`. Three lists of messages become conversations in the
template of `gptjax.chat`; scored are the assistant's messages in the completion; the tokenizer needs the template's
special tokens. Three strings become `<|endoftext|>`, prompt, completion, `<|endoftext|>`; scored are the completion and
the end. `gptjax.preferences` reads the pairs.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import tyro

from data_pipelines.scored_shards import Example, ExampleKind, PrepareScored, UselessRecord, prepare_scored
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.data.manifest import Manifest
from gptjax.data.preferences import KIND
from gptjax.tokenization.chat import ChatTemplate, MaskedTokens, Message, check_turns, check_utf8, read_messages, to_ids
from gptjax.tokenization.tokenizer import load_tokenizer

FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class PreparePreferences(PrepareScored):
    """Tokenise pairs of completions into shards, in one process; pairs with equal prompts are in the same split.

    After a kill the same command begins again."""


class Preference(NamedTuple):
    """Three texts, or three lists of messages."""

    prompt: str | list[Message]
    chosen: str | list[Message]
    rejected: str | list[Message]


def prepare_preferences(request: PreparePreferences) -> Manifest:
    """Prepare the data unless it exists already; prints a summary."""
    tokenizer = load_tokenizer(request.tokenizer)
    template = functools.cache(lambda: ChatTemplate(tokenizer))  # plain text needs no special tokens of a chat
    end = to_ids(tokenizer.end_of_text)

    def encode_document(prompt: Any, completion: Any) -> MaskedTokens:
        if isinstance(prompt, list):
            return template().encode_conversation([*prompt, *completion], scored_from=len(prompt))
        given, wanted = tokenizer.encode(prompt), tokenizer.encode(completion)
        return MaskedTokens.concatenate([(end, False), (given, False), (wanted, True), (end, True)])

    def encode(pair: Preference) -> Example:
        completions = (pair.chosen, pair.rejected)
        return Example(repr(pair.prompt), [encode_document(pair.prompt, completion) for completion in completions])

    return prepare_scored(request, ExampleKind(KIND, "pairs", _parse, encode), tokenizer=tokenizer)


def _parse(record: dict[str, Any], where: str) -> Preference:
    """The three fields of a record; raises `UserError` for an invalid preference."""
    values = [record.get(field) for field in FIELDS]
    if all(isinstance(value, str) for value in values):
        pair = Preference(*(_check_text(record[field], where=f'{where}: "{field}"') for field in FIELDS))
    elif all(isinstance(value, list) for value in values):
        pair = _parse_messages(record, where)
    else:
        found = ", ".join("none" if value is None else type(value).__name__ for value in values)
        raise UserError(
            f'{where}: wanted "prompt", "chosen" and "rejected", all of them strings or all of them lists of messages; '
            f"got {found}."
        )
    if pair.chosen == pair.rejected:
        raise UselessRecord("pairs skipped: chosen and rejected are equal")
    return pair


def _check_text(text: str, *, where: str) -> str:
    if not text.strip():
        raise UserError(f"{where} is blank.")
    return check_utf8(text, where=where)


def _parse_messages(record: dict[str, Any], where: str) -> Preference:
    prompt, *completions = (read_messages(record[field], where=f'{where}: "{field}"') for field in FIELDS)
    for field, completion in zip(FIELDS[1:], completions, strict=True):
        check_turns([*prompt, *completion], where=f'{where}: "prompt" with "{field}"')
        if prompt[-1].role != "user" or completion[-1].role != "assistant":
            raise UserError(f'{where}: wanted a "prompt" that the user ends, and a "{field}" that the assistant ends.')
    return Preference(prompt, *completions)


if __name__ == "__main__":
    with exit_on_user_error():
        prepare_preferences(tyro.cli(PreparePreferences, prog="python -m data_pipelines.prepare_preferences"))
