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
from tiny import SINGLE, tiny_config, tokenizer, write_text_shards

from gptjax import evals, state
from gptjax.averaging import Average
from gptjax.checkpoint import Checkpoint, Checkpoints
from gptjax.config import CLASSES, TrainConfig
from gptjax.data import Batch, Mixture, Part, TokenShards, fingerprint, validation_of
from gptjax.errors import UserError
from gptjax.evals import Bigram, Material, Samples, ValidationLoss
from gptjax.gpt_config import GPTConfig
from gptjax.layout import Layout
from gptjax.logbook import Log
from gptjax.model import GPT, abstract
from gptjax.objective import NextToken
from gptjax.optim import Adam, AdamW, Muon, Named
from gptjax.schedules import Constant, Cosine, Linear, WarmupStableDecay
from gptjax.settings import to_json
from gptjax.stages import Stage
from gptjax.stopping import Patience
from gptjax.train import fingerprints, opened_batches, prepared, resumed, step_of

MODERN = {
    "positions": "rotary",
    "windows": "LS",
    "short_window": 9,
    "x0_mix": True,
    "value_embeddings": "0.",
    "softcap": 30.0,
    "layers": "auto",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A config in which every part is at work: dropout, an untied head, a schedule that falls."""
    shards = write_text_shards(tmp_path_factory.mktemp("fields") / "shards", lines=30)
    config = tiny_config(shards, model={"dropout": 0.1, "tied": False, "num_heads": 2, **MODERN})
    return replace(config, optimizer=AdamW(schedule=Cosine(warmup=2)))


def mixture(base):
    """Two parts, which differ in their packing."""
    other = replace(base.data, packing="documents")
    return Mixture((Part(base.data), Part(other, 2.0)))


SECTIONS = {
    TrainConfig: lambda base: base,
    Batch: lambda base: base.batch,
    Stage: lambda base: Stage(1, sequences=16, rate=2.0),
    GPTConfig: lambda base: base.model,
    TokenShards: lambda base: base.data,
    Mixture: mixture,
    Part: lambda base: mixture(base).parts[0],
    NextToken: lambda base: base.objective,
    AdamW: lambda base: base.optimizer,
    Muon: lambda base: Muon(
        schedule=Constant(), momentum_schedule=Constant(warmup=2), dtype="float32", weight_decay=0.1
    ),
    Average: lambda base: Average(0.9),
    Adam: lambda base: Adam(0.1),
    Named: lambda base: Named("tokens", Adam(0.1)),
    Layout: lambda base: Layout(),
    Checkpoint: lambda base: Checkpoint(keep=2),
    ValidationLoss: lambda base: ValidationLoss(),
    Samples: lambda base: Samples(prompt="1"),
    Bigram: lambda base: Bigram(),
    Log: lambda base: base.log,
    Constant: lambda base: Constant(warmup=2),
    Cosine: lambda base: Cosine(warmup=2),
    Linear: lambda base: Linear(warmup=2),
    WarmupStableDecay: lambda base: WarmupStableDecay(warmup=2),
}
HOMES = {Batch: "batch", GPTConfig: "model", TokenShards: "data", NextToken: "objective", AdamW: "optimizer"}
HOMES |= {Mixture: "data", Muon: "optimizer", Layout: "layout", Checkpoint: "checkpoint", Log: "log"}
HOMES |= {Average: "averaging"}


def placed(base, section):
    """The base with a section in its place."""
    cls = type(section)
    if cls is TrainConfig:
        return section
    if cls is Part:
        return replace(base, data=Mixture((section, *mixture(base).parts[1:])))
    if cls is Stage:
        return replace(base, stages=(section,))
    if cls in (Adam, Named):
        own = {"head": section} if cls is Adam else {"named": (section,)}
        return replace(base, optimizer=replace(base.optimizer, **own))
    if cls in HOMES:
        return replace(base, **{HOMES[cls]: section})
    if cls in (ValidationLoss, Samples, Bigram):
        return replace(base, evals=(section,))
    return replace(base, optimizer=replace(base.optimizer, schedule=section))


# ------------------------------------------------------------------------------------- where a difference is seen


@functools.cache
def program(config):
    """What is compiled: the drawing of new weights, and the training step."""
    layout = config.layout.resolve(8)
    config.check_layout(layout)
    optimizer = config.optimizer.build(steps=config.steps, layout=layout)
    averaged = config.averaging.kept
    with layout.active():
        draw = jax.make_jaxpr(lambda: GPT(config.model, key=jax.random.key(config.seed), layout=layout))()
        start = state.abstract(config.model, optimizer, layout=layout, averaged=averaged)
        batches, steps = opened_batches(config, layout), []
        for phase in config.phases:
            rows = batches.abstract(config.model.context, step=phase.begin)
            steps.append(str(step_of(config, layout, phase).trace(start, rows).jaxpr))
    return re.sub(r"0x[0-9a-f]+", "", "\n".join([str(draw), *steps]))


def due(config):
    """The steps at which something happens."""
    parts = (config.checkpoint, *config.evals)
    return [[step for step in range(2001) if part.due(step, steps=2000)] for part in parts]


def material(config):
    return Material(config.data, tokenizer(), config.model, config.objective, Layout())


def protocol(config):
    """What a validation loss measures, and in batches of how many windows."""
    judge = config.evals[0].open(material(config))
    return judge.protocol, judge.sequences


def generated(config):
    """What is asked of `generate`."""
    asked = []

    def generate(model, prompts, **options):
        asked.append((prompts, options | {"key": str(jax.random.key_data(options["key"]))}))
        return jnp.zeros((1, 1), jnp.int32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evals, "generate", generate)
        patch.setattr(type(tokenizer()), "decode", lambda self, ids: "")
        config.evals[0].open(material(config))(abstract(config.model))
    return asked


def data(config):
    """What is trained on, and what is judged."""
    found = prepared(config)[0].data
    return fingerprint(found), validation_of(found)


def order(config):
    """The first rows, from whichever part they come."""
    config, own = prepared(config)
    batches = opened_batches(config, Layout(), tokenizer=own)
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
        next(opened_batches(config, Layout()).starting_at(0))
    return told


def kept(config, directory):
    """Which checkpoints stay of four, of which the first is the best."""
    weights = _weights(config.model)
    losses = {1: 1.0, 2: 3.0, 3: 2.0, 4: 2.5}
    with Checkpoints(directory, config.checkpoint) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, weights, metadata={}, val_loss=loss)
    return sorted(path.name for path in directory.iterdir())


@functools.cache
def _weights(model):
    return state.create(model, AdamW().build(steps=1, layout=SINGLE), seed=0, layout=SINGLE)


def logged(config, directory, capsys):
    """What is printed and written of twelve steps, and what Weights & Biases is told."""
    from gptjax.logbook import Logbook

    told = []
    run = types.SimpleNamespace(log=told.append, finish=lambda: None, define_metric=lambda *_, **__: None)
    fake = types.SimpleNamespace(
        init=lambda **words: told.append((words["project"], words["mode"])) or run, Settings=lambda **_: None
    )
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", fake)
        with Logbook(config.log, directory, total_steps=100, tokens=lambda step: step, clock=lambda: 0.0) as log:
            for step in range(1, 13):
                log.step(step, {"loss": 1.0})
    return capsys.readouterr().out.count("step "), sorted(path.name for path in directory.iterdir()), told[:1]


def patience(config, directory):
    """Whether a run ends after four skipped updates in a row."""
    with Checkpoints(directory, config.checkpoint) as checkpoints:
        watch = Patience(checkpoints, steps=config.steps, limit=config.max_skipped)
        for step in range(2):
            watch.check(step, {"streak": jnp.int32(4)})


def resumption(config, directory):
    """Why a run that had another seed is not resumed."""
    (directory / "3" / "metadata").mkdir(parents=True)
    (directory / "3" / "commit_success.txt").touch()
    content = {"config": to_json(replace(config, seed=config.seed + 2)), "fingerprints": fingerprints(config, None)}
    content |= {"format_version": 1, "val_loss": None, "step": 3}
    (directory / "3" / "metadata" / "metadata").write_text(json.dumps(content))
    with Checkpoints(directory, config.checkpoint) as checkpoints, pytest.raises(UserError) as refused:
        resumed(config, checkpoints, fingerprints(config, None), SINGLE)
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
    "its judges": lambda config, *_: len(config.evals),
}
PROGRAM = {
    TrainConfig: {"seed": 1, "steps": 20, "stages": (Stage(1, sequences=16),)},
    Batch: {"sequences": 16, "accumulate": 2},
    Stage: {"begin": 2, "sequences": 32, "accumulate": 2, "long_window": 7, "short_window": 5, "rate": 3.0},
    GPTConfig: {
        "num_layers": 3,
        "width": 48,
        "num_heads": 4,
        "context": 8,
        "vocab_size": 50,
        "mlp_width": 64,
        "bias": False,
        "tied": True,
        "activation": "relu",
        "norm_epsilon": 1e-3,
        "dropout": 0.2,
        "init_std": 0.03,
        "positions": "learned",
        "rotary_base": 100.0,
        "rotary_dims": "half",
        "norm": "rms",
        "norm_gain": False,
        "qk_norm": True,
        "attention_scale": 0.12,
        "gated": True,
        "head_bias": True,
        "softcap": 15.0,
        "zero_init": True,
        "embedding_norm": True,
        "kv_heads": 1,
        "windows": "S",
        "long_window": 5,
        "short_window": 7,
        "sinks": 3,
        "document_mask": True,
        "unet": "learned",
        "x0_mix": False,
        "residual_init": (1.0, 0.5),
        "x0_init": (0.5, 0.5),
        "value_residual": True,
        "value_embeddings": "01",
        "value_gate": True,
        "softcap_curve": "sqrt",
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
        "named": (Named("tokens", Adam(0.5)),),
    },
    Adam: {"learning_rate": 0.2, "beta1": 0.8, "beta2": 0.8, "epsilon": 1e-3, "weight_decay": 0.3},
    Named: {"weight": "head"},
    Muon: {
        "learning_rate": 0.1,
        "momentum": 0.8,
        "momentum_low": 0.8,
        "nesterov": False,
        "iterations": 4,
        "coefficients": "polar_express",
        "dtype": "bfloat16",
        "scaling": "rms",
        "split": "heads",
        "equilibrate": True,
        "normuon_beta2": 0.9,
        "weight_decay": 0.3,
        "cautious": True,
        "adam_learning_rate": 0.1,
        "beta1": 0.8,
        "beta2": 0.8,
        "epsilon": 1e-3,
        "clip_norm": 1.0,
        "named": (Named("tokens", Adam(0.5)),),
    },
    Average: {"decay": 0.99, "fraction": 0.5},
    Layout: {"fill": "fsdp", "data": 2, "fsdp": 2, "tensor": 2},
    Constant: {"warmup": 3},
    Cosine: {"warmup": 3, "floor": 0.3, "decay_steps": 7},
    Linear: {"warmup": 3, "floor": 0.3, "decay_steps": 7},
    WarmupStableDecay: {"warmup": 3, "decay_fraction": 0.5, "floor": 0.3, "shape": "cosine"},
}
ELSEWHERE = {
    TrainConfig: {
        "name": ("other", "a directory"),
        "output_dir": ("elsewhere", "a directory"),
        "evals": ((Bigram(),), "its judges"),
        "start_from": ("/nowhere", "the data"),
        "max_skipped": (4, "an end"),
        "resume": ("never", "a resumption"),
    },
    TokenShards: {
        "path": ("/nowhere", "the data"),
        "format": ("raw-uint16", "the data"),
        "tokenizer": ("bytes", "the data"),
        "packing": ("documents", "the data"),
        "prefetch": (5, "reading ahead"),
    },
    Mixture: {
        "parts": ((Part(TokenShards(path="/nowhere")),), "the data"),
        "validation": (1, "the data"),
        "prefetch": (5, "reading ahead"),
    },
    Part: {"weight": (5.0, "the order"), "later": (((1, 9.0),), "the order")},
    Checkpoint: {"every": (7, "its times"), "keep": (1, "the checkpoints"), "keep_best": (False, "the checkpoints")},
    ValidationLoss: {"every": (7, "its times"), "tokens": (9, "a judgement"), "sequences": (24, "a judgement")},
    Samples: {
        "every": (7, "its times"),
        "prompt": ("2", "a sample"),
        "max_new_tokens": (3, "a sample"),
        "temperature": (0.1, "a sample"),
        "top_k": (None, "a sample"),
        "seed": (1, "a sample"),
    },
    Log: {
        "every": (3, "the log"),
        "tensorboard": (True, "the log"),
        "wandb": ("offline", "the log"),
        "wandb_project": ("other", "the log"),
    },
}
BESIDE = {
    (Log, "wandb_project"): {"wandb": "offline"},
    (GPTConfig, "layers"): {"windows": "L", "short_window": None, "value_embeddings": ""},
}
"""What other fields must be for a field to matter."""
FIELDS = {(cls, name): (value, "the program") for cls, names in PROGRAM.items() for name, value in names.items()}
FIELDS |= {(cls, name): line for cls, names in ELSEWHERE.items() for name, line in names.items()}
REFUSED = {(GPTConfig, "attention"), (TokenShards, "path"), (TokenShards, "format"), (TrainConfig, "start_from")}
REFUSED |= {(TokenShards, "tokenizer"), (Mixture, "parts")}
REFUSED |= {(TrainConfig, "max_skipped")}
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
