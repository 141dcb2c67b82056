import json
import shutil
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_models import draw_tensors, make_hf_config, write_model_dir
from tiny import SINGLE

from gptjax.convert import main as convert
from gptjax.core.errors import UserError
from gptjax.evaluate import evaluate
from gptjax.evaluation.options import Evaluate
from gptjax.huggingface import model_dir
from gptjax.huggingface.architectures.selection import ARCHITECTURES
from gptjax.huggingface.model_import import from_hf
from gptjax.huggingface.safetensors_dir import TrainedAt
from gptjax.runs.checkpoint_source import SavedModel, describe_source, find_trained_at, name_step, open_checkpoint
from gptjax.runs.run_dir import RunDir, write_imported_run
from gptjax.sample import sample
from gptjax.serving.sampler import Sample
from gptjax.tokenization.tokenizer import Chars

TOKENIZER = Chars.from_text("abcdefgh \n")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 as transformers saves it, with a tokenizer."""
    config = make_hf_config(n_layer=1, vocab_size=10, bos_token_id=None, eos_token_id=None)
    directory = write_model_dir(tmp_path_factory.mktemp("saved") / "gpt2", config, draw_tensors(config))
    TOKENIZER.save(directory)
    return directory


def test_saved_model_and_its_imported_run_are_the_same_checkpoint(saved: Path, tmp_path: Path) -> None:
    config, model, _ = from_hf(saved)
    write_imported_run(tmp_path / "run", model=model, tokenizer=TOKENIZER)
    by_rule, run = open_checkpoint(saved), open_checkpoint(tmp_path / "run")
    assert isinstance(by_rule, SavedModel)
    assert isinstance(run, RunDir)
    assert replace(by_rule.model_config, compute=config.compute) == config
    assert by_rule.require_tokenizer().fingerprint == TOKENIZER.fingerprint
    assert (by_rule.find_step("best"), run.find_step()) == (None, 0)
    text = tmp_path / "text.txt"
    text.write_text("abc hgf\n" * 9)
    losses = [
        evaluate(Evaluate((str(path),), text=str(text), mesh=SINGLE))["val_loss"] for path in (saved, tmp_path / "run")
    ]
    assert losses[0] == losses[1]


def test_a_name_may_say_which_checkpoint_of_a_run(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = from_hf(saved)
    run = tmp_path / "run"
    write_imported_run(run, model=model, tokenizer=TOKENIZER)
    shutil.copytree(run / "checkpoints/0", run / "checkpoints/5")
    monkeypatch.chdir(tmp_path)
    assert [open_checkpoint(name).find_step() for name in ("run", "run@latest", "run@0", "run/checkpoints/0")] == [
        5,
        5,
        0,
        0,
    ]
    assert describe_source(RunDir.open("run@0")) == "run at step 0"
    assert RunDir.open("run@0").load_model(0).config == model.config
    with pytest.raises(UserError, match=r"run was named with step 0, but --step=5 is 5"):
        RunDir.open("run@0").find_step("5")
    with pytest.raises(UserError, match=r"has no step 7\. Use one of 0, 5"):
        open_checkpoint("run@7")
    with pytest.raises(UserError, match="no step 7"):
        open_checkpoint(f"{saved}@7")
    same = Evaluate(("run@0", "run/", "run/checkpoints/0", "run@5"), baseline=f"{run}@0", text="text.txt")
    assert (same.checkpoints, same.compared) == (("run@0", "run/", "run@5"), "run@0")
    run.rename(tmp_path / "mail@7")  # a directory's own name comes first
    assert open_checkpoint("mail@7").find_step() == 5
    assert open_checkpoint("mail@7@0").find_step() == 0


def test_an_export_says_where_its_weights_were_trained(saved: Path, tmp_path: Path) -> None:
    """A model of others says nothing of the kind. A number that is none is not believed."""
    assert (open_checkpoint(saved).find_step(), name_step(open_checkpoint(saved))) == (None, {})
    assert describe_source(open_checkpoint(saved)) == "gpt2"
    _, model, _ = from_hf(saved)
    for name, trained_at in (("export", TrainedAt("mine", 12)), ("forged", TrainedAt("mine\n", "1" * 99))):  # pyright: ignore[reportArgumentType]
        write = {"architecture": ARCHITECTURES["gpt2"], "dtype": "float32", "origin": None, "tokenizer": TOKENIZER}
        (tmp_path / name).mkdir()
        model_dir.write_model(tmp_path / name, model, **write, trained_at=trained_at)
    export = open_checkpoint(tmp_path / "export")
    assert name_step(export, "12") == {"step": 12, "run": "mine"}
    assert describe_source(export) == "export (step 12 of mine)"
    assert find_trained_at(export) == TrainedAt("mine", 12)
    with pytest.raises(UserError, match="it has no step 0"):
        export.find_step(0)
    assert open_checkpoint(tmp_path / "forged").find_step() is None


def test_saved_model_is_sampled_and_exported_in_place(saved: Path, tmp_path: Path) -> None:
    [text] = sample(Sample(str(saved), prompt=("abc",), max_new_tokens=5))
    assert text.startswith("abc")
    assert len(text) == 8
    convert(["to-hf", f"--checkpoint={saved}", f"--output={tmp_path / 'again'}", "--no-verify"])
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["summary_type"] == "cls_index"
    again, before = (from_hf(path)[1].token_embedding[...] for path in (tmp_path / "again", saved))
    np.testing.assert_array_equal(again, before)


def test_shorter_context_keeps_the_first_positions(saved: Path) -> None:
    assert open_checkpoint(saved).load_model(context_length=5).position_embedding[...].shape == (5, 30)


def test_hub_prefix_fetches_the_repository(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        if name == "some/typo":
            raise LookupError("404: no such repository\nRequest ID 7")
        return str(saved)

    monkeypatch.setitem(model_dir.sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=download))
    assert open_checkpoint("hf:some/model").model_config == open_checkpoint(saved).model_config
    open_checkpoint("hf:some/model@v2")
    assert asked == [("some/model", None), ("some/model", "v2")]
    with pytest.raises(
        UserError, match=r"'some/typo': fetching it from the hub failed: LookupError: 404: no such \w+$"
    ):
        open_checkpoint("hf:some/typo")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run directory or a saved model: it has no config.json. Give a run"),
        ('{"model_type": "bert"}', "model_type is 'bert'; wanted: gpt2"),
        ('{"model_type": ["gpt2"]}', r"model_type is \['gpt2'\]"),
        ("[" * 9000, "not JSON"),
        ("[]", "does not hold the config of a run"),
        ('{"hidden_size": 3}', "does not hold the config of a run"),
    ],
)
def test_other_directories_are_refused_with_the_reason(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path)


def test_directory_that_hides_a_model_of_the_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"gpt2 is not a run .* The hub's is hf:openai-community/gpt2\.$"):
        open_checkpoint("gpt2")


def test_another_step_of_a_saved_model_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match="one set of weights; it has no step 5"):
        open_checkpoint(saved).load_model("5")
