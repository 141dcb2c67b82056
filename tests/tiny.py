"""What tests share: a text made by a formula, its shards, a model of two layers, and the real entry points."""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.config import TrainConfig
from gptjax.core.files import file_sha256
from gptjax.data.config import TokenShards
from gptjax.data.manifest import Counts, Manifest, ShardFile, Sidecar
from gptjax.data.shards import write_shard
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.optim import AdamW
from gptjax.optim.schedules import Cosine
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Chars, Tokenizer

ALPHABET = "\n !()*+,-.0123456789:=abcdefghijklmnopqrstuvwxyz"
SINGLE = MeshConfig("single")
MODEL = GPTConfig(
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    context_length=16,
    vocab_size=len(ALPHABET),
    compute=ComputeConfig(dtype="float32", remat="none"),
)


def text_of(lines: int) -> str:
    """Sums and squares in words and figures: the same on every Python, and with something in it to learn."""
    return "".join(
        f"{n}: {n}+{n % 7}={n + n % 7}, square {n * n}, {'even' if n % 2 else 'odd'}.\n" for n in range(lines)
    )


def tokenizer() -> Chars:
    return Chars.from_text(ALPHABET)


def write_shards(
    directory: Path,
    splits: dict[str, list[np.ndarray]],
    *,
    own: Tokenizer | None = None,
    sidecars: dict[tuple[str, str], np.ndarray] | None = None,
) -> Path:
    """Shards of the given tokens, several files to a split; with their manifest and tokenizer if there is one.

    `sidecars` are files beside them, by (split, kind); they need a manifest.
    """
    directory.mkdir(parents=True)
    files, counts, beside = {}, {}, {}
    for (split, kind), content in (sidecars or {}).items():
        assert kind in ("documents", "scored")
        path = directory / f"{split}.{kind}"
        content.astype("<i8" if kind == "documents" else np.uint8).tofile(path)
        beside[path.name] = Sidecar(split, kind, path.stat().st_size, file_sha256(path))
    for split, parts in splits.items():
        for index, part in enumerate(parts):
            path = directory / f"{split}_{index:06d}.bin"
            write_shard(path, np.asarray(part, np.uint16))
            files[path.name] = ShardFile(split, len(part), path.stat().st_size, file_sha256(path))
        size = sum(map(len, parts))
        documents = len((sidecars or {}).get((split, "documents"), [0]))
        counts[split] = Counts(documents=documents, tokens=size, bytes=size)
    if own is not None:
        own.save(directory)
        Manifest(own.name, own.fingerprint, own.vocab_size, "uint16", counts, files, beside).write(directory)
    return directory


def write_text_shards(directory: Path, *, lines: int = 120) -> Path:
    """The formula's text, its last sixth for validation, the training part in two files; each line is a document."""
    own = tokenizer()
    ids = own.encode(text_of(lines))
    cut, middle = len(ids) * 5 // 6, len(ids) // 3
    splits = {"train": [ids[:middle], ids[middle:cut]], "val": [ids[cut:]]}
    starts = np.concatenate([[0], 1 + np.flatnonzero(ids[: cut - 1] == own.encode("\n")[0])])
    return write_shards(directory, splits, own=own, sidecars={("train", "documents"): starts})


def tiny_config(shards: Path, **changes: Any) -> TrainConfig:
    """Ten steps of eight windows; `changes` are fields of TrainConfig, `model` changes of its model."""
    model = replace(MODEL, **changes.pop("model", {}))
    config = TrainConfig(
        name="tiny",
        output_dir=str(shards.parent / "runs"),
        steps=10,
        batch_size=8,
        model=model,
        data=TokenShards(path=str(shards)),
        optimizer=AdamW(learning_rate=3e-3, schedule=Cosine(warmup_steps=2)),
        mesh=SINGLE,
        checkpoint=CheckpointConfig(every=5, keep=10),
    )
    return replace(config, **changes)


def read_lines(run: Path, name: str = "loss") -> list[tuple[int, float]]:
    """(step, value) of every line of metrics.jsonl that has the value, in the order of the file."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record[name]) for record in records if name in record]


def find_classes(value: object) -> set[type]:
    """The classes of a config and of everything in it."""
    if isinstance(value, tuple):
        return set().union(*map(find_classes, value))
    return {type(value)}.union(*map(find_classes, vars(value).values())) if is_dataclass(value) else set()


def write_config(path: Path, config: TrainConfig) -> Path:
    """A config file that holds exactly this config: a dataclass's repr is Python."""
    imports = sorted(f"from {cls.__module__} import {cls.__name__}" for cls in find_classes(config))
    path.write_text("\n".join(['"""A tiny run."""', "", *imports, "", f"config = {config!r}", ""]))
    return path


_ports = itertools.count()


def find_free_port() -> int:
    """A port on which nobody listens, and another at each call. Linux gives it to no connection by default."""
    while True:
        port = 20_000 + (next(_ports) + 97 * os.getpid()) % 12_000
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("localhost", port))
            return port


def flip_bit(path: Path, at: int | None = None) -> None:
    """Of the byte at this place, by default one in the first half. Then the file has another time."""
    content, before = bytearray(path.read_bytes()), path.stat().st_ctime_ns
    content[len(content) // 3 if at is None else at] ^= 1
    path.write_bytes(content)
    while path.stat().st_ctime_ns == before:
        os.utime(path)


def start_entry_point(name: str, *words: str, devices: int = 1, **environment: str) -> subprocess.Popen:
    """An entry point in a process of its own, as a person starts it; stderr comes with stdout."""
    return python("-m", f"gptjax.{name}", *words, devices=devices, **environment)


def python(*words: str, devices: int = 1, **environment: str) -> subprocess.Popen:
    """A Python of its own, with these CPU devices; stderr comes with stdout."""
    own = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | own | environment,
    )
