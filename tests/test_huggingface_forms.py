"""Export and import in all forms: what returns, what is refused and, with transformers, what is computed there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hf_forms import GPT2_CONFIG, LLAMA_CONFIG, OPTIONS, compute_logits, draw_model, draw_tokens
from safetensors.numpy import load_file, save_file

from gptjax.core.errors import UserError
from gptjax.huggingface.forms import FORMS, choose_form
from gptjax.huggingface.model_dir import compute_torch_logits, write_model
from gptjax.huggingface.model_import import from_hf, from_hf_config
from gptjax.huggingface.safetensors_dir import read_json, write_json
from gptjax.huggingface.weight_map import DTypeName
from gptjax.model.config import GPTConfig

LLAMAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2, "rotary_base": 500.0, "norm_epsilon": 1e-3},
    "one_kv_head_tied": {"num_kv_heads": 1, "tie_embeddings": True},
    "gelu_without_gain": {"activation": "gelu_tanh", "norm_scale": False, "dropout": 0.1},
    "windows_without_effect": {"window_pattern": "SL", "short_window": 16, "attention_scale": 8**-0.5},
}
MODELS = {
    "gpt2": GPT2_CONFIG,
    "gpt2_untied_without_gain": replace(GPT2_CONFIG, tie_embeddings=False, norm_scale=False, activation="gelu"),
    **{f"llama_{name}": replace(LLAMA_CONFIG, **changes) for name, changes in LLAMAS.items()},
}
"""Config by name; the name begins with that of the form."""


def save(directory: Path, config: GPTConfig, *, dtype: DTypeName = "float32", form: str | None = None) -> Any:
    """Write a model with drawn weights as the form that its config takes; returns the model."""
    model = draw_model(config)
    directory.mkdir(parents=True)
    chosen = FORMS[form] if form else choose_form(config)
    write_model(directory, model, form=chosen, dtype=dtype, origin=None, tokenizer=None)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_auto_takes_the_first_form_that_can_express_the_model(name: str) -> None:
    assert choose_form(MODELS[name]).model_type == name.partition("_")[0]


@pytest.mark.parametrize("name", ["llama_plain", "llama_grouped", "llama_one_kv_head_tied"])
def test_exported_model_returns_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = save(tmp_path / "out", MODELS[name])
    config, imported, origin = from_hf(tmp_path / "out")
    assert replace(config, compute=model.config.compute) == model.config
    assert origin.dtype == "float32"
    padding = model.config.resolved_vocab_size
    for left, right in zip(jax.tree.leaves(imported), jax.tree.leaves(model), strict=True):
        if left.shape == model.tokens[...].shape:
            left, right = left[:padding], right[:padding]
        elif model.head is not None and left.shape == model.head[...].shape:
            left, right = left[:, :padding], right[:, :padding]
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_llama_in_16_bits_is_exported_again_bit_for_bit(tmp_path: Path, dtype: DTypeName) -> None:
    save(tmp_path / "first", MODELS["llama_grouped"], dtype=dtype)
    config, model, origin = from_hf(tmp_path / "first")
    assert (origin.dtype, config.compute.dtype) == (dtype, "bfloat16" if dtype == "bfloat16" else "float32")
    (tmp_path / "second").mkdir()
    write_model(tmp_path / "second", model, form=FORMS["llama"], dtype=dtype, origin=origin, tokenizer=None)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all((first[name].view(np.uint16) == second[name].view(np.uint16)).all() for name in first)
    assert read_json(tmp_path / "first" / "config.json") == read_json(tmp_path / "second" / "config.json")


def test_llama_names_and_layout_are_those_of_transformers(tmp_path: Path) -> None:
    model = save(tmp_path / "out", MODELS["llama_grouped"])
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    attention = model.blocks.attention
    key = np.asarray(attention.kv[...])[2, :, 0].reshape(32, 16).T
    np.testing.assert_array_equal(tensors["model.layers.2.self_attn.k_proj.weight"], key)
    out = np.asarray(attention.out[...])[1].reshape(32, 32).T
    np.testing.assert_array_equal(tensors["model.layers.1.self_attn.o_proj.weight"], out)
    np.testing.assert_array_equal(tensors["lm_head.weight"], np.asarray(model.head[...])[:, :131].T)
    content = read_json(tmp_path / "out" / "config.json")
    expected = {"model_type": "llama", "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 500.0}
    assert {name: content[name] for name in expected} == expected
    assert content["rope_parameters"] == {"rope_type": "default", "rope_theta": 500.0}


@pytest.mark.parametrize("name", ["num_sinks", "qk_norm", "rotary_fraction", "logit_softcap", "x0_mix", "long_window"])
def test_llama_refuses_options_by_name(name: str) -> None:
    config = replace(LLAMA_CONFIG, **OPTIONS[name])
    with pytest.raises(UserError, match=rf"LlamaForCausalLM .* cannot express model\.{name}="):
        choose_form(config, "llama")


LLAMA_JSON: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "max_position_embeddings": 16,
    "vocab_size": 131,
    "intermediate_size": 52,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"norm_epsilon": 1e-6}),
        ({"rope_theta": 500000, "rope_scaling": None}, {"norm_epsilon": 1e-6, "rotary_base": 500000.0}),
        ({"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "head_dim": 8}, {}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rms_norm_eps": 1e-5}, {}),
        ({"tie_word_embeddings": True, "rms_norm_eps": 1e-5}, {"tie_embeddings": True}),
    ],
)
def test_llama_configs_of_other_programs_are_read(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    config = from_hf_config(LLAMA_JSON | changes, path=Path("config.json"))
    assert config == replace(LLAMA_CONFIG, num_layers=2, compute=config.compute, **expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True, a variant"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"head_dim": 16}, "head_dim is 16; supported: hidden_size / num_attention_heads, which is 8"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "of type 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "of type 'llama3'"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]; wanted: an object"),
        ({"rope_theta": "much"}, "rope_theta is 'much'"),
        ({"hidden_act": ["silu"]}, "hidden_act is .*supported: silu"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'; wanted: float"),
        ({"num_key_value_heads": 3}, "no multiple of model.num_kv_heads 3"),
        ({"hidden_size": None}, "hidden_size is None; wanted: int"),
    ],
)
def test_llama_configs_that_cannot_be_read_are_refused_by_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_hf_config(LLAMA_JSON | changes, path=Path("config.json"))


def test_llama_without_prefix_and_with_buffers_is_read(tmp_path: Path) -> None:
    model = save(tmp_path / "out", MODELS["llama_one_kv_head_tied"])
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    save_file(bare, tmp_path / "out" / "model.safetensors")
    tokens = draw_tokens(model.config)
    np.testing.assert_array_equal(compute_logits(from_hf(tmp_path / "out")[1], tokens), compute_logits(model, tokens))


def test_unknown_model_type_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": ["llama"]})
    with pytest.raises(UserError, match=r"model_type is \['llama'\]; it can be imported if it is one of gpt2, llama"):
        from_hf(tmp_path)


# --- with transformers ---


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same_logits(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    model = save(tmp_path / name, MODELS[name])
    tokens = draw_tokens(model.config)
    expected = compute_logits(model, tokens)
    assert np.ptp(expected) > 1, "equal logits would prove little"
    found = compute_torch_logits(tmp_path / name, tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
