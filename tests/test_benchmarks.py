"""Each benchmark runs at its smallest size. Numbers of its output are checked for plausibility, times are not."""

import re
from dataclasses import replace
from math import log
from pathlib import Path

import jax
import pytest
from tiny import ALPHABET, MODEL, SINGLE, python, text_of, tiny_config, tokenizer, write_config, write_text_shards

from data_pipelines.encode.bpe_trainer import train_bpe
from gptjax.model.gpt import GPT, count_parameters
from gptjax.optim import Muon
from gptjax.runs.run_dir import write_imported_run

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *words: object) -> str:
    """The output of a benchmark, which must succeed."""
    process = python(str(BENCHMARKS / script), *map(str, words), PYTHONPATH=str(BENCHMARKS.parent))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def find_numbers(pattern: str, output: str) -> list[float]:
    """The group of every match of a pattern, as numbers."""
    return [float(number) for number in re.findall(pattern, output)]


def test_loader_reads_every_packing():
    output = run("loader.py", "--tokens=50_000", "--context-length=64", "--batch-size=8", "--steps=5")
    dropped = dict(re.findall(r"(\w+) +[\d.]+ M tokens/s +([\d.]+)% dropped", output))
    assert dropped.keys() >= {"concat", "bos_aligned", "best_fit", "bos_best_fit"}
    assert float(dropped["concat"]) < 1
    assert float(dropped["best_fit"]) == 0 < float(dropped["bos_aligned"]) < 95


def test_packing_counts_dropped_tokens_and_padding():
    output = run("packing.py", "--documents=1000", "--contexts", 64)
    (beyond,) = find_numbers(r"([\d.]+)% is beyond T", output)
    aligned, best_fit, bos_best_fit = find_numbers(r"([\d.]+)% dropped", output)
    assert best_fit == 0 < beyond <= bos_best_fit <= aligned < 100


def test_muon_cost_counts_each_product_once():
    size = ("--layers", 8, "--embed-dim", 32, "--num-heads", 4)
    output = run("muon_cost.py", "--target", "cpu", *size, "--meshes", "fsdp4xtensor2")
    assert find_numbers(r"FLOPs × ([\d.]+)", output) == [1, 1, 1]
    assert "all-to-all" in output
    assert "all-gather" not in output


def test_compile_recipes_counts_a_step_on_eight_devices(tmp_path: Path):
    muon = Muon(ns_dtype="float32")
    config = tiny_config(tmp_path / "shards", batch_size=16, model={"num_layers": 8}, optimizer=muon)
    path = write_config(tmp_path / "muon.py", config)
    output = run("compile_recipes.py", path, "--targets", "cpu", "--meshes", "data", "--grad-accum", 2)
    assert "2 × 1 × 16 tokens a device" in output
    assert "rematerialised 0" in output
    assert find_numbers(r"× ([\d.]+) of whole matrices", output) == [1]
    assert find_numbers(r"([\d.]+) M ", output) == [pytest.approx(count_parameters(config.model) / 1e6, abs=0.05)]
    assert find_numbers(r"all-reduce (\d+)", output)[0] >= 1


def test_loss_per_token_compares_two_recipes(tmp_path: Path):
    shards = write_text_shards(tmp_path / "shards")
    changes = {"baseline": {}, "modern": {"optimizer": Muon(ns_dtype="float32")}}
    baseline, modern = (
        write_config(
            tmp_path / f"{name}.py", tiny_config(shards, name=name, steps=4, model={"num_layers": 1}, **fields)
        )
        for name, fields in changes.items()
    )
    flags = ["--baseline-rates=0.004", "--modern-rates=0.01", "--adamw-rates=0.004", "--lengths=0.5", "--seeds=1337"]
    recipes = [f"--output={tmp_path / 'out'}", f"--baseline={baseline}", f"--modern={modern}"]
    ingredients = ["--ingredients", "without QK-norm", "with x0 in every block"]
    output = run("loss_per_token.py", *recipes, *flags, *ingredients)
    losses = dict(re.findall(r"(\S+) +([\d.]+) nats  ", output))
    assert losses.keys() >= {"baseline-0.004-x1", "modern-0.01-x0.5", "adamw-0.004-x0.5", "with-x0-in-every-block"}
    assert all(0 < float(loss) < 1.1 * log(len(ALPHABET)) for loss in losses.values())
    assert "without QK-norm: no change" in output
    assert find_numbers(r"recipe takes ([\d.]+) of", output)[0] > 0
    assert (tmp_path / "out/loss_per_token.png").stat().st_size > 1000


def test_past_the_context_of_an_untrained_model_is_uniform(tmp_path: Path):
    shards = write_text_shards(tmp_path / "shards")
    with SINGLE.activate():
        model = GPT(replace(MODEL, positions="rotary"), key=jax.random.key(0), mesh=SINGLE)
        write_imported_run(tmp_path / "run", model=model, tokenizer=tokenizer())
    output = run("past_the_context.py", "--runs", tmp_path / "run", "--data", shards, "--contexts=2", "--rows=2")
    losses = find_numbers(r"to \d+ +([\d.]+)", output) + find_numbers(r"as in training ([\d.]+)", output)
    assert len(losses) == 4
    assert all(loss == pytest.approx(log(len(ALPHABET)), abs=0.3) for loss in losses)


def test_prepare_throughput_measures_text_and_memory(tmp_path: Path):
    source = tmp_path / "text.txt"
    source.write_text(text_of(20_000))
    train_bpe([text_of(100)], vocab_size=300).save(tmp_path)
    flags = [f"--source={source}", f"--tokenizer={tmp_path / 'tokenizer.json'}", "--copies=1", "--processes=1"]
    output = run("prepare_throughput.py", *flags)
    assert find_numbers(r"text: +([\d.]+) MB", output) == [pytest.approx(source.stat().st_size / 1e6, abs=0.06)]
    assert 0.01 < find_numbers(r"tiktoken: ([\d.]+) MB per CPU second", output)[0] < 1000
    assert 10 < find_numbers(r"memory: +(\d+) MB", output)[0] < 4000


def test_post_training_compares_each_way_of_trl_with_ours():
    pytest.importorskip("trl", reason="needs trl: pip install -e '.[dev,parity]'")
    size = ("--layers=1", "--embed-dim=32", "--context-length=256", "--vocab-size=600", "--rows=2")
    output = run("post_training.py", *size, "--conversations=60", "--rounds=1", "--steps=1")
    assert len(find_numbers(r"([\d.]+) a second", output)) == 7
    assert all(0.01 < ratio < 1000 for ratio in find_numbers(r"([\d.]+) ×", output))


@pytest.mark.parity
def test_harness_speed_compares_equal_likelihoods():
    pytest.importorskip("lm_eval")
    output = run("harness_speed.py", "--items=8", "--layers=1", "--width=64")
    assert all(worst < 1e-3 for worst in find_numbers(r"differ by at most (\S+)", output))
    assert len(find_numbers(r"([\d.]+) items/s", output)) == 6
