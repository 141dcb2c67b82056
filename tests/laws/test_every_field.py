"""Law: no field of a config is idle; changing it changes the program, a file, what is printed, or is refused.

The fields are found by looking at the classes, so a new one fails here until it has a line in `FIELDS`: another value
for it, and where the difference is seen.
"""

import dataclasses
import functools
import json
import re
import sys
import types
from dataclasses import replace

import grain
import jax
import jax.numpy as jnp
import pytest
from gptjax.core.settings import to_json
from tiny import SINGLE, tiny_config, tokenizer, write_text_shards

from gptjax import evaluators, state
from gptjax.config import CLASSES, TrainConfig
from gptjax.core.errors import UserError
from gptjax.data.batch_size import BatchSize
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.metrics.logger import LogConfig
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT, abstract_model
from gptjax.optim import AdamW, Muon, NamedGroup, ParamGroup
from gptjax.optim.ema import EMA
from gptjax.optim.schedules import Constant, Cosine, Linear, WarmupStableDecay
from gptjax.sharding.mesh import MeshConfig
from gptjax.train import (
    collect_fingerprints,
    make_phase_step,
    open_reader,
    open_run_loader,
    prepare_config,
    restore_run_state,
)
from gptjax.training.checkpoint import CheckpointConfig, CheckpointManager
from gptjax.training.checkpoint_format import FORMAT_VERSION
from gptjax.training.evaluators import BigramBaseline, EvalContext, Samples, ValidationLoss
from gptjax.training.nonfinite import NonFiniteGuard
from gptjax.training.objective import NextToken
from gptjax.training.stages import Stage

MODERN = {
    "positions": "rotary",
    "window_pattern": "LS",
    "short_window": 9,
    "x0_mix": True,
    "value_embeddings": "0.",
    "logit_softcap": 30.0,
    "layers": "auto",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A config in which every part is at work: dropout, an untied head, a schedule that falls."""
    shards = write_text_shards(tmp_path_factory.mktemp("fields") / "shards", lines=30)
    config = tiny_config(shards, model={"dropout": 0.1, "tie_embeddings": False, "num_heads": 2, **MODERN})
    return replace(config, optimizer=AdamW(schedule=Cosine(warmup_steps=2)))


def mixture(base):
    """Two parts, which differ in their packing."""
    other = replace(base.data, packing="bos_aligned")
    return Mixture((MixtureComponent(base.data), MixtureComponent(other, 2.0)))


SECTIONS = {
    TrainConfig: lambda base: base,
    BatchSize: lambda base: base.batch,
    Stage: lambda base: Stage(1, batch_size=16, lr_scale=2.0),
    GPTConfig: lambda base: base.model,
    TokenShards: lambda base: base.data,
    Mixture: mixture,
    MixtureComponent: lambda base: mixture(base).components[0],
    NextToken: lambda base: base.objective,
    AdamW: lambda base: base.optimizer,
    Muon: lambda base: Muon(
        schedule=Constant(), momentum_schedule=Constant(warmup_steps=2), dtype="float32", weight_decay=0.1
    ),
    EMA: lambda base: EMA(0.9),
    ParamGroup: lambda base: ParamGroup(0.1),
    NamedGroup: lambda base: NamedGroup("tokens", ParamGroup(0.1)),
    MeshConfig: lambda base: MeshConfig(),
    CheckpointConfig: lambda base: CheckpointConfig(keep=2),
    ValidationLoss: lambda base: ValidationLoss(),
    Samples: lambda base: Samples(prompt="1"),
    BigramBaseline: lambda base: BigramBaseline(),
    LogConfig: lambda base: base.log,
    Constant: lambda base: Constant(warmup_steps=2),
    Cosine: lambda base: Cosine(warmup_steps=2),
    Linear: lambda base: Linear(warmup_steps=2),
    WarmupStableDecay: lambda base: WarmupStableDecay(warmup_steps=2),
}
HOMES = {BatchSize: "batch", GPTConfig: "model", TokenShards: "data", NextToken: "objective", AdamW: "optimizer"}
HOMES |= {Mixture: "data", Muon: "optimizer", MeshConfig: "mesh", CheckpointConfig: "checkpoint", LogConfig: "log"}
HOMES |= {EMA: "ema"}


def placed(base, section):
    """The base with a section in its place."""
    cls = type(section)
    if cls is TrainConfig:
        return section
    if cls is MixtureComponent:
        return replace(base, data=Mixture((section, *mixture(base).components[1:])))
    if cls is Stage:
        return replace(base, stages=(section,))
    if cls in (ParamGroup, NamedGroup):
        own = {"head": section} if cls is ParamGroup else {"named": (section,)}
        return replace(base, optimizer=replace(base.optimizer, **own))
    if cls in HOMES:
        return replace(base, **{HOMES[cls]: section})
    if cls in (ValidationLoss, Samples, BigramBaseline):
        return replace(base, evaluators=(section,))
    return replace(base, optimizer=replace(base.optimizer, schedule=section))


# ------------------------------------------------------------------------------------- where a difference is seen


@functools.cache
def program(config):
    """What is compiled: the drawing of new weights, and the training step."""
    mesh = config.mesh.resolve(8)
    config.check_mesh(mesh)
    optimizer = config.optimizer.build(steps=config.steps, mesh=mesh)
    has_ema = config.ema.enabled
    with mesh.activate():
        draw = jax.make_jaxpr(lambda: GPT(config.model, key=jax.random.key(config.seed), mesh=mesh))()
        start = state.abstract_state(config.model, optimizer, mesh=mesh, has_ema=has_ema)
        batches, steps = open_run_loader(config, mesh), []
        for phase in config.phases:
            rows = batches.abstract_batch(phase.begin)
            steps.append(str(make_phase_step(config, mesh, phase).trace(start, rows).jaxpr))
    return re.sub(r"0x[0-9a-f]+", "", "\n".join([str(draw), *steps]))


def due(config):
    """The steps at which something happens."""
    questions = (config.checkpoint.should_save, *(evaluator.should_run for evaluator in config.evaluators))
    return [[step for step in range(2001) if should_act(step, steps=2000)] for should_act in questions]


def material(config):
    return EvalContext(config.data, tokenizer(), config.model, config.objective, MeshConfig())


def protocol(config):
    """What a validation loss measures, and in batches of how many windows."""
    judge = config.evaluators[0].open(material(config))
    return judge.protocol, judge.sequences


def generated(config):
    """What is asked of `generate`."""
    asked = []

    def generate(model, prompts, **options):
        asked.append((prompts, options | {"key": str(jax.random.key_data(options["key"]))}))
        return jnp.zeros((1, 1), jnp.int32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluators, "generate", generate)
        patch.setattr(type(tokenizer()), "decode", lambda self, ids: "")
        config.evaluators[0].open(material(config))(abstract_model(config.model))
    return asked


def data(config):
    """What is trained on, and what is judged."""
    found, own = prepare_config(config)
    return open_reader(found, own).fingerprint, found.data.open_stream("val").fingerprint, found.data.load_tokenizer()


def order(config):
    """The first rows, from whichever part they come."""
    config, own = prepare_config(config)
    batches = open_run_loader(config, MeshConfig(), tokenizer=own)
    return [(batches.read(step)["tokens"].tolist(), batches.epochs(step)) for step in range(3)]


def prefetched(config):
    """What grain is told about reading ahead."""
    told = []
    options = grain.ReadOptions

    def read_options(**words):
        told.append(words)
        return options(**words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grain, "ReadOptions", read_options)
        next(open_run_loader(config, MeshConfig()).iterate_from(0))
    return told


def kept(config, directory):
    """Which checkpoints stay of four, of which the first is the best."""
    weights = _weights(config.model)
    losses = {1: 1.0, 2: 3.0, 3: 2.0, 4: 2.5}
    with CheckpointManager(directory, config.checkpoint) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, weights, metadata={}, val_loss=loss)
    return sorted(path.name for path in directory.iterdir())


@functools.cache
def _weights(model):
    return state.create_state(model, AdamW().build(steps=1, mesh=SINGLE), seed=0, mesh=SINGLE)


def logged(config, directory, capsys):
    """What is printed and written of twelve steps, and what Weights & Biases is told."""
    from gptjax.metrics.logger import MetricLogger
    from gptjax.metrics.throughput import RunCost

    told = []
    run = types.SimpleNamespace(log=told.append, finish=lambda: None, define_metric=lambda *_, **__: None)
    fake = types.SimpleNamespace(
        init=lambda **words: told.append((words["project"], words["mode"])) or run, Settings=lambda **_: None
    )
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", fake)
        with MetricLogger(
            config.log, directory, total_steps=100, cost=RunCost(lambda step: step), clock=lambda: 0.0
        ) as log:
            for step in range(1, 13):
                log.step(step, {"loss": 1.0})
    return capsys.readouterr().out.count("step "), sorted(path.name for path in directory.iterdir()), told[:1]


def patience(config, directory):
    """Whether a run ends after four skipped updates in a row."""
    with CheckpointManager(directory, config.checkpoint) as checkpoints:
        watch = NonFiniteGuard(checkpoints, steps=config.steps, limit=config.max_consecutive_skips)
        for step in range(2):
            watch.check(step, {"consecutive_skips": jnp.int32(4)})


def resumption(config, directory):
    """Why a run that had another seed is not resumed."""
    (directory / "3" / "metadata").mkdir(parents=True)
    (directory / "3" / "commit_success.txt").touch()
    content = {
        "config": to_json(replace(config, seed=config.seed + 2)),
        "fingerprints": collect_fingerprints(config, open_reader(config, None), None),
    }
    content |= {"format_version": FORMAT_VERSION, "val_loss": None, "step": 3}
    (directory / "3" / "metadata" / "metadata").write_text(json.dumps(content))
    with CheckpointManager(directory, config.checkpoint) as checkpoints, pytest.raises(UserError) as refused:
        restore_run_state(config, checkpoints, collect_fingerprints(config, open_reader(config, None), None), SINGLE)
    return str(refused.value).replace(str(directory), "")


SEEN = {
    "a directory": lambda config, *_: config.directory,
    "the program": lambda config, *_: program(config),
    "its times": lambda config, *_: due(config),
    "a judgement": lambda config, *_: protocol(config),
    "a sample": lambda config, *_: generated(config),
    "the data": lambda config, *_: data(config),
    "the order": lambda config, *_: order(config),
    "reading ahead": lambda config, *_: prefetched(config),
    "the checkpoints": lambda config, directory, _: kept(config, directory),
    "the log": lambda config, directory, capsys: logged(config, directory, capsys),
    "an end": lambda config, directory, _: patience(config, directory),
    "a resumption": lambda config, directory, _: resumption(config, directory),
    "its judges": lambda config, *_: len(config.evaluators),
}
PROGRAM = {
    TrainConfig: {"seed": 1, "steps": 20, "stages": (Stage(1, batch_size=16),)},
    BatchSize: {"batch_size": 16, "grad_accum": 2},
    Stage: {"begin": 2, "batch_size": 32, "grad_accum": 2, "long_window": 7, "short_window": 5, "rate": 3.0},
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
        "init_std": 0.03,
        "positions": "learned",
        "rotary_base": 100.0,
        "rotary_fraction": 0.5,
        "norm": "rms",
        "norm_scale": False,
        "qk_norm": True,
        "attention_scale": 0.12,
        "gated_mlp": True,
        "head_bias": True,
        "logit_softcap": 15.0,
        "zero_init": True,
        "embedding_norm": True,
        "num_kv_heads": 1,
        "window_pattern": "S",
        "long_window": 5,
        "short_window": 7,
        "num_sinks": 3,
        "intra_document_mask": True,
        "unet_skips": "learned",
        "x0_mix": False,
        "residual_init": (1.0, 0.5),
        "x0_init": (0.5, 0.5),
        "value_residual": True,
        "value_embeddings": "01",
        "value_gate": True,
        "logit_softcap_curve": "sqrt",
        "init": "fan_in",
        "embedding_std": 0.5,
        "head_std": 0.5,
        "mlp_init": 0.5,
        "dtype": "bfloat16",
        "head_dtype": "bfloat16",
        "attention": "cudnn",
        "remat": "full",
        "layers": "unroll",
    },
    NextToken: {"chunk_tokens": 32, "z_loss": 1e-4},
    AdamW: {
        "learning_rate": 0.1,
        "beta1": 0.8,
        "beta2": 0.8,
        "epsilon": 1e-3,
        "weight_decay": 0.3,
        "clip_norm": None,
        "named_groups": (NamedGroup("tokens", ParamGroup(0.5)),),
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
        "named_groups": (NamedGroup("tokens", ParamGroup(0.5)),),
    },
    EMA: {"decay": 0.99, "fraction": 0.5},
    MeshConfig: {"strategy": "fsdp", "data": 2, "fsdp": 2, "tensor": 2},
    Constant: {"warmup_steps": 3},
    Cosine: {"warmup_steps": 3, "min_ratio": 0.3, "decay_steps": 7},
    Linear: {"warmup_steps": 3, "min_ratio": 0.3, "decay_steps": 7},
    WarmupStableDecay: {"warmup_steps": 3, "decay_fraction": 0.5, "min_ratio": 0.3, "shape": "cosine"},
}
ELSEWHERE = {
    TrainConfig: {
        "name": ("other", "a directory"),
        "output_dir": ("elsewhere", "a directory"),
        "evaluators": ((BigramBaseline(),), "its judges"),
        "init_from": ("/nowhere", "the data"),
        "max_consecutive_skips": (4, "an end"),
        "resume": ("never", "a resumption"),
    },
    TokenShards: {
        "path": ("/nowhere", "the data"),
        "format": ("raw-uint16", "the data"),
        "tokenizer": ("bytes", "the data"),
        "packing": ("bos_aligned", "the data"),
        "prefetch": (5, "reading ahead"),
    },
    Mixture: {
        "components": ((MixtureComponent(TokenShards(path="/nowhere")),), "the data"),
        "validation": (1, "the data"),
        "prefetch": (5, "reading ahead"),
    },
    MixtureComponent: {"weight": (5.0, "the order"), "weight_schedule": (((1, 9.0),), "the order")},
    CheckpointConfig: {
        "every": (7, "its times"),
        "keep": (1, "the checkpoints"),
        "keep_best": (False, "the checkpoints"),
    },
    ValidationLoss: {"every": (7, "its times"), "tokens": (9, "a judgement"), "batch_size": (24, "a judgement")},
    Samples: {
        "every": (7, "its times"),
        "prompt": ("2", "a sample"),
        "max_new_tokens": (3, "a sample"),
        "temperature": (0.1, "a sample"),
        "top_k": (None, "a sample"),
        "seed": (1, "a sample"),
    },
    LogConfig: {
        "every": (3, "the log"),
        "tensorboard": (True, "the log"),
        "wandb": ("offline", "the log"),
        "wandb_project": ("other", "the log"),
    },
}
BESIDE = {
    (LogConfig, "wandb_project"): {"wandb": "offline"},
    (GPTConfig, "layers"): {"window_pattern": "L", "short_window": None, "value_embeddings": ""},
}
"""What other fields must be for a field to matter."""
FIELDS = {(cls, name): (value, "the program") for cls, names in PROGRAM.items() for name, value in names.items()}
FIELDS |= {(cls, name): line for cls, names in ELSEWHERE.items() for name, line in names.items()}
REFUSED = {(GPTConfig, "attention"), (TokenShards, "path"), (TokenShards, "format"), (TrainConfig, "init_from")}
REFUSED |= {(TokenShards, "tokenizer"), (Mixture, "parts")}
REFUSED |= {(TrainConfig, "max_consecutive_skips")}
"""Fields whose other value cannot run here: that it is refused shows that it is read."""


def test_every_field_has_a_line_here(base):
    """A field that holds a section is known by the section's own fields."""
    holds_sections = lambda cls, name: dataclasses.is_dataclass(getattr(SECTIONS[cls](base), name))
    found = {(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls)}
    assert set(SECTIONS) == set(CLASSES)
    assert {(cls, name) for cls, name in found if not holds_sections(cls, name)} == set(FIELDS)


def test_looking_twice_sees_the_same(base):
    assert program.__wrapped__(base) == program.__wrapped__(base)


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_changing_it_is_seen(base, tmp_path, capsys, cls, name):
    value, where = FIELDS[cls, name]
    section = SECTIONS[cls](base)
    assert value != getattr(section, name)
    section = replace(section, **BESIDE.get((cls, name), {}))

    def seen(section, directory):
        directory.mkdir()
        try:
            return SEEN[where](placed(base, section), directory, capsys)
        except UserError as error:
            return f"refused: {error}"

    before, after = (seen(one, tmp_path / str(i)) for i, one in enumerate((section, replace(section, **{name: value}))))
    assert not str(before).startswith("refused"), before
    assert after != before
    assert str(after).startswith("refused") == ((cls, name) in REFUSED), after
