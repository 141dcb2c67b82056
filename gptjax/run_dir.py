"""A run directory, opened: the config, the tokenizer and the weights that a run left behind.

Everything is rebuilt from data (config.json through a list of our own classes), never by executing what was saved.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import jax
from jax.experimental import multihost_utils

from gptjax.config import CLASSES, TrainConfig
from gptjax.core.atomic import write_atomically
from gptjax.core.errors import UserError
from gptjax.core.provenance import collect_environment
from gptjax.core.settings import check_types, from_json, to_json
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, abstract_model, with_context_length
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer
from gptjax.training.checkpoint import restore_model, save_model
from gptjax.training.checkpoint_format import EMA_ITEM, MODEL, find_step, has_ema_item, read_metadata

CHECKPOINTS = "checkpoints"

OWN = ("dropout", "intra_document_mask", "dtype", "head_dtype", "attention", "remat", "layers")
"""What a run that starts from weights says of its model: how to compute and train it. The weights settle the rest."""
WINDOWS = ("window_pattern", "long_window", "short_window")
PLACES = ("context_length", "rotary_base", *WINDOWS)
"""What weights leave open: how far their layers look and, with rotary positions, for how long texts they are used."""


@dataclass(frozen=True)
class RunDir:
    """What `train` or `convert from-hf` wrote to a directory."""

    directory: Path
    config: TrainConfig
    tokenizer: Tokenizer | None

    @classmethod
    def open(cls, path: str | Path) -> "RunDir":
        """Read a run directory; a UserError says what is missing."""
        directory = Path(path).expanduser().absolute()
        file = directory / "config.json"
        if not file.is_file():
            raise UserError(f"{directory} is not a run directory: it has no config.json. Give the directory of a run.")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file}: not JSON: {error}.") from None
        try:
            config = from_json(content, CLASSES) if isinstance(content, dict) else None
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        if not isinstance(config, TrainConfig):
            raise UserError(f"{file}: does not hold the config of a run.")
        check_types(config, where=str(file))
        has_tokenizer = (directory / "tokenizer.json").is_file()
        return cls(directory, config, load_tokenizer(directory / "tokenizer.json") if has_tokenizer else None)

    def find_step(self, which: str | int = "latest") -> int:
        """The step of a checkpoint: a number that exists, `latest` or `best`."""
        return find_step(self.directory / CHECKPOINTS, which)

    def has_ema(self, which: str | int = "latest") -> bool:
        """Whether a checkpoint holds an average of the weights."""
        return has_ema_item(self.directory / CHECKPOINTS, self.find_step(which))

    def load_model(
        self,
        which: str | int = "latest",
        *,
        mesh: MeshConfig | None = None,
        context_length: int | None = None,
        ema: bool = True,
    ) -> GPT:
        """The weights of a checkpoint, sharded by `layout` (call it under `mesh.active()`).

        They are the run's average where it keeps one, unless `ema` is False: the last ones then. A `context`
        shorter than the run's keeps the first position embeddings; a longer one needs rotary positions.
        """
        step, item = self.find_step(which), EMA_ITEM if ema and self.has_ema(which) else MODEL
        self._check_tokenizer(step)
        model = restore_model(
            self.directory / CHECKPOINTS, abstract_model(self.config.model, mesh), step=step, item=item
        )
        return model if context_length is None else with_context_length(model, context_length)

    def _check_tokenizer(self, step: int) -> None:
        """Raise if tokenizer.json is not the one that the weights were trained with."""
        saved = read_metadata(self.directory / CHECKPOINTS, step).get("fingerprints", {}).get("tokenizer")
        file = self.directory / "tokenizer.json"
        if self.tokenizer is not None and saved not in (None, self.tokenizer.fingerprint):
            raise UserError(
                f"{file} is not the tokenizer that this run was trained with (fingerprint "
                f"{self.tokenizer.fingerprint[:12]}, the checkpoint says {saved[:12]}). Put the right one back."
            )
        if self.tokenizer is not None and self.tokenizer.vocab_size > self.config.model.resolved_vocab_size:
            raise UserError(
                f"{file} has {self.tokenizer.vocab_size} tokens, the model only {self.config.model.resolved_vocab_size}. "
                "Put the tokenizer of the model there, or remove it."
            )

    def require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(f"{self.directory} has no tokenizer.json. Put one there that fits the model.")
        return self.tokenizer


def write_run_files(
    directory: Path, config: TrainConfig, tokenizer: Tokenizer | None, *, source: str | None = None
) -> None:
    """What stands beside the checkpoints: config, its source, versions, tokenizer; each replaced in one move."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "environment.json", json.dumps(collect_environment(), indent=2) + "\n")
    if source is not None:
        write_atomically(directory / "config.py", source)
    if tokenizer is not None:
        tokenizer.save(directory)
    write_atomically(directory / "config.json", json.dumps(to_json(config), indent=2) + "\n")


def write_imported_run(directory: Path, *, model: GPT, tokenizer: Tokenizer | None) -> None:
    """A run directory that holds weights at step 0: an imported model."""
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} exists and is not empty. Choose another --output, or remove it.")
    config = TrainConfig(name=directory.name, output_dir=str(directory.absolute().parent), model=model.config)
    save_model(directory.absolute() / CHECKPOINTS, model, step=0, metadata={"config": to_json(config)})
    write_run_files(directory, config, tokenizer)


@contextlib.contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """The right to write to a run directory, lost with the process that has it; a UserError if another has it.

    Of several processes the first has it for all, and all are refused alike: one that left alone would be waited for.
    """
    with contextlib.ExitStack() as stack:
        failure = None
        try:
            if jax.process_index() == 0:
                directory.mkdir(parents=True, exist_ok=True)
                _lock(stack.enter_context((directory / ".lock").open("w")))
        except OSError as error:
            failure = error
        taken, failed = multihost_utils.broadcast_one_to_all(
            (isinstance(failure, BlockingIOError), failure is not None)
        )
        if taken:
            raise UserError(
                f"{directory}: another process is training this run. Wait for it or stop it, or choose another --name."
            )
        if failed:
            raise failure or UserError(f"{directory}: the first process cannot write there; it says why.")
        yield


def _lock(file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass


def merge_model_config(run: RunDir, wanted: GPTConfig) -> GPTConfig:
    """The model of a run that starts from the weights of another: theirs, computed and trained as `wanted` says.

    With learned positions the context is the shorter of the two, with rotary ones the wanted one. The rotary base and
    the windows (all three fields together) are no weights: they are the wanted ones, if those are not the defaults.
    """
    theirs, own = run.config.model, {field: getattr(wanted, field) for field in OWN}
    if any(getattr(wanted, field) != getattr(GPTConfig, field) for field in WINDOWS):
        own |= {field: getattr(wanted, field) for field in WINDOWS}
    if theirs.positions == "learned":
        return replace(theirs, **own, context_length=min(theirs.context_length, wanted.context_length))
    base = theirs.rotary_base if wanted.rotary_base is None else wanted.rotary_base
    return replace(theirs, **own, context_length=wanted.context_length, rotary_base=base)
