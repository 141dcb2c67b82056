"""`python -m gptjax.bench` at a tiny size. No time is asserted."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny import MODEL, tiny_config, write_config, write_text_shards

from gptjax.bench import main
from gptjax.benchmark import bench_training, hardware
from gptjax.benchmark.hlo_scopes import CATEGORIES
from gptjax.benchmark.peers import torch_client
from gptjax.benchmark.peers.torch_client import OutOfMemory, TorchContestant
from gptjax.benchmark.peers.work import (
    AdamWSettings,
    DecodingWork,
    PeerModel,
    TorchPeer,
    TrainingWork,
    Work,
)
from gptjax.core.errors import UserError
from gptjax.core.serialization import from_json, to_json

SHORT = ("--rounds=2", "--round-seconds=0.001", "--warmup=1")


@pytest.fixture(scope="module", autouse=True)
def _small_hardware():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hardware.PRODUCT_SIZE, "cpu", 64)
        patch.setitem(hardware.READ_BYTES, "cpu", 2**16)
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with shards, the config tiny.py and another config."""
    directory = tmp_path_factory.mktemp("bench")
    config = tiny_config(write_text_shards(directory / "shards"), grad_accum=2, model={"num_layers": 1})
    write_config(directory / "tiny.py", config)
    write_config(directory / "other.py", replace(config, name="other"))
    return directory


@pytest.fixture(scope="module")
def training(directory: Path) -> dict[str, Any]:
    """A benchmark of a training step with a profile and two peers that need no torch."""
    words = [f"--config={directory}/tiny.py", "--peer=flax", f"--peer=config:{directory}/other.py", "--profile"]
    with jax.numpy_rank_promotion("allow"):  # the peer is written as in a tutorial
        main([*words, *SHORT, "--profile-steps=2", f"--output={directory}/out", "--model.dropout=0.1"])
    return json.loads((directory / "out" / "benchmark.json").read_text())


def run_main(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str]:
    """The exit code and stderr of a command that fails."""
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return int(done.value.code or 0), capsys.readouterr().err


def test_training_result_has_every_number(training: dict[str, Any]) -> None:
    own, memory = training["own"], training["own"]["memory"]
    assert (training["version"], training["kind"], own["tokens_per_step"]) == (1, "train", 8 * 16)
    assert own["tokens_per_second"] == pytest.approx(own["tokens_per_step"] / own["step"]["median"])
    parts = memory["arguments"] + memory["outputs"] + memory["temporaries"] - memory["aliased"]
    assert memory["total"] == parts > memory["arguments"] > 0
    assert own["mfu"] is None
    assert 0 < own["mfu_of_product"]["causal"] < own["mfu_of_product"]["palm"]
    assert own["compile"].keys() == {"cold", "cached"}
    assert own["attention_kernel"] == "xla"
    assert own["step"].keys() == {"median", "low", "high", "rounds"}
    assert {own[name]["rounds"] for name in ("step", "loop", "host_overhead", "data_wait", "product_flops")} == {2}
    assert training["config"]["model"]["dropout"] == 0.1


def test_training_result_compares_peers_round_by_round(training: dict[str, Any]) -> None:
    (comparison,) = training["comparisons"]
    ours, *peers = comparison["contestants"]
    assert (ours["name"], ours["ours_over_theirs"]) == ("gptjax", None)
    assert [peer["name"] for peer in peers] == ["flax", "config other"]
    assert all((peer["rows"], peer["tokens"]) == (8, 8 * 16) for peer in peers)
    assert all(peer["ours_over_theirs"]["median"] > 0 for peer in peers)


def test_breakdown_adds_up_and_names_almost_everything(training: dict[str, Any]) -> None:
    breakdown = training["breakdown"]
    rows = {(row["category"], row["direction"]): row["milliseconds"] for row in breakdown["rows"]}
    assert sum(rows.values()) == pytest.approx(breakdown["total"])
    assert {category for category, _ in rows} <= set(CATEGORIES)
    for category in ("attention", "linears"):
        assert rows[category, "forward"] > 0
        assert rows[category, "backward"] > 0
    assert rows["head + loss", "forward"] > 0
    assert rows["optimizer", "update"] > 0
    unscoped = sum(value for (category, _), value in rows.items() if category == "outside any scope")
    assert unscoped < 0.25 * breakdown["total"]


def test_output_holds_table_and_picture(directory: Path, training: dict[str, Any]) -> None:
    text = (directory / "out" / "benchmark.md").read_text()
    for found in ("# tiny: training step", "| tokens/s ", "| flax ", "| config other ", "| optimizer ", "xla"):
        assert found in text
    assert (directory / "out" / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_decode_writes_json_to_standard_output(directory: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--decode", "--decode-batches=1,2", "--prompt-tokens=4", "--new-tokens=3", "--json=-"]
    main([f"--config={directory}/tiny.py", *words, *SHORT])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert "In turn, 2 × 3 tokens after 4" in printed.err
    assert (result["kind"], result["own"], result["breakdown"]) == ("decode", None, None)
    found = [one["contestants"][0] for one in result["comparisons"]]
    assert [(one["rows"], one["tokens"]) for one in found] == [(1, 3), (2, 6)]
    assert all(one["bandwidth_share"] > 0 for one in found)


@pytest.mark.slow
def test_best_batch_takes_the_fastest_that_fits(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    words = ["--random-data", "--best-batch=2,4", f"--json={path}", f"--peer=config:{directory}/other.py"]
    main([f"--config={directory}/tiny.py", "--model.vocab-size=47", *words, *SHORT])
    best = json.loads(path.read_text())["comparisons"][1]
    rates = best["tried"]["gptjax"]
    assert rates.keys() == {"2", "4"}
    assert best["contestants"][0]["rows"] == int(max(rates, key=rates.__getitem__))


def test_choose_best_skips_what_does_not_fit() -> None:
    assert bench_training.choose_best("a", {8: 10.0, 16: 20.0, 32: None}) == 16
    with pytest.raises(UserError, match="none of the batch sizes 8, 16 fits"):
        bench_training.choose_best("a", {8: None, 16: None})


@pytest.mark.slow
def test_mesh_of_eight_devices_is_measured(directory: Path, capsys: pytest.CaptureFixture) -> None:
    main([f"--config={directory}/tiny.py", "--mesh=data", "--grad-accum=1", "--profile", *SHORT])
    printed = capsys.readouterr().out
    assert "8 × cpu" in printed
    assert "| collectives " in printed


INVALID = {
    "unknown peer": ("--peer=mlx", "Give nanogpt:DIR, transformers, flax or config:FILE"),
    "nanogpt without a directory": ("--peer=nanogpt", "no directory is given"),
    "nanogpt in a wrong directory": ("--peer=nanogpt:/nowhere", "/nowhere/model.py does not exist"),
    "transformers without biases": ("--peer=transformers --model.no-bias", "Add --model.bias"),
    "a model that is no GPT-2": ("--peer=flax --model.qk-norm", "lack model.qk_norm=True"),
    "an activation of ours": ("--peer=flax --model.activation=relu2", "model.activation='relu2'"),
    "a peer on a mesh": ("--peer=flax --mesh=data --grad-accum=1", "Add --mesh=single"),
    "flax cannot generate": ("--peer=flax --decode --prompt-tokens=4", "Use --peer=transformers"),
    "configs do not generate": ("--peer=config:smoke --decode --prompt-tokens=4", "compares training steps"),
    "tokens beyond the context": ("--decode --prompt-tokens=16", "do not fit model.context_length 16"),
    "profile of generation": ("--decode --profile", "--profile is for training"),
    "no rounds": ("--rounds=0", "--rounds is 0; it must be at least 1"),
    "words for rounds": ("--rounds=abc", "--rounds=abc: wanted"),
    "words for rounds, apart": ("--rounds abc", "--rounds=abc: wanted"),
    "no time": ("--round-seconds=0", "it must be positive"),
    "batch sizes": ("--best-batch=4,x", "separated by commas"),
    "a directory that is not there": ("--json=/nowhere/at/all.json", "its directory does not exist"),
    "unknown field": ("--model.depth=4", "--model.depth"),
}


@pytest.mark.parametrize(("words", "message"), INVALID.values(), ids=INVALID)
def test_invalid_input_exits_with_code_2(
    directory: Path, words: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    code, printed = run_main(capsys, f"--config={directory}/tiny.py", *words.split())
    assert code == 2
    assert message in " ".join(printed.split())


def test_help_explains_options_and_fields(directory: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as done:
        main([f"--config={directory}/tiny.py", "--help"])
    printed = capsys.readouterr().out
    assert done.value.code == 0
    assert "--round-seconds" in printed
    assert "--optimizer.learning-rate" in printed


# ---------------------------------------------------------------------------------------------------- worker process

PEER_MODEL = PeerModel(
    num_layers=1,
    embed_dim=MODEL.embed_dim,
    num_heads=2,
    context_length=8,
    vocab_size=16,
    mlp_dim=4 * MODEL.embed_dim,
    activation="gelu",
    bias=True,
    dropout=0.0,
    tie_embeddings=True,
    norm_epsilon=1e-5,
    dtype="float32",
)
WORK = TrainingWork(PEER_MODEL, AdamWSettings(1e-3, 0.9, 0.95, 0.1, 1.0), rows=2, grad_accum=2)


def start_worker(monkeypatch: pytest.MonkeyPatch, code: str) -> TorchContestant:
    """A contestant whose worker is this Python code."""
    monkeypatch.setattr(torch_client, "COMMAND", (sys.executable, "-c", code))
    return TorchContestant(TorchPeer("transformers", compiled=False), WORK)


@pytest.mark.parametrize("work", [WORK, DecodingWork(PEER_MODEL, rows=2, prompt_tokens=4, new_tokens=3)])
def test_work_written_as_json_is_read_back_equal(work: TrainingWork | DecodingWork) -> None:
    assert from_json(json.loads(json.dumps(to_json(work))), Work) == work


def test_missing_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.modules['torch'] = None; from gptjax.benchmark.peers.torch_worker import main; main()"
    with pytest.raises(UserError, match=r'transformers, eager cannot run .*pip install -e "\.\[hf\]"'):
        start_worker(monkeypatch, code)


def test_worker_that_dies_is_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"its process ended\n.*no g\+\+ here"):
        start_worker(monkeypatch, "import sys; input(); sys.exit('no g++ here')")


def test_work_that_does_not_fit_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    code = 'input(); print(\'{"error": "CUDA out of memory", "kind": "memory"}\', flush=True)'
    with pytest.raises(OutOfMemory, match="CUDA out of memory"):
        start_worker(monkeypatch, code)


def test_worker_answers_with_seconds_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    code = 'input(); print(\'{"torch": "2"}\', flush=True); input(); print(\'{"seconds": 1.5}\', flush=True)'
    worker = start_worker(monkeypatch, code)
    assert worker.software == {"torch": "2"}
    assert (worker.rows, worker.tokens) == (4, 32)
    assert worker.run(3) == 1.5
    worker.close()
