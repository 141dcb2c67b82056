"""The fields of all config classes: a section that uses each class, another value, and what that value changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.config import TrainConfig
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.evaluators.bigram import BigramBaseline
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.finetuning.lora import LoRA
from gptjax.metrics.logger import LogConfig
from gptjax.metrics.loggers import TensorBoardLogger, WandbLogger
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.objectives.objective import SFT, NextToken
from gptjax.optim import (
    EMA,
    AdamW,
    Constant,
    Cosine,
    Linear,
    Muon,
    NamedGroup,
    ParamGroup,
    WarmupStableDecay,
)
from gptjax.sharding.mesh import MeshConfig
from gptjax.supervision.divergence import RollbackConfig
from gptjax.training.stages import Stage


def make_mixture(base: TrainConfig) -> Mixture:
    """Two components of different texts."""
    other = TokenShards(path=str(Path(base.data.path).with_name("other")))  # pyright: ignore[reportAttributeAccessIssue]
    return Mixture((MixtureComponent(base.data), MixtureComponent(other, 2.0)))


def replace_model(**changes: Any) -> Callable[[TrainConfig], TrainConfig]:
    return lambda base: replace(base, model=replace(base.model, **changes))


def place_objective(base: TrainConfig, objective: Any, *, data: Any, name: str) -> TrainConfig:
    """An objective that reads whole documents, with the data of this name."""
    path = str(Path(base.data.path).with_name(name))  # pyright: ignore[reportAttributeAccessIssue]
    model = replace(base.model, intra_document_mask=True)
    return replace(base, objective=objective, data=replace(data, path=path), model=model)


SECTIONS: dict[type, Callable[[TrainConfig], Any]] = {
    TrainConfig: lambda base: base,
    Stage: lambda base: Stage(1, batch_size=16, lr_scale=2.0),
    GPTConfig: lambda base: base.model,
    InitConfig: lambda base: base.model.init,
    ComputeConfig: lambda base: base.model.compute,
    TokenShards: lambda base: base.data,
    Mixture: make_mixture,
    MixtureComponent: lambda base: make_mixture(base).components[0],
    NextToken: lambda base: base.objective,
    SFT: lambda base: SFT(),
    LoRA: lambda base: LoRA(),
    AdamW: lambda base: base.optimizer,
    Muon: lambda base: Muon(
        schedule=Constant(), momentum_schedule=Constant(warmup_steps=2), ns_dtype="float32", weight_decay=0.1
    ),
    EMA: lambda base: EMA(0.9),
    ParamGroup: lambda base: ParamGroup(0.1),
    NamedGroup: lambda base: NamedGroup("token_embedding", ParamGroup(0.1)),
    MeshConfig: lambda base: MeshConfig(),
    CheckpointConfig: lambda base: CheckpointConfig(keep=2),
    RollbackConfig: lambda base: RollbackConfig(1, spike_factor=2.0),
    ValidationLoss: lambda base: ValidationLoss(),
    Samples: lambda base: Samples(prompt="1"),
    BigramBaseline: lambda base: BigramBaseline(),
    LogConfig: lambda base: base.log,
    TensorBoardLogger: lambda base: TensorBoardLogger(),
    WandbLogger: lambda base: WandbLogger(),
    Constant: lambda base: Constant(warmup_steps=2),
    Cosine: lambda base: Cosine(warmup_steps=2),
    Linear: lambda base: Linear(warmup_steps=2),
    WarmupStableDecay: lambda base: WarmupStableDecay(warmup_steps=2),
}
"""A section of each class, of a run that uses all of it."""


def place_section(base: TrainConfig, section: Any) -> TrainConfig:
    """The base with a section in its place."""
    match section:
        case TrainConfig():
            return section
        case MixtureComponent():
            return replace(base, data=Mixture((section, *make_mixture(base).components[1:])))
        case InitConfig():
            return replace(base, model=replace(base.model, init=section))
        case ComputeConfig():
            return replace(base, model=replace(base.model, compute=section))
        case ParamGroup():
            return replace(base, optimizer=replace(base.optimizer, head=section))
        case NamedGroup():
            return replace(base, optimizer=replace(base.optimizer, named_groups=(section,)))
        case Stage():
            return replace(base, stages=(section,))
        case ValidationLoss() | Samples() | BigramBaseline():
            return replace(base, evaluators=(section,))
        case SFT():
            return place_objective(base, section, data=TokenShards(packing="best_fit_truncate"), name="chat")
        case TensorBoardLogger() | WandbLogger():
            return replace(base, log=LogConfig(loggers=(section,)))
        case Constant() | Cosine() | Linear() | WarmupStableDecay():
            return replace(base, optimizer=replace(base.optimizer, schedule=section))
    names = {
        LoRA: "lora",
        GPTConfig: "model",
        MeshConfig: "mesh",
        CheckpointConfig: "checkpoint",
        RollbackConfig: "rollback",
        LogConfig: "log",
        EMA: "ema",
    }
    names |= dict.fromkeys((TokenShards, Mixture), "data") | dict.fromkeys((AdamW, Muon), "optimizer")
    return replace(base, **{(names | {NextToken: "objective"})[type(section)]: section})


PROGRAM: dict[type, dict[str, Any]] = {
    TrainConfig: {
        "seed": 1,
        "steps": 20,
        "schedule_steps": 20,
        "batch_size": 16,
        "grad_accum": 2,
        "stages": (Stage(1, batch_size=16),),
    },
    Stage: {"begin": 2, "batch_size": 32, "grad_accum": 2, "long_window": 7, "short_window": 5, "lr_scale": 3.0},
    GPTConfig: {
        "num_layers": 3,
        "embed_dim": 48,
        "num_heads": 4,
        "context_length": 8,
        "vocab_size": 50,
        "mlp_dim": 64,
        "bias": False,
        "tie_embeddings": True,
        "activation": "relu",
        "norm_epsilon": 1e-3,
        "dropout": 0.2,
        "positions": "learned",
        "rotary_base": 100.0,
        "rotary_fraction": 0.5,
        "norm": "rms",
        "norm_scale": False,
        "qk_norm": True,
        "qk_norm_scale": True,
        "attention_scale": 0.12,
        "gated_mlp": True,
        "head_bias": True,
        "logit_softcap": 15.0,
        "embedding_norm": True,
        "num_kv_heads": 1,
        "window_pattern": "S",
        "long_window": 5,
        "short_window": 7,
        "num_sinks": 3,
        "intra_document_mask": True,
        "unet_skips": "learned",
        "x0_mix": False,
        "value_residual": True,
        "value_embeddings": "01",
        "value_gate": True,
        "logit_softcap_curve": "sqrt",
    },
    InitConfig: {
        "scheme": "fan_in",
        "std": 0.03,
        "zero_projections": True,
        "embedding_std": 0.5,
        "head_std": 0.5,
        "mlp_scale": 0.5,
        "residual_mix": (1.0, 0.5),
        "x0_mix": (0.5, 0.5),
    },
    ComputeConfig: {
        "dtype": "bfloat16",
        "head_dtype": "bfloat16",
        "attention_impl": "cudnn",
        "query_block": 8,
        "remat": "full",
        "scan_layers": "off",
    },
    NextToken: {"chunk_tokens": 32, "z_loss": 1e-4},
    SFT: {"chunk_tokens": 32, "z_loss": 1e-4},
    AdamW: {
        "learning_rate": 0.1,
        "beta1": 0.8,
        "beta2": 0.8,
        "epsilon": 1e-3,
        "weight_decay": 0.3,
        "clip_norm": None,
        "named_groups": (NamedGroup("token_embedding", ParamGroup(0.5)),),
    },
    ParamGroup: {"learning_rate": 0.2, "beta1": 0.8, "beta2": 0.8, "epsilon": 1e-3, "weight_decay": 0.3},
    NamedGroup: {"name": "head"},
    Muon: {
        "learning_rate": 0.1,
        "momentum": 0.8,
        "momentum_min": 0.8,
        "nesterov": False,
        "ns_steps": 4,
        "ns_coefficients": "polar_express",
        "ns_dtype": "bfloat16",
        "update_scale": "rms",
        "matrix_split": "heads",
        "row_normalize": True,
        "normuon_beta2": 0.9,
        "weight_decay": 0.3,
        "cautious_decay": True,
        "adam_learning_rate": 0.1,
        "beta1": 0.8,
        "beta2": 0.8,
        "epsilon": 1e-3,
        "clip_norm": 1.0,
        "named_groups": (NamedGroup("token_embedding", ParamGroup(0.5)),),
    },
    EMA: {"decay": 0.99, "fraction": 0.5},
    MeshConfig: {"strategy": "fsdp", "data": 2, "fsdp": 2, "tensor": 2},
    Constant: {"warmup_steps": 3},
    Cosine: {"warmup_steps": 3, "min_ratio": 0.3, "decay_steps": 7},
    Linear: {"warmup_steps": 3, "min_ratio": 0.3, "decay_steps": 7},
    WarmupStableDecay: {"warmup_steps": 3, "decay_fraction": 0.5, "min_ratio": 0.3, "shape": "cosine"},
}
"""Another value of each field that changes the program."""
OTHERS: dict[type, dict[str, tuple[Any, str]]] = {
    TrainConfig: {
        "name": ("other", "directory"),
        "output_dir": ("elsewhere", "directory"),
        "evaluators": ((BigramBaseline(),), "evaluators"),
        "require_validation": (False, "without validation"),
        "init_from": ("/nowhere", "data"),
        "init_layers": ((0,), "data"),
        "max_consecutive_skips": (4, "skips"),
        "resume": ("never", "resume"),
        "max_time": ("1s", "stop"),
        "hang_timeout": ("1s", "watchdog"),
        "max_restarts": (2, "restarts"),
        "patience": (2, "stop"),
        "epoch_seeds": ("added", "late rows"),
        "row_offsets": (((1, 3),), "rows"),
    },
    ComputeConfig: {"deterministic": (True, "compiler")},
    LoRA: {
        "rank": (2, "adapters"),
        "alpha": (3.0, "adapters"),
        "targets": (("qkv",), "adapters"),
        "new_tokens": ((1,), "adapters"),
    },
    TokenShards: {
        "path": ("/nowhere", "data"),
        "format": ("raw-uint16", "data"),
        "tokenizer": ("bytes", "data"),
        "packing": ("bos_aligned", "data"),
        "prefetch": (5, "prefetch"),
    },
    Mixture: {
        "components": ((MixtureComponent(TokenShards(path="/nowhere")),), "data"),
        "validation": (1, "data"),
        "prefetch": (5, "prefetch"),
    },
    MixtureComponent: {"weight": (5.0, "rows"), "weight_schedule": (((1, 9.0),), "rows")},
    RollbackConfig: {"limit": (2, "skips"), "spike_factor": (3.0, "skips")},
    CheckpointConfig: {
        "every": (7, "due steps"),
        "every_minutes": (0.5, "due minutes"),
        "keep": (1, "checkpoints"),
        "keep_best": (False, "checkpoints"),
        "keep_every": (2, "checkpoints"),
        "best_metric": ("val_bpb", "best metric"),
    },
    ValidationLoss: {
        "every": (7, "due steps"),
        "tokens": (9, "validation"),
        "batch_size": (24, "validation"),
        "name": ("books", "validation"),
        "data": (TokenShards(path="/nowhere"), "validation"),
    },
    Samples: {
        "every": (7, "due steps"),
        "prompt": ("2", "sample"),
        "max_new_tokens": (3, "sample"),
        "temperature": (0.1, "sample"),
        "top_k": (None, "sample"),
        "seed": (1, "sample"),
        "name": ("other", "sample"),
    },
    LogConfig: {
        "every": (3, "log"),
        "tensorboard": (True, "log"),
        "wandb": ("offline", "log"),
        "wandb_project": ("other", "log"),
        "loggers": ((TensorBoardLogger(),), "log"),
    },
    WandbLogger: {"project": ("other", "log"), "mode": ("offline", "log")},
}
"""Another value of each other field, and the observation that it changes."""
FIELDS = {(cls, name): (value, "program") for cls, names in PROGRAM.items() for name, value in names.items()}
FIELDS |= {(cls, name): line for cls, names in OTHERS.items() for name, line in names.items()}
NEEDS: dict[tuple[type, str], Callable[[TrainConfig], TrainConfig]] = {
    (GPTConfig, "qk_norm_scale"): replace_model(qk_norm=True),
    (LogConfig, "wandb_project"): lambda base: replace(base, log=replace(base.log, wandb="offline")),
    (ComputeConfig, "scan_layers"): replace_model(window_pattern="L", short_window=None, value_embeddings=""),
}
"""Changes of the base without which a field has no effect."""
REFUSED = {
    (ComputeConfig, "attention_impl"),
    (TrainConfig, "init_from"),
    (TrainConfig, "init_layers"),
    (TrainConfig, "max_consecutive_skips"),
}
REFUSED |= {
    (LoRA, "rank"),
    (ValidationLoss, "data"),
    (TokenShards, "path"),
    (TokenShards, "format"),
    (TokenShards, "tokenizer"),
    (Mixture, "components"),
}
"""Fields whose other value cannot run here. The refusal shows that they are read."""
