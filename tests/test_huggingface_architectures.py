"""Export and import in all architectures: what returns, what is refused, and what transformers computes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_architectures import (
    EVERYTHING,
    GPT2_CONFIG,
    LLAMA_CONFIG,
    OPTIONS,
    compute_logits,
    draw_model,
    draw_tokens,
    shrink_model,
)
from safetensors.numpy import load_file, save_file

import configs
from gptjax.config import load_config
from gptjax.core.errors import UserError
from gptjax.huggingface.architectures.custom import CUSTOM
from gptjax.huggingface.architectures.selection import ARCHITECTURES, choose_architecture
from gptjax.huggingface.architectures.weight_map import list_parameters
from gptjax.huggingface.model_dir import compute_torch_logits, write_model
from gptjax.huggingface.model_import import from_hf, from_hf_config
from gptjax.huggingface.safetensors_dir import read_json, write_json
from gptjax.model.config import GPTConfig
from gptjax.model.positions import POSITIONS
from gptjax.sharding.devices import DType

LLAMAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2, "rotary_base": 500.0, "norm_epsilon": 1e-3},
    "one_kv_head_tied": {"num_kv_heads": 1, "tie_embeddings": True},
    "gelu_without_gain": {"activation": "gelu_tanh", "norm_scale": False, "dropout": 0.1},
    "windows_without_effect": {"window_pattern": "SL", "short_window": 16, "attention_scale": 8**-0.5},
}
NANOCHAT_OPTIONS: dict[str, Any] = {
    "mlp_dim": 52,
    "bias": False,
    "tie_embeddings": False,
    "activation": "relu2",
    "positions": "rotary",
    "norm": "rms",
    "norm_scale": False,
    "qk_norm": True,
    "embedding_norm": True,
    "logit_softcap": 15.0,
}
MODELS = {
    "gpt2": GPT2_CONFIG,
    "gpt2_untied_without_gain": replace(GPT2_CONFIG, tie_embeddings=False, norm_scale=False, activation="gelu"),
    **{f"llama_{name}": replace(LLAMA_CONFIG, **changes) for name, changes in LLAMAS.items()},
    "qwen3_grouped": replace(LLAMA_CONFIG, qk_norm=True, qk_norm_scale=True, num_kv_heads=2, rotary_base=1e6),
    "qwen3_without_gain": replace(LLAMA_CONFIG, qk_norm=True, tie_embeddings=True),
    "nanochat_plain": replace(GPT2_CONFIG, **NANOCHAT_OPTIONS),
    "nanochat_grouped": replace(GPT2_CONFIG, **NANOCHAT_OPTIONS, num_kv_heads=2, rotary_base=500.0),
    "gptjax_everything": replace(GPT2_CONFIG, **EVERYTHING),
    "gptjax_tied": replace(GPT2_CONFIG, head_bias=True, value_embeddings="0.0.", value_gate=True, bias=False),
}
"""Config by name; the name begins with that of the architecture."""


def save(directory: Path, config: GPTConfig, *, dtype: DType = "float32", architecture: str | None = None) -> Any:
    """Write a model with drawn weights as the architecture that its config takes; returns the model."""
    model = draw_model(config)
    directory.mkdir(parents=True)
    chosen = ARCHITECTURES[architecture] if architecture else choose_architecture(config)
    write_model(directory, model, architecture=chosen, dtype=dtype, origin=None, tokenizer=None)
    return model


def test_own_positional_scheme_with_a_built_in_activation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POSITIONS, "sinusoids", POSITIONS["learned"])
    config = replace(GPT2_CONFIG, positions="sinusoids")
    for architecture in ARCHITECTURES.values():
        assert "model.positions=sinusoids" in architecture.list_refused(config)


@pytest.mark.parametrize("name", MODELS)
def test_auto_takes_the_first_architecture_that_can_express_the_model(name: str) -> None:
    assert choose_architecture(MODELS[name]).model_type == name.partition("_")[0]


@pytest.mark.parametrize(
    "name", ["llama_plain", "llama_one_kv_head_tied", "qwen3_grouped", "gptjax_everything", "gptjax_tied"]
)
def test_exported_model_returns_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = save(tmp_path / "out", MODELS[name])
    config, imported, origin = from_hf(tmp_path / "out")
    assert replace(config, compute=model.config.compute) == model.config
    assert origin.dtype == "float32"
    vocab, found, expected = model.config.resolved_vocab_size, list_parameters(imported), list_parameters(model)
    assert found.keys() == expected.keys()
    for path, parameter in found.items():
        axis_names = parameter.axis_names
        unpadded = (..., *(slice(vocab if axis == "V" else None) for axis in axis_names))
        np.testing.assert_array_equal(parameter[...][unpadded], expected[path][...][unpadded])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_llama_in_16_bits_is_exported_again_bit_for_bit(tmp_path: Path, dtype: DType) -> None:
    save(tmp_path / "first", MODELS["llama_grouped"], dtype=dtype)
    config, model, origin = from_hf(tmp_path / "first")
    assert (origin.dtype, config.compute.dtype) == (dtype, "bfloat16" if dtype == "bfloat16" else "float32")
    (tmp_path / "second").mkdir()
    write_model(
        tmp_path / "second", model, architecture=ARCHITECTURES["llama"], dtype=dtype, origin=origin, tokenizer=None
    )
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
        choose_architecture(config, "llama")


def test_custom_form_brings_its_code_and_names_it(tmp_path: Path) -> None:
    save(tmp_path / "out", MODELS["gptjax_everything"])
    content = read_json(tmp_path / "out" / "config.json")
    assert content["auto_map"]["AutoModelForCausalLM"] == "modeling_gptjax.GPTJaxForCausalLM"
    code = (tmp_path / "out" / "modeling_gptjax.py").read_text()
    missing = [name for name in CUSTOM.fields if f'        "{name}": ' not in code]
    assert missing == [], "the class of the config has every field"


def test_custom_form_refuses_an_option_that_its_code_lacks() -> None:
    @dataclass(frozen=True)
    class LaterConfig(GPTConfig):
        new_option: bool = False

    with pytest.raises(UserError, match=r"modeling_gptjax\.py cannot express model\.new_option=True"):
        choose_architecture(LaterConfig(new_option=True), "gptjax")
    with pytest.raises(
        UserError, match=r"no architecture can express the model.*GPTJaxForCausalLM: model\.new_option=True"
    ):
        choose_architecture(LaterConfig(new_option=True))


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
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "positions are .*linear.*supported"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "positions are .*llama3.*supported"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\]; wanted: an object"),
        ({"rope_theta": "much"}, "rope_theta is 'much'"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
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
    with pytest.raises(UserError, match=r"model_type is \['llama'\]; wanted: gpt2, llama, qwen3, nanochat, gptjax"):
        from_hf(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (replace(GPT2_CONFIG, norm_epsilon=1e-3), "keras-hub ignore layer_norm_epsilon and compute with 1e-5."),
        (replace(GPT2_CONFIG, tie_embeddings=False), "keras-hub takes the embedding in place of the untied head."),
        (replace(LLAMA_CONFIG, norm_epsilon=1e-5), "keras-hub ignores rms_norm_eps and computes with 1e-06."),
    ],
)
def test_export_says_what_other_programs_ignore(config: GPTConfig, expected: str) -> None:
    """What they do is seen in findings/ctranslate2_gpt2_epsilon.sh and findings/keras_hub_ignored_fields.sh."""
    assert any(expected in loss for loss in choose_architecture(config).list_losses(config))


def test_export_of_a_plain_gpt2_loses_nothing() -> None:
    config = GPTConfig(vocab_size=32, num_layers=1, num_heads=2, embed_dim=16)
    assert choose_architecture(config).list_losses(config) == []


# --- with transformers ---

RECIPES = {path.stem for path in Path(configs.__path__[0]).glob("*.py")} - {"__init__"}
PARITY = (
    MODELS
    | {f"option_{name}": replace(GPT2_CONFIG, **changes) for name, changes in OPTIONS.items()}
    | {f"recipe_{name}": shrink_model(load_config(name).model) for name in sorted(RECIPES)}
)


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", PARITY)
def test_transformers_computes_the_same_logits(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    model = save(tmp_path / name, PARITY[name])
    tokens = draw_tokens(model.config)
    expected = compute_logits(model, tokens)
    assert np.ptp(expected) > 1, "equal logits would prove little"
    found = compute_torch_logits(tmp_path / name, tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "changes", [EVERYTHING, {"window_pattern": "SL", "short_window": 4, "value_embeddings": "01.."}]
)
def test_custom_form_generates_with_every_cache_as_without(tmp_path: Path, changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = save(tmp_path / "out", replace(GPT2_CONFIG, context_length=32, **changes), architecture="gptjax")
    options = {"trust_remote_code": True}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **options).eval()
    prompts = torch.tensor(draw_tokens(model.config)[:, :7])
    greedy = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    written = loaded.generate(prompts, **greedy)
    best = compute_logits(model, np.pad(written.numpy(), ((0, 0), (0, 5))))[:, 6:26].argmax(-1)
    np.testing.assert_array_equal(written[:, 7:], best)
    np.testing.assert_array_equal(loaded.generate(prompts, use_cache=False, **greedy), written)
    np.testing.assert_array_equal(loaded.generate(prompts, cache_implementation="static", **greedy), written)

    padded, mask = prompts.clone(), torch.ones_like(prompts)
    padded[0], mask[0, :3] = torch.cat([prompts[0, :3] * 0, prompts[0, :4]]), 0
    batch = loaded.generate(padded, attention_mask=mask, **greedy)
    np.testing.assert_array_equal(batch[0, 3:], loaded.generate(prompts[:1, :4], **greedy)[0])
    np.testing.assert_array_equal(batch[1], written[1])
