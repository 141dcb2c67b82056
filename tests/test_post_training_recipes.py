"""The post-training recipes in configs/, at a small width on a made world: each learns, and resumes bit for bit.

Only sizes, rates that suit a few steps, paths and numbers of steps differ from the config files.
"""

import json
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from chat_models import PLAIN
from tiny import SINGLE, read_lines

from configs import (
    distil_gpt2,
    gpt2_124m,
    modern_253m,
    modern_253m_dpo,
    modern_253m_sft,
    nanochat_d12,
    nanochat_d12_sft,
)
from data_pipelines.prepare import Prepare, prepare
from data_pipelines.prepare_chat import PrepareChat, prepare_chat
from data_pipelines.prepare_preferences import PreparePreferences, prepare_preferences
from data_pipelines.small_world import OPENINGS, SmallWorld, make_small_world
from gptjax.config import TrainConfig
from gptjax.data.config import TokenShards
from gptjax.data.preferences import PreferenceShards
from gptjax.evaluators.exact_match import ExactMatch
from gptjax.evaluators.validation import ValidationLoss
from gptjax.finetuning.lora import LoRA
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.optim import AdamW, Constant
from gptjax.runs.run_dir import RunDir
from gptjax.runs.trainer import train

pytestmark = pytest.mark.slow

BASES = {"nanochat_d12": nanochat_d12, "modern_253m": modern_253m, "gpt2": gpt2_124m}
TIMES = ("time", "seconds", "second", "mfu", "memory", "tokens_per", "wait", "elapsed")
"""Parts of the names of metrics that are measured, and so differ between two equal runs."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts in the tokenizer's ids; chats and pairs, for which the tokenizer gets two role tokens."""
    directory = tmp_path_factory.mktemp("world")
    make_small_world(SmallWorld(directory, people=4, words=3, largest=2, copies=60))
    PLAIN.save(directory / "tokenizer")
    options: dict[str, Any] = {"tokenizer": str(directory / "tokenizer"), "split": "hash:0.2"}
    prepare(Prepare(source=str(directory / "text.jsonl"), output=directory / "text", **options))
    prepare_chat(PrepareChat(source=str(directory / "chat.jsonl"), output=directory / "chat", **options))
    options["tokenizer"] = str(directory / "chat")
    prepare_preferences(
        PreparePreferences(source=str(directory / "pairs.jsonl"), output=directory / "pairs", **options)
    )
    return directory


def shrink_model(model: GPTConfig, *, num_layers: int = 2) -> GPTConfig:
    """Two heads of 16, in float32; windows and value embeddings of as many layers."""
    found = replace(
        model,
        num_layers=num_layers,
        embed_dim=32,
        num_heads=2,
        mlp_dim=None if model.mlp_dim is None else 64,
        context_length=128,
        vocab_size=PLAIN.vocab_size,
        compute=ComputeConfig(dtype="float32", remat="none"),
    )
    if model.window_pattern != GPTConfig.window_pattern:
        found = replace(found, window_pattern="SL", short_window=32)
    return replace(found, value_embeddings=".a") if model.value_embeddings else found


def shrink(config: TrainConfig, world: Path, *, steps: int, **changes: Any) -> TrainConfig:
    model = changes.pop("model", None) or shrink_model(config.model)
    small = replace(
        config,
        output_dir=str(world / "runs"),
        steps=steps,
        schedule_steps=steps,
        batch_size=8,
        grad_accum=1,
        mesh=SINGLE,
        model=model,
        evaluators=(ValidationLoss(every=steps, batch_size=8),),
    )
    return replace(small, **changes)


def shorten_schedules(optimizer: Any, **changes: Any) -> Any:
    """The same schedules with two steps of warm-up."""
    found = {field.name: getattr(optimizer, field.name) for field in fields(optimizer)}
    long = {name: each for name, each in found.items() if getattr(each, "warmup_steps", 0) > 2}
    return replace(optimizer, **{name: replace(each, warmup_steps=2) for name, each in long.items()}, **changes)


@pytest.fixture(scope="module")
def start(world: Path, request: pytest.FixtureRequest) -> str:
    """A run of the shrunk base model, pretrained on the texts."""
    name = request.param
    base, is_teacher = BASES[name].config, name == "gpt2"
    model = shrink_model(replace(base.model, bias=True), num_layers=4) if is_teacher else None
    packing = "concat" if is_teacher else "bos_best_fit"
    config = shrink(
        base,
        world,
        name=name,
        steps=40,
        model=model,
        data=TokenShards(path=str(world / "text"), packing=packing),
        optimizer=AdamW(learning_rate=5e-3, schedule=Constant()),
    )
    assert train(config) == 0
    check_falls(config)
    return str(config.directory)


def check_falls(config: TrainConfig, name: str = "loss") -> None:
    """The validation's value is lower than at the start, and the last losses than the first."""
    values, checked = ([value for _, value in read_lines(config.directory, each)] for each in (name, f"val_{name}"))
    assert np.mean(values[-3:]) < np.mean(values[:3])
    assert checked[-1] < checked[0]


def check_resume(whole: TrainConfig, *, at: int) -> None:
    """Another run that ends at a step and is resumed has the same metrics and weights, bit for bit."""
    parts = replace(whole, name=f"{whole.name}_parts")
    assert train(replace(parts, steps=at)) == train(parts) == 0
    one, other = (read_metrics(run.directory) for run in (whole, parts))
    assert len(one) >= whole.steps
    # The first part also evaluates at its end, which the whole run does not.
    for step, metrics in one.items():
        assert {name: other[step].get(name) for name in metrics} == metrics, f"step {step}"
    weights = [jax.tree.leaves(RunDir.open(run.directory).load_model()) for run in (whole, parts)]
    for left, right in zip(*weights, strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def read_metrics(run: Path) -> dict[int, dict[str, Any]]:
    """All values of each step that are computed, not measured."""
    found: dict[int, dict[str, Any]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kept = {name: value for name, value in record.items() if not any(part in name for part in TIMES)}
        found.setdefault(record["step"], {}).update(kept)
    return found


def make_sft(base: TrainConfig, world: Path, start: str, **changes: Any) -> TrainConfig:
    data = replace(base.data, path=str(world / "chat"))
    return shrink(base, world, init_from=start, data=data, **changes)


@pytest.mark.parametrize("start", ["nanochat_d12"], indirect=True)
def test_nanochat_d12_sft_learns_at_its_own_rates(world: Path, start: str) -> None:
    """Two role tokens are added to weights with value embeddings and an untied head."""
    base = nanochat_d12_sft.config
    config = make_sft(base, world, start, steps=20, optimizer=shorten_schedules(base.optimizer))
    assert train(config) == 0
    check_falls(config)
    model = RunDir.open(config.directory).model_config
    assert model.resolved_vocab_size == PLAIN.vocab_size + 2
    assert (model.value_embeddings, model.window_pattern, model.tie_embeddings) == (".a", "SL", False)


@pytest.fixture(scope="module")
def tuned(world: Path, start: str) -> TrainConfig:
    """The second stage of `modern_253m`."""
    base = modern_253m_sft.config
    optimizer = shorten_schedules(base.optimizer, learning_rate=5e-3)
    questions = ExactMatch(str(world / "held_out.jsonl"), every=40, max_new_tokens=12, opening=OPENINGS[0])
    config = make_sft(base, world, start, steps=40, optimizer=optimizer)
    config = replace(config, evaluators=(*config.evaluators, questions))
    assert train(config) == 0
    return config


@pytest.mark.parametrize("start", ["modern_253m"], indirect=True)
def test_modern_253m_sft_learns_and_is_asked(tuned: TrainConfig) -> None:
    check_falls(tuned)
    assert [step for step, _ in read_lines(tuned.directory, "exact_match")] == [0, 40]
    assert RunDir.open(tuned.directory).model_config.num_sinks == 4


@pytest.mark.parametrize("start", ["modern_253m"], indirect=True)
def test_modern_253m_dpo_prefers_and_resumes(world: Path, tuned: TrainConfig) -> None:
    base = modern_253m_dpo.config
    config = shrink(
        base,
        world,
        init_from=str(tuned.directory),
        steps=12,
        data=PreferenceShards(path=str(world / "pairs")),
        optimizer=shorten_schedules(base.optimizer, learning_rate=2e-3),
    )
    assert train(config) == 0
    check_falls(config)
    losses, accuracies = (read_lines(config.directory, name) for name in ("loss", "val_reward_accuracy"))
    assert losses[0][1] == pytest.approx(np.log(2), abs=1e-5), "the reference is the start"
    assert accuracies[-1][1] > max(0.9, accuracies[0][1])
    check_resume(config, at=6)


@pytest.mark.parametrize(
    ("start", "recipe"),
    [("modern_253m", modern_253m_sft), ("nanochat_d12", nanochat_d12_sft)],
    indirect=["start"],
)
def test_sft_with_adapters_learns_and_resumes(world: Path, start: str, recipe: ModuleType) -> None:
    """Frozen weights, adapters and the rows of the two role tokens; layers that are scanned, and that are not."""
    base = recipe.config
    optimizer = AdamW(learning_rate=1e-2, schedule=Constant())
    config = make_sft(base, world, start, name=f"{base.name}_lora", steps=12, optimizer=optimizer, lora=LoRA(rank=2))
    assert train(config) == 0
    check_falls(config)
    check_resume(config, at=6)


@pytest.mark.parametrize("start", ["gpt2"], indirect=True)
def test_distil_gpt2_learns_from_all_layers_and_resumes(world: Path, start: str) -> None:
    base = distil_gpt2.config
    config = shrink(
        base,
        world,
        init_from=start,
        init_layers=(0, 3),
        steps=12,
        data=TokenShards(path=str(world / "text")),
        objective=replace(base.objective, teacher=start),
        optimizer=shorten_schedules(base.optimizer, learning_rate=1e-3),
    )
    assert train(config) == 0
    for name in ("loss", "kl", "cross_entropy"):
        check_falls(config, name)
    assert RunDir.open(config.directory).model_config.num_layers == 2
    check_resume(config, at=6)
