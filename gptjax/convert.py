"""Convert runs to and from Hugging Face's format, llama.cpp's and others': `python -m gptjax.convert --help`.

An export is compared with transformers, if that is installed, before its directory appears.
"""

import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from gptjax.core.command_line import parse_options, print_versions_if_asked
from gptjax.core.compile_cache import enable_compile_cache
from gptjax.core.errors import UserError, exit_on_user_error, quote
from gptjax.core.files import atomic_directory, check_free, expand_path
from gptjax.huggingface.form import Form, HFOrigin
from gptjax.huggingface.forms import choose_form
from gptjax.huggingface.options import FromHf, FromPeft, ToGGUF, ToHf, ToPeft
from gptjax.huggingface.safetensors_dir import read_json
from gptjax.huggingface.weight_map import DTypeName
from gptjax.runs.checkpoint_source import Checkpoint, SavedModel, open_checkpoint
from gptjax.runs.run_dir import RunDir, write_imported_run
from gptjax.tokenization.tokenizer import load_tokenizer

T = TypeVar("T")
PROG = "python -m gptjax.convert"
ORIGIN_FILE = "hf_config.json"
"""File of an imported run with the model's own config.json and type, which a later export restores."""
EXAMPLES = {
    "to-hf": (
        "--checkpoint=runs/quickstart --output=quickstart-hf",
        "--checkpoint=runs/quickstart --step=best --dtype=bfloat16 --output=quickstart-hf --push-to=OWNER/REPO",
    ),
    "to-peft": (
        "--checkpoint=runs/lora --output=adapters",
        "--checkpoint=runs/lora --base=openai-community/gpt2 --output=adapters",
    ),
    "to-gguf": (
        "--checkpoint=runs/quickstart --output=quickstart.gguf",
        "--checkpoint=hf:openai-community/gpt2 --dtype=float16 --output=gpt2.gguf",
    ),
    "from-hf": ("--model=gpt2 --output=runs/gpt2", "--model=quickstart-hf --output=runs/quickstart_again"),
    "from-peft": (
        "--adapter=adapters --output=runs/merged",
        "--adapter=adapters --base=hf:openai-community/gpt2 --output=runs/merged",
    ),
    "from-nanogpt": ("out/ckpt.pt --output=runs/mine", "out/ckpt.pt --tokenizer=gpt2 --output=runs/mine"),
    "from-llmc": ("model.bin --output=runs/mine", "model.bin --tokenizer=gpt2 --output=runs/mine"),
    "from-nanochat": ("base_checkpoints/d12 --output=runs/d12", "d12 --tokenizer=tokenizer.json --output=runs/d12"),
    "from-modded": ("state_step001390.pt --output=runs/mine", "state.pt --num-heads=6 --output=runs/mine"),
    "from-speedrun": ("pytorch_model.pt --output=runs/mine", "nanogpt-162m.pt --tokenizer=gpt2 --output=runs/mine"),
}
"""What one types for each conversion."""
USAGE = f"""usage: {PROG} CONVERSION [--flag=value ...]

to-hf    write a run's weights and tokenizer as a directory that transformers loads
to-peft  write a run's adapters (lora.rank) as a directory that PEFT loads beside their base
to-gguf  write a run's weights and tokenizer as one file for llama.cpp
from-hf  make a run directory from a model in Hugging Face's format, to evaluate, sample or train it
from-peft
         make a run directory from a model and a LoRA adapter of PEFT, merged
from-nanogpt, from-llmc, from-nanochat, from-modded, from-speedrun
         make a run directory from a checkpoint of that program

examples:
  {PROG} to-hf --checkpoint=runs/quickstart --output=quickstart-hf
  {PROG} to-gguf --checkpoint=runs/quickstart --output=quickstart.gguf
  {PROG} from-hf --model=gpt2 --output=runs/gpt2
  {PROG} from-nanogpt out/ckpt.pt --output=runs/mine

{PROG} to-hf --help and so on explain the options."""
PROGRAMS = ("nanogpt", "llmc", "nanochat", "modded", "speedrun")
"""Training programs whose checkpoints can be read."""
WORDS = {
    **dict.fromkeys(("export", "huggingface", "tohuggingface", "transformers", "totransformers"), "to-hf"),
    **dict.fromkeys(("import", "fromhuggingface", "fromtransformers", "hf", "fromgpt"), "from-hf"),
    **dict.fromkeys(("gguf", "llamacpp", "tollamacpp"), "to-gguf"),
    **dict.fromkeys(("peft", "lora", "tolora", "adapters", "toadapters"), "to-peft"),
    **dict.fromkeys(("fromlora", "fromadapters", "fromadapter"), "from-peft"),
    **dict.fromkeys(("frommoddednanogpt", "fromspeedrunmodded"), "from-modded"),
    **dict.fromkeys(("frompytorch", "fromtorch", "frompt"), "from-nanogpt"),
}
"""Other words for them, without dashes."""


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


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    with exit_on_user_error():
        print_versions_if_asked(argv)
        match [argv[0].replace("_", "-"), *argv[1:]] if argv else []:
            case ["to-hf", *options]:
                export_model(_parse(ToHf, "to-hf", options))
            case ["to-peft", *options]:
                export_adapters(_parse(ToPeft, "to-peft", options))
            case ["to-gguf", *options]:
                export_gguf(_parse(ToGGUF, "to-gguf", options))
            case ["from-hf", *options]:
                import_model(_parse(FromHf, "from-hf", options))
            case ["from-peft", *options]:
                import_adapter(_parse(FromPeft, "from-peft", options))
            case [word, *options] if word.removeprefix("from-") in PROGRAMS and word.startswith("from-"):
                options = [f"--model={options[0]}", *options[1:]] if options and options[0][0] != "-" else options
                import_checkpoint(word, _parse(FromCheckpoint, word, options))
            case ["-h" | "--help", *_]:
                print(USAGE)
            case []:
                raise UserError(USAGE)
            case _:
                raise UserError(explain_command(argv[0]))


def _parse(kind: type[T], name: str, options: Sequence[str]) -> T:
    examples = "\n".join(["examples:", *(f"  {PROG} {name} {line}" for line in EXAMPLES[name])])
    return parse_options(kind, options, prog=f"{PROG} {name}", introduction=examples)


def explain_command(word: str) -> str:
    """The message for a first word that is no command: the one that is meant."""
    if word.startswith("-"):
        meant = "from-hf" if word.startswith("--model") else "to-hf"
        return f"{quote(word)} stands first; what is to be done comes before it: {PROG} {meant} {quote(word)} …"
    name = re.sub(r"[^a-z]+", "-", word.lower().replace("llm.c", "llmc"))
    if name not in EXAMPLES:
        names = {command.replace("-", ""): command for command in EXAMPLES} | WORDS
        close = difflib.get_close_matches(name.replace("-", ""), names, n=1, cutoff=0.8)
        name = names[close[0]] if close else ""
    hint = f". Write {PROG} {name} …" if name else f"; wanted: {', '.join(EXAMPLES)}. {PROG} --help explains them."
    return f"There is no conversion {quote(word)}{hint}"


def export_model(options: ToHf) -> None:
    """Write the directory, verify it, and print a summary."""
    from gptjax.huggingface import hub_upload, model_card, model_dir, tokenizer_files  # these import flax

    enable_compile_cache()
    run = open_checkpoint(options.checkpoint, imports=options.imports)
    form, evaluations = (
        choose_form(run.model_config, options.form),
        model_card.read_evaluations(options.evaluation, checkpoint=options.checkpoint),
    )
    losses = form.list_losses(run.model_config) + tokenizer_files.list_tokenizer_losses(run.tokenizer)
    if options.push_to is not None:
        hub_upload.check_upload(options.push_to)
    output = expand_path(options.output)
    with atomic_directory(output) as directory:
        model, origin = load_with_origin(run, options)
        dtype: DTypeName = options.dtype or (origin.dtype if origin else "float32")
        model_dir.write_model(directory, model, form=form, dtype=dtype, origin=origin, tokenizer=run.tokenizer)
        facts = model_card.CardFacts(run.directory.name, evaluations=evaluations, losses_elsewhere=tuple(losses))
        if isinstance(run, RunDir):
            facts = facts.with_run(run.directory, run.content, step=run.find_step(options.step))
        model_card.write_model_card(directory, model.config, form=form, dtype=dtype, facts=facts)
        result = "not verified: --no-verify"
        if options.verify:
            result = model_dir.compare_with_transformers(directory, model, dtype=dtype)
    print(
        *_describe_export(options, run, form=form, dtype=dtype), result, *(f"note: {one}" for one in losses), sep="\n"
    )
    if options.push_to is not None:
        print(hub_upload.upload_directory(output, options.push_to, private=options.private))


def _describe_export(options: ToHf, run: Checkpoint, *, form: Form, dtype: DTypeName) -> list[str]:
    weights = "average of the weights" if options.ema and run.has_ema(options.step) else "weights"
    tokenizer = "with its tokenizer" if run.tokenizer else "without a tokenizer, because the run has none"
    if run.tokenizer and run.tokenizer.end_of_text is None:
        print("note: the export has no eos token; lm_eval needs --model_args ...,prefix_token_id=ID", file=sys.stderr)
    step = run.find_step(options.step)
    return [
        f"{options.output}: {weights} of {run.directory.name} at step {step} as {form.architecture} in {dtype}, "
        f"{tokenizer}"
    ]


def export_adapters(options: ToPeft) -> None:
    """Write the directory, and print a summary."""
    from gptjax.huggingface.peft_export import write_adapters  # imports flax

    run = RunDir.open(options.checkpoint, imports=options.imports)
    with atomic_directory(expand_path(options.output)) as directory:
        write_adapters(directory, run.load_adapted_model(options.step, ema=options.ema), base=options.base)
        if run.tokenizer is not None:
            run.tokenizer.save(directory)
    print(f"{options.output}: adapters of {run.directory.name} at step {run.find_step(options.step)} in PEFT's format")
    if (start := run.config.init_from) is not None:
        print(f"note: they belong to the weights of {start}, from which the run started; to-hf exports those")


def export_gguf(options: ToGGUF) -> None:
    """Write the file and print a summary."""
    from gptjax.huggingface.gguf_export import choose_gguf_form, write_gguf

    enable_compile_cache()
    run, output = open_checkpoint(options.checkpoint, imports=options.imports), expand_path(options.output)
    form = choose_gguf_form(run.model_config, run.tokenizer)
    model, step = run.load_model(options.step, ema=options.ema), run.find_step(options.step)
    name, tokenizer = run.directory.name, run.require_tokenizer()
    write_gguf(output, model, form=form, tokenizer=tokenizer, name=name, dtype=options.dtype)
    print(f"{output}: {name} at step {step} as {form.model_type} in {options.dtype}, with its tokenizer")


def import_model(options: FromHf) -> None:
    """Write the run directory and print a summary."""
    from gptjax.huggingface.model_dir import fetch_model, read_tokenizer
    from gptjax.huggingface.model_import import from_hf
    from gptjax.model.gpt import count_parameters

    enable_compile_cache()
    output = expand_path(options.output).absolute()
    check_free(output)
    directory = fetch_model(options.model)
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
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    if tokenizer is not None and tokenizer.vocab_size > found.config.resolved_vocab_size:
        raise UserError(
            f"--tokenizer={options.tokenizer} has {tokenizer.vocab_size} ids, but the model only "
            f"{found.config.resolved_vocab_size}. Give the tokenizer that the model was trained with."
        )
    write_imported_run(output, model=found.load(), tokenizer=tokenizer)
    with_tokenizer = f"tokenizer {tokenizer.name}" if tokenizer else "no tokenizer"
    print(f"{output}: {count_parameters(found.config):,} parameters, {with_tokenizer}")


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


if __name__ == "__main__":
    main()
