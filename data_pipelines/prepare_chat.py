"""Conversations to token shards with marks of what is scored: `python -m data_pipelines.prepare_chat --help`.

    python -m data_pipelines.prepare_chat --source=chat.jsonl --tokenizer=gpt2 --output=data/chat

A line is `{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}`, with at
most one system message, the first. Each conversation becomes a document in the template of `gptjax.tokenization.chat`.
Scored are the assistant's messages and their ends. A tokenizer without the template's special tokens gets them.
"""

from dataclasses import dataclass
from typing import Any

from data_pipelines.runtime.options import run_command
from data_pipelines.scored_shards import Example, ExampleKind, PrepareScored, prepare_scored
from gptjax.data.manifest import Manifest
from gptjax.tokenization.chat import CHAT_TOKENS, ChatTemplate, check_turns, read_messages
from gptjax.tokenization.tokenizer import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class PrepareChat(PrepareScored):
    """Tokenise conversations into shards, in one process. After a kill the same command begins again."""


def prepare_chat(request: PrepareChat) -> Manifest:
    """Prepare the data unless it exists already; prints a summary."""
    given = load_tokenizer(request.tokenizer)
    tokenizer = given.with_special_tokens(CHAT_TOKENS)
    template = ChatTemplate(tokenizer)

    def encode(record: dict[str, Any], where: str) -> Example:
        messages = read_messages(record.get("messages"), where=f'{where}: "messages"')
        check_turns(messages, where=where)
        return Example(repr(messages), [template.encode_conversation(messages)])

    manifest = prepare_scored(request, ExampleKind("chat", "conversations", tokenizer, encode))
    if tokenizer.vocab_size > given.vocab_size:
        tokens = " and ".join(CHAT_TOKENS)
        print(f"note: {tokens} were added to {given.name}: a model needs {tokenizer.vocab_size:,} ids.")
    return manifest


if __name__ == "__main__":
    run_command(prepare_chat, PrepareChat)
