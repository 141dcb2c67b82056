"""Runs and saved models as directories for transformers and PEFT, and as files for llama.cpp.

An export is compared with transformers, if that is installed, before its directory appears.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import tyro

from gptjax.checkpoints.checkpoint_format import read_metadata
from gptjax.cli.command_line import Imports
from gptjax.conversion.imports import ORIGIN_FILE
from gptjax.core.compile_cache import enable_compile_cache
from gptjax.core.errors import UserError, count_of
from gptjax.core.file_sums import SUM_SUFFIX, sum_directory
from gptjax.core.files import atomic_directory, expand_path
from gptjax.data.config import Mixture
from gptjax.data.manifest import read_manifest
from gptjax.data.source import DataSource
from gptjax.huggingface.architectures.architecture import Architecture, HFOrigin
from gptjax.huggingface.architectures.selection import ArchitectureName, choose_architecture
from gptjax.huggingface.safetensors_dir import read_json
from gptjax.runs.checkpoint_source import Checkpoint, SavedModel, describe_source, find_trained_at, open_checkpoint
from gptjax.runs.run_dir import CHECKPOINTS, RunDir
from gptjax.sharding.devices import DType

if TYPE_CHECKING:
    from gptjax.huggingface import model_card


@dataclass(frozen=True)
class Export:
    """What every export is made of."""

    checkpoint: str
    """A run, the directory of a model that transformers saved, or hf:OWNER/REPO."""
    output: str
    """Directory to make. It must be empty or not exist."""
    step: str = field(default="latest", kw_only=True)
    """Checkpoint: a number, `latest` or `best`."""
    ema: bool = field(default=True, kw_only=True)
    """Use the run's average of the weights, if it has one. --no-ema uses the raw weights."""
    imports: Imports = field(default=(), kw_only=True)
    """Module or Python file with classes that the run's config uses. May be given several times."""


@dataclass(frozen=True)
class ToHf(Export):
    """Write a run's weights, config and tokenizer as a directory that transformers loads."""

    architecture: ArchitectureName = "auto"
    """Class of models to write. `auto` takes the first that can express the model."""
    dtype: DType | None = None
    """Type of the tensors. Default: the type that the model was imported in, else float32."""
    verify: bool = True
    """Compare logits with transformers (needs torch and transformers) before the directory appears."""
    evaluation: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Result of `evaluate --json` for the model card. May be given several times."""
    push_to: str | None = None
    """Also upload the directory to this model repository on the hub, OWNER/REPO. It is made if it does not exist."""
    private: bool = False
    """Make a new repository private."""


@dataclass(frozen=True)
class ToPeft(Export):
    """Write a run's adapters as a directory that PEFT loads beside their base: a GPT-2, Llama or Qwen3."""

    checkpoint: str
    """A run directory, trained with `lora.rank`."""
    base: str | None = None
    """Name or directory of the model that the adapters belong to, for PEFT to find it."""


@dataclass(frozen=True)
class ToGGUF(Export):
    """Write weights and tokenizer as one file for llama.cpp. It holds the shapes of GPT-2 and Llama."""

    output: str
    """File to make, such as model.gguf."""
    dtype: DType = "float32"
    """Type of the matrices: float16 halves the file and rounds. Vectors are float32."""


GGUF_ROUNDING: dict[DType, str] = {"float16": "1e-3 to 1e-2", "bfloat16": "1e-2 to 1e-1"}
"""Largest difference of llama.cpp's log-probabilities that was measured (docs/huggingface.md)."""


def export_model(options: ToHf) -> None:
    """Write the directory, verify it, and print a summary."""
    from gptjax.huggingface import hub_upload, model_card, model_dir, tokenizer_files  # these import flax

    enable_compile_cache()
    run = open_checkpoint(options.checkpoint, imports=options.imports)
    architecture = choose_architecture(run.model_config, options.architecture)
    evaluations = model_card.read_evaluations(options.evaluation, checkpoint=options.checkpoint)
    losses = architecture.list_losses(run.model_config) + tokenizer_files.list_tokenizer_losses(run.tokenizer)
    step = run.find_step(options.step)
    options = options if step is None else replace(options, step=str(step))  # `latest` moves while a run goes on
    doubts = model_card.list_doubts(evaluations, checkpoint=options.checkpoint, step=step)
    if options.push_to is not None:
        hub_upload.check_upload(options.push_to)
    output = expand_path(options.output)
    with atomic_directory(output) as directory:
        model, origin = load_with_origin(run, options)
        dtype: DType = options.dtype or (origin.dtype if origin else "float32")
        model_dir.write_model(
            directory,
            model,
            architecture=architecture,
            dtype=dtype,
            origin=origin,
            tokenizer=run.tokenizer,
            trained_at=find_trained_at(run, options.step),
        )
        facts = _collect_facts(run, options.step, evaluations=evaluations, losses=losses)
        model_card.write_model_card(directory, model.config, architecture=architecture, dtype=dtype, facts=facts)
        result = "not verified: --no-verify"
        if options.verify:
            result = model_dir.compare_with_transformers(directory, model, dtype=dtype)
        sum_directory(directory)
    print(
        _describe_export(options, run, architecture=architecture, dtype=dtype),
        result,
        *(f"note: {line}" for line in (*losses, *doubts)),
        sep="\n",
    )
    if run.tokenizer and run.tokenizer.end_of_text is None:
        print("note: the export has no eos token; lm_eval needs --model_args ...,prefix_token_id=ID", file=sys.stderr)
    if options.push_to is not None:
        print(hub_upload.upload_directory(output, options.push_to, private=options.private))


def _collect_facts(
    run: Checkpoint, step: str, *, evaluations: tuple[Mapping[str, Any], ...], losses: list[str]
) -> "model_card.CardFacts":
    """What the card says besides the architecture."""
    from gptjax.huggingface import model_card  # imports flax

    facts = model_card.CardFacts(
        run.directory.name,
        evaluations=evaluations,
        losses_elsewhere=tuple(losses),
        answers_chats=run.tokenizer is not None and run.tokenizer.chat_template is not None,
    )
    if isinstance(run, RunDir):
        facts = facts.with_run(run.directory, run.content, step=run.find_step(step))
        with suppress(UserError):  # of a class of the user's own, whose file is not given
            if has_data_of_checkpoint(run, run.find_step(step)):
                facts = replace(facts, data=tuple(describe_data(run.data)))
    return facts


def has_data_of_checkpoint(run: RunDir, step: int) -> bool:
    """Whether the data that are at their paths now are those that the checkpoint was trained with.

    Raises:
        UserError: they cannot be read.
    """
    from gptjax.runs import startup  # imports flax

    reader = run.data.open(startup.make_read_spec(run.config, run.tokenizer))
    found = startup.collect_fingerprints(run.data, reader, run.tokenizer)
    saved = read_metadata(run.directory / CHECKPOINTS, step).get("fingerprints", {})
    return saved.get("data") == found["data"]


def describe_data(data: DataSource) -> Iterator[tuple[str, str]]:
    """Where data come from and how much there is, as the manifests of their shards say while they are there."""
    if isinstance(data, Mixture):
        for number, component in enumerate(data.components):
            yield from ((f"{name} of component {number}", value) for name, value in describe_data(component.data))
    if not isinstance(path := getattr(data, "path", None), str):
        return
    try:
        manifest = read_manifest(expand_path(path))
    except UserError:
        return
    if manifest is None:
        return
    if isinstance(source := manifest.request.get("source"), str):
        yield "source", PurePath(source).name if PurePath(source).is_absolute() else source
    yield "tokenizer", f"{manifest.tokenizer}, {manifest.vocab_size:,} ids"
    for split, counts in manifest.splits.items():
        parts = ((counts.documents, "documents"), (counts.tokens, "tokens"), (counts.bytes, "bytes of text"))
        yield split, ", ".join(count_of(number, unit) for number, unit in parts if number)


def _describe_export(options: ToHf, run: Checkpoint, *, architecture: Architecture, dtype: DType) -> str:
    weights = "average of the weights" if options.ema and run.has_ema(options.step) else "weights"
    tokenizer = "with its tokenizer" if run.tokenizer else "without a tokenizer, because the run has none"
    source = describe_source(run, options.step)
    return f"{options.output}: {weights} of {source} as {architecture.hf_class} in {dtype}, {tokenizer}"


def export_adapters(options: ToPeft) -> None:
    """Write the directory, and print a summary."""
    from gptjax.huggingface.peft_export import write_adapters  # imports flax

    run = RunDir.open(options.checkpoint, imports=options.imports)
    with atomic_directory(expand_path(options.output)) as directory:
        write_adapters(directory, run.load_adapted_model(options.step, ema=options.ema), base=options.base)
        if run.tokenizer is not None:
            run.tokenizer.save(directory)
        sum_directory(directory)
    print(f"{options.output}: adapters of {run.directory.name} at step {run.find_step(options.step)} in PEFT's format")
    if (start := run.config.init_from) is not None:
        print(f"note: they belong to the weights of {start}, from which the run started; to-hf exports those")


def export_gguf(options: ToGGUF) -> None:
    """Write the file and print a summary."""
    from gptjax.huggingface.gguf_export import choose_gguf_architecture, write_gguf

    enable_compile_cache()
    run, output = open_checkpoint(options.checkpoint, imports=options.imports), expand_path(options.output)
    architecture = choose_gguf_architecture(run.model_config, run.tokenizer)
    model = run.load_model(options.step, ema=options.ema)
    name, tokenizer = run.directory.name, run.require_tokenizer()
    write_gguf(output, model, architecture=architecture, tokenizer=tokenizer, name=name, dtype=options.dtype)
    what = f"{describe_source(run, options.step)} as {architecture.model_type} in {options.dtype}, with its tokenizer"
    print(f"{output}: {what}; its SHA-256 is in {output.name}{SUM_SUFFIX}")
    if (rounding := GGUF_ROUNDING.get(options.dtype)) is not None:
        print(f"note: in {options.dtype} llama.cpp's log-probabilities differ by about {rounding}; in float32 by 3e-3")


def load_with_origin(run: Checkpoint, options: ToHf) -> tuple[Any, HFOrigin | None]:
    """The weights, and what a saved model's own config.json says. The origin of a run that was trained is None."""
    if isinstance(run, SavedModel):
        run.find_step(options.step)
        return run.import_weights()
    model, path = run.load_model(options.step, ema=options.ema), run.directory / ORIGIN_FILE
    if not path.is_file():
        return model, None
    content: dict[str, Any] = read_json(path)
    return model, HFOrigin(content["config"], content["dtype"])
