"""Adapters of PEFT that are merged: what `to-peft` writes comes back, others' give PEFT's logits, faults are named."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import make_model, make_tokens
from safetensors.numpy import load_file, save_file
from test_adapters import FORM_CONFIGS, make_adapted
from tiny import MODEL, tokenizer

from gptjax import convert
from gptjax.core.errors import UserError
from gptjax.finetuning.adapters import merge_adapters
from gptjax.finetuning.lora import LoRA
from gptjax.huggingface.architectures.selection import ARCHITECTURES
from gptjax.huggingface.model_dir import write_model
from gptjax.huggingface.model_export import to_hf
from gptjax.huggingface.peft_export import write_adapters
from gptjax.huggingface.peft_import import CONFIG_FILE, WEIGHTS_FILE, merge_adapter, read_adapter
from gptjax.runs.run_dir import RunDir, write_imported_run
from gptjax.sharding.mesh import MeshConfig


@pytest.mark.parametrize(("kind", "with_tables"), [*((kind, False) for kind in FORM_CONFIGS), ("qwen3", True)])
def test_merged_adapters_are_those_that_were_exported(kind: str, with_tables: bool, tmp_path: Path) -> None:
    config = replace(MODEL, **FORM_CONFIGS[kind])
    lora = LoRA(rank=3, alpha=6.0, new_tokens=(2, 7))
    lora = replace(lora, targets=("matrix", "head", "embedding"), new_tokens=()) if with_tables else lora
    adapted = make_adapted(config, lora, MeshConfig())
    write_adapters(tmp_path, adapted, base="some/base")
    found = to_hf(merge_adapter(make_model(config), read_adapter(tmp_path)), architecture=ARCHITECTURES[kind])
    for name, weight in to_hf(merge_adapters(adapted), architecture=ARCHITECTURES[kind]).items():
        np.testing.assert_allclose(found[name], weight, atol=1e-6, err_msg=name)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    directory = tmp_path / "adapter"
    directory.mkdir()
    write_adapters(directory, make_adapted(MODEL, LoRA(rank=2, targets=("qkv",)), MeshConfig()), base=None)
    return directory


def test_from_peft_command_makes_a_run(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scale is PEFT's: here alpha / √r, and another alpha for a module."""
    changes = {"use_rslora": True, "alpha_pattern": {"h.1.attn.c_attn": 5}, "base_model_name_or_path": "base"}
    edit(adapter, **changes)
    write_imported_run(tmp_path / "base", model=make_model(MODEL), tokenizer=tokenizer())
    words = [f"--adapter={adapter}", f"--output={tmp_path / 'merged'}"]
    convert.main(["from-peft", *words, f"--base={tmp_path / 'base'}"])
    assert "base with the adapter of" in capsys.readouterr().out
    run = RunDir.open(tmp_path / "merged")
    assert run.require_tokenizer().fingerprint == tokenizer().fingerprint
    found, tensors = np.asarray(run.load_model().blocks.attention.qkv[...]), load_file(adapter / WEIGHTS_FILE)
    for layer, alpha in enumerate((16.0, 5.0)):
        a, b = (tensors[f"base_model.model.transformer.h.{layer}.attn.c_attn.lora_{part}.weight"] for part in "AB")
        plain = np.asarray(make_model(MODEL).blocks.attention.qkv[...])[layer]
        np.testing.assert_allclose(found[layer] - plain, (alpha / np.sqrt(2) * b @ a).T.reshape(plain.shape), atol=1e-5)


def edit(adapter: Path, **changes: Any) -> None:
    content = json.loads((adapter / CONFIG_FILE).read_text())
    (adapter / CONFIG_FILE).write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; wanted 'LORA'"),
        ({"use_dora": True}, "use_dora is set, a variant that is not supported"),
        ({"init_lora_weights": "pissa"}, "which changes the base's weights"),
        ({"alpha_pattern": {"(a+)+": 1}}, "alpha_pattern has a regular expression"),
        ({"lora_alpha": "much"}, "lora_alpha is .*; wanted a number"),
        ({"trainable_token_indices": {"wte": [-1]}}, "wanted a list of ids"),
    ],
)
def test_other_variants_are_refused(adapter: Path, changes: dict[str, Any], message: str) -> None:
    edit(adapter, **changes)
    with pytest.raises(UserError, match=f"{message}.*merge_and_unload"):
        merge_adapter(make_model(MODEL), read_adapter(adapter))


def test_adapter_of_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    untied = replace(MODEL, tie_embeddings=False)
    write_adapters(tmp_path, make_adapted(untied, LoRA(rank=2, targets=("embedding",)), MeshConfig()), base=None)
    with pytest.raises(UserError, match=r"lora_embedding_A adapts an embedding that is tied to the head"):
        merge_adapter(make_model(MODEL), read_adapter(tmp_path))


def test_tensors_that_do_not_fit_the_base_are_named(adapter: Path) -> None:
    prefix, tensors = "base_model.model.", load_file(adapter / WEIGHTS_FILE)
    faults = {
        "transformer.h.9.attn.c_attn.lora_A.weight": "has no lora_B beside it",
        "transformer.wte.weight": "wte.weight.* of shape (2, 32), which has shape (48, 32)",
        "score.weight": "score.weight.* which is no weight of the base model",
    }
    for name, message in faults.items():
        save_file(tensors | {f"{prefix}{name}": np.zeros((2, 32), np.float32)}, adapter / WEIGHTS_FILE)
        with pytest.raises(UserError, match=re.escape(message).replace(r"\.\*", ".*?")):
            merge_adapter(make_model(MODEL), read_adapter(adapter))
    save_file(tensors, adapter / WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"an adapter of shape .* is for .*c_attn.weight.*, which has shape"):
        merge_adapter(make_model(replace(MODEL, embed_dim=16)), read_adapter(adapter))
    (adapter / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match="are pickles, and loading one can run any code"):
        read_adapter(adapter)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORM_CONFIGS)
def test_adapter_made_by_peft_gives_its_logits(kind: str, tmp_path: Path) -> None:
    """All linear layers, a resized embedding with trained rows, ranks and alphas by module."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config, base, saved = replace(MODEL, **FORM_CONFIGS[kind]), tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    write_model(
        base, make_model(config), architecture=ARCHITECTURES[kind], dtype="float32", origin=None, tokenizer=None
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    loaded.resize_token_embeddings(50)
    embedding, one = ("wte", "c_fc") if kind == "gpt2" else ("embed_tokens", "q_proj")
    options = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules="all-linear",
        rank_pattern={one: 2},
        alpha_pattern={one: 7},
        trainable_token_indices={embedding: [48, 49, 3]},
        init_lora_weights=False,
        use_rslora=True,
    )
    theirs = peft.get_peft_model(loaded, options).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.normal_()
    theirs.save_pretrained(saved)
    ours = merge_adapter(make_model(config), read_adapter(saved))
    assert ours.config.resolved_vocab_size == 50
    tokens = np.asarray(make_tokens(4, 16, vocab_size=48)).copy()
    tokens[:, 3:6] = [48, 49, 3]
    with torch.no_grad():
        wanted = theirs(input_ids=torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    found = np.asarray(jax.jit(lambda model: model(jnp.asarray(tokens)))(ours))[..., : wanted.shape[-1]]
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)
