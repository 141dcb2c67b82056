"""Model directories with weights, config and tokenizer: written, compared with transformers, fetched from the hub."""

import importlib.util
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.errors import UserError, format_message, quote
from gptjax.core.file_sums import ChangedFileError, check_listed_files
from gptjax.core.files import expand_path, shorten_path
from gptjax.huggingface.architectures.architecture import CONFIG_FILE, Architecture, HFOrigin
from gptjax.huggingface.model_export import to_hf, to_hf_config
from gptjax.huggingface.safetensors_dir import TrainedAt, write_json, write_tensors
from gptjax.huggingface.tokenizer_files import make_generation_config, write_tokenizer
from gptjax.model.gpt import GPT, with_static
from gptjax.sharding.devices import DType
from gptjax.tokenization.chat import with_jinja
from gptjax.tokenization.chat_template import read_jinja_template
from gptjax.tokenization.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer, note_left_out

TOLERANCE = 1e-3
"""Largest float32 logit difference that counts as rounding. Beyond logits of 10 it grows with the largest logit."""
VERIFIED_TOKENS = 2048
"""Most tokens over which logits are compared: scores of attention grow with the square, logits with the vocabulary."""
HUB_PREFIX = "hf:"
FETCHED_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES)
"""Patterns of the files that an import reads. No pickle is among them."""


def write_model(
    directory: Path,
    model: GPT,
    *,
    architecture: Architecture,
    dtype: DType,
    origin: HFOrigin | None,
    tokenizer: Tokenizer | None,
    trained_at: TrainedAt | None = None,
) -> None:
    """Write the files that `AutoModelForCausalLM` and, given a tokenizer, `AutoTokenizer` load."""
    ids = (tokenizer.begin_of_text, tokenizer.end_of_text) if tokenizer else (None, None)
    begin, end = (i if i is not None and i < model.config.resolved_vocab_size else None for i in ids)
    ends = {"begin_of_text": begin, "end_of_text": end}
    config = to_hf_config(model.config, architecture=architecture, dtype=dtype, origin=origin, **ends)
    write_json(directory / CONFIG_FILE, config)
    length = model.config.context_length
    generation = make_generation_config(tokenizer, context_length=length, end_of_text=config.get("eos_token_id"))
    write_json(directory / "generation_config.json", generation)
    write_tensors(directory, to_hf(model, architecture=architecture, dtype=dtype), trained_at=trained_at)
    if architecture.code is not None:
        shutil.copyfile(architecture.code, directory / architecture.code.name)
    if tokenizer is not None:
        write_tokenizer(directory, tokenizer, context_length=length)


def compare_with_transformers(directory: Path, model: GPT, *, dtype: DType) -> str:
    """Compare the model's logits with those that transformers computes from the directory, both in float32.

    Returns a sentence with the result, or with the packages that are missing.

    Raises:
        UserError: the logits differ by more than rounding.
    """
    missing = [name for name in ("transformers", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        return f"not verified: {' and '.join(missing)} not installed"
    length = min(model.config.context_length, VERIFIED_TOKENS)
    tokens = np.random.RandomState(0).randint(0, model.config.resolved_vocab_size, (1, length))
    torch_logits = compute_torch_logits(directory, tokens)
    jax_logits = compute_jax_logits(model, tokens, dtype=dtype)
    difference, largest = float(np.abs(torch_logits - jax_logits).max()), float(np.abs(jax_logits).max())
    if not difference <= TOLERANCE * max(1.0, largest / 10):
        raise UserError(
            f"transformers computes other logits from the export: they differ by {difference:.2g}, and the largest "
            f"logit is {largest:.3g}. Nothing was written. Use --no-verify to write it anyway."
        )
    return f"verified: over {tokens.size} tokens transformers' float32 logits differ by at most {difference:.1e}"


def compute_jax_logits(model: GPT, tokens: np.ndarray, *, dtype: DType) -> np.ndarray:
    """Logits of the exported weights, which are rounded to `dtype`, computed in full float32."""
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), model)
    compute = replace(model.config.compute, attention_impl="xla", dtype="float32")
    # The tokens are one document, which is what a model sees that knows of none.
    config = replace(model.config, compute=compute, intra_document_mask=False)
    float32_model = with_static(rounded, config=config)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(GPT.__call__)(float32_model, jnp.asarray(tokens)))


def compute_torch_logits(directory: Path, tokens: np.ndarray) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]
    from transformers.utils import logging  # pyright: ignore[reportMissingImports]

    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the export prints one line
    # Code is executed only from a directory that an export has just written.
    options = {"dtype": torch.float32, "local_files_only": True, "trust_remote_code": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, **options).eval()
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def fetch_model(model: str) -> Path:
    """The model's directory: `model` itself, or where huggingface_hub caches the model of that name.

    `hf:NAME` is always the hub's. A directory here goes before a model of that name.
    """
    name = model.removeprefix(HUB_PREFIX)
    directory = expand_path(model)
    if name == model and directory.is_dir():
        if not (directory / CONFIG_FILE).exists():
            like_hub = not model.startswith((".", "/", "~")) and model.count("/") <= 1
            hub = f" The hub's model of that name is --model={HUB_PREFIX}{model}." if like_hub else ""
            advice = explain_no_model(directory) or hub
            raise UserError(f"--model={model} is a directory here without {CONFIG_FILE}.{advice}")
        check_listed_files(directory, [CONFIG_FILE])
        return directory
    if name == model and directory.is_file():
        raise UserError(
            f"--model={model} is a file; wanted a directory with {CONFIG_FILE}.{explain_no_model(directory)}"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"--model={model} is neither a directory nor the name of a model on the hub.")
    return fetch_from_hub(name)


def explain_no_model(path: Path) -> str:
    """What to do about a file, or a directory without config.json, in place of a model's directory; may be empty."""
    shown = shlex.quote(str(shorten_path(path)))
    if path.is_file():
        directory = shlex.quote(str(shorten_path(path.parent)))
        kinds = {".safetensors": f" Give its directory: {directory}", ".gguf": " GGUF files are written, but not read."}
        torch = f" A checkpoint of nanoGPT is read by python -m gptjax.convert from-nanogpt {shown} --output=RUN"
        return (kinds | dict.fromkeys((".pt", ".pth", ".ckpt"), torch)).get(path.suffix.lower(), "")
    if (path / "adapter_config.json").exists():
        return f" It holds adapters: python -m gptjax.convert from-peft {shown} --output=RUN"
    if (path / "params.json").exists():
        return " Its params.json is of Meta's format: download the model in Hugging Face's."
    inner = [
        *path.glob(f"*/{CONFIG_FILE}"),
        *path.glob(f"snapshots/*/{CONFIG_FILE}"),
    ]  # of a trainer; of the hub's cache
    return f" There is one in {shlex.quote(str(shorten_path(max(inner).parent)))}" if inner else ""


def fetch_from_hub(name: str) -> Path:
    """Where huggingface_hub keeps the files of a model, `OWNER/REPO[@REVISION]`, after fetching those that lack."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        found = snapshot_download(repository, revision=revision or None, allow_patterns=list(FETCHED_FILES))
    except Exception as error:  # the hub's errors have no common base class
        reason = quote(str(error).strip().partition("\n")[0])
        advice = ""
        if type(error).__name__ == "LocalEntryNotFoundError":  # no connection, and nothing in the cache
            fetch = shlex.join(["hf", "download", repository, *([f"--revision={revision}"] if revision else [])])
            advice = f". Where there is a connection, {fetch} --local-dir=DIR fetches it; give DIR"
        raise UserError(
            f"{name!r}: fetching it from the hub failed: {type(error).__name__}: {reason}{advice}"
        ) from error
    return Path(found)


def read_tokenizer(directory: Path, *, vocab_size: int) -> Tokenizer | None:
    """The tokenizer beside the weights, with ChatML as its template if the model's Jinja template writes that.

    None, with a note on stderr, if there is none that can be read.

    Raises:
        UserError: the tokenizer has more ids than the model, or has changed since `to-hf` wrote it.
    """
    try:
        tokenizer = note_left_out(load_tokenizer(directory), directory)
    except ChangedFileError:
        raise
    except UserError as error:
        print(format_message(f"note: imported without a tokenizer: {error}"), file=sys.stderr)
        return None
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} ids, but the model only {vocab_size}. Put the "
            "model's own tokenizer there, or remove the tokenizer's files to import without one."
        )
    return with_jinja(tokenizer, read_jinja_template(directory))
