"""Door: `python -m gptjax.convert to-hf|from-hf` exchanges runs with Hugging Face.

An export appears whole, after it has been compared with transformers where that is installed, or not at all.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.core.settings import parse_options
from gptjax.huggingface.gpt2 import CONFIG_FILE, DTypeName, HFOrigin, from_hf, hf_config, to_hf
from gptjax.huggingface.safetensors_dir import read_json, write_json, write_tensors
from gptjax.model.gpt import GPT, count_parameters, with_static
from gptjax.run_dir import RunDir, write_imported_run
from gptjax.tokenization.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer

PROG = "python -m gptjax.convert"
ORIGIN_FILE = "hf_config.json"
"""In an imported run: their config.json and type of tensors, for the way back."""
TOLERANCE = 1e-3
"""Largest difference of float32 logits that is rounding; for logits beyond 10, this share of a tenth of the largest."""
FETCHED = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)
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
    """The directory to make; it must not exist, or be empty."""
    step: str = "latest"
    """Which checkpoint: a number, `latest` or `best`."""
    ema: bool = True
    """Take the run's average of the weights, if it keeps one; --no-ema takes the last ones."""
    dtype: DTypeName | None = None
    """Type of the tensors; default: that of the model it was imported from, else float32."""
    verify: bool = True
    """Compare logits with transformers (needs torch and transformers) before the directory appears."""


@dataclass(frozen=True)
class FromHf:
    """Make a run directory, with weights at step 0, of a GPT-2 in Hugging Face's format."""

    model: str
    """A directory that transformers saved, or the name of a model on the hub, such as `gpt2`."""
    output: str
    """The run directory to make; it must not exist, or be empty."""


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


# --- to Hugging Face ---


def export_model(arguments: ToHf) -> None:
    """Write the directory, verify it, and say what was written."""
    run = RunDir.open(arguments.checkpoint)
    with atomic_directory(Path(arguments.output)) as directory:
        model = run.load_model(arguments.step, ema=arguments.ema)
        origin = read_origin(run)
        dtype: DTypeName = arguments.dtype or (origin.dtype if origin else "float32")
        write_model(directory, model, dtype=dtype, origin=origin, tokenizer=run.tokenizer)
        verdict = (
            compare_with_transformers(directory, model, dtype=dtype)
            if arguments.verify
            else "not verified: --no-verify"
        )
    told = "with its tokenizer" if run.tokenizer else "without a tokenizer: the run has none"
    taken = f"step {run.find_step(arguments.step)} of {run.directory.name}"
    taken += ", its average of the weights," if arguments.ema and run.has_ema(arguments.step) else ""
    print(f"{arguments.output}: {taken} in {dtype}, {told}\n{verdict}")


def write_model(
    directory: Path, model: GPT, *, dtype: DTypeName, origin: HFOrigin | None, tokenizer: Tokenizer | None
) -> None:
    """All files of a model that `AutoModelForCausalLM` and, given a tokenizer, `AutoTokenizer` load."""
    end = tokenizer.end_of_text if tokenizer else None
    end = end if end is not None and end < model.config.resolved_vocab_size else None
    config = hf_config(model.config, dtype=dtype, end_of_text=end, origin=origin)
    write_json(directory / CONFIG_FILE, config)
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id") if config.get(key) is not None}
    write_json(directory / "generation_config.json", ends)
    write_tensors(directory, to_hf(model, dtype=dtype))
    if tokenizer is not None:
        tokenizer.save(directory)
        specials = {} if tokenizer.end_of_text is None else {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.context_length}
        settings |= {"clean_up_tokenization_spaces": False, "add_prefix_space": False}
        write_json(directory / "tokenizer_config.json", settings | specials)


def compare_with_transformers(directory: Path, model: GPT, *, dtype: DTypeName) -> str:
    """Compare what transformers computes from the directory with the model; raises a UserError if they differ."""
    missing = [name for name in ("transformers", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        return f"not verified: {' and '.join(missing)} not installed"
    tokens = np.random.RandomState(0).randint(0, model.config.resolved_vocab_size, (1, model.config.context_length))
    theirs, ours = _their_logits(directory, tokens), _our_logits(model, tokens, dtype=dtype)
    difference, largest = float(np.abs(theirs - ours).max()), float(np.abs(ours).max())
    if not difference <= TOLERANCE * max(1.0, largest / 10):
        raise UserError(
            f"transformers computes other logits from the export: they differ by {difference:.2g} (largest logit "
            f"{largest:.3g}). Nothing was written; --no-verify writes it all the same."
        )
    return f"verified: over {tokens.size} tokens transformers' float32 logits differ by at most {difference:.1e}"


def _our_logits(model: GPT, tokens: np.ndarray, *, dtype: DTypeName) -> np.ndarray:
    """Logits of the weights as they were exported, computed in full float32."""
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), model)
    plain = with_static(
        rounded,
        config=replace(model.config, compute=replace(model.config.compute, attention_impl="xla", dtype="float32")),
    )
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(GPT.__call__)(plain, jnp.asarray(tokens)))


def _their_logits(directory: Path, tokens: np.ndarray) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


@contextmanager
def atomic_directory(output: Path) -> Iterator[Path]:
    """A temporary directory that becomes `output` if all goes well, and is gone otherwise."""
    check_free(output)
    output = output.absolute()
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if output.exists():
            output.rmdir()
        temporary.rename(output)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(output: Path) -> None:
    """Raise unless the directory does not exist or is empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} exists and is not an empty directory. Choose another, or remove it.")


# --- from Hugging Face ---


def import_model(arguments: FromHf) -> None:
    """Write the run directory and say what is in it."""
    output = Path(arguments.output).absolute()
    check_free(output)
    directory = fetch_model(arguments.model)
    config, model, origin = from_hf(directory)
    tokenizer = read_tokenizer(directory, vocabulary=config.resolved_vocab_size)
    write_imported_run(output, model=model, tokenizer=tokenizer)
    write_json(output / ORIGIN_FILE, asdict(origin))
    has = f"tokenizer {tokenizer.name}" if tokenizer else "no tokenizer"
    print(
        f"{output}: {count_parameters(config):,} parameters from {origin.dtype}, {has}; computes in {config.compute.dtype}"
    )


def fetch_model(model: str) -> Path:
    """The directory itself, or the model of that name on the hub, downloaded to its cache."""
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"--model={model}: there is no such directory, and a model on the hub is not called that.")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(f"--model={model} is no directory; to fetch it from the hub: pip install 'gptjax[hf]'.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(FETCHED)))
    except Exception as error:  # the hub's errors have no common base class
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--model={model} is no directory here, and the hub did not give it: {type(error).__name__}: {reason}"
        ) from error


def read_tokenizer(directory: Path, *, vocabulary: int) -> Tokenizer | None:
    """The tokenizer beside the weights, if there is one that can be read here; otherwise a note says why not."""
    try:
        tokenizer = load_tokenizer(directory)
    except UserError as error:
        print(f"note: imported without a tokenizer: {error}", file=sys.stderr)
        return None
    if tokenizer.vocab_size > vocabulary:
        raise UserError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} ids, but the model only {vocabulary}. Give the "
            "model's own tokenizer, or remove the tokenizer's files to import without one."
        )
    return tokenizer


def read_origin(run: RunDir) -> HFOrigin | None:
    """What `from-hf` remembered; None for a run that was trained here."""
    path = run.directory / ORIGIN_FILE
    if not path.is_file():
        return None
    content: dict[str, Any] = read_json(path)
    return HFOrigin(content["config"], content["dtype"])


if __name__ == "__main__":
    main()
