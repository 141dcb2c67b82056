"""Preferences to pairs of documents, for DPO and its like: `python -m data_pipelines.prepare_preferences --help`.

    python -m data_pipelines.prepare_preferences --source=pairs.jsonl --tokenizer=data/chat --output=data/pairs

A line is `{"prompt": ..., "chosen": ..., "rejected": ...}`. Either all three are lists of messages: they become
conversations in the template of `gptjax.chat`, scored is what the assistant says in the completion, and the tokenizer
must have the special tokens of the template. Or all three are strings: they become plain text, `<|endoftext|>`, prompt,
completion, `<|endoftext|>`, where the completion and the end are scored. `gptjax.preferences` reads the pairs.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import tyro

from data_pipelines.scored_shards import Example, Kind, LeftOut, PrepareScored, prepare_scored
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.data.manifest import Manifest
from gptjax.data.preferences import KIND
from gptjax.tokenization.chat import ChatTemplate, MaskedTokens, Message, check_turns, check_utf8, read_messages, to_ids
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer

FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class PreparePreferences(PrepareScored):
    """Tokenise pairs of completions into shards; pairs with equal prompts are on one side of the split.

    One process does it; killed before the end, the same command begins anew."""


class Texts(NamedTuple):
    """A preference between plain texts."""

    prompt: str
    chosen: str
    rejected: str


class Chats(NamedTuple):
    """A preference between ways in which a conversation goes on."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def prepare_preferences(request: PreparePreferences) -> Manifest:
    """Do what is asked, unless it has been done; prints a summary."""
    tokenizer = load_tokenizer(request.tokenizer)
    return prepare_scored(request, Kind(KIND, "pairs", check, PairEncoder(tokenizer)), tokenizer)


class PairEncoder:
    """Makes two documents of a preference, the chosen one first."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, pair: Texts | Chats) -> Example:
        if isinstance(pair, Texts):
            documents = [self._text(pair.prompt, completion) for completion in (pair.chosen, pair.rejected)]
        else:
            documents = [self._chat(pair.prompt, completion) for completion in (pair.chosen, pair.rejected)]
        return Example(repr(pair.prompt), documents)

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        """Only made when there are messages: plain text needs no special tokens of a chat."""
        return ChatTemplate(self._tokenizer)

    def _chat(self, prompt: list[Message], completion: list[Message]) -> MaskedTokens:
        return self._template.encode_conversation([*prompt, *completion], scored_from=len(prompt))

    def _text(self, prompt: str, completion: str) -> MaskedTokens:
        end = to_ids(self._tokenizer.end_of_text)
        given, wanted = self._tokenizer.encode(prompt), self._tokenizer.encode(completion)
        return MaskedTokens.concatenate([(end, False), (given, False), (wanted, True), (end, True)])


def check(record: dict[str, Any], where: str) -> Texts | Chats:
    """The three fields of a record; raises `UserError` where they are not a preference to learn from."""
    values = [record.get(field) for field in FIELDS]
    if all(isinstance(value, str) for value in values):
        pair = _texts(record, where)
    elif all(isinstance(value, list) for value in values):
        pair = _chats(record, where)
    else:
        found = ", ".join("none" if value is None else type(value).__name__ for value in values)
        raise UserError(
            f'{where}: wanted "prompt", "chosen" and "rejected", all of them strings or all of them lists of messages; '
            f"got {found}."
        )
    if pair.chosen == pair.rejected:
        raise LeftOut("pairs left out: chosen and rejected are equal")
    return pair


def _texts(record: dict[str, Any], where: str) -> Texts:
    for field in FIELDS:
        if not record[field].strip():
            raise UserError(f'{where}: "{field}" is blank.')
    return Texts(*(check_utf8(record[field], where=f"{where}: {field}") for field in FIELDS))


def _chats(record: dict[str, Any], where: str) -> Chats:
    pair = Chats(*(read_messages(record[field], where=f'{where}: "{field}"') for field in FIELDS))
    for field, completion in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        check_turns([*pair.prompt, *completion], where=f'{where}: "prompt" with "{field}"')
        if pair.prompt[-1].role != "user" or completion[-1].role != "assistant":
            raise UserError(f'{where}: wanted a "prompt" that the user ends, and a "{field}" that the assistant ends.')
    return pair


if __name__ == "__main__":
    with exit_on_user_error():
        prepare_preferences(tyro.cli(PreparePreferences, prog="python -m data_pipelines.prepare_preferences"))
