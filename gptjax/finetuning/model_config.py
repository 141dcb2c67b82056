"""The model config of a run that starts from the weights of another."""

from dataclasses import replace

from gptjax.core.errors import UserError
from gptjax.model.config import GPTConfig

RUN_FIELDS = ("dropout", "intra_document_mask", "compute")
"""Fields that the new run decides: how it trains and computes. The weights settle all others."""
WINDOW_FIELDS = ("window_pattern", "long_window", "short_window")
EXTENDABLE_FIELDS = ("context_length", "rotary_base", *WINDOW_FIELDS)
"""Fields that weights leave open: attention windows, and the context length unless positions are learned."""


def merge_model_config(source: GPTConfig, wanted: GPTConfig) -> GPTConfig:
    """The architecture of the source run, with compute, dropout and document mask from `wanted`.

    The context length is the wanted one, but at most the number of learned positions. The rotary base and the three
    window fields are taken from `wanted` unless they are at their defaults there.
    """
    fields = {field: getattr(wanted, field) for field in RUN_FIELDS}
    if any(getattr(wanted, field) != getattr(GPTConfig, field) for field in WINDOW_FIELDS):
        fields |= {field: getattr(wanted, field) for field in WINDOW_FIELDS}
    fields["context_length"] = _limit_context(source, wanted)
    if wanted.rotary_base is not None and hasattr(source.position_scheme, "rotary_base"):
        fields["rotary_base"] = wanted.rotary_base
    return replace(source, **fields)


def as_frozen_model(source: GPTConfig, wanted: GPTConfig) -> GPTConfig:
    """The config of a frozen model beside a run of `wanted`: its own function of the tokens, as the run computes.

    From the run are the document mask, the compute options and the context length, but at most as many positions as the
    source has learned.
    """
    mask, length = wanted.intra_document_mask, _limit_context(source, wanted)
    return replace(source, intra_document_mask=mask, compute=wanted.compute, context_length=length)


def _limit_context(source: GPTConfig, wanted: GPTConfig) -> int:
    """The wanted context length, but at most the number of learned positions."""
    limit = source.position_scheme.max_length
    return wanted.context_length if limit is None else min(limit, wanted.context_length)


def select_layers(source: GPTConfig, layers: tuple[int, ...]) -> GPTConfig:
    """The config of a model with these layers of another, counted from 0; no layers stand for all."""
    if not layers:
        return source
    if wrong := [layer for layer in layers if not 0 <= layer < source.num_layers]:
        raise UserError(f"init_layers has {wrong[0]}; the layers of the weights are 0 to {source.num_layers - 1}.")
    if not source.layers_are_identical:
        raise UserError("init_layers needs weights whose layers are alike; here windows or extras differ by layer.")
    return replace(source, num_layers=len(layers))
