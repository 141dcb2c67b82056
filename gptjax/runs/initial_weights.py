"""The weights that a run starts from, and those of its objective's frozen model."""

import copy
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gptjax.config import TrainConfig
from gptjax.core.diff import diff_configs
from gptjax.core.errors import UserError, quote
from gptjax.core.files import shorten_path
from gptjax.core.serialization import Modules
from gptjax.finetuning.lora import LoRA
from gptjax.finetuning.model_config import EXTENDABLE_FIELDS, as_frozen_model
from gptjax.finetuning.vocabulary import grow_vocabulary
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, take_layers, with_static
from gptjax.objectives.objective import get_row_kind
from gptjax.process.console import print_once
from gptjax.runs.checkpoint_source import Checkpoint, SavedModel, describe_source, open_checkpoint
from gptjax.runs.run_dir import RunDir
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.chat_template import CHAT_TEMPLATE_FILE
from gptjax.tokenization.difference import describe_text_roles, explain_difference
from gptjax.tokenization.tokenizer import Tokenizer


def load_start(config: TrainConfig, mesh: MeshConfig, *, modules: Modules | None = None) -> GPT:
    """The weights of `init_from`, with a row for each token that the data's tokenizer has added.

    `modules` are where its config finds classes of the user's own.
    """
    if config.init_from is None:
        raise UserError("the run starts from new weights: give --init-from=RUN.")
    source = open_checkpoint(config.init_from, imports=modules or {})
    weights = source.load_model(mesh=mesh, context_length=config.model.context_length)
    weights = take_layers(weights, config.init_layers)
    own, known = config.data.load_tokenizer(), None
    if own is not None and source.tokenizer is not None and own.extends(source.tokenizer):
        known = source.tokenizer.vocab_size  # weights may have spare rows, which the new tokens take first
    weights = grow_vocabulary(weights, config.model.resolved_vocab_size, known=known)
    return with_static(weights, config=config.model)


def load_frozen_weights(
    config: TrainConfig, mesh: MeshConfig, source: str | None, *, modules: Modules | None = None
) -> GPT:
    """The weights of a run or of a saved model, to compare with; None stands for those that this run starts from.

    They compute with the run's dtype, context length and document mask; all else is their own, such as the rotary base.
    Call it under `mesh.activate()`. Raises `UserError` for another vocabulary, or for fewer positions than rows have.
    """
    if source is None:
        return load_start(config, mesh, modules=modules)
    saved = open_checkpoint(source, imports=modules or {})
    found, wanted = saved.model_config.resolved_vocab_size, config.model.resolved_vocab_size
    if found != wanted:
        raise UserError(f"{source} has {found:,} tokens, the model that is trained {wanted:,}. Use the same tokenizer.")
    place = shorten_path(saved.directory) if isinstance(saved, RunDir) else source
    check_same_tokenizer(config.data.load_tokenizer(), saved.tokenizer, name=place)
    own = as_frozen_model(saved.model_config, config.model)
    if own.context_length < config.model.context_length:
        raise UserError(
            f"{source} has {own.context_length} positions, and rows have {config.model.context_length} tokens. "
            f"Give --model.context-length={own.context_length}."
        )
    model = saved.load_model(mesh=mesh, context_length=own.context_length)
    return with_static(model, config=own)


def check_same_tokenizer(ours: Tokenizer | None, theirs: Tokenizer | None, *, name: str) -> None:
    """Raise `UserError` if ids mean other tokens to the model `name` than in the data, as far as both are known."""
    if ours is None or theirs is None or ours.extends(theirs) or theirs.extends(ours):
        return
    if ours.fingerprint != theirs.fingerprint:
        raise UserError(
            f"{name} was trained with {theirs.name}, and the data was made with {ours.name}: "
            f"{explain_difference(ours, theirs)}. Prepare the data with --tokenizer={name}."
        )


def open_first_weights(config: TrainConfig, modules: Modules) -> Checkpoint:
    """The model of `init_from`. Raises `UserError` if data that is still to be prepared will have other ids."""
    assert config.init_from is not None
    source = open_checkpoint(config.init_from, imports=modules)
    if source.tokenizer is not None and (found := config.data.foresee_mismatch(source.tokenizer)) is not None:
        flag = f"--data.{found.field}"
        raise UserError(
            f"the data is made with {flag}={found.value}, {found.reason}, but {source.directory} was trained with "
            f"{source.tokenizer.name}. Give {flag}={source.directory}, or data that is prepared with it."
        )
    print_once(f"  weights: {describe_source(source)}")
    return source


def report_merge(source: Checkpoint, config: TrainConfig, model: GPTConfig) -> None:
    settled = diff_configs(config.model, model)
    print_once(*(f"  model.{field}: {old!r} → {new!r}, as the weights have it" for field, old, new in settled))
    changed = [change for change in diff_configs(source.model_config, model) if change[0] in EXTENDABLE_FIELDS]
    print_once(
        *(f"  model.{field}: {new!r}, where the weights were trained with {old!r}" for field, old, new in changed)
    )


def join_vocabularies(
    source: Checkpoint, model: GPTConfig, tokenizer: Tokenizer, *, name: str, resumes: bool = False
) -> tuple[GPTConfig, Tokenizer]:
    """Model and tokenizer of a run whose data and first weights may differ in special tokens.

    `resumes` says that `source` is the run itself. Raises `UserError` where they differ in more.
    """
    known, template = source.require_tokenizer(), tokenizer.chat_template
    if tokenizer.extends(known):
        rows = source.model_config.resolved_vocab_size
        model = replace(model, vocab_size=max(rows, tokenizer.vocab_size))
        if added := ", ".join(quote(name) for name, i in tokenizer.specials.items() if i >= known.vocab_size):
            print_once(f"  vocabulary: {added} are new; their rows begin as the mean of the other {known.vocab_size:,}")
        if roles := ", ".join(map(quote, tokenizer.list_new_roles(known))):
            print_once(f"  vocabulary: {roles} are role tokens here, so that no text becomes one")
    elif known.extends(tokenizer):
        if known.vocab_size > tokenizer.vocab_size:
            print_once(
                f"  vocabulary: {known.name} of the weights, which has special tokens that the data does not use"
            )
        if roles := known.list_new_roles(tokenizer):
            advice = f"Prepare it with --tokenizer={source.directory}"
            print_once(f"note: {name} {describe_text_roles(roles)}. {advice}.", to_stderr=True)
        begin, tokenizer = tokenizer.begin_of_text_name, copy.copy(known)
        tokenizer.begin_of_text_name = begin  # documents begin as the data has it
    elif known.fingerprint != tokenizer.fingerprint:
        other_run = ", or choose another --name for a new run" if resumes else ""
        raise UserError(
            f"{name} was made with {tokenizer.name}, but {source.directory} was trained with {known.name}: "
            f"{explain_difference(tokenizer, known)}. Prepare the text with --tokenizer={source.directory}"
            f"{other_run}."
        )
    template = template or known.chat_template  # conversations are written as those of the data
    return model, tokenizer if tokenizer.chat_template == template else tokenizer.with_chat_template(template)


def add_trained_rows(config: TrainConfig, source: Checkpoint, tokenizer: Tokenizer | None) -> LoRA:
    """The adapters with the tokens whose rows they train, as ids.

    These are those that the config names, those that the data adds to `source`, and role tokens unless the weights have
    learned them. If `source` is the run itself, they are its own. Raises `UserError` for a token that does not exist.
    """
    known = {} if tokenizer is None else tokenizer.specials
    rows = {known.get(token, token) if isinstance(token, str) else token for token in config.lora.new_tokens}
    if isinstance(source, RunDir) and source.directory == config.directory.absolute():
        rows |= {*source.config.lora.new_tokens}
    if tokenizer is not None and source.tokenizer is not None:
        if tokenizer.extends(source.tokenizer):
            rows |= {*range(source.tokenizer.vocab_size, tokenizer.vocab_size)}
        template = tokenizer.chat_template
        knows = template == source.tokenizer.chat_template and has_learned_chats(source)
        if template is not None and not knows and get_row_kind(config.objective) != "text":
            rows |= {known[name] for name in template.special_tokens if name in known}
    ids = [row for row in rows if isinstance(row, int) and 0 <= row < config.model.resolved_vocab_size]
    if unknown := rows - {*ids}:
        names = ", ".join(map(quote, known)) or "there are none"
        raise UserError(
            f"lora.new_tokens has {quote(str(min(unknown, key=str)))}; wanted ids below "
            f"{config.model.resolved_vocab_size:,} or special tokens: {names}."
        )
    return replace(config.lora, new_tokens=tuple(sorted(ids)))


def has_learned_chats(source: Checkpoint) -> bool:
    """Whether gptjax has trained these weights on chats. Base models of others may have a template in Jinja, too."""
    if isinstance(source, SavedModel):
        return (source.directory / CHAT_TEMPLATE_FILE).is_file()  # which only our exports have
    with suppress(UserError):  # of a class of the user's own, whose file is not given
        return get_row_kind(source.config.objective) != "text"
    return False


def check_explicit_fields(
    source: Checkpoint, config: TrainConfig, model: Any, *, explicit_fields: Collection[str]
) -> None:
    """Raise for a field of the model that the command line has set and that the weights of `source` do not have."""
    for field, wanted, has in diff_configs(config.model, model):
        if f"model.{field}" in explicit_fields:
            raise UserError(
                f"--model.{field.replace('_', '-')}={wanted} was given, but the weights of {source.directory} have "
                f"{has}. Leave it out, or train a new model."
            )
