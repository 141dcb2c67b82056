"""Preferences to pairs of documents, for DPO and its like: `python -m data_pipelines.prepare_preferences --help`.

    python -m data_pipelines.prepare_preferences --source=pairs.jsonl --tokenizer=data/chat --output=data/pairs
    python -m data_pipelines.prepare_preferences --source=hh.jsonl.gz --tokenizer=runs/sft --split=none --output=data/hh

A record is one of these, in JSON lines, a JSON array (.json) or Parquet; LIST is a list of messages:

    {"prompt": LIST, "chosen": LIST, "rejected": LIST}           messages
    {"chosen": LIST, "rejected": LIST}                           the messages that both begin with are the prompt
    {"prompt": "2+2?", "chosen": LIST, "rejected": LIST}         UltraFeedback, binarized
    {"chosen": "\\n\\nHuman: 2+2?\\n\\nAssistant: 4", "rejected": …}  HH-RLHF
    {"prompt": "2+2=", "chosen": "4", "rejected": "5"}           plain text; --as-turns makes turns of it
    {"prompt": …, "response_0": …, "response_1": …, "better_response_id": 0}  SafeRLHF; so SHP, LMSYS, AlpacaFarm
    {"prompt": …, "response_1": …, "response_2": …, "preference_strength": -2}  HelpSteer2; so HelpSteer3, WebGPT
    {"prompt": …, "answers": [{"answer": …, "rank": 1}, …]}      Nectar: best and worst; so UltraFeedback, distilabel

Messages become conversations in the tokenizer's chat template; scored are the assistant's messages in the completion.
Plain text becomes `<|endoftext|>`, prompt and completion, `<|endoftext|>`; scored are the completion and the end, and a
token that straddles the border. `gptjax.data.preferences` reads the pairs.
"""

import contextlib
import re
import shlex
from dataclasses import dataclass
from typing import ClassVar

from data_pipelines.conversations.block_encoder import ExampleKind
from data_pipelines.conversations.examples import AS_TURNS, EncodePair
from data_pipelines.conversations.preference_formats import FIELDS, read_pair
from data_pipelines.encode.encoder import DEFAULT_LIMITS, Limits
from data_pipelines.readers.fields import list_columns
from data_pipelines.readers.records import BLOCK_BYTES
from data_pipelines.runtime.options import find_model, run_command
from data_pipelines.scored_shards import ExampleSplit, PrepareScored, note_added_tokens, prepare_scored
from gptjax.core.errors import UserError
from gptjax.data.fitting_flags import PAIR_FLAGS, FittingFlags
from gptjax.data.manifest import PREFERENCES, Manifest
from gptjax.tokenization.chat import with_chatml
from gptjax.tokenization.chat_template import CHATML
from gptjax.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PreparePreferences(PrepareScored):
    """Tokenise pairs of completions into shards, on all cores; pairs with equal prompts are in the same split.

    After a kill the same command continues."""

    train_flags: ClassVar[FittingFlags] = PAIR_FLAGS
    as_turns: bool = False
    """Make turns of plain text: the prompt the user's message, the answers the assistant's."""

    def load_tokenizer(self) -> Tokenizer:
        """That of a model which is trained already: pairs teach it which of its answers are better."""
        if re.fullmatch(r"bpe:\d+|chars", self.tokenizer):
            raise UserError(
                f"--tokenizer={self.tokenizer}: pairs are for a model that is trained already, and its tokenizer is "
                "theirs. Write --tokenizer=RUN, a run or a saved model. If you have none, prepare chats or texts with "
                f"{'prepare_chat' if self.tokenizer != 'chars' else 'prepare'} --tokenizer={self.tokenizer}, and train."
            )
        return super().load_tokenizer()

    def choose_flags(self, tokens: int) -> str:
        """Pairs are learned from a model, which is their reference, too."""
        flags = super().choose_flags(tokens)
        return flags if find_model(self.tokenizer) is not None else f"{flags} --init-from=RUN"

    def describe_start(self) -> str:
        """What RUN stands for, where no model is known."""
        if find_model(self.tokenizer) is not None:
            return ""
        first = f"train first on chats or texts that are prepared with --tokenizer={shlex.quote(str(self.output))}"
        return f"\nRUN is a run or a saved model that has this tokenizer. If you have none, {first}."

    def suggest_flag(self, manifest: Manifest) -> str | None:
        return "--as-turns" if any(AS_TURNS in note for note in manifest.notes) else None


def prepare_preferences(request: PreparePreferences, *, limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """Prepare the data unless it exists already; prints a summary."""
    with request.start_workers(limits) as workers:
        kind, encode = _make_kind(request)
        split = ExampleSplit(request, kind.fields, encode.find_key)
        return prepare_scored(request, kind, split, workers=workers, limits=limits)


def _make_kind(request: PreparePreferences) -> tuple[ExampleKind, EncodePair]:
    given = request.load_tokenizer()
    tokenizer = with_chatml(given)
    if tokenizer.chat_template is None:
        tokenizer = _add_chat_tokens(given, request)
    encode, fields = EncodePair(tokenizer, request.renamed, request.as_turns), (*FIELDS, *list_columns(request.renamed))
    identity = {"as_turns": True} if request.as_turns else {}
    notes = note_added_tokens(given, tokenizer)
    return ExampleKind(PREFERENCES, "pairs", tokenizer, encode, fields, notes, identity, "prompts"), encode


def _add_chat_tokens(given: Tokenizer, request: PreparePreferences) -> Tokenizer:
    """The tokenizer with ChatML where pairs need it. Without it, marks of who speaks stay a part of the texts.

    Raises `UserError` for a tokenizer that cannot have more tokens where pairs are lists of messages.
    """
    try:
        extended = given.with_chat_template(CHATML).with_special_tokens(CHATML.special_tokens)
    except UserError:
        if request.as_turns or _has_turns(request, keeps_text=True):
            raise
        return given
    return extended if request.as_turns or _has_turns(request) else given


def _has_turns(request: PreparePreferences, *, keeps_text: bool = False) -> bool:
    """Whether a pair of the first block consists of messages, for which the tokenizer needs the tokens of a chat."""
    for block in request.sources["source"].iter_blocks((*FIELDS, *list_columns(request.renamed)), BLOCK_BYTES):
        is_usable = False
        for where, record in block.read():
            with contextlib.suppress(UserError):
                pair, _ = read_pair(record, where=where, renamed=request.renamed, keeps_text=keeps_text)
                if isinstance(pair.prompt, list):
                    return True
                is_usable = True
        if is_usable:
            break
    return False


if __name__ == "__main__":
    run_command(prepare_preferences, PreparePreferences)
