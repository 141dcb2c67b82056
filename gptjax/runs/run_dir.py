"""A run directory: the config, tokenizer and checkpoints of a run or of an imported model.

`RunDir.open` rebuilds everything from data. The run's own copy of its config file is never executed.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gptjax.checkpoints.checkpoint_format import EMA_ITEM, MODEL, check_path, find_step, has_item, read_metadata
from gptjax.checkpoints.integrity import list_steps
from gptjax.checkpoints.weights import restore_model, save_model
from gptjax.cli.config_files import import_modules
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.core.file_sums import (
    SUMS_FILE,
    DamagedFileError,
    find_damage,
    keep_sums,
    list_files,
    read_sums,
    sum_files,
    write_sums,
)
from gptjax.core.files import (
    atomic_directory,
    make_directories,
    read_text,
    replaced_files,
    write_atomically,
)
from gptjax.core.lazy import LazyModule
from gptjax.core.provenance import collect_environment
from gptjax.core.serialization import Modules, from_json, to_json
from gptjax.data.source import DataSource
from gptjax.finetuning.lora import LoRA
from gptjax.model.config import GPTConfig
from gptjax.process.console import print_once, warn_once
from gptjax.runs.checkpoint_spec import CHECKPOINTS, split_step
from gptjax.runs.saved_tokenizer import list_recorded, read_saved_tokenizer
from gptjax.sharding.devices import DType, list_device_kinds
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.tokenizer import SAVED_FILES, Tokenizer

if TYPE_CHECKING:
    from gptjax.finetuning import adapters
    from gptjax.model import gpt
else:
    adapters = LazyModule("gptjax.finetuning.adapters")
    gpt = LazyModule("gptjax.model.gpt")  # imports flax

T = TypeVar("T")
METRICS = "metrics.jsonl"
CONSOLE_LOG = "console.log"
ENVIRONMENT = "environment.json"
CONFIG_FILE = "config.json"
CONFIG_SOURCE = "config.py"
TOKENIZER_FILE = "tokenizer.json"
REFERENCE = "reference"
"""The directory of a reference's log-probabilities, with a `REFERENCE_FILE` and the files whose sums that lists."""
REFERENCE_FILE = "reference.json"
STARTED = (CONSOLE_LOG, CHECKPOINTS, REFERENCE)
"""What a start writes before `write_run_files`, besides the lock. The directories are empty, or have a reference."""
REPORTS = ("traceback-*.txt", "stacks-*.txt", "wandb_id")
"""Files that are written once, by a start of the run."""
_READ_FILES = (CONFIG_FILE, *SAVED_FILES)
"""The files beside the checkpoints on which what is read from them depends."""


@dataclass(frozen=True)
class RunDir:
    """The directory that `train` or `convert from-hf` wrote.

    Sampling, evaluating and exporting read `model_config`, `data` and `tokenizer` only. So they need no class of a
    user's own unless the data is one. `config` is the whole config.
    """

    directory: Path
    content: dict[str, Any]
    """config.json."""
    tokenizer: Tokenizer | None
    modules: Modules
    """Modules with a user's own classes."""
    step: int | None = None
    """The checkpoint that it was opened at, which `latest` then stands for. None: no certain one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "RunDir":
        if len(args) == 1 and not kwargs:
            raise TypeError(f"RunDir({args[0]!r}) reads nothing. Write RunDir.open({args[0]!r}).")
        return super().__new__(cls)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        imports: Iterable[str] | Modules = (),
        load_data_tokenizer: Callable[[], Tokenizer | None] | None = None,
    ) -> "RunDir":
        """Open a run directory.

        Args:
            path: a directory, or a checkpoint of it, such as `runs/x@best` or `runs/x@500`.
            imports: modules or Python files that define classes of the run's config. They are imported.
            load_data_tokenizer: the run goes on, with this tokenizer of its data, and needs one.

        A damaged tokenizer is replaced by the same one of the data, or of the run whose weights this one began with.

        Raises:
            UserError: something is missing or is not a run's.
        """
        directory, which = split_step(path)
        damaged = _find_damaged_files(directory)
        content = _read_config(directory, damage=damaged.get(CONFIG_FILE))
        modules = imports if isinstance(imports, Mapping) else import_modules(imports)
        goes_on = load_data_tokenizer is not None
        own = [("the data", load_data_tokenizer)] if goes_on else []
        recorded = list_recorded(content, modules)
        tokenizer = read_saved_tokenizer(directory, damaged, [*own, *recorded], goes_on=goes_on)
        step = None if which == "latest" else find_step(directory / CHECKPOINTS, which)
        run = cls(directory, content, tokenizer, modules, step)
        _ = run.model_config
        return run

    @functools.cached_property
    def config(self) -> TrainConfig:
        """The whole config. A `UserError` names a class that is not gptjax's and was not imported."""
        return from_json(self.content, TrainConfig, modules=self.modules, where=f"{self.directory}/config.json: config")

    @functools.cached_property
    def model_config(self) -> GPTConfig:
        return self._read_section("model", GPTConfig)

    @functools.cached_property
    def data(self) -> DataSource:
        """The run's data, prepared."""
        return self._read_section("data", DataSource)

    def _read_section(self, name: str, hint: Any) -> Any:
        where = f"{self.directory}/config.json: {name}"
        if name not in self.content:
            return getattr(TrainConfig, name)
        return from_json(self.content[name], hint, modules=self.modules, where=where)

    def find_step(self, which: str | int = "latest") -> int:
        """The step of a checkpoint: a number that exists, `latest` or `best`.

        Raises a `UserError` if there is none, or if the run was opened at another one.
        """
        if self.step is not None and which == "latest":
            which = self.step
        step = find_step(self.directory / CHECKPOINTS, which)
        if self.step not in (None, step):
            raise UserError(
                f"{self.directory} was named with step {self.step}, but --step={which} is {step}. Give one."
            )
        return step

    def has_ema(self, which: str | int = "latest") -> bool:
        """True if a checkpoint holds an average of the weights."""
        return has_item(self.directory / CHECKPOINTS, self.find_step(which), item=EMA_ITEM)

    def load_model(
        self,
        which: str | int = "latest",
        *,
        mesh: MeshConfig | None = None,
        context_length: int | None = None,
        ema: bool = True,
        dtype: DType | None = None,
    ) -> "gpt.GPT":
        """The weights of a checkpoint, sharded over `mesh`, with adapters merged. Call it under `mesh.activate()`.

        Args:
            context_length: a shorter one keeps the first position embeddings; a longer one needs rotary positions.
            ema: take the average of the weights where the run keeps one; otherwise the raw weights.
            dtype: type of activations; None: as trained.
        """
        model = adapters.merge_adapters(self.load_adapted_model(which, mesh=mesh, ema=ema, dtype=dtype))
        return model if context_length is None else gpt.with_context_length(model, context_length)

    def load_adapted_model(
        self,
        which: str | int = "latest",
        *,
        mesh: MeshConfig | None = None,
        ema: bool = True,
        dtype: DType | None = None,
    ) -> "gpt.GPT":
        """The same as `load_model`, with the adapters beside the weights if the run has any."""
        step, item = self.find_step(which), EMA_ITEM if ema and self.has_ema(which) else MODEL
        self._check_tokenizer(step)
        config = self.model_config
        if dtype is not None:
            config = replace(config, compute=replace(config.compute, dtype=dtype, head_dtype=None))
        target = adapters.abstract_adapted_model(config, self._read_section("lora", LoRA), mesh=mesh)
        return restore_model(self.directory / CHECKPOINTS, target, step=step, item=item)

    def _check_tokenizer(self, step: int) -> None:
        """Raise if tokenizer.json is not the one that the weights were trained with."""
        saved = read_metadata(self.directory / CHECKPOINTS, step).get("fingerprints", {}).get("tokenizer")
        file = self.directory / TOKENIZER_FILE
        if self.tokenizer is not None and saved not in (None, self.tokenizer.fingerprint):
            raise UserError(
                f"{file} is not the tokenizer that this run was trained with (fingerprint "
                f"{self.tokenizer.fingerprint[:12]}, the checkpoint says {saved[:12]}). Put the right one back."
            )
        vocab_size = self.model_config.resolved_vocab_size
        if self.tokenizer is not None and self.tokenizer.vocab_size > vocab_size:
            raise UserError(
                f"{file} has {self.tokenizer.vocab_size} tokens, the model only {vocab_size}. Put the tokenizer of the "
                "model there, or remove it."
            )

    def require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(f"{self.directory} has no tokenizer.json. Put one there that fits the model.")
        return self.tokenizer


def reopen_run(config: TrainConfig, modules: Modules | None) -> RunDir:
    """The directory of a run that goes on."""
    load_data_tokenizer = lambda: config.data.resolve().load_tokenizer()
    return RunDir.open(config.directory, imports=modules or {}, load_data_tokenizer=load_data_tokenizer)


def has_trained(directory: Path) -> bool:
    """Whether a run has a checkpoint. One that was stopped before its first has only a config, and decides nothing."""
    return (directory / CONFIG_FILE).is_file() and bool(list_steps(directory / CHECKPOINTS))


def write_run_files(
    directory: Path,
    config: TrainConfig,
    tokenizer: Tokenizer | None,
    *,
    source: str | None = None,
    others: Mapping[str, str] | None = None,
) -> None:
    """Replace the files beside the checkpoints: config, its source, versions, tokenizer, `others`.

    `checksums.json` lists them, the files of a stored reference, and reports of earlier starts. If one of them cannot
    be written, as on a full disk, all stay as they are. Raises an `OSError` that names it.
    """
    make_directories(directory)
    reports = keep_sums(directory, [path.name for pattern in REPORTS for path in directory.glob(pattern)])
    contents = {ENVIRONMENT: json.dumps(collect_environment(list_device_kinds()), indent=2) + "\n", **(others or {})}
    if source is not None:
        contents[CONFIG_SOURCE] = source
    contents[CONFIG_FILE] = json.dumps(to_json(config), indent=2) + "\n"
    with replaced_files(directory, last=SUMS_FILE) as temporary:
        for name in SAVED_FILES:  # the names of special tokens in them decide what is saved
            if (directory / name).is_file():
                write_atomically(temporary / name, (directory / name).read_bytes())
        if tokenizer is not None:
            tokenizer.save(temporary)
        for name, content in contents.items():
            write_atomically(temporary / name, content)
        references = [str(path.relative_to(directory)) for path in list_references(directory)]
        sums = sum_files(temporary, list_files(temporary)) | sum_files(directory, references)
        write_sums(temporary, sums | reports)
        stale = [name for name in SAVED_FILES if not (temporary / name).is_file()]
    for name in stale:
        (directory / name).unlink(missing_ok=True)


def warn_of_changed_files(directory: Path) -> None:
    """Print a warning for each file beside the checkpoints that is not as it was written, before a run replaces it."""
    try:
        sums = (read_sums(directory) or ({}, {}))[0]
    except DamagedFileError as error:
        print_once(f"warning: {error}. It is written again")
        return
    written = (CONFIG_FILE, CONFIG_SOURCE, ENVIRONMENT, *SAVED_FILES)
    for line in find_damage(directory, {name: sums[name] for name in written if name in sums}):
        print_once(f"warning: {line}. It is written again")


def list_references(directory: Path) -> list[Path]:
    """Each `REFERENCE_FILE` of a run: one, or one for each component of a mixture."""
    return sorted((directory / REFERENCE).rglob(REFERENCE_FILE))


def _find_damaged_files(directory: Path) -> dict[str, str]:
    """What is wrong with config and tokenizer, by name, as far as `checksums.json` lists them."""
    try:
        found = read_sums(directory)
    except DamagedFileError as error:
        warn_once(f"{error}. So changes of config and tokenizer do not show")
        return {}
    sums = {name: file_sum for name, file_sum in (found[0] if found else {}).items() if name in _READ_FILES}
    return {name: lines[0] for name, file_sum in sums.items() if (lines := find_damage(directory, {name: file_sum}))}


def _read_config(directory: Path, *, damage: str | None) -> dict[str, Any]:
    """config.json; if it is damaged, the config of the newest checkpoint that can be read, with a warning."""
    file = directory / CONFIG_FILE
    content = None
    if damage is None:
        try:
            content = json.loads(read_text(file))
        except FileNotFoundError:
            damage = f"{directory} is not a run directory: it has no config.json"
        except (ValueError, RecursionError) as error:
            damage = f"{file} is not JSON: {error}"
    if damage is not None:
        content = _read_saved_config(directory, damage)
    if not isinstance(content, dict) or content.get("class") != "gptjax.config:TrainConfig":
        earlier = isinstance(content, dict) and content.get("class") == "TrainConfig"
        why = ": it is of an earlier gptjax, whose names are no longer read. Train it anew" if earlier else ""
        raise UserError(f"{file}: does not hold the config of a run{why}.")
    return content


def _read_saved_config(directory: Path, damage: str) -> Any:
    for step in reversed(list_steps(directory / CHECKPOINTS)):
        with contextlib.suppress(UserError, KeyError):
            content = read_metadata(directory / CHECKPOINTS, step)["config"]
            warn_once(f"{damage}. The config of checkpoint {step} is used instead")
            return content
    raise UserError(f"{damage}. No checkpoint has a copy of it. Give the directory of a run.")


def write_imported_run(
    directory: Path, *, model: "gpt.GPT", tokenizer: Tokenizer | None, others: Mapping[str, str] | None = None
) -> None:
    """Write a run directory that holds weights at step 0. It appears once it is complete.

    `others` are further files, by name. Raises a UserError if the directory exists and is not empty.
    """
    check_path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} exists and is not empty. Choose another --output, or remove it.")
    config = TrainConfig(name=directory.name, output_dir=str(directory.absolute().parent), model=model.config)
    with atomic_directory(directory) as temporary:
        save_model(temporary / CHECKPOINTS, model, step=0, metadata={"config": to_json(config)})
        write_run_files(temporary, config, tokenizer, others=others)
