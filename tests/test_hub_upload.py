"""Uploads to a local stand-in for the hub, and the model card that goes with them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hf_architectures import EVERYTHING, GPT2_CONFIG, draw_model
from hub_server import Hub, serving

from gptjax.convert import main
from gptjax.core.errors import UserError
from gptjax.huggingface.architectures.selection import ARCHITECTURES, choose_architecture
from gptjax.huggingface.model_card import CardFacts, list_doubts, make_model_card, read_evaluations
from gptjax.model.config import GPTConfig
from gptjax.runs.run_dir import write_imported_run

METRICS = [
    {"step": 0, "tokens": 0, "val_loss": 6.5, "val_bpb": 3.0},
    {"step": 5, "tokens": 500, "loss": 5.0},
    {"step": 10, "tokens": 1000, "val_loss": 4.25, "val_bpb": 2.0},
    {"step": 20, "tokens": 2000, "val_loss": 4.0, "val_bpb": 1.875},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a record and a picture, as if it had been trained."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    write_imported_run(directory, model=draw_model(GPT2_CONFIG), tokenizer=None)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in METRICS))
    (directory / "loss.png").write_bytes(b"a picture")
    return directory


def export(run: Path, output: Path, *options: str) -> None:
    main(["to-hf", f"--checkpoint={run}", f"--output={output}", "--no-verify", *options])


def fail(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        export(*arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # huggingface_hub 2.4 and its HTTP client
def test_push_uploads_every_file_of_the_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(Hub("someone/tiny", {}), tmp_path / "cache", monkeypatch) as hub:
        export(run, tmp_path / "out", "--push-to=someone/tiny", "--private")
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.uploaded == written
    assert {"README.md", "loss.png", "config.json", "model.safetensors"} <= written.keys()
    assert "Bearer hf_secret" in hub.tokens
    assert capsys.readouterr().out.splitlines()[-1].endswith("/someone/tiny")


def test_push_that_the_hub_refuses_keeps_the_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub = Hub("someone/tiny", {}, refused="/api/repos/create")
    with serving(hub, tmp_path / "cache", monkeypatch):
        message = fail(capsys, run, tmp_path / "out", "--push-to=someone/tiny")
    assert "--push-to=someone/tiny: the hub failed" in message
    assert f"hf upload someone/tiny {tmp_path / 'out'} tries again" in message
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_push_without_access_writes_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Hub("someone/tiny", {}, refused="/api/whoami-v2"), tmp_path / "cache", monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert "hf auth login" in fail(capsys, run, tmp_path / "out", "--push-to=someone/tiny")
    assert "wanted: OWNER/REPO" in fail(capsys, run, tmp_path / "out", "--push-to=tiny")
    assert not (tmp_path / "out").exists()


# --- the card ---


def test_card_tells_recipe_losses_and_evaluations(run: Path, tmp_path: Path) -> None:
    figures = {"nats_per_token": {"value": 3.5, "low": 3.25, "high": None}, "CORE": {"value": 0.1, "low": 0, "high": 1}}
    figures["piqa acc"] = {"value": 0.5, "low": 0.25, "high": 0.75}
    result = {
        "protocol": "/home/me/a: b/x.txt: 16 tokens | no stride",
        "figures": figures,
        "harness": {"lm_eval": "0.4.13", "items": {"piqa": 4}, "num_fewshot": {"piqa": 1}},
    }
    core = {"core": {"items": {"core x": 500}, "num_fewshot": {"core x": 10}}}
    others = [{"checkpoint": "elsewhere", "figures": {}}, {"checkpoint": str(run), **result}]
    (tmp_path / "result.json").write_text(json.dumps({"baseline": "elsewhere", "checkpoints": others}))
    (tmp_path / "second.json").write_text(
        json.dumps({"checkpoint": str(run), "figures": {"core x": figures["CORE"]}} | core)
    )
    export(run, tmp_path / "out", *(f"--evaluation={tmp_path / name}.json" for name in ("result", "second")))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "| optimizer | gptjax.optim.adamw:AdamW |" in card
    assert "| step | tokens | val_loss | val_bpb |" in card
    assert r"| x.txt: 16 tokens \| no stride | nats_per_token | 3.5 |  |" in card
    assert "| lm-evaluation-harness 0.4.13, 4 items, 1 example | piqa acc | 0.5 | 0.25 – 0.75 |" in card
    assert "| CORE | CORE | 0.1 |  |" in card
    assert "| CORE, 500 items, 10 examples | core x | 0.1 |  |" in card, "of the second file"
    assert "![Losses](loss.png)" in card
    assert str(run.parent) not in card, "paths of the machine are not told"


def test_card_stops_at_the_exported_step(run: Path) -> None:
    facts = CardFacts("tiny").with_run(run, {"steps": 20}, step=10)
    assert [one["step"] for one in facts.validation] == [0, 10]


def test_card_of_a_chat_model_says_what_it_was_trained_from_and_how_to_ask_it() -> None:
    group = {"class": "gptjax.optim.param_groups:ParamGroup", "beta1": None}
    content = {
        "steps": 20,
        "init_from": "/home/me/runs/sft",
        "objective": {"class": "gptjax.objectives.preference:DPO", "beta": 0.1, "chunk_tokens": 256},
        "lora": {"class": "gptjax.finetuning.lora:LoRA", "rank": 0, "alpha": 16.0},
        "ema": {"class": "gptjax.optim.ema:EMA", "decay": None, "fraction": 1.0},
        "optimizer": {"head": group, "vector": {**group, "beta1": 0.5}},
    }
    losses = ({"step": 20, "val_loss": 0.5, "val_reward_accuracy": 1.0},)
    facts = CardFacts("x", run=content, validation=losses, answers_chats=True)
    card = make_model_card(GPT2_CONFIG, architecture=choose_architecture(GPT2_CONFIG), dtype="float32", facts=facts)
    assert "| init_from | sft |\n| objective | gptjax.objectives.preference:DPO |\n| objective.beta | 0.1 |" in card
    assert "| optimizer.vector.beta1 | 0.5 |" in card
    assert "`val_loss` is the mean of the objective, DPO." in card
    assert "| 20 | 0.5 | 1 |" in card
    assert "tokenizer.apply_chat_template(" in card
    for absent in ("lora", "ema", "chunk_tokens", "optimizer.head", "/home/me"):
        assert absent not in card


def test_card_of_the_custom_form_says_how_to_load_it() -> None:
    config = GPTConfig(**{**vars(GPT2_CONFIG), **EVERYTHING})
    losses = tuple(ARCHITECTURES["gptjax"].list_losses(config))
    card = make_model_card(
        config, architecture=choose_architecture(config), dtype="float32", facts=CardFacts("x", losses_elsewhere=losses)
    )
    assert card.count("from_pretrained(path, trust_remote_code=True)") == 2, (
        "of the tokenizer, too: it reads the config"
    )
    assert "custom_code" in card
    assert "transformers alone reads it" in card
    assert "| logit_softcap | 4 |" in card


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"holds no figures\. Give a file that evaluate --json wrote"),
        ({"checkpoints": [1]}, "holds no figures"),
        ({"checkpoints": [{"checkpoint": name, "figures": {}} for name in "ab"]}, "is of a, b, and none is c"),
    ],
)
def test_evaluation_of_something_else_is_refused(tmp_path: Path, content: dict, message: str) -> None:
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_evaluations([str(tmp_path / "result.json")], checkpoint="c")
    with pytest.raises(
        UserError, match=r"--evaluation=.*absent\.json is no file\. Give one that evaluate --json wrote"
    ):
        read_evaluations([str(tmp_path / "absent.json")], checkpoint="c")


@pytest.mark.parametrize(
    ("name", "step", "is_told"), [("a", 4, False), ("./a", 4, False), ("b", 4, True), ("a", 2, True)]
)
def test_results_of_another_checkpoint_or_step_are_told(name: str, step: int, is_told: bool) -> None:
    found = list(list_doubts([{"checkpoint": name, "step": step}], checkpoint="a", step=4))
    told = f"The card has results of {name} at step {step}, and the export is of a at step 4."
    assert found == ([told] if is_told else [])
