"""TrainConfig: a whole run as one typed value, and the checks that need two of its sections."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.cli import config_files
from gptjax.core.diff import diff_configs
from gptjax.core.errors import UserError
from gptjax.core.files import expand_path, refuse_address
from gptjax.core.serialization import class_name
from gptjax.data.batch_size import BatchSize, RowOffsets, count_steps_by_part
from gptjax.data.config import TokenShards
from gptjax.data.epoch_order import EpochSeeds
from gptjax.data.source import DataSource
from gptjax.evaluators.evaluator import Evaluator
from gptjax.finetuning.lora import LoRA
from gptjax.metrics.logger import LogConfig
from gptjax.model.config import GPTConfig
from gptjax.objectives.objective import NextToken, Objective, get_row_kind
from gptjax.optim import AdamW, Optimizer
from gptjax.optim.ema import EMA
from gptjax.sharding.mesh import MeshConfig
from gptjax.supervision.divergence import RollbackConfig
from gptjax.training.stages import Phase, Stage, resolve_phases


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The same command again resumes it."""

    name: str = "gpt"
    """The run's directory is OUTPUT_DIR/NAME."""
    output_dir: str = "runs"
    """Directory that holds runs."""
    steps: int = 1000
    """Optimizer steps in all. A resumed run goes on to this number."""
    schedule_steps: int | None = None
    """Length of the schedules. None: `steps` at the run's first start; a later `steps` does not move it."""
    max_time: str | None = None
    """Save and stop this long after the start of the command, with status 75: `90m`, `11.5h` or `11:30:00`."""
    hang_timeout: str | None = "30m"
    """End with status 75 and the stacks of all threads in a file after this long without a step; four times as long
    while starting, compiling, evaluating and saving. None: wait forever."""
    max_restarts: int = 0
    """Start again after a failure (status 1, a crash, or 75 after a hang or a lost process), at most so many times in a
    row without a newer checkpoint. 0: never."""
    patience: int | None = None
    """Stop after so many evaluations in a row without a lower `checkpoint.best_metric`. None: never."""
    batch_size: int = 8
    """Sequences per optimizer step, over all devices and micro-batches."""
    grad_accum: int = 1
    """Gradient accumulation: micro-batches into which a batch is divided. Gradients of one at a time are in memory."""
    init_from: str | None = None
    """Run whose weights (their average, if it keeps one) and model shape a new run starts from; RUN@best and RUN@500
    name one of its checkpoints. Or the directory of a model that transformers saved, or hf:OWNER/REPO."""
    init_layers: tuple[int, ...] = ()
    """Layers of `init_from` that the model takes, counted from 0: a student with fewer layers. Empty: all."""
    resume: Literal["auto", "force", "never"] | int = "auto"
    """`auto` resumes if nothing that matters has changed; `force` resumes all the same; `never` refuses to touch a run
    that exists; a number goes back to the checkpoint of that step, once, and keeps the later ones aside."""
    seed: int = 1337
    """Seed of initial weights, order of the data and dropout."""
    epoch_seeds: EpochSeeds | None = None
    """Orders of the epochs after the first: `mixed` gives each seed its own; with `added`, epoch e of seed s is that of
    seed s + e. None: `mixed`, and `added` for a run that was begun before this option."""
    model: GPTConfig = GPTConfig()
    data: DataSource = TokenShards()
    optimizer: Optimizer = AdamW()
    objective: Objective = NextToken()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluators: tuple[Evaluator, ...] = ()
    """Evaluations during training."""
    require_validation: bool = True
    """Refuse data without a validation split where an evaluator reads it. False: such evaluators are left out."""
    log: LogConfig = LogConfig()
    ema: EMA = EMA()
    lora: LoRA = LoRA()
    stages: tuple[Stage, ...] = ()
    """Changes of batch, attention windows or learning rate from a step on. A later stage may be added on resume."""
    max_consecutive_skips: int = 10
    """Stop after this many updates in a row were skipped because they were not finite."""
    rollback: RollbackConfig = RollbackConfig()
    row_offsets: RowOffsets = ()
    """(step, rows) pairs: from that step on, the run reads that many rows further on. A run that goes back adds one."""

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("name is empty; it names a directory inside output_dir. Give --name=WORD.")
        if "/" in self.name or self.name in (".", ".."):
            raise UserError(f"name is {self.name!r}; it names a directory inside output_dir, so it has no slash.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it lies between 0 and {2**32 - 1}.")
        for field in ("steps", "max_consecutive_skips", "schedule_steps", "patience"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise UserError(f"{field} is {value}; it must be at least 1.")
        if self.max_restarts < 0:
            raise UserError(f"max_restarts is {self.max_restarts}; it must be at least 0.")
        refuse_address(self.output_dir)  # `~USER` may be of the machine on which a config was saved
        steps = [step for step, _ in self.row_offsets]
        if steps != sorted(steps) or min((number for offset in self.row_offsets for number in offset), default=0) < 0:
            raise UserError(f"row_offsets are {self.row_offsets}; wanted (step, rows) with ascending steps from 0 on.")
        _ = self.max_seconds, self.hang_seconds
        if self.init_layers and self.init_from is None:
            raise UserError(f"init_layers is {self.init_layers}, but no init_from is given whose layers these are.")
        if self.lora.enabled and self.init_from is None:
            raise UserError(f"lora.rank is {self.lora.rank}, but adapters need trained weights. Give --init-from=RUN.")
        if (rows := get_row_kind(self.objective)) != "text" and not self.model.intra_document_mask:
            raise UserError(
                f"objective is {type(self.objective).__name__}, whose rows hold several {rows} that must not see each "
                "other. Give --model.intra-document-mask."
            )
        _ = self.batch, self.phases

    @property
    def directory(self) -> Path:
        return expand_path(self.output_dir).absolute() / self.name

    @property
    def schedule_length(self) -> int:
        """Steps in which schedules end."""
        return self.steps if self.schedule_steps is None else self.schedule_steps

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds."""
        return None if self.max_time is None else parse_duration(self.max_time, where="max_time")

    @property
    def hang_seconds(self) -> float | None:
        """`hang_timeout` in seconds."""
        return None if self.hang_timeout is None else parse_duration(self.hang_timeout, where="hang_timeout")

    @property
    def batch(self) -> BatchSize:
        return BatchSize(self.batch_size, self.grad_accum)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Parts of the run in which nothing changes, in order, from step 0 on."""
        return resolve_phases(self.batch, self.model, self.stages)

    def tokens(self, steps: int) -> int:
        """Tokens in the first `steps` steps."""
        return sum(count * phase.tokens for phase, count in self._steps_by_phase(steps))

    def flops(self, steps: int, *, causal: bool) -> float:
        """FLOPs of the first `steps` steps, as `GPTConfig.flops_per_token` counts them."""
        return sum(
            count * phase.tokens * phase.model_config.flops_per_token(causal=causal)
            for phase, count in self._steps_by_phase(steps)
        )

    def _steps_by_phase(self, steps: int) -> list[tuple[Phase, int]]:
        """Each phase, and how many of the first `steps` steps are in it."""
        found = self.phases
        return list(zip(found, count_steps_by_part([phase.begin for phase in found], steps), strict=True))

    def history_until(self, step: int) -> str:
        """In words, how the steps before this one learned; phases that learn alike are told once."""
        begun = [phase for phase in self.phases if phase.begin < step or phase.begin == 0]
        pairs = zip([None, *begun], begun, strict=False)
        return "; ".join(phase.describe() for last, phase in pairs if last is None or last.summary != phase.summary)

    def check_mesh(self, mesh: MeshConfig) -> None:
        """Raise unless the batch and the model divide over a resolved mesh."""
        for phase in self.phases:
            phase.batch.check_devices(mesh)
        _, fsdp, tensor = mesh.shape
        model = self.model
        divided = (
            ("num_heads", model.num_heads, tensor, "tensor"),
            ("num_kv_heads", model.kv_heads, tensor, "tensor"),
            ("mlp_dim", model.hidden_dim, tensor, "tensor"),
            ("vocab_size (padded)", model.padded_vocab_size, tensor, "tensor"),
            ("embed_dim", model.embed_dim, fsdp, "fsdp"),
            ("kv_heads × head_dim", model.kv_heads * model.head_dim, fsdp if model.value_table_names else 1, "fsdp"),
        )
        for field, size, devices, axis in divided:
            if size % devices:
                raise UserError(
                    f"model.{field} {size} does not split over {devices} devices (mesh.{axis}). "
                    f"Choose a mesh.{axis} that divides it."
                )


def parse_duration(text: str, *, where: str) -> float:
    """Seconds of `90s`, `90m`, `11.5h`, `2d`, `MM:SS`, `HH:MM:SS`; `where` begins the error."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    try:
        if ":" in text:
            parts = [float(part) for part in text.split(":")]
            seconds = sum(part * 60**index for index, part in enumerate(reversed(parts)))
            valid = len(parts) <= 3
        else:
            seconds, valid = float(text[:-1]) * units[text[-1:]], True
    except (ValueError, KeyError):
        seconds, valid = 0.0, False
    if not valid or not 0 < seconds < float("inf"):
        raise UserError(f"{where} is {text!r}; wanted a time such as 90m, 11.5h or 11:30:00.")
    return seconds


def load_config(spec: str | Path) -> TrainConfig:
    """The config in the file of this name: `quickstart`, `configs/quickstart.py` or any path."""
    return config_files.load_config_file(spec, TrainConfig)[0]


RESUME_MAY_CHANGE = (
    "steps",
    "schedule_steps",
    "max_time",
    "hang_timeout",
    "max_restarts",
    "patience",
    "mesh",
    "grad_accum",
    "evaluators",
    "require_validation",
    "ema",  # training does not depend on it
    "checkpoint",
    "log",
    "output_dir",
    "name",
    "resume",
    "max_consecutive_skips",
    "rollback",
    "row_offsets",  # those of the steps so far are taken over
    "init_from",
    "init_layers",
    "objective.chunk_tokens",
    "model.compute.remat",
    "model.compute.scan_layers",
    "model.compute.attention_impl",
    "model.compute.query_block",
    "model.compute.deterministic",
    "stages",  # compared by `history_until`
    "data",  # compared by its fingerprint and `history_until`
)
"""Fields that a resumed run may change: apart from its length, they do not alter what is learned from which tokens."""


def compare_configs(saved: TrainConfig, wanted: TrainConfig) -> tuple[list[str], list[str]]:
    """(changes to report, changes to refuse) between a checkpoint's config and the one of the command line."""

    def line(path: str, old: Any, new: Any) -> str:
        if repr(old) == repr(new):  # classes of the same name in different modules
            return f"{path}: {class_name(type(old))} → {class_name(type(new))}"
        return f"{path}: {old!r} → {new!r}"

    def may_change(path: str) -> bool:
        return any(path == free or path.startswith(f"{free}.") for free in RESUME_MAY_CHANGE)

    changes = diff_configs(saved, wanted)
    reported = [line(*change) for change in changes if may_change(change[0]) and change[0] != "resume"]
    return reported, [line(*change) for change in changes if not may_change(change[0])]
