"""Manifests that a test edits, as those of other programs or of earlier versions: without sums of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUMS = ("sha256", "tokenizer_files")


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Apply `change` to the content of a directory's manifest."""
    path = directory / "manifest.json"
    content = {name: value for name, value in json.loads(path.read_text()).items() if name not in SUMS}
    change(content)
    path.write_text(json.dumps(content))
