"""The whole run as one typed value, and the checks that need two of its sections."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptjax.averaging import Average
from gptjax.checkpoint import Checkpoint
from gptjax.data import Batch, Mixture, Part, TokenShards, spans
from gptjax.errors import UserError
from gptjax.evals import Bigram, Samples, ValidationLoss
from gptjax.gpt_config import GPTConfig
from gptjax.layout import Layout
from gptjax.logbook import Log
from gptjax.objective import NextToken
from gptjax.optim import Adam, AdamW, Muon, Named
from gptjax.schedules import Constant, Cosine, Linear, WarmupStableDecay
from gptjax.settings import differences
from gptjax.settings import load_config as load_config_as
from gptjax.stages import Phase, Stage, phases


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
    batch: Batch = Batch()
    model: GPTConfig = GPTConfig()
    data: TokenShards | Mixture = TokenShards()
    objective: NextToken = NextToken()
    optimizer: AdamW | Muon = AdamW()
    stages: tuple[Stage, ...] = ()
    """In what steps differ from the rest of the config; a coming stage may be added to a run that resumes."""
    averaging: Average = Average()
    layout: Layout = Layout()
    checkpoint: Checkpoint = Checkpoint()
    evals: tuple[ValidationLoss | Samples | Bigram, ...] = ()
    """What is judged, when."""
    log: Log = Log()
    start_from: str | None = None
    """A run directory (an imported one, say) whose weights (their average, if it keeps one), and so whose model, a new
    run starts from."""
    max_skipped: int = 10
    """Stop after this many updates in a row that were not finite and so not made."""
    resume: Literal["auto", "force", "never"] = "auto"
    """`auto` goes on where the run stopped, if nothing that matters has changed; `force` goes on in any case;
    `never` refuses to touch a run that exists."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in (".", ".."):
            raise UserError(f"name is {self.name!r}; it names a directory inside output_dir, so it has no slash.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it lies between 0 and {2**32 - 1}.")
        for field in ("steps", "max_skipped"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        _ = self.phases

    @property
    def directory(self) -> Path:
        return Path(self.output_dir).expanduser().absolute() / self.name

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
        return list(zip(found, spans([phase.begin for phase in found], steps), strict=True))

    def learned_until(self, step: int) -> str:
        """In words, how the steps before this one learned; only what makes a difference."""
        begun = [phase for phase in self.phases if phase.begin < step or phase.begin == 0]
        pairs = zip([None, *begun], begun, strict=False)
        return "; ".join(one.described() for last, one in pairs if last is None or last.learning != one.learning)

    def check_layout(self, layout: Layout) -> None:
        """Raise unless the batch and the model divide over a resolved layout."""
        for phase in self.phases:
            phase.batch.check_devices(layout)
        _, fsdp, tensor = layout.sizes
        model = self.model
        divided = (
            ("num_heads", model.num_heads, tensor, "tensor"),
            ("kv_heads", model.key_heads, tensor, "tensor"),
            ("mlp_width", model.hidden_width, tensor, "tensor"),
            ("vocab_size (padded)", model.padded_vocab_size, tensor, "tensor"),
            ("width", model.width, fsdp, "fsdp"),
            ("kv_heads × head width", model.key_heads * model.head_width, fsdp if model.value_tables else 1, "fsdp"),
        )
        for field, size, devices, axis in divided:
            if size % devices:
                raise UserError(
                    f"model.{field} {size} does not split over {devices} devices (layout.{axis}). "
                    f"Choose a layout.{axis} that divides it."
                )


def load_config(spec: str | Path) -> TrainConfig:
    """The config in the file of this name: `quickstart`, `configs/quickstart.py` or any path."""
    return load_config_as(spec, TrainConfig)


CLASSES = (
    TrainConfig,
    Batch,
    Stage,
    GPTConfig,
    TokenShards,
    Mixture,
    Part,
    NextToken,
    AdamW,
    Muon,
    Average,
    Adam,
    Named,
    Layout,
    Checkpoint,
    ValidationLoss,
    Samples,
    Bigram,
    Log,
    Constant,
    Cosine,
    Linear,
    WarmupStableDecay,
)
"""All that a saved config.json may be rebuilt from."""

MAY_CHANGE = (
    "steps",
    "layout",
    "batch.accumulate",
    "evals",
    "averaging",  # training does not look at it
    "checkpoint",
    "log",
    "output_dir",
    "name",
    "resume",
    "max_skipped",
    "start_from",
    "objective.chunk_tokens",
    "model.remat",
    "model.layers",
    "model.attention",
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

    changes = differences(saved, wanted)
    reported = [line(*change) for change in changes if may(change[0]) and change[0] != "resume"]
    return reported, [line(*change) for change in changes if not may(change[0])]
