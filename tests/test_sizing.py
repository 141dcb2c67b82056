"""Sizes counted before a run equal those of the model, and the published figures of nanoGPT."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from gptjax import GPTConfig, load_config
from gptjax.benchmark.sizing import (
    count_flops_by_part,
    count_parameters_by_part,
    count_state_bytes,
    format_shares,
    plan_memory,
)
from gptjax.model.gpt import count_parameters
from gptjax.runs.startup import initialize_state
from gptjax.sharding.mesh import MeshConfig

GPT2 = GPTConfig(bias=False)
"""nanoGPT's notebook on sizes counts GPT-2 124M without biases."""
CONFIGS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_of_every_config_sum_to_the_models(name: str) -> None:
    model = load_config(name).model
    model = replace(model, vocab_size=model.vocab_size or 1000)
    assert sum(count_parameters_by_part(model).values()) == count_parameters(model)
    for causal in (False, True):
        flops = sum(count_flops_by_part(model, causal=causal).values())
        assert 3 * flops == pytest.approx(model.flops_per_token(causal=causal))


def test_sizes_of_gpt2_are_those_that_nanogpt_publishes() -> None:
    parameters = count_parameters_by_part(GPT2)
    assert parameters["token embedding"] == 38_597_376
    assert parameters["position embedding"] == 786_432
    assert parameters["attention"] == 12 * 2_359_296
    assert parameters["MLP"] == 12 * 4_718_592
    assert sum(parameters.values()) == 124_337_664

    flops = {part: 1024 * count for part, count in count_flops_by_part(GPT2, causal=False).items()}
    assert flops["attention: q, k, v"] == 12 * 3_623_878_656
    assert flops["attention: scores"] == 12 * 1_610_612_736
    assert flops["attention: output"] == 12 * 1_207_959_552
    assert flops["MLP: up"] == 12 * 4_831_838_208
    assert flops["head"] * 50_257 / 50_304 == 79_047_426_048
    assert sum(flops.values()) - flops["head"] == 212_600_881_152


def test_state_bytes_of_a_config_are_those_of_its_state() -> None:
    config = load_config("smoke")
    config = replace(config, model=replace(config.model, vocab_size=256))
    sizes = count_state_bytes(config)
    state = initialize_state(config, MeshConfig("single").resolve(1))
    arrays = jax.tree.leaves((state.model, state.optimizer))
    assert sizes.checkpoint == sum(array.nbytes for array in arrays)
    assert sizes.gradients == sizes.weights


def test_shares_of_parts_are_a_table_with_a_total() -> None:
    lines = format_shares({"attention": 3, "MLP": 1}, unit="parameters").splitlines()
    assert lines[0] == "| part | parameters | share |"
    assert lines[2:] == ["| attention | 3 | 75.0% |", "| MLP | 1 | 25.0% |", "| total | 4 | |"]


def test_planned_memory_holds_the_state_and_activations() -> None:
    config = load_config("smoke")
    config = replace(config, model=replace(config.model, vocab_size=256))
    memory = plan_memory(config)
    assert memory is not None
    assert memory.arguments >= count_state_bytes(config).checkpoint
    assert memory.total > memory.arguments
