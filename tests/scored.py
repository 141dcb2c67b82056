"""Made conversations and pairs as shards: random ids in documents, with marks of what is scored."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny import ALPHABET, tokenizer, write_shards

from gptjax.data.manifest import read_manifest

Document = tuple[np.ndarray, np.ndarray]
"""Ids, and 1 for each that is scored."""


def draw_documents(count: int, *, seed: int, longest: int = 14, unscored: bool = True) -> list[Document]:
    """Documents of a prompt and an answer; in every fifth nothing is scored, if `unscored`."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        prompt, answer = rng.integers(1, 6), rng.integers(1, longest - 6)
        mask = np.repeat([0, 1], [prompt, answer]).astype(np.uint8)
        mask *= not (unscored and number % 5 == 4)
        found.append((rng.integers(0, len(ALPHABET), prompt + answer), mask))
    return found


def draw_pairs(count: int, *, seed: int) -> list[Document]:
    """Chosen and rejected documents in turn; both begin with the same prompt."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        prompt = rng.integers(0, len(ALPHABET), rng.integers(1, 4))
        for _ in range(2):
            answer = rng.integers(0, len(ALPHABET), rng.integers(1, 5))
            mask = np.repeat([0, 1], [len(prompt), len(answer)]).astype(np.uint8)
            found.append((np.concatenate([prompt, answer]), mask))
    return found


def write_documents(directory: Path, splits: dict[str, list[Document]], *, kind: str = "chat") -> Path:
    """Shards of these documents with both sidecars, as preparation writes them."""
    sidecars = {}
    for split, documents in splits.items():
        lengths = np.array([len(ids) for ids, _ in documents])
        sidecars[split, "documents"] = np.cumsum(lengths) - lengths
        sidecars[split, "scored"] = np.concatenate([mask for _, mask in documents])
    parts = {split: [np.concatenate([ids for ids, _ in documents])] for split, documents in splits.items()}
    path = write_shards(directory, parts, own=tokenizer(), sidecars=sidecars)
    manifest = read_manifest(path)
    assert manifest is not None
    replace(manifest, request={"kind": kind}).write(path)
    return path
