"""Entry point: `python -m gptjax.convert to-hf|from-hf` exchanges runs with Hugging Face.

An export is compared with transformers, where that is installed, before its directory appears.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptjax.core.command_line import Imports, parse_options
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.core.files import atomic_directory, check_free
from gptjax.huggingface.gpt2 import HFOrigin, from_hf
from gptjax.huggingface.gpt2_mapping import DTypeName
from gptjax.huggingface.model_dir import compare_with_transformers, fetch_model, read_tokenizer, write_model
from gptjax.huggingface.safetensors_dir import read_json, write_json
from gptjax.model.gpt import count_parameters
from gptjax.run_dir import RunDir, write_imported_run

PROG = "python -m gptjax.convert"
ORIGIN_FILE = "hf_config.json"
"""In an imported run: the model's own config.json and tensor type, for the way back."""
USAGE = f"""usage: {PROG} to-hf --checkpoint=RUN --output=DIRECTORY [...]
       {PROG} from-hf --model=DIRECTORY_OR_HUB_ID --output=RUN [...]

to-hf    write a run's weights and tokenizer as transformers' GPT-2
from-hf  make a run directory of a GPT-2 that transformers saved, to evaluate, sample or train on

{PROG} to-hf --help and from-hf --help explain the options."""


@dataclass(frozen=True)
class ToHf:
    """Write a run's weights, config and tokenizer as a directory that transformers loads."""

    checkpoint: str
    """A run directory."""
    output: str
    """Directory to make. It must not exist, or be empty."""
    step: str = "latest"
    """Checkpoint: a number, `latest` or `best`."""
    ema: bool = True
    """Take the run's average of the weights, if it keeps one. --no-ema takes the raw weights."""
    dtype: DTypeName | None = None
    """Type of the tensors. Default: that of the model it was imported from, else float32."""
    verify: bool = True
    """Compare logits with transformers (needs torch and transformers) before the directory appears."""
    imports: Imports = ()
    """Module or Python file with classes of the run's own model config. May be given several times."""


@dataclass(frozen=True)
class FromHf:
    """Make a run directory, with weights at step 0, of a GPT-2 in Hugging Face's format."""

    model: str
    """Directory that transformers saved, or the name of a model on the hub, such as `gpt2`."""
    output: str
    """Run directory to make. It must not exist, or be empty."""


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    with exit_on_user_error():
        match words[:1]:
            case ["to-hf"]:
                export_model(parse_options(ToHf, words[1:], prog=f"{PROG} to-hf"))
            case ["from-hf"]:
                import_model(parse_options(FromHf, words[1:], prog=f"{PROG} from-hf"))
            case ["-h" | "--help"]:
                print(USAGE)
            case _:
                raise UserError(f"say to-hf or from-hf first, not {words[0]!r}.\n{USAGE}" if words else USAGE)


def export_model(options: ToHf) -> None:
    """Write the directory, verify it, and say what was written."""
    run = RunDir.open(options.checkpoint, imports=options.imports)
    with atomic_directory(Path(options.output).expanduser()) as directory:
        model = run.load_model(options.step, ema=options.ema)
        origin = read_origin(run)
        dtype: DTypeName = options.dtype or (origin.dtype if origin else "float32")
        write_model(directory, model, dtype=dtype, origin=origin, tokenizer=run.tokenizer)
        verdict = (
            compare_with_transformers(directory, model, dtype=dtype) if options.verify else "not verified: --no-verify"
        )
    tokenizer = "with its tokenizer" if run.tokenizer else "without a tokenizer: the run has none"
    weights = f"step {run.find_step(options.step)} of {run.directory.name}"
    weights += ", its average of the weights," if options.ema and run.has_ema(options.step) else ""
    print(f"{options.output}: {weights} in {dtype}, {tokenizer}\n{verdict}")


def import_model(options: FromHf) -> None:
    """Write the run directory and say what is in it."""
    output = Path(options.output).expanduser().absolute()
    check_free(output)
    directory = fetch_model(options.model)
    config, model, origin = from_hf(directory)
    tokenizer = read_tokenizer(directory, vocabulary=config.resolved_vocab_size)
    write_imported_run(output, model=model, tokenizer=tokenizer)
    write_json(output / ORIGIN_FILE, asdict(origin))
    has = f"tokenizer {tokenizer.name}" if tokenizer else "no tokenizer"
    print(
        f"{output}: {count_parameters(config):,} parameters from {origin.dtype}, {has}; computes in {config.compute.dtype}"
    )


def read_origin(run: RunDir) -> HFOrigin | None:
    """What `from-hf` remembered; None for a run that was trained here."""
    path = run.directory / ORIGIN_FILE
    if not path.is_file():
        return None
    content: dict[str, Any] = read_json(path)
    return HFOrigin(content["config"], content["dtype"])


if __name__ == "__main__":
    main()
