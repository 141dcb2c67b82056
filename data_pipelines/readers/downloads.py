"""Small files from plain addresses, fetched once and checked; and the directory where they are kept."""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from gptjax.core.errors import UserError
from gptjax.core.files import write_atomically

TIMEOUT_SECONDS = 60


def cache_directory() -> Path:
    """Where things made or fetched once are kept: `$GPTJAX_CACHE`, else `~/.cache/gptjax`."""
    return Path(os.environ.get("GPTJAX_CACHE") or Path.home() / ".cache" / "gptjax")


def download(url: str, path: Path, *, sha256: str) -> bytes:
    """Return the content of `path`, fetched from `url` unless it is there with that hash."""
    if path.is_file() and _hash(content := path.read_bytes()) == sha256:
        return content
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as reply:
            content = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url}: cannot be fetched: {error}. Try again later.") from None
    if (found := _hash(content)) != sha256:
        raise UserError(f"{url}: the SHA-256 of its content is {found}, wanted {sha256}. Try again later.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return content


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
