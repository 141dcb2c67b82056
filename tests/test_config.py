import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from gptjax.core.settings import from_json, to_json

from gptjax.config import CLASSES, TrainConfig, compare
from gptjax.core.errors import UserError
from gptjax.data.batch_size import BatchSize
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.optim import AdamW, Muon, NamedGroup, ParamGroup
from gptjax.optim.schedules import Linear
from gptjax.sharding.mesh import MeshConfig
from gptjax.training.evaluators import BigramBaseline, Samples, ValidationLoss

MUON = Muon(
    schedule=Linear(warmup_steps=3),
    ns_coefficients=(2.0, -1.5, 0.5),
    head=ParamGroup(0.004),
    named_groups=(NamedGroup("positions", ParamGroup(0.1)),),
)
BASE = TrainConfig(optimizer=MUON, evaluators=(ValidationLoss(), BigramBaseline(), Samples(top_k=None)))


def test_a_config_comes_back_from_its_json():
    assert from_json(json.loads(json.dumps(to_json(BASE))), CLASSES) == BASE


def test_a_run_has_a_directory_and_a_number_of_tokens():
    config = TrainConfig(name="x", output_dir="somewhere", batch=BatchSize(6), model=GPTConfig(context_length=100))
    assert config.directory == Path.cwd() / "somewhere" / "x"
    assert config.tokens(3) == 1800


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_a_name_is_one_directory(name):
    with pytest.raises(UserError, match="name is"):
        TrainConfig(name=name)


@pytest.mark.parametrize("field", ["steps", "max_consecutive_skips"])
def test_counts_are_at_least_one(field):
    with pytest.raises(UserError, match=f"{field} is 0; it must be at least 1"):
        replace(BASE, **{field: 0})


@pytest.mark.parametrize(
    ("model", "mesh", "words"),
    [
        ({"num_heads": 6, "embed_dim": 48}, MeshConfig(tensor=4), r"model\.num_heads 6 .*4 devices \(layout\.tensor\)"),
        ({"mlp_dim": 30}, MeshConfig(tensor=4), r"model\.mlp_width 30"),
        (
            {"embed_dim": 48, "num_kv_heads": 1, "value_embeddings": "0"},
            MeshConfig(fsdp=8),
            r"model\.kv_heads × head width 12 .*8 devices \(layout\.fsdp\)",
        ),
        (
            {"num_heads": 3, "embed_dim": 30, "vocab_size": 100},
            MeshConfig(tensor=3),
            r"model\.vocab_size \(padded\) 128",
        ),
        ({"embed_dim": 36}, MeshConfig(fsdp=8), r"model\.width 36 .*8 devices \(layout\.fsdp\)"),
        ({}, MeshConfig(data=3), r"8 sequences a group do not split over 3 devices"),
    ],
)
def test_what_does_not_divide_over_the_devices_is_named(model, mesh, words):
    config = replace(BASE, model=replace(GPTConfig(embed_dim=64, num_heads=4), **model))
    with pytest.raises(UserError, match=words):
        config.check_mesh(mesh)


def test_what_divides_is_let_through():
    replace(BASE, model=GPTConfig(embed_dim=64, num_heads=4)).check_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def test_equal_configs_have_nothing_to_report():
    assert compare(BASE, BASE) == ([], [])


def test_changes_are_reported_or_refused_by_their_path():
    wanted = replace(
        BASE,
        steps=7,
        seed=1,
        batch=BatchSize(16, 2),
        model=replace(BASE.model, dropout=0.5, compute=replace(BASE.model.compute, remat="full")),
        mesh=MeshConfig("fsdp"),
        resume="force",
    )
    reported, refused = compare(BASE, wanted)
    assert set(reported) == {
        "steps: 1000 → 7",
        "grad_accum: 1 → 2",
        "model.remat: 'light' → 'full'",
        "mesh.strategy: 'data' → 'fsdp'",
    }
    assert set(refused) == {"seed: 1337 → 1", "batch_size: 8 → 16", "model.dropout: 0.0 → 0.5"}


def test_another_optimizer_is_one_difference():
    reported, refused = compare(BASE, replace(BASE, optimizer=AdamW()))
    assert reported == []
    assert len(refused) == 1
    assert refused[0].startswith("optimizer: Muon(")


def test_every_field_of_the_model_is_refused_unless_it_only_says_how_to_compute():
    free = {"remat", "layers", "attention"}
    other = GPTConfig(
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
            dtype="float32", head_dtype="float32", attention_impl="xla", remat="none", scan_layers="off"
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
    reported, refused = compare(BASE, replace(BASE, model=other))
    names = lambda lines: {line.partition(":")[0].removeprefix("model.") for line in lines}
    assert names(reported) == free
    assert names(refused) == {field.name for field in fields(GPTConfig)} - free
