"""LoRA: frozen weights without moments, adapters that can be merged, and rows of added tokens."""

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_models import PLAIN
from models import make_model, make_tokens, place_model
from safetensors.numpy import load_file
from tiny import MODEL, read_lines, tiny_config, tokenizer, write_shards, write_text_shards

from gptjax import convert
from gptjax.checkpoints.checkpoint_format import flatten_by_name
from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.evaluators.validation import ValidationLoss
from gptjax.finetuning.adapters import (
    add_adapters,
    apply_adapters,
    find_targets,
    get_trainable,
    merge_adapters,
    replace_trainable,
)
from gptjax.finetuning.lora import LoRA
from gptjax.huggingface.architectures.selection import ARCHITECTURES
from gptjax.huggingface.model_dir import write_model
from gptjax.huggingface.model_export import to_hf
from gptjax.huggingface.peft_export import write_adapters
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.objectives.objective import SFT, NextToken, Objective
from gptjax.runs.run_dir import RunDir, write_imported_run, write_run_files
from gptjax.runs.startup import prepare_config
from gptjax.runs.trainer import train
from gptjax.sharding.mesh import MeshConfig
from gptjax.tokenization.chat_template import CHATML
from gptjax.tokenization.tokenizer import load_tokenizer
from gptjax.training.state import init_state

PEFT_WEIGHTS = "adapter_model.safetensors"
GROUPED = replace(MODEL, num_kv_heads=2, gated_mlp=True, tie_embeddings=False)


def make_adapted(config: GPTConfig, lora: LoRA, mesh: MeshConfig) -> GPT:
    """A model with adapters that are far from zero."""
    add = jax.jit(lambda model: add_adapters(model, lora, key=jax.random.key(1)))
    adapted = add(place_model(make_model(config), mesh))
    noise = lambda leaf: np.random.default_rng(leaf.size).normal(0.0, 0.1, leaf.shape).astype(np.float32)
    draw = lambda leaf: jax.device_put(np.asarray(leaf) + noise(leaf), leaf.sharding)
    return replace_trainable(adapted, jax.tree.map(draw, get_trainable(adapted)))


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)], ids=["one", "eight"])
def test_adapters_compute_what_merged_weights_do(mesh: MeshConfig) -> None:
    lora, tokens = (
        LoRA(3, alpha=6.0, targets=("matrix", "head", "embedding"), new_tokens=(1, 5)),
        make_tokens(4, 16, vocab_size=48),
    )
    with mesh.activate():
        model = make_adapted(GROUPED, lora, mesh)
        logits = jax.jit(lambda model: apply_adapters(model)(tokens))
        merged = merge_adapters(model)
        assert merged.adapters is None
        beside, inside = np.asarray(logits(model)), np.asarray(logits(merged))
    np.testing.assert_allclose(beside, inside, atol=2e-5)
    weights, plain = flatten_by_name(merged), flatten_by_name(make_model(GROUPED))
    a, b = (np.asarray(x[...], np.float64) for x in model.adapters.get_pair("blocks.attention.q"))
    wanted = np.asarray(plain["blocks.attention.q"]) + 2.0 * np.einsum("ndr,nrhk->ndhk", a, b)
    np.testing.assert_allclose(np.asarray(weights["blocks.attention.q"]), wanted, atol=1e-5)
    a, b, rows = (np.asarray(x[...]) for x in (*model.adapters.get_pair("head"), model.adapters.head_rows))
    wanted = np.asarray(plain["head"]) + 2.0 * a @ b
    wanted[:, [1, 5]] += rows.T
    np.testing.assert_allclose(np.asarray(weights["head"]), wanted, atol=1e-5)
    changed = np.flatnonzero(
        (np.asarray(weights["token_embedding"]) != np.asarray(plain["token_embedding"])).any(axis=1)
    )
    assert len(changed) == len(plain["token_embedding"])
    a, b, rows = (np.asarray(x[...]) for x in (*model.adapters.get_pair("token_embedding"), model.adapters.rows))
    wanted = np.asarray(plain["token_embedding"]) + 2.0 * a @ b
    wanted[[1, 5]] += rows
    np.testing.assert_allclose(np.asarray(weights["token_embedding"]), wanted, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run with adapters, stopped after three steps and resumed for a fourth."""
    directory = tmp_path_factory.mktemp("adapters")
    write_imported_run(directory / "start", model=make_model(MODEL), tokenizer=tokenizer())
    config = tiny_config(
        write_text_shards(directory / "shards"),
        steps=4,
        init_from=str(directory / "start"),
        lora=LoRA(rank=2, alpha=4.0, targets=("qkv", "mlp.up")),
        evaluators=(ValidationLoss(every=4, tokens=64),),
    )
    assert train(replace(config, steps=3)) == 0
    with (directory / "printed.txt").open("w") as file, contextlib.redirect_stdout(file):
        assert train(config) == 0
    return config


def test_frozen_weights_have_no_moments_and_stay(trained: TrainConfig) -> None:
    """A run with adapters trains, resumes, and is read with the adapters merged."""
    printed = (Path(trained.output_dir).parent / "printed.txt").read_text()
    assert re.search(r"adapters  1,152 trained parameters \(\d\.\d\d% of the model's\), rank 2\n", printed)
    assert [step for step, _ in read_lines(trained.directory)] == [1, 2, 3, 4]
    merged = flatten_by_name(RunDir.open(trained.directory).load_model())
    changed = [
        name
        for name, weight in flatten_by_name(make_model(MODEL)).items()
        if (np.asarray(weight) != merged[name]).any()
    ]
    assert changed == ["blocks.attention.qkv", "blocks.mlp.up"]


def test_to_peft_command_writes_what_was_learned(
    trained: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files hold, in PEFT's layout and with its scale alpha / r, exactly what merging adds to the start."""
    output = tmp_path / "exported"
    convert.main(["to-peft", f"--checkpoint={trained.directory}", f"--output={output}", "--base=some/gpt2"])
    printed = capsys.readouterr().out
    assert f"{output}: adapters of tiny at step 4 in PEFT's format" in printed
    assert f"note: they belong to the weights of {trained.init_from}, from which the run started" in printed
    assert {path.name for path in output.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert load_tokenizer(output).fingerprint == tokenizer().fingerprint
    content, tensors = json.loads((output / "adapter_config.json").read_text()), load_file(output / PEFT_WEIGHTS)
    assert content["target_modules"] == ["attn.c_attn", "mlp.c_fc"]
    assert (content["base_model_name_or_path"], content["r"], content["lora_alpha"]) == ("some/gpt2", 2, 4.0)
    merged, plain = (
        flatten_by_name(model) for model in (RunDir.open(trained.directory).load_model(), make_model(MODEL))
    )
    for layer in range(MODEL.num_layers):
        prefix = f"base_model.model.transformer.h.{layer}.mlp.c_fc.lora"
        added = 2.0 * (tensors[f"{prefix}_B.weight"] @ tensors[f"{prefix}_A.weight"]).T
        moved = np.asarray(merged["blocks.mlp.up"][layer]) - np.asarray(plain["blocks.mlp.up"][layer])
        np.testing.assert_allclose(added.reshape(moved.shape), moved, atol=1e-6)
        assert np.abs(moved).max() > 1e-5
    assert len(tensors) == 2 * 2 * MODEL.num_layers


def test_to_peft_command_refuses_a_run_without_adapters(
    trained: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        convert.main(["to-peft", f"--checkpoint={trained.init_from}", f"--output={tmp_path / 'none'}"])
    assert "the run has no adapters (lora.rank is 0)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_rows_of_role_tokens_and_of_named_ones_are_trained(tmp_path: Path) -> None:
    """Role tokens that the base has but never saw, tokens by name and by id; not those that it has learned."""
    roles = PLAIN.with_special_tokens((*CHATML.special_tokens, "<|tool|>"))
    start, end = (roles.specials[name] for name in CHATML.special_tokens)
    model = make_model(replace(MODEL, vocab_size=roles.vocab_size))
    write_imported_run(tmp_path / "base", model=model, tokenizer=roles)
    for name in ("jinja", "chat"):
        write_imported_run(tmp_path / name, model=model, tokenizer=roles.with_chat_template(CHATML))
    masked = replace(model.config, intra_document_mask=True)
    learned = TrainConfig(name="chat", output_dir=str(tmp_path), model=masked, objective=SFT())
    write_run_files(tmp_path / "chat", learned, roles.with_chat_template(CHATML))
    shards = write_shards(tmp_path / "shards", {"train": [np.arange(40)]}, own=roles.with_chat_template(CHATML))

    named = replace(CHATML, system=replace(CHATML.user, header="<|v1|>"))  # which was text when this was prepared
    older = write_shards(tmp_path / "older", {"train": [np.arange(40)]}, own=roles.with_chat_template(named))

    def prepare(
        base: str,
        *tokens: int | str,
        data: Path = shards,
        rank: int = 2,
        objective: Objective | None = None,
        **fields: Any,
    ) -> Any:
        config = tiny_config(data, model={"intra_document_mask": True})
        lora = LoRA(rank=rank, new_tokens=tokens, **fields)
        config = replace(config, init_from=str(tmp_path / base), objective=objective or SFT(), lora=lora)
        return prepare_config(config)[0].lora.new_tokens

    assert prepare("base") == prepare("jinja") == (start, end)  # a base model may have a template
    assert prepare("chat") == prepare("base", objective=NextToken()) == prepare("base", rank=0) == ()
    assert prepare("chat", "<|tool|>", 5) == (5, roles.specials["<|tool|>"])
    assert prepare("base", 5) == (5, start, end)
    assert prepare("base", data=older) == (start, end)
    assert prepare("base", targets=()) == (start, end)
    with pytest.raises(UserError, match=r"are empty: nothing would be trained"):
        prepare("chat", targets=())
    with pytest.raises(UserError, match=r"lora.new_tokens has <\|toll\|>; wanted ids below 261 or special tokens: "):
        prepare("base", "<|toll|>")
    with pytest.raises(UserError, match=r"lora.new_tokens has 261; wanted ids below 261"):
        prepare("base", 261)


def test_state_of_adapters_is_small() -> None:
    optimizer = tiny_config(Path("shards")).optimizer.build(steps=4, mesh=MeshConfig())
    state = init_state(make_adapted(MODEL, LoRA(rank=2), MeshConfig()), optimizer)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer))
    weights = sum(leaf.size for leaf in jax.tree.leaves(make_model(MODEL)))
    assert moments < 0.3 * weights


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("token_embedding",), "the embedding and the head are tied"),
        (("nothing",), "wanted `matrix`, or parts of these names"),
        (("up.mlp",), "parts of"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        add_adapters(make_model(MODEL), LoRA(rank=2, targets=targets), key=jax.random.key(0))
    with pytest.raises(UserError, match="adapters need trained weights"):
        tiny_config(Path("shards"), lora=LoRA(rank=2))
    assert jnp.isfinite(LoRA(rank=2).scale)


def test_targets_name_parts_of_the_blocks() -> None:
    found = lambda *targets: [*find_targets(make_model(GROUPED), LoRA(rank=2, targets=targets))]
    attention = [f"blocks.attention.{name}" for name in ("q", "kv", "out")]
    mlp = [f"blocks.mlp.{name}" for name in ("gate", "up", "down")]
    assert sorted(found("attention")) == sorted(attention)
    assert sorted(found("mlp")) == sorted(mlp)
    assert sorted(found("mlp.up", "kv")) == ["blocks.attention.kv", "blocks.mlp.up"]
    assert sorted(found("matrix")) == sorted(attention + mlp)
    assert found("head", "kv") == ["head", "blocks.attention.kv"]
    assert found("embedding") == found("token_embedding") == ["token_embedding"]
    with pytest.raises(UserError, match=r"lora\.targets has 'position'; wanted `matrix`, or parts of .*, head, token_"):
        found("position")


def test_adapters_that_would_train_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"lora\.targets and lora\.new_tokens are empty: nothing would be trained"):
        LoRA(rank=2, targets=()).check_trained()
    LoRA(rank=2, targets=(), new_tokens=(3,)).check_trained()
    assert not LoRA(rank=0, targets=()).enabled


FORM_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"bias": False, "positions": "rotary", "norm": "rms", "gated_mlp": True, "activation": "silu"},
    "qwen3": {"qk_norm": True, "qk_norm_scale": True, "num_kv_heads": 2, "tie_embeddings": False},
}
FORM_CONFIGS["qwen3"] = FORM_CONFIGS["llama"] | FORM_CONFIGS["qwen3"]


def test_adapters_of_one_matrix_become_those_of_several_modules(tmp_path: Path) -> None:
    """`qkv` as q_proj, k_proj and v_proj, with the same A; of grouped queries, `kv` as two. No torch is needed."""
    for kind in ("llama", "qwen3"):
        config, lora = replace(MODEL, **FORM_CONFIGS[kind]), LoRA(rank=3, alpha=6.0, new_tokens=(2, 7))
        model = make_adapted(config, lora, MeshConfig())
        write_adapters(tmp_path, model, base="some/base")
        tensors, content = (
            load_file(tmp_path / PEFT_WEIGHTS),
            json.loads((tmp_path / "adapter_config.json").read_text()),
        )
        plain, merged = (
            to_hf(one, architecture=ARCHITECTURES[kind], dtype="float32")
            for one in (make_model(config), merge_adapters(model))
        )
        changed = {name for name, weight in merged.items() if (weight != plain[name]).any()}
        for name in changed - {"model.embed_tokens.weight", "lm_head.weight"}:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = (tensors.pop(f"{module}.lora_{part}.weight") for part in "AB")
            np.testing.assert_allclose(merged[name] - plain[name], 2.0 * b @ a, atol=1e-6, err_msg=name)
        assert len(changed) >= 7 * config.num_layers + 1
        for name, array in tensors.items():
            place = name.removeprefix("base_model.model.").removesuffix(".token_adapter.trainable_tokens_delta")
            np.testing.assert_allclose(array, merged[f"{place}.weight"][[2, 7]], atol=1e-6)
        names = ["embed_tokens"] if config.tie_embeddings else ["embed_tokens", "lm_head"]
        assert content["trainable_token_indices"] == {name: [2, 7] for name in names}
        assert set(content["target_modules"]) >= {"self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj"}


def test_adapters_of_a_model_that_transformers_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none can express this model .*Export it merged"):
        write_adapters(tmp_path, make_adapted(replace(MODEL, logit_softcap=5.0), LoRA(rank=2), MeshConfig()), base=None)
    both = LoRA(rank=2, targets=("head",), new_tokens=(1,))
    with pytest.raises(UserError, match=r"both an adapter and rows of an embedding or a head.*with to-hf"):
        write_adapters(tmp_path, make_adapted(replace(MODEL, tie_embeddings=False), both, MeshConfig()), base=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "target"), [*((kind, "matrix") for kind in FORM_CONFIGS), ("qwen3", "head"), ("qwen3", "embedding")]
)
def test_peft_loads_the_adapters_and_gives_our_logits(tmp_path: Path, kind: str, target: str) -> None:
    """Base and adapters, exported apart: PEFT puts them together, with the rows of added tokens."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = replace(MODEL, **FORM_CONFIGS[kind])
    rows = (2, 7) if target == "matrix" else ()
    model = make_adapted(config, LoRA(rank=3, alpha=6.0, targets=("matrix", target), new_tokens=rows), MeshConfig())
    base, exported = tmp_path / "base", tmp_path / "adapters"
    for directory in (base, exported):
        directory.mkdir()
    write_model(
        base, make_model(config), architecture=ARCHITECTURES[kind], dtype="float32", origin=None, tokenizer=None
    )
    write_adapters(exported, model, base=str(base))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(loaded, str(exported)).eval()
    tokens = make_tokens(4, 16, vocab_size=48)
    ours = np.asarray(merge_adapters(model)(tokens))
    for one in (loaded, loaded.merge_and_unload()):
        with torch.no_grad():
            theirs = one(input_ids=torch.tensor(np.asarray(tokens), dtype=torch.long)).logits.numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(ours).max(), rtol=0)
