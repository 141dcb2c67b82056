"""The whole run as one typed value, and the checks that need two of its sections."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptjax.core.errors import UserError
from gptjax.core.settings import diff_configs
from gptjax.core.settings import load_config as load_config_as
from gptjax.data.batch_size import BatchSize, count_steps_by_part
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.metrics.logger import LogConfig
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.optim.ema import EMA
from gptjax.optim.optimizers import AdamW, Muon, NamedGroup, ParamGroup
from gptjax.optim.schedules import Constant, Cosine, Linear, WarmupStableDecay
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.checkpoint import CheckpointConfig
from gptjax.training.evaluators import BigramBaseline, Samples, ValidationLoss
from gptjax.training.objective import NextToken
from gptjax.training.stages import Phase, Stage, phases


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The same command again resumes it."""

    name: str = "gpt"
    """The run's directory is OUTPUT_DIR/NAME."""
    output_dir: str = "runs"
    """Where runs are kept."""
    seed: int = 1337
    """Decides initial weights, the order of the data and dropout."""
    steps: int = 1000
    """Optimizer steps in all; a resumed run goes on to this number."""
    batch_size: int = 8
    """Sequences per optimizer step, over all devices and micro-batches."""
    grad_accum: int = 1
    """Gradient accumulation: micro-batches into which a batch is divided. Gradients of one at a time are in memory."""
    model: GPTConfig = GPTConfig()
    data: TokenShards | Mixture = TokenShards()
    objective: NextToken = NextToken()
    optimizer: AdamW | Muon = AdamW()
    stages: tuple[Stage, ...] = ()
    """In what steps differ from the rest of the config; a coming stage may be added to a run that resumes."""
    ema: EMA = EMA()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluators: tuple[ValidationLoss | Samples | BigramBaseline, ...] = ()
    """What is judged, when."""
    log: LogConfig = LogConfig()
    init_from: str | None = None
    """A run directory (an imported one, say) whose weights (their average, if it keeps one), and so whose model, a new
    run starts from."""
    max_consecutive_skips: int = 10
    """Stop after this many updates in a row that were not finite and so not made."""
    resume: Literal["auto", "force", "never"] = "auto"
    """`auto` goes on where the run stopped, if nothing that matters has changed; `force` goes on in any case;
    `never` refuses to touch a run that exists."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in (".", ".."):
            raise UserError(f"name is {self.name!r}; it names a directory inside output_dir, so it has no slash.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it lies between 0 and {2**32 - 1}.")
        for field in ("steps", "max_consecutive_skips"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        _ = self.batch, self.phases

    @property
    def directory(self) -> Path:
        return Path(self.output_dir).expanduser().absolute() / self.name

    @property
    def batch(self) -> BatchSize:
        return BatchSize(self.batch_size, self.grad_accum)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The parts of the run in which nothing changes, in order, from step 0 on."""
        return phases(self.batch, self.model, self.stages)

    def tokens(self, steps: int) -> int:
        """Tokens that the first `steps` steps learn from."""
        return sum(count * phase.tokens for phase, count in self._parts(steps))

    def flops(self, steps: int, *, causal: bool) -> float:
        """FLOPs of the first `steps` steps, as `GPTConfig.flops_per_token` counts them."""
        return sum(
            count * phase.tokens * phase.model.flops_per_token(causal=causal) for phase, count in self._parts(steps)
        )

    def _parts(self, steps: int) -> list[tuple[Phase, int]]:
        """Each phase, and how many of the first `steps` steps are in it."""
        found = self.phases
        return list(zip(found, count_steps_by_part([phase.begin for phase in found], steps), strict=True))

    def history_until(self, step: int) -> str:
        """In words, how the steps before this one learned; only what makes a difference."""
        begun = [phase for phase in self.phases if phase.begin < step or phase.begin == 0]
        pairs = zip([None, *begun], begun, strict=False)
        return "; ".join(one.describe() for last, one in pairs if last is None or last.learning != one.learning)

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


def load_config(spec: str | Path) -> TrainConfig:
    """The config in the file of this name: `quickstart`, `configs/quickstart.py` or any path."""
    return load_config_as(spec, TrainConfig)


CLASSES = (
    TrainConfig,
    Stage,
    GPTConfig,
    InitConfig,
    ComputeConfig,
    TokenShards,
    Mixture,
    MixtureComponent,
    NextToken,
    AdamW,
    Muon,
    EMA,
    ParamGroup,
    NamedGroup,
    MeshConfig,
    CheckpointConfig,
    ValidationLoss,
    Samples,
    BigramBaseline,
    LogConfig,
    Constant,
    Cosine,
    Linear,
    WarmupStableDecay,
)
"""All that a saved config.json may be rebuilt from."""

MAY_CHANGE = (
    "steps",
    "mesh",
    "grad_accum",
    "evaluators",
    "ema",  # training does not look at it
    "checkpoint",
    "log",
    "output_dir",
    "name",
    "resume",
    "max_consecutive_skips",
    "init_from",
    "objective.chunk_tokens",
    "model.compute.remat",
    "model.compute.scan_layers",
    "model.compute.attention_impl",
    "stages",  # what they have changed already is compared by itself, as are the shares of a mixture
    "data",  # what the data says is compared by its fingerprint, not by where it lies
)
"""Fields that a resumed run may change: apart from its length, they do not alter what is learned from which tokens."""


def compare(saved: TrainConfig, wanted: TrainConfig) -> tuple[list[str], list[str]]:
    """(changes to report, changes to refuse) between a checkpoint's config and the one of the command line."""

    def line(path: str, old: Any, new: Any) -> str:
        return f"{path}: {old!r} → {new!r}"

    def may(path: str) -> bool:
        return any(path == free or path.startswith(f"{free}.") for free in MAY_CHANGE)

    changes = diff_configs(saved, wanted)
    reported = [line(*change) for change in changes if may(change[0]) and change[0] != "resume"]
    return reported, [line(*change) for change in changes if not may(change[0])]
