"""Import and export of GPT-2: names, shapes and types. invariants/test_parity.py compares the computation."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hf_architectures import GPT2_CONFIG, OPTIONS
from hf_models import Tensors, are_identical, draw_tensors, make_hf_config, write_model_dir

from gptjax.core.errors import UserError
from gptjax.huggingface.architectures.gpt2 import GPT2, WEIGHTS
from gptjax.huggingface.architectures.weight_map import format_path, is_param
from gptjax.huggingface.model_export import to_hf, to_hf_config
from gptjax.huggingface.model_import import from_hf, from_hf_config
from gptjax.huggingface.safetensors_dir import write_json
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.gpt import GPT, abstract_model, with_static
from gptjax.sharding.mesh import MeshConfig

Saved = tuple[Path, dict[str, Any], Tensors]

EXPORTABLE = {
    "num_layers": 3,
    "embed_dim": 24,
    "num_heads": 2,
    "context_length": 9,
    "vocab_size": 77,
    "mlp_dim": 5,
    "tie_embeddings": False,
    "activation": "relu",
    "norm_epsilon": 1e-3,
    "bias": False,
    "norm_scale": False,
    "intra_document_mask": True,
    "dropout": 0.3,
    "init": InitConfig(std=0.1),
    "compute": ComputeConfig(dtype="float32"),
}
"""Fields that an export accepts, with values that are not their defaults."""
NOT_STORED = {"bias", "norm_scale", "intra_document_mask", "dropout", "init", "compute"}
"""Those that do not come back: biases become zeros, dropout and the rest belong to a training run."""


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """A model as transformers saves it: (directory, config, tensors)."""
    config = make_hf_config()
    tensors = draw_tensors(config)
    return write_model_dir(tmp_path / "model", config, tensors), config, tensors


# --- tensors ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False])
def test_import_then_export_restores_every_bit(tmp_path: Path, dtype: str, tied: bool):
    hf_config = make_hf_config(tie_word_embeddings=tied, n_inner=50)
    tensors = draw_tensors(hf_config, dtype=dtype)
    config, model, origin = from_hf(write_model_dir(tmp_path, hf_config, tensors))
    assert origin.dtype == dtype
    assert config.compute.dtype == ("bfloat16" if dtype == "bfloat16" else "float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    assert are_identical(to_hf(model, dtype=origin.dtype), tensors)


def test_import_places_weights_by_axis_names(saved: Saved):
    directory, hf_config, tensors = saved
    _, model, _ = from_hf(directory)
    packed = tensors["transformer.h.1.attn.c_attn.weight"]
    width, head = hf_config["n_embd"], hf_config["n_embd"] // hf_config["n_head"]
    value_of_head_1 = packed[:, 2 * width + head : 2 * width + 2 * head]
    np.testing.assert_array_equal(model.blocks.attention.qkv[...][1, :, 2, 1], value_of_head_1)
    out_of_head_1 = tensors["transformer.h.2.attn.c_proj.weight"][head : 2 * head]
    np.testing.assert_array_equal(model.blocks.attention.out[...][2, 1], out_of_head_1)
    np.testing.assert_array_equal(model.blocks.mlp.up[...][0], tensors["transformer.h.0.mlp.c_fc.weight"])
    assert model.token_embedding[...].shape[0] == 256
    assert not model.token_embedding[...][251:].any(), "rows that pad the vocabulary are zero"


def test_import_accepts_base_model_names_and_masks(tmp_path: Path):
    config = make_hf_config()
    tensors = draw_tensors(config)
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old["h.0.attn.bias"] = np.tril(np.ones((1, 1, 13, 13), np.uint8))
    old["h.2.attn.masked_bias"] = np.array([-1e4], np.float32)
    _, model, _ = from_hf(write_model_dir(tmp_path, config, old))
    assert are_identical(to_hf(model), tensors)


def test_tied_head_in_the_file_must_equal_the_embedding(tmp_path: Path):
    config = make_hf_config()
    tensors = draw_tensors(config)
    head = tensors["transformer.wte.weight"].copy()
    _, model, _ = from_hf(write_model_dir(tmp_path, config, tensors | {"lm_head.weight": head}))
    assert are_identical(to_hf(model), tensors)
    head[0, 0] += 1
    with pytest.raises(UserError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        from_hf(write_model_dir(tmp_path, config, tensors | {"lm_head.weight": head}))


def test_import_on_a_mesh_shards_each_weight(tmp_path: Path):
    config = make_hf_config(n_head=2, n_embd=32)
    tensors = draw_tensors(config)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    with mesh.activate():
        _, model, _ = from_hf(write_model_dir(tmp_path, config, tensors), mesh=mesh)
        up = model.blocks.mlp.up[...]
        assert up.sharding.shard_shape(up.shape) == (3, 16, 64)
        assert are_identical(to_hf(model), tensors)


def test_model_without_biases_computes_the_same_after_export(tmp_path: Path):
    config = GPTConfig(
        num_layers=2,
        embed_dim=16,
        num_heads=2,
        context_length=8,
        vocab_size=50,
        bias=False,
        compute=ComputeConfig(dtype="float32"),
    )
    model = jax.jit(lambda key: GPT(config, key=key))(jax.random.key(0))
    tensors = to_hf(model)
    assert not any(tensor.any() for name, tensor in tensors.items() if name.endswith(".bias"))
    hf_config = to_hf_config(config, dtype="float32", end_of_text=None)
    imported_config, imported, _ = from_hf(write_model_dir(tmp_path, hf_config, tensors))
    assert imported_config == replace(config, bias=True)
    tokens = jnp.arange(8)[None]
    np.testing.assert_array_equal(jax.jit(GPT.__call__)(imported, tokens), jax.jit(GPT.__call__)(model, tokens))


def test_import_of_mixed_types_remembers_float32(tmp_path: Path):
    config = make_hf_config()
    tensors = draw_tensors(config, dtype="bfloat16")
    tensors["transformer.ln_f.bias"] = draw_tensors(config)["transformer.ln_f.bias"]
    _, model, origin = from_hf(write_model_dir(tmp_path, config, tensors))
    assert origin.dtype == "float32"
    for name, tensor in to_hf(model, dtype=origin.dtype).items():
        np.testing.assert_array_equal(tensor, tensors[name].astype(np.float32))


def test_weight_map_has_one_row_for_each_weight():
    model = abstract_model(GPTConfig(num_layers=1, tie_embeddings=False))
    paths = sorted(format_path(path) for path, _ in jax.tree.leaves_with_path(model, is_leaf=is_param))
    assert paths == sorted(row.path for row in WEIGHTS)
    assert len({row.hf_name for row in WEIGHTS}) == len(WEIGHTS)


# --- config.json ---


def test_config_survives_import_and_export(tmp_path: Path):
    original = make_hf_config(activation_function="gelu_pytorch_tanh", layer_norm_epsilon=1e-3, torch_dtype="float32")
    config, _, origin = from_hf(write_model_dir(tmp_path, original, draw_tensors(original)))
    assert config == GPTConfig(
        num_layers=3,
        embed_dim=30,
        num_heads=3,
        context_length=13,
        vocab_size=251,
        norm_epsilon=1e-3,
        compute=ComputeConfig(dtype="float32"),
    )
    exported = to_hf_config(config, dtype="float32", end_of_text=None, origin=origin)
    assert {key: exported[key] for key in original} == original, "unknown fields and spellings are kept"
    assert to_hf_config(config, dtype="bfloat16", end_of_text=None, origin=origin)["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("hf_name", "name"),
    [
        *[("gelu_new", "gelu_tanh"), ("gelu_fast", "gelu_tanh"), ("gelu", "gelu"), ("relu", "relu")],
        *[("silu", "silu"), ("swish", "silu")],
    ],
)
def test_activation_names_are_translated(hf_name: str, name: str):
    content = make_hf_config(activation_function=hf_name)
    config = from_hf_config(content, path=Path("config.json"))
    assert config.activation == name
    exported = to_hf_config(config, dtype="float32", end_of_text=0)["activation_function"]
    assert exported == {"swish": "silu", "gelu_fast": "gelu_new"}.get(hf_name, hf_name)


def test_exported_config_has_what_transformers_reads():
    config = GPTConfig(mlp_dim=99, tie_embeddings=False, dropout=0.2)
    content = to_hf_config(config, dtype="bfloat16", end_of_text=50256)
    expected = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 12, "n_inner": 99}
    expected |= {"vocab_size": 50257, "eos_token_id": 50256, "resid_pdrop": 0.2, "tie_word_embeddings": False}
    expected |= {"dtype": "bfloat16", "activation_function": "gelu_new"}
    assert {key: content[key] for key in expected} == expected


def test_config_json_without_fields_is_gpt2():
    assert from_hf_config({"model_type": "gpt2"}, path=Path("config.json")) == GPTConfig()


@pytest.mark.parametrize("name", sorted(EXPORTABLE))
def test_export_of_a_changed_field_reads_back_equal(name: str):
    config = replace(GPTConfig(), **{name: EXPORTABLE[name]})
    assert getattr(config, name) != getattr(GPTConfig(), name)
    imported = from_hf_config(to_hf_config(config, dtype="float32", end_of_text=None), path=Path("config.json"))
    assert imported == (GPTConfig() if name in NOT_STORED else config)


@pytest.mark.parametrize("name", OPTIONS)
def test_export_refuses_every_other_option(name: str):
    field = name.removesuffix("_learned").removesuffix("_inputs")
    config = replace(GPT2_CONFIG, **OPTIONS[name])
    with pytest.raises(
        UserError, match=rf"GPT2LMHeadModel .* cannot express .*model\.{field}={getattr(config, field)}"
    ):
        to_hf_config(config, architecture=GPT2, dtype="float32", end_of_text=None)


def test_every_field_is_expressed_refused_or_says_nothing_of_one_text():
    refused = {name.removesuffix("_learned").removesuffix("_inputs") for name in OPTIONS} | {"short_window"}
    assert {field.name for field in fields(GPTConfig)} - refused == EXPORTABLE.keys() - {"activation"}


@dataclass(frozen=True)
class LaterConfig(GPTConfig):
    new_option: bool = False


def test_export_refuses_fields_of_a_subclass():
    assert to_hf_config(LaterConfig(), dtype="float32", end_of_text=None)["n_layer"] == 12
    with pytest.raises(UserError, match=r"cannot express model\.new_option=True"):
        to_hf_config(LaterConfig(new_option=True), architecture=GPT2, dtype="float32", end_of_text=None)


def test_export_lists_all_refused_fields():
    config = GPTConfig(norm="rms", qk_norm=True, activation="relu2")
    with pytest.raises(UserError, match=r"model\.norm=rms, model\.qk_norm=True, model\.activation=relu2"):
        to_hf_config(config, architecture=GPT2, dtype="float32", end_of_text=None)


def test_export_refuses_models_by_config_and_by_weight(saved: Saved):
    config, model, _ = from_hf(saved[0])
    with pytest.raises(UserError, match=r"cannot express model\.qk_norm=True"):
        to_hf(with_static(model, config=replace(config, qk_norm=True)), architecture=GPT2)
    model.blocks.sinks = nnx.Param(jnp.zeros((3, 3)), axis_names="H")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match=r"no counterpart of the weights blocks\.sinks"):
        to_hf(model)


def test_export_refuses_numbers_too_large_for_float16(saved: Saved):
    directory, config, tensors = saved
    tensors["transformer.ln_f.bias"][3] = 7e4
    _, model, _ = from_hf(write_model_dir(directory, config, tensors))
    assert to_hf(model, dtype="bfloat16")["transformer.ln_f.bias"].dtype == "bfloat16"
    with pytest.raises(UserError, match=r"ln_f\.bias holds 7e\+04, too large for float16"):
        to_hf(model, dtype="float16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'; wanted: gpt2"),
        ({"model_type": "llama"}, "lacks num_hidden_layers"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"activation_function": "mish"}, "activation_function is 'mish'.*gelu_new"),
        ({"n_layer": "3"}, "n_layer is '3'; wanted: int"),
        ({"n_head": None}, "n_head is None"),
        ({"n_head": 4}, "does not split over"),
        ({"n_layer": 4}, r"lacks the weights transformer\.h\.3\.ln_1\.weight, .* and 8 more"),
        ({"n_layer": 2}, r"has the weights transformer\.h\.2\..*unknown to its config\.json"),
        ({"vocab_size": 250}, r"wte\.weight has shape \(251, 30\), but config\.json implies \(250, 30\)"),
        ({"n_inner": 30}, r"c_fc\.weight has shape"),
        ({"tie_word_embeddings": False}, r"lacks the weight lm_head\.weight"),
    ],
)
def test_import_refuses_config_by_field(saved: Saved, changes: dict[str, Any], message: str):
    directory, config, _ = saved
    write_json(directory / "config.json", config | changes)
    with pytest.raises(UserError, match=message):
        from_hf(directory)


def test_reordered_attention_is_accepted_and_kept(saved: Saved):
    directory, config, tensors = saved
    write_json(directory / "config.json", config | {"reorder_and_upcast_attn": True})
    imported, model, origin = from_hf(directory)
    assert are_identical(to_hf(model), tensors)
    exported = to_hf_config(imported, dtype="float32", end_of_text=None, origin=origin)
    assert exported["reorder_and_upcast_attn"] is True


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("summary.weight", np.zeros(3), r"has the weight summary\.weight, unknown to its config\.json"),
        ("transformer.ln_f.bias", np.zeros(30, np.float64), r"ln_f\.bias is of type F64; supported: F32"),
    ],
)
def test_import_refuses_unknown_tensors_and_types(saved: Saved, name: str, tensor: np.ndarray, message: str):
    directory, config, tensors = saved
    with pytest.raises(UserError, match=message):
        from_hf(write_model_dir(directory, config, tensors | {name: tensor}))
