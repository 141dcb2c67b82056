"""What `--checkpoint` names, by one rule for every command: a run, a saved model's directory, or one on the hub."""

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.core.errors import UserError, quote
from gptjax.core.files import read_text, suggest_neighbour
from gptjax.core.lazy import LazyModule
from gptjax.core.serialization import Modules
from gptjax.data.config import TokenShards
from gptjax.data.source import DataSource
from gptjax.model.config import GPTConfig
from gptjax.runs.checkpoint_spec import CHECKPOINTS, split_step
from gptjax.runs.run_dir import RunDir
from gptjax.sharding.devices import DType
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptjax.huggingface import model_dir, model_import, safetensors_dir
    from gptjax.huggingface.architectures.architecture import HFOrigin
    from gptjax.model import gpt
else:
    # These import flax, which --help does not need.
    gpt = LazyModule("gptjax.model.gpt")
    model_dir = LazyModule("gptjax.huggingface.model_dir")
    model_import = LazyModule("gptjax.huggingface.model_import")
    safetensors_dir = LazyModule("gptjax.huggingface.safetensors_dir")

HUB_PREFIX = "hf:"
WANTED = "Give a run, the directory of a model that transformers saved, or hf:OWNER/REPO."
HUB_NAMES = {
    name: f"The hub's is {HUB_PREFIX}openai-community/{name}."
    for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}
"""What to say where no model here has this name."""
NANOGPT_WORDS = HUB_NAMES | {
    "scratch": "Without --init-from the weights begin at random.",
    "resume": "The same command, with the same --name, continues a run.",
}
"""What nanoGPT's --init_from means here where no directory has that name."""


@dataclass(frozen=True)
class SavedModel:
    """A directory in Hugging Face's format, read in place. It answers what `RunDir` answers, for one checkpoint."""

    directory: Path
    model_config: GPTConfig
    """What config.json says. The type of the computation is decided when the weights are read."""
    tokenizer: Tokenizer | None

    @classmethod
    def open(cls, directory: Path) -> "SavedModel":
        """Read config and tokenizer. Raises `UserError` for what cannot be imported."""
        config = model_import.read_model_config(directory)
        tokenizer = model_dir.read_tokenizer(directory, vocab_size=config.resolved_vocab_size)
        return cls(directory, config, tokenizer)

    @property
    def data(self) -> DataSource:
        """No data: a saved model does not say what it was trained on."""
        return TokenShards()

    @functools.cached_property
    def trained_at(self) -> "safetensors_dir.TrainedAt | None":
        """The run and the step that an export of gptjax names. Raises `UserError` for weights that cannot be read."""
        return safetensors_dir.read_trained_at(self.directory)

    def find_step(self, which: str | int = "latest") -> int | None:
        """The step of the only weights; None if they do not say one."""
        step = self.trained_at.step if self.trained_at else None
        if str(which) not in ("latest", "best", "0" if step is None else str(step)):
            raise UserError(f"{self.directory} is a saved model with one set of weights; it has no step {which}.")
        return step

    def has_ema(self, which: str | int = "latest") -> bool:
        """False: nothing says whether the weights are an average."""
        return False

    def load_model(
        self,
        which: str | int = "latest",
        *,
        mesh: MeshConfig | None = None,
        context_length: int | None = None,
        ema: bool = True,
        dtype: DType | None = None,
    ) -> "gpt.GPT":
        """The weights, sharded over `mesh`. The arguments are those of `RunDir.load_model`; `ema` changes nothing."""
        self.find_step(which)
        model, _ = self.import_weights(mesh=mesh, dtype=dtype)
        return model if context_length is None else gpt.with_context_length(model, context_length)

    def import_weights(
        self, *, mesh: MeshConfig | None = None, dtype: DType | None = None
    ) -> "tuple[gpt.GPT, HFOrigin]":
        """The weights, and what an export restores of the directory."""
        _, model, origin = model_import.from_hf(self.directory, mesh=mesh, dtype=dtype)
        return model, origin

    def require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(f"{self.directory} has no tokenizer that can be read. Put its tokenizer.json there.")
        return self.tokenizer


Checkpoint = RunDir | SavedModel


def name_step(run: Checkpoint, which: str | int = "latest") -> dict[str, Any]:
    """The step of a checkpoint for a report; for an export the run, too, and for other saved models nothing."""
    step = run.find_step(which)
    if isinstance(run, RunDir):
        return {"step": step}
    return {} if run.trained_at is None else {"step": step, "run": run.trained_at.run}


def find_trained_at(run: Checkpoint, which: str | int = "latest") -> "safetensors_dir.TrainedAt | None":
    """The run and the step at which the weights were trained, as far as it is known; None for imported weights."""
    if isinstance(run, SavedModel):
        return run.trained_at
    step = run.find_step(which)
    return safetensors_dir.TrainedAt(run.directory.name, step) if step else None


def describe_source(run: Checkpoint, which: str | int = "latest") -> str:
    """The name of a checkpoint's directory and, as far as it is known, where its weights were trained."""
    found = name_step(run, which)
    step = f"step {found['step']}" if found else ""
    name = run.directory.name
    if "run" in found:
        return f"{name} ({step} of {quote(found['run'])})"
    return f"{name} at {step}" if step else name


def open_checkpoint(spec: str | Path, *, imports: Iterable[str] | Modules = ()) -> Checkpoint:
    """Open what `--checkpoint` names.

    Args:
        spec: a run directory, one of its checkpoints (`RUN@best`, `RUN@500`), the directory of a model that
            transformers saved, or `hf:OWNER/REPO[@REVISION]`, which is fetched from the hub.
        imports: see `RunDir.open`.

    Raises:
        UserError: there is no such thing, or it cannot be read.
    """
    if str(spec).startswith(HUB_PREFIX):
        return SavedModel.open(model_dir.fetch_from_hub(str(spec).removeprefix(HUB_PREFIX)))
    directory, which = split_step(spec)
    if not (directory / "config.json").is_file() and not (directory / CHECKPOINTS).is_dir():
        if directory.exists():
            advice = model_dir.explain_no_model(directory).strip() or HUB_NAMES.get(str(spec), WANTED)
            raise UserError(f"{directory} is not a run directory or a saved model: it has no config.json. {advice}")
        advice = suggest_neighbour(directory) or f" {NANOGPT_WORDS.get(str(spec), WANTED)}"
        raise UserError(f"{directory} is not there.{advice}")
    if not is_saved_model(directory):
        return RunDir.open(spec, imports=imports)
    model = SavedModel.open(directory)
    model.find_step(which)
    return model


def locate_checkpoint(spec: str) -> str:
    """What `--checkpoint` names, the same for every spelling of a directory."""
    if spec.startswith(HUB_PREFIX):
        return spec
    directory, which = split_step(spec)
    return f"{directory.resolve()}@{which}"


def is_saved_model(directory: Path) -> bool:
    """Whether the config.json of a directory is one of Hugging Face's. `RunDir.open` explains all other faults."""
    try:
        content = json.loads(read_text(directory / "config.json"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "class" not in content and "model_type" in content
