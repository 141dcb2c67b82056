"""Run directories, with weights at step 0, made from models of Hugging Face and of other training programs."""

import json
from dataclasses import asdict, dataclass

from gptjax.core.compile_cache import enable_compile_cache
from gptjax.core.errors import UserError
from gptjax.core.files import check_free, expand_path
from gptjax.runs.checkpoint_source import is_saved_model, open_checkpoint
from gptjax.runs.run_dir import CHECKPOINTS, write_imported_run
from gptjax.tokenization.tokenizer import load_tokenizer, note_left_out

ORIGIN_FILE = "hf_config.json"
"""File of an imported run with the model's own config.json and type, which a later export restores."""


@dataclass(frozen=True)
class FromHf:
    """Make a run directory, with weights at step 0, from a model in Hugging Face's format."""

    model: str
    """Directory that transformers saved, or the name of a model on the hub: `gpt2`, or `hf:gpt2` where a directory of
    that name is here. It may also come first, without the flag."""
    output: str
    """Run directory to make. It must be empty or not exist."""


@dataclass(frozen=True)
class FromPeft:
    """Make a run directory, with weights at step 0, from a model and a LoRA adapter that PEFT saved, merged."""

    adapter: str
    """Directory with adapter_config.json and adapter_model.safetensors. It may also come first, without the flag."""
    output: str
    """Run directory to make. It must be empty or not exist."""
    base: str | None = None
    """The model that it belongs to: a run, a saved model or hf:OWNER/REPO. Default: the name that the adapter gives."""


@dataclass(frozen=True)
class FromCheckpoint:
    """Make a run directory, with weights at step 0, from a checkpoint of another training program."""

    model: str
    """The file or directory of the checkpoint. It may also come first, without the flag."""
    output: str
    """Run directory to make. It must be empty or not exist."""
    tokenizer: str | None = None
    """Tokenizer of the model: gpt2, or a tokenizer.json. Default: none, for these checkpoints hold none."""
    num_heads: int | None = None
    """from-modded, from-speedrun: attention heads. Default: those of the file, else heads of 128 or 64 channels."""
    context_length: int | None = None
    """from-modded, from-speedrun: the longest text, in tokens. Default: that of the file, else 1024 or 2048."""


def import_model(options: FromHf) -> None:
    """Write the run directory and print a summary."""
    from gptjax.huggingface.model_dir import fetch_model, read_tokenizer
    from gptjax.huggingface.model_import import from_hf
    from gptjax.model.gpt import count_parameters

    enable_compile_cache()
    output = expand_path(options.output).absolute()
    check_free(output)
    directory = fetch_model(options.model)
    if (directory / CHECKPOINTS).is_dir() and not is_saved_model(directory):
        raise UserError(f"{directory} is a run of gptjax already. Name it with --checkpoint, as it is.")
    config, model, origin = from_hf(directory)
    tokenizer = read_tokenizer(directory, vocab_size=config.resolved_vocab_size)
    others = {ORIGIN_FILE: json.dumps(asdict(origin), indent=2) + "\n"}
    write_imported_run(output, model=model, tokenizer=tokenizer, others=others)
    found = f"tokenizer {tokenizer.name}" if tokenizer else "no tokenizer"
    parameters = f"{count_parameters(config):,} parameters in {origin.dtype}"
    print(f"{output}: {parameters}, {found}; computes in {config.compute.dtype}")


def import_adapter(options: FromPeft) -> None:
    """Write the run directory and print a summary."""
    from gptjax.huggingface.model_dir import read_tokenizer
    from gptjax.huggingface.peft_import import merge_adapter, read_adapter

    enable_compile_cache()
    output, directory = expand_path(options.output).absolute(), expand_path(options.adapter)
    check_free(output)
    adapter = read_adapter(directory)
    if (base := options.base or adapter.base) is None:
        raise UserError(f"{directory} does not name its base model. Give --base=MODEL.")
    source = open_checkpoint(base)
    tokenizer, rows = source.tokenizer, source.model_config.resolved_vocab_size
    if (directory / "tokenizer.json").is_file():
        own = read_tokenizer(directory, vocab_size=max(rows, adapter.num_tokens))
        tokenizer = own if tokenizer is None or (own is not None and own.extends(tokenizer)) else tokenizer
    model = merge_adapter(source.load_model(), adapter, vocab_size=tokenizer.vocab_size if tokenizer else None)
    write_imported_run(output, model=model, tokenizer=tokenizer)
    print(f"{output}: {base} with the adapter of {directory}, merged")


def import_checkpoint(word: str, options: FromCheckpoint) -> None:
    """Write the run directory and print a summary."""
    from gptjax.importers import llmc, modded, nanochat, nanogpt, speedrun
    from gptjax.model.gpt import count_parameters

    enable_compile_cache()
    output, path = expand_path(options.output).absolute(), expand_path(options.model)
    check_free(output)
    match word.removeprefix("from-"):
        case "nanogpt":
            found = nanogpt.read_nanogpt(path)
        case "llmc":
            found = llmc.read_llmc(path)
        case "nanochat":
            found = nanochat.read_nanochat(path)
        case "modded":
            found = modded.read_modded(path, num_heads=options.num_heads, context_length=options.context_length)
        case _:
            found = speedrun.read_speedrun(path, num_heads=options.num_heads, context_length=options.context_length)
    spec = options.tokenizer
    tokenizer = note_left_out(load_tokenizer(spec), spec) if spec else None
    if tokenizer is not None and tokenizer.vocab_size > found.config.resolved_vocab_size:
        raise UserError(
            f"--tokenizer={options.tokenizer} has {tokenizer.vocab_size} ids, but the model only "
            f"{found.config.resolved_vocab_size}. Give the tokenizer that the model was trained with."
        )
    write_imported_run(output, model=found.load(), tokenizer=tokenizer)
    with_tokenizer = f"tokenizer {tokenizer.name}" if tokenizer else "no tokenizer"
    print(f"{output}: {count_parameters(found.config):,} parameters, {with_tokenizer}")
