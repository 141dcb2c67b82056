import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from gptjax.cli.command_line import parse_config
from gptjax.config import TrainConfig, compare_configs
from gptjax.core.errors import UserError
from gptjax.core.serialization import from_json, to_json
from gptjax.data.source import DataSource
from gptjax.evaluators.bigram import BigramBaseline
from gptjax.evaluators.evaluator import Evaluator
from gptjax.evaluators.samples import Samples
from gptjax.evaluators.validation import ValidationLoss
from gptjax.metrics.loggers import Logger
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.objectives.objective import Objective
from gptjax.optim import AdamW, Linear, Muon, NamedGroup, Optimizer, ParamGroup, Schedule
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.stages import Stage

MUON = Muon(
    schedule=Linear(warmup_steps=3),
    ns_coefficients=(2.0, -1.5, 0.5),
    head=ParamGroup(0.004),
    named_groups=(NamedGroup("position_embedding", ParamGroup(0.1)),),
)
CONFIG = TrainConfig(optimizer=MUON, evaluators=(ValidationLoss(), BigramBaseline(), Samples(top_k=None)))


def test_config_written_as_json_is_read_back_equal() -> None:
    assert from_json(json.loads(json.dumps(to_json(CONFIG))), TrainConfig) == CONFIG


def test_config_has_directory_and_counts_tokens() -> None:
    config = TrainConfig(name="x", output_dir="somewhere", batch_size=6, model=GPTConfig(context_length=100))
    assert config.directory == Path.cwd() / "somewhere" / "x"
    assert config.tokens(3) == 1800
    assert replace(config, stages=(Stage(2, batch_size=12),)).tokens(3) == 2400


def test_home_of_another_machine_is_read_back_but_is_no_directory() -> None:
    saved = to_json(CONFIG) | {"output_dir": "~no-such-user/runs"}
    config = from_json(saved, TrainConfig)
    with pytest.raises(UserError, match="home directory of a user who does not exist"):
        _ = config.directory


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("output_dir", "gs://bucket/runs", "is an address; wanted a local path"),
        *(("name", name, "name is") for name in ("", ".", "..", "a/b", "/tmp")),
        ("steps", 0, "steps is 0; it must be at least 1"),
        ("max_consecutive_skips", 0, "max_consecutive_skips is 0; it must be at least 1"),
        ("batch_size", 0, "batch_size is 0; it must be at least 1"),
        ("grad_accum", 3, "batch_size 8 does not divide into grad_accum 3"),
        ("seed", -1, "seed is -1; it lies between 0 and"),
    ],
)
def test_config_with_invalid_value_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **{field: value})


@pytest.mark.parametrize(
    ("model", "mesh", "message"),
    [
        ({"num_heads": 6, "embed_dim": 48}, MeshConfig(tensor=4), r"model\.num_heads 6 .*4 devices \(mesh\.tensor\)"),
        ({"mlp_dim": 30}, MeshConfig(tensor=4), r"model\.mlp_dim 30"),
        (
            {"embed_dim": 48, "num_kv_heads": 1, "value_embeddings": "0"},
            MeshConfig(fsdp=8),
            r"model\.kv_heads × head_dim 12 .*8 devices \(mesh\.fsdp\)",
        ),
        (
            {"num_heads": 3, "embed_dim": 30, "vocab_size": 100},
            MeshConfig(tensor=3),
            r"model\.vocab_size \(padded\) 128",
        ),
        ({"embed_dim": 36}, MeshConfig(fsdp=8), r"model\.embed_dim 36 .*8 devices \(mesh\.fsdp\)"),
        ({}, MeshConfig(data=3), r"8 sequences per micro-batch do not split over 3 devices"),
    ],
)
def test_check_mesh_names_the_size_that_does_not_divide(model: dict, mesh: MeshConfig, message: str) -> None:
    config = replace(CONFIG, model=replace(GPTConfig(embed_dim=64, num_heads=4), **model))
    with pytest.raises(UserError, match=message):
        config.check_mesh(mesh)


def test_check_mesh_accepts_sizes_that_divide() -> None:
    config = replace(CONFIG, model=GPTConfig(embed_dim=64, num_heads=4))
    config.check_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with pytest.raises(UserError):
        config.check_mesh(MeshConfig(data=2, fsdp=2, tensor=3))


def test_equal_configs_have_no_changes() -> None:
    assert compare_configs(CONFIG, CONFIG) == ([], [])


def test_changes_are_reported_or_refused_by_field() -> None:
    wanted = replace(
        CONFIG,
        steps=7,
        seed=1,
        batch_size=16,
        grad_accum=2,
        model=replace(CONFIG.model, dropout=0.5, compute=replace(CONFIG.model.compute, remat="full")),
        mesh=MeshConfig("fsdp"),
        resume="force",
    )
    reported, refused = compare_configs(CONFIG, wanted)
    assert set(reported) == {
        "steps: 1000 → 7",
        "grad_accum: 1 → 2",
        "model.compute.remat: 'light' → 'full'",
        "mesh.strategy: 'data' → 'fsdp'",
    }
    assert set(refused) == {"seed: 1337 → 1", "batch_size: 8 → 16", "model.dropout: 0.0 → 0.5"}


def test_another_optimizer_is_one_change() -> None:
    reported, [refused] = compare_configs(CONFIG, replace(CONFIG, optimizer=AdamW()))
    assert reported == []
    assert refused.startswith("optimizer: Muon(")


def test_model_changes_are_refused_unless_they_only_compute_otherwise() -> None:
    names = ("remat", "scan_layers", "attention_impl", "query_block", "deterministic")
    may_change = {f"compute.{name}" for name in names}
    model = GPTConfig(
        num_layers=3,
        embed_dim=48,
        num_heads=3,
        context_length=9,
        vocab_size=5,
        mlp_dim=7,
        bias=False,
        tie_embeddings=False,
        activation="relu",
        norm_epsilon=0.1,
        dropout=0.1,
        positions="rotary",
        rotary_base=3.0,
        rotary_fraction=0.5,
        norm="rms",
        norm_scale=False,
        qk_norm=True,
        qk_norm_scale=True,
        attention_scale=0.1,
        gated_mlp=True,
        embedding_norm=True,
        num_kv_heads=1,
        window_pattern="SL",
        short_window=3,
        long_window=5,
        num_sinks=1,
        intra_document_mask=True,
        unet_skips="plain",
        x0_mix=True,
        value_residual=True,
        value_embeddings="0.",
        value_gate=True,
        head_bias=True,
        logit_softcap=3.0,
        logit_softcap_curve="sqrt",
        compute=ComputeConfig(
            dtype="float32",
            head_dtype="float32",
            attention_impl="xla",
            query_block=7,
            remat="none",
            scan_layers="off",
            deterministic=True,
        ),
        init=InitConfig(
            std=0.1,
            residual_mix=(1.0, 0.5),
            x0_mix=(1.0, 0.5),
            zero_projections=True,
            scheme="fan_in",
            embedding_std=1.0,
            head_std=1.0,
            mlp_scale=0.5,
        ),
    )
    reported, refused = (
        {line.partition(":")[0].removeprefix("model.") for line in lines}
        for lines in compare_configs(CONFIG, replace(CONFIG, model=model))
    )
    assert reported == may_change
    nested = {"init": InitConfig, "compute": ComputeConfig}
    names = {field.name for field in fields(GPTConfig)} - set(nested)
    names |= {f"{section}.{field.name}" for section, cls in nested.items() for field in fields(cls)}
    assert refused == names - may_change


@pytest.mark.parametrize("protocol", [DataSource, Evaluator, Logger, Objective, Optimizer, Schedule])
def test_protocols_of_config_fields_have_methods_only(protocol: type) -> None:
    """A data member would make `issubclass` raise, and tyro would then silently leave out the field's flags."""
    assert not issubclass(int, protocol)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--steps=-1 --model.num-heads=7 --batch-size 0", ["model.num_heads 7", "steps is -1", "batch_size is 0"]),
        ("--model.positions=foo --model.rotary-fraction=0.5", ["model.positions is 'foo'"]),
        ("--model.positions=learned --model.rotary-fraction=0.5 --seed=-3", ["which needs", "seed is -3"]),
        (
            "--model.embed-dim=65 --model.num-heads=7 --model.num-kv-heads=3 --batch-size=0",
            ["model.embed_dim 65", "batch_size is 0"],
        ),
    ],
)
def test_all_values_that_classes_refuse_are_told_and_nothing_that_follows_from_one(words: str, told: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(TrainConfig, ["--config=quickstart", *words.split()], prog="train", description="")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(told)
    assert all(part in line for part, line in zip(told, lines, strict=True))
