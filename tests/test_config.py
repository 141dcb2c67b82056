import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from gptjax.config import CLASSES, TrainConfig, compare
from gptjax.data import Batch
from gptjax.errors import UserError
from gptjax.evals import Bigram, Samples, ValidationLoss
from gptjax.gpt_config import GPTConfig
from gptjax.layout import Layout
from gptjax.optim import Adam, AdamW, Muon, Named
from gptjax.schedules import Linear
from gptjax.settings import from_json, to_json

MUON = Muon(
    schedule=Linear(warmup=3), coefficients=(2.0, -1.5, 0.5), head=Adam(0.004), named=(Named("positions", Adam(0.1)),)
)
BASE = TrainConfig(optimizer=MUON, evals=(ValidationLoss(), Bigram(), Samples(top_k=None)))


def test_a_config_comes_back_from_its_json():
    assert from_json(json.loads(json.dumps(to_json(BASE))), CLASSES) == BASE


def test_a_run_has_a_directory_and_a_number_of_tokens():
    config = TrainConfig(name="x", output_dir="somewhere", batch=Batch(6), model=GPTConfig(context=100))
    assert config.directory == Path.cwd() / "somewhere" / "x"
    assert config.tokens(3) == 1800


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_a_name_is_one_directory(name):
    with pytest.raises(UserError, match="name is"):
        TrainConfig(name=name)


@pytest.mark.parametrize("field", ["steps", "max_skipped"])
def test_counts_are_at_least_one(field):
    with pytest.raises(UserError, match=f"{field} is 0; it must be at least 1"):
        replace(BASE, **{field: 0})


@pytest.mark.parametrize(
    ("model", "layout", "words"),
    [
        ({"num_heads": 6, "width": 48}, Layout(tensor=4), r"model\.num_heads 6 .*4 devices \(layout\.tensor\)"),
        ({"mlp_width": 30}, Layout(tensor=4), r"model\.mlp_width 30"),
        (
            {"width": 48, "kv_heads": 1, "value_embeddings": "0"},
            Layout(fsdp=8),
            r"model\.kv_heads × head width 12 .*8 devices \(layout\.fsdp\)",
        ),
        ({"num_heads": 3, "width": 30, "vocab_size": 100}, Layout(tensor=3), r"model\.vocab_size \(padded\) 128"),
        ({"width": 36}, Layout(fsdp=8), r"model\.width 36 .*8 devices \(layout\.fsdp\)"),
        ({}, Layout(data=3), r"8 sequences a group do not split over 3 devices"),
    ],
)
def test_what_does_not_divide_over_the_devices_is_named(model, layout, words):
    config = replace(BASE, model=replace(GPTConfig(width=64, num_heads=4), **model))
    with pytest.raises(UserError, match=words):
        config.check_layout(layout)


def test_what_divides_is_let_through():
    replace(BASE, model=GPTConfig(width=64, num_heads=4)).check_layout(Layout(data=2, fsdp=2, tensor=2))


def test_equal_configs_have_nothing_to_report():
    assert compare(BASE, BASE) == ([], [])


def test_changes_are_reported_or_refused_by_their_path():
    wanted = replace(
        BASE,
        steps=7,
        seed=1,
        batch=Batch(16, 2),
        model=replace(BASE.model, dropout=0.5, remat="full"),
        layout=Layout("fsdp"),
        resume="force",
    )
    reported, refused = compare(BASE, wanted)
    assert set(reported) == {
        "steps: 1000 → 7",
        "batch.accumulate: 1 → 2",
        "model.remat: 'light' → 'full'",
        "layout.fill: 'data' → 'fsdp'",
    }
    assert set(refused) == {"seed: 1337 → 1", "batch.sequences: 8 → 16", "model.dropout: 0.0 → 0.5"}


def test_another_optimizer_is_one_difference():
    reported, refused = compare(BASE, replace(BASE, optimizer=AdamW()))
    assert reported == []
    assert len(refused) == 1
    assert refused[0].startswith("optimizer: Muon(")


def test_every_field_of_the_model_is_refused_unless_it_only_says_how_to_compute():
    free = {"remat", "layers", "attention"}
    other = GPTConfig(
        num_layers=3,
        width=48,
        num_heads=3,
        context=9,
        vocab_size=5,
        mlp_width=7,
        bias=False,
        tied=False,
        activation="relu",
        norm_epsilon=0.1,
        dropout=0.1,
        init_std=0.1,
        positions="rotary",
        rotary_base=3.0,
        rotary_dims="half",
        norm="rms",
        norm_gain=False,
        qk_norm=True,
        attention_scale=0.1,
        gated=True,
        embedding_norm=True,
        kv_heads=1,
        windows="SL",
        short_window=3,
        long_window=5,
        sinks=1,
        document_mask=True,
        unet="plain",
        x0_mix=True,
        residual_init=(1.0, 0.5),
        x0_init=(1.0, 0.5),
        value_residual=True,
        value_embeddings="0.",
        value_gate=True,
        head_bias=True,
        softcap=3.0,
        softcap_curve="sqrt",
        zero_init=True,
        init="fan_in",
        embedding_std=1.0,
        head_std=1.0,
        mlp_init=0.5,
        dtype="float32",
        head_dtype="float32",
        attention="xla",
        remat="none",
        layers="unroll",
    )
    reported, refused = compare(BASE, replace(BASE, model=other))
    names = lambda lines: {line.partition(":")[0].removeprefix("model.") for line in lines}
    assert names(reported) == free
    assert names(refused) == {field.name for field in fields(GPTConfig)} - free
