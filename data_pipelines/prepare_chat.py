"""Conversations to token shards with marks of what is scored: `python -m data_pipelines.prepare_chat --help`.

    python -m data_pipelines.prepare_chat --source=chat.jsonl --tokenizer=gpt2 --output=data/chat

A line is `{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}`, with at
most one system message, the first. Each conversation becomes a document in the chat template, which is saved beside the
tokenizer. Scored are the assistant's messages and their ends. A tokenizer without the template's tokens gets them.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from data_pipelines.runtime.options import run_command
from data_pipelines.scored_shards import Example, ExampleKind, PrepareScored, prepare_scored
from gptjax.data.manifest import Manifest
from gptjax.tokenization.chat import ChatEncoder, check_turns, read_messages
from gptjax.tokenization.chat_template import CHATML, NANOCHAT
from gptjax.tokenization.tokenizer import load_tokenizer

TEMPLATES = {"chatml": CHATML, "nanochat": NANOCHAT}


@dataclass(frozen=True, kw_only=True)
class PrepareChat(PrepareScored):
    """Tokenise conversations into shards, in one process. After a kill the same command begins again."""

    template: Literal["chatml", "nanochat"] | None = None
    """Chat template. By default the tokenizer's own, or else chatml."""
    system_prompt: str | None = None
    """System message of conversations that have none. It becomes part of the template."""


def prepare_chat(request: PrepareChat) -> Manifest:
    """Prepare the data unless it exists already; prints a summary."""
    given = load_tokenizer(request.tokenizer)
    own = given.chat_template or CHATML
    template = own if request.template is None else TEMPLATES[request.template]
    if request.system_prompt is not None:
        template = replace(template, system_prompt=request.system_prompt)
    tokenizer = given.with_special_tokens(template.special_tokens).with_chat_template(template)
    encoder = ChatEncoder(tokenizer)

    def encode(record: dict[str, Any], where: str) -> Example:
        messages = read_messages(record.get("messages"), where=f'{where}: "messages"')
        check_turns(messages, where=where)
        return Example(repr(messages), [encoder.encode_conversation(messages)])

    manifest = prepare_scored(request, ExampleKind("chat", "conversations", tokenizer, encode))
    if tokenizer.vocab_size > given.vocab_size:
        tokens = " and ".join(template.special_tokens)
        print(f"note: {tokens} were added to {given.name}: a model needs {tokenizer.vocab_size:,} ids.")
    return manifest


if __name__ == "__main__":
    run_command(prepare_chat, PrepareChat)
