"""Names, shapes and types to Hugging Face and back. Equal logits are tested in laws/test_parity.py."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hf_models import draw, make_config, same_bits, write
from safetensors.numpy import load_file, save_file

from gptjax.core.errors import UserError
from gptjax.huggingface.gpt2 import WEIGHT_MAP, from_hf, hf_config, to_hf
from gptjax.huggingface.safetensors_dir import write_json, write_tensors
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT
from gptjax.sharding.mesh import MeshConfig


@pytest.fixture
def saved(tmp_path):
    """A saved model: (directory, config, tensors)."""
    config = make_config()
    tensors = draw(config)
    return write(tmp_path / "model", config, tensors), config, tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_import_and_export_return_every_bit(tmp_path, dtype, tied):
    config = make_config(tie_word_embeddings=tied, n_inner=50)
    tensors = draw(config, dtype=dtype)
    ours, model, origin = from_hf(write(tmp_path, config, tensors))
    assert origin.dtype == dtype
    assert ours.dtype == ("bfloat16" if dtype == "bfloat16" else "float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    assert same_bits(to_hf(model, dtype=origin.dtype), tensors)


def test_weights_land_where_the_letters_say(saved):
    directory, config, tensors = saved
    _, model, _ = from_hf(directory)
    packed = tensors["transformer.h.1.attn.c_attn.weight"]
    width, head = config["n_embd"], config["n_embd"] // config["n_head"]
    value_of_head_2 = packed[:, 2 * width + 2 * head : 2 * width + 3 * head]
    np.testing.assert_array_equal(model.blocks.attention.qkv[...][1, :, 2, 2], value_of_head_2)
    leaving_head_1 = tensors["transformer.h.2.attn.c_proj.weight"][head : 2 * head]
    np.testing.assert_array_equal(model.blocks.attention.out[...][2, 1], leaving_head_1)
    np.testing.assert_array_equal(model.blocks.mlp.up[...][0], tensors["transformer.h.0.mlp.c_fc.weight"])


def test_the_vocabulary_is_padded_with_zeros(saved):
    _, model, _ = from_hf(saved[0])
    assert model.tokens[...].shape[0] == 256
    assert not model.tokens[...][251:].any()


def test_names_without_prefix_and_causal_masks_are_understood(tmp_path):
    config = make_config()
    tensors = draw(config)
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old["h.0.attn.bias"] = np.tril(np.ones((1, 1, 13, 13), np.uint8))
    old["h.2.attn.masked_bias"] = np.float32([-1e4])
    _, model, _ = from_hf(write(tmp_path, config, old))
    assert same_bits(to_hf(model), tensors)


def test_a_tied_head_may_be_saved_if_it_is_the_embedding(tmp_path):
    config = make_config()
    tensors = draw(config)
    head = tensors["transformer.wte.weight"].copy()
    _, model, _ = from_hf(write(tmp_path, config, tensors | {"lm_head.weight": head}))
    assert same_bits(to_hf(model), tensors)
    head[0, 0] += 1
    with pytest.raises(UserError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        from_hf(write(tmp_path, config, tensors | {"lm_head.weight": head}))


def test_shards_with_an_index_are_written_and_read(tmp_path, saved):
    directory, config, tensors = saved
    _, model, _ = from_hf(directory)
    write_tensors(tmp_path, to_hf(model), shard_bytes=20_000)
    write_json(tmp_path / "config.json", config)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 20_000 or len(load_file(file)) == 1 for file in files)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    assert same_bits(to_hf(from_hf(tmp_path)[1]), tensors)
    files[0].unlink()
    with pytest.raises(UserError, match=rf"index\.json names {files[0].name}"):
        from_hf(tmp_path)


def test_files_have_the_permissions_of_their_neighbours(tmp_path, saved):
    write_json(tmp_path / "config.json", {})
    write_tensors(tmp_path, saved[2])
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_a_layout_places_each_weight_and_export_gathers_it(tmp_path):
    config = make_config(n_head=2, n_embd=32)
    tensors = draw(config)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    with mesh.activate():
        _, model, _ = from_hf(write(tmp_path, config, tensors), mesh=mesh)
        up = model.blocks.mlp.up[...]
        assert up.sharding.shard_shape(up.shape) == (3, 16, 64)
        assert same_bits(to_hf(model), tensors)


def test_a_model_without_biases_is_exported_with_zeros_and_computes_the_same(tmp_path):
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
    config_json = hf_config(config, dtype="float32", end_of_text=None)
    again, imported, _ = from_hf(write(tmp_path, config_json, tensors))
    assert again == dataclasses.replace(config, bias=True)
    tokens = jnp.arange(8)[None]
    np.testing.assert_array_equal(jax.jit(GPT.__call__)(imported, tokens), jax.jit(GPT.__call__)(model, tokens))


def test_mixed_types_are_remembered_as_the_one_that_holds_them_all(tmp_path):
    config = make_config()
    tensors = draw(config, dtype="bfloat16")
    tensors["transformer.ln_f.bias"] = draw(config)["transformer.ln_f.bias"]
    _, model, origin = from_hf(write(tmp_path, config, tensors))
    assert origin.dtype == "float32"
    for name, tensor in to_hf(model, dtype=origin.dtype).items():
        np.testing.assert_array_equal(tensor, tensors[name].astype(np.float32))


def test_config_goes_both_ways_and_keeps_what_it_does_not_know(tmp_path):
    original = make_config(activation_function="gelu_pytorch_tanh", layer_norm_epsilon=1e-3, torch_dtype="float32")
    ours, _, origin = from_hf(write(tmp_path, original, draw(original)))
    assert ours == GPTConfig(
        num_layers=3,
        embed_dim=30,
        num_heads=3,
        context_length=13,
        vocab_size=251,
        norm_epsilon=1e-3,
        compute=ComputeConfig(dtype="float32"),
    )
    back = hf_config(ours, dtype="float32", end_of_text=None, origin=origin)
    assert {key: back[key] for key in original} == original
    assert hf_config(ours, dtype="bfloat16", end_of_text=None, origin=origin)["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("gelu_new", "gelu_tanh"), ("gelu", "gelu"), ("relu", "relu"), ("silu", "silu"), ("swish", "silu")],
)
def test_activations_have_their_names(tmp_path, theirs, ours):
    original = make_config(activation_function=theirs, n_layer=1)
    config, _, origin = from_hf(write(tmp_path, original, draw(original)))
    assert config.activation == ours
    written = lambda origin: hf_config(config, dtype="float32", end_of_text=0, origin=origin)["activation_function"]
    assert written(origin) == theirs
    assert written(None) == ("silu" if theirs == "swish" else theirs)


def test_a_config_of_our_own_says_what_transformers_asks():
    config = hf_config(GPTConfig(mlp_dim=99, tie_embeddings=False, dropout=0.2), dtype="bfloat16", end_of_text=50256)
    expected = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 12, "n_inner": 99}
    expected |= {"vocab_size": 50257, "eos_token_id": 50256, "resid_pdrop": 0.2, "tie_word_embeddings": False}
    expected |= {"dtype": "bfloat16", "activation_function": "gelu_new"}
    assert {key: config[key] for key in expected} == expected


def test_a_config_that_leaves_defaults_out_is_gpt2s():
    from pathlib import Path

    from gptjax.huggingface.gpt2 import from_hf_config

    assert from_hf_config({"model_type": "gpt2"}, where=Path("x")) == GPTConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"activation_function": "mish"}, "activation_function is 'mish'.*gelu_new"),
        ({"n_layer": "3"}, "n_layer is '3'; wanted: int"),
        ({"n_head": None}, "n_head is None"),
        ({"n_head": 4}, "does not split over"),
        ({"n_layer": 4}, r"weights transformer\.h\.3\.ln_1\.weight, .* and 8 more are missing"),
        ({"n_layer": 2}, r"h\.2\..* without a home"),
        ({"vocab_size": 250}, r"wte\.weight has shape \(251, 30\), but config\.json makes it \(250, 30\)"),
        ({"n_inner": 30}, r"c_fc\.weight has shape"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight is missing"),
    ],
)
def test_configs_that_ask_for_something_else_are_refused_by_name(saved, changes, message):
    directory, config, _ = saved
    write_json(directory / "config.json", config | changes)
    with pytest.raises(UserError, match=message):
        from_hf(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "rotary"}, "no model.positions=rotary"),
        ({"norm": "rms", "qk_norm": True}, "no model.norm=rms, model.qk_norm=True"),
        ({"activation": "relu2"}, "no model.activation=relu2"),
        (
            {"logit_softcap": 15.0, "gated_mlp": True, "head_bias": True},
            "no model.gated_mlp_mlp=True, model.head_bias=True, model.logit_softcap=15",
        ),
    ],
)
def test_a_model_that_gpt2_cannot_hold_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        hf_config(dataclasses.replace(GPTConfig(), **changes), dtype="float32", end_of_text=None)


def test_reordered_attention_is_the_same_attention(saved):
    directory, config, tensors = saved
    write_json(directory / "config.json", config | {"reorder_and_upcast_attn": True})
    _, model, origin = from_hf(directory)
    assert same_bits(to_hf(model), tensors)
    assert hf_config(model.config, dtype="float32", end_of_text=None, origin=origin)["reorder_and_upcast_attn"] is True


def test_a_tensor_that_gpt2_does_not_have_is_named(saved):
    directory, config, tensors = saved
    with pytest.raises(UserError, match=r"the weight multiple_choice_head\.summary\.weight is without a home"):
        from_hf(write(directory, config, tensors | {"multiple_choice_head.summary.weight": np.zeros(3)}))


def test_types_that_float32_cannot_hold_are_refused(saved):
    directory, config, tensors = saved
    wide = tensors | {"transformer.ln_f.bias": tensors["transformer.ln_f.bias"].astype(np.float64)}
    with pytest.raises(UserError, match=r"ln_f\.bias is of type F64"):
        from_hf(write(directory, config, wide))


def test_a_pickle_is_never_opened(tmp_path):
    write_json(tmp_path / "config.json", make_config())
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(UserError, match=r"\*\.bin, a pickle.*save_pretrained"):
        from_hf(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"config\.json cannot be read"),
        ("config.json", "{", r"config\.json: not JSON"),
        ("config.json", "[]", "a JSON object is wanted"),
        ("model.safetensors", None, r"has neither model\.safetensors nor"),
        ("model.safetensors", "not a header", "cannot be read as safetensors"),
    ],
)
def test_broken_directories_are_explained(saved, file, content, message):
    (saved[0] / file).unlink()
    if content is not None:
        (saved[0] / file).write_text(content)
    with pytest.raises(UserError, match=message):
        from_hf(saved[0])


def test_a_truncated_file_is_explained(saved):
    whole = (saved[0] / "model.safetensors").read_bytes()
    (saved[0] / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="Fetch the file again"):
        from_hf(saved[0])


def test_a_weight_that_gpt2_has_no_place_for_is_not_lost_silently(saved):
    _, model, _ = from_hf(saved[0])
    model.blocks.sinks = nnx.Param(jnp.zeros((3, 3)), axis_names="H")
    with pytest.raises(UserError, match=r"no place for the weights blocks\.sinks"):
        to_hf(model)


def test_numbers_too_large_for_float16_are_refused(saved):
    directory, config, tensors = saved
    tensors["transformer.ln_f.bias"][3] = 7e4
    _, model, _ = from_hf(write(directory, config, tensors))
    assert to_hf(model, dtype="bfloat16")["transformer.ln_f.bias"].dtype == "bfloat16"
    with pytest.raises(UserError, match=r"ln_f\.bias holds 7e\+04, too large for float16"):
        to_hf(model, dtype="float16")


def test_every_weight_of_a_gpt_has_exactly_one_row():
    model = jax.eval_shape(lambda: GPT(GPTConfig(num_layers=1, tie_embeddings=False), key=jax.random.key(0)))
    leaves = jax.tree.leaves_with_path(model, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    paths = sorted(jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
    assert paths == sorted(row.path for row in WEIGHT_MAP)
    assert len({row.name for row in WEIGHT_MAP}) == len(WEIGHT_MAP)


def test_an_index_cannot_lead_out_of_its_directory(tmp_path, saved):
    directory, _, tensors = saved
    save_file(tensors, tmp_path / "elsewhere.safetensors")
    (directory / "model.safetensors").unlink()
    write_json(directory / "model.safetensors.index.json", {"weight_map": {"a": "../elsewhere.safetensors"}})
    with pytest.raises(UserError, match="which is not in"):
        from_hf(directory)
