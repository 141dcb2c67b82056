"""Checkpoints of other training programs, against their formulas; those of PyTorch belong to the parity set."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from formula import rms_norm, softmax
from hf_architectures import GPT2_CONFIG, compute_logits, draw_model, draw_tokens

from gptjax.convert import main
from gptjax.core.errors import UserError
from gptjax.huggingface.model_export import export_tensors
from gptjax.importers.foreign import read_torch_file
from gptjax.importers.llmc import read_llmc
from gptjax.importers.nanogpt import ROWS
from gptjax.runs.run_dir import RunDir

GPT2_ORDER = [
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
]
GPT2_ORDER += ["ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]


# --- llm.c ---


def write_llmc(path: Path, tensors: dict[str, np.ndarray], *, version: int) -> Path:
    """A model.bin of GPT2_CONFIG, with 5 rows that pad the vocabulary."""
    header = np.zeros(256, np.int32)
    header[:8] = 20240326, version, 16, 131, 4, 4, 32, 136
    kinds = [[tensors[f"transformer.h.{i}.{kind}"] for i in range(4)] for kind in GPT2_ORDER]
    stacks = [tensors["transformer.wte.weight"], np.ones((5, 32)), tensors["transformer.wpe.weight"]]
    stacks += [np.stack(kind) for kind in kinds]
    stacks += [tensors["transformer.ln_f.weight"], tensors["transformer.ln_f.bias"]]
    dtype = np.float32 if version == 3 else ml_dtypes.bfloat16
    path.write_bytes(header.tobytes() + b"".join(np.ascontiguousarray(one, dtype).tobytes() for one in stacks))
    return path


@pytest.fixture(scope="module")
def gpt2_tensors() -> dict[str, np.ndarray]:
    return export_tensors(draw_model(GPT2_CONFIG), tuple(ROWS), title="nanoGPT", dtype="float32")


@pytest.mark.parametrize("version", [3, 5])
def test_llmc_file_becomes_the_model_it_holds(
    tmp_path: Path, gpt2_tensors: dict[str, np.ndarray], version: int
) -> None:
    path = write_llmc(tmp_path / "model.bin", gpt2_tensors, version=version)
    found = read_llmc(path)
    assert replace(found.config, compute=GPT2_CONFIG.compute) == GPT2_CONFIG
    model = found.load()
    assert model.config.compute.dtype == ("float32" if version == 3 else "bfloat16")
    loaded = export_tensors(model, tuple(ROWS), title="nanoGPT", dtype="float32")
    dtype = np.float32 if version == 3 else ml_dtypes.bfloat16
    assert all((loaded[name] == gpt2_tensors[name].astype(dtype).astype(np.float32)).all() for name in gpt2_tensors)


def test_llmc_command_writes_a_run(
    tmp_path: Path, gpt2_tensors: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_llmc(tmp_path / "model.bin", gpt2_tensors, version=3)
    main(["from-llmc", str(path), f"--output={tmp_path / 'run'}"])
    assert "parameters, no tokenizer" in capsys.readouterr().out
    assert RunDir.open(tmp_path / "run").model_config.num_layers == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-2], "has 223,998 bytes; its header implies 224,000"),
        (lambda data: b"\0" * 4 + data[4:], r"begins with \[0, 3\]; wanted: 20240326 and version 3 or 5"),
        (lambda data: data[:4] + b"\7" + data[5:], r"begins with \[20240326, 7\]"),
        (lambda data: data[:16] + b"\xff" * 4 + data[20:], "its header says .*-1.*, which is no model"),
        (lambda data: data[:100], "wanted: 20240326"),
    ],
)
def test_damaged_llmc_file_is_refused(
    tmp_path: Path, gpt2_tensors: dict[str, np.ndarray], change: Any, message: str
) -> None:
    path = write_llmc(tmp_path / "model.bin", gpt2_tensors, version=3)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        read_llmc(path)


# --- with PyTorch ---


def rotate_back(x: np.ndarray, sign: int = 1) -> np.ndarray:
    """Rotary positions of nanochat and modded-nanogpt: pairs (i, i + K / 2) turn by -θ, or by θ with sign -1."""
    pairs = x.shape[-1] // 2
    angles = sign * np.arange(x.shape[1])[:, None] * 10_000.0 ** (-np.arange(pairs) / pairs)
    cos, sin = np.cos(angles)[None, :, None], np.sin(angles)[None, :, None]
    first, second = x[..., :pairs], x[..., pairs:]
    return np.concatenate([first * cos + second * sin, first * -sin + second * cos], axis=-1)


def compute_modded(state: dict[str, np.ndarray], tokens: np.ndarray, *, heads: int, cap: float) -> np.ndarray:
    """Logits by the formula of record 11; without its learned numbers, of nanochat's first form."""
    epsilon, layers = float(np.finfo(np.float32).eps), 4
    x = x0 = rms_norm(state["transformer.wte.weight"][tokens], epsilon)
    first_values, skips = None, []
    mask = np.tril(np.ones((tokens.shape[1],) * 2, bool))
    for layer in range(layers):
        own = {name.split(".", 3)[3]: w for name, w in state.items() if name.startswith(f"transformer.h.{layer}.")}
        if "skip_weights" in state and layer >= layers // 2:
            x = x + state["skip_weights"][layer - layers // 2] * skips.pop()
        if "lambdas" in own:
            x = own["lambdas"][0] * x + own["lambdas"][1] * x0
        h = rms_norm(x, epsilon)
        split = lambda kind, h=h, own=own: (h @ own[f"attn.c_{kind}.weight"].T).reshape(*h.shape[:2], -1, 8)
        q, k, v = map(split, "qkv")
        first_values = v if first_values is None else first_values
        if "attn.lamb" in own:
            v = (1 - own["attn.lamb"]) * v + own["attn.lamb"] * first_values
        q, k = rms_norm(rotate_back(q), epsilon), rms_norm(rotate_back(k), epsilon)
        k, v = (np.repeat(one, heads // one.shape[2], axis=2) for one in (k, v))
        scores = np.where(mask, np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(8), -np.inf)
        y = np.einsum("bhts,bshk->bthk", softmax(scores), v).reshape(x.shape)
        x = x + y @ own["attn.c_proj.weight"].T
        hidden = np.maximum(rms_norm(x, epsilon) @ own["mlp.c_fc.weight"].T, 0) ** 2
        x = x + hidden @ own["mlp.c_proj.weight"].T
        if layer < layers // 2:
            skips.append(x)
    return cap * np.tanh(rms_norm(x, epsilon) @ state["lm_head.weight"].T / cap)


def draw_state(*, kv_heads: int, learned: bool) -> dict[str, np.ndarray]:
    random = np.random.RandomState(0)
    draw = lambda *shape: (0.3 * random.standard_normal(shape)).astype(np.float32)
    state = {"transformer.wte.weight": draw(131, 32), "lm_head.weight": draw(131, 32)}
    for layer in range(4):
        names = {"attn.c_q": (32, 32), "attn.c_k": (kv_heads * 8, 32), "attn.c_v": (kv_heads * 8, 32)}
        names |= {"attn.c_proj": (32, 32), "mlp.c_fc": (128, 32), "mlp.c_proj": (32, 128)}
        state |= {f"transformer.h.{layer}.{name}.weight": draw(*shape) for name, shape in names.items()}
        if learned:
            state |= {f"transformer.h.{layer}.attn.lamb": draw(), f"transformer.h.{layer}.lambdas": 1 + draw(2)}
    return state | ({"skip_weights": 1 + draw(2)} if learned else {})


def save_torch(path: Path, content: Any) -> Path:
    torch = pytest.importorskip("torch")

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: convert(one) for name, one in value.items()}
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray | np.generic) else value

    torch.save(convert(content), path)
    return path


def check_logits(run: Path, tokens: np.ndarray, expected: np.ndarray) -> None:
    found = compute_logits(RunDir.open(run).load_model(dtype="float32"), tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


TOKENS = draw_tokens(GPT2_CONFIG)


@pytest.mark.parity
def test_modded_checkpoint_computes_as_there(tmp_path: Path) -> None:
    state = draw_state(kv_heads=4, learned=True)
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    path = save_torch(tmp_path / "state_step000010.pt", {"step": 10, "code": "import os", "model": wrapped})
    main(["from-modded", str(path), f"--output={tmp_path / 'run'}", "--num-heads=4", "--context-length=16"])
    check_logits(tmp_path / "run", TOKENS, compute_modded(state, TOKENS, heads=4, cap=30.0))


@pytest.mark.parity
@pytest.mark.parametrize("padding", [0, 61])
def test_nanochat_checkpoint_computes_as_there(tmp_path: Path, padding: int) -> None:
    """Also with rows that pad the vocabulary to a multiple of 64."""
    state = draw_state(kv_heads=2, learned=False)
    sizes = {"sequence_len": 16, "vocab_size": 131, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
    pad = lambda tensor: np.pad(tensor, ((0, padding), (0, 0))) if len(tensor) == 131 else tensor
    save_torch(tmp_path / "model_000100.pt", {f"_orig_mod.{name}": pad(tensor) for name, tensor in state.items()})
    (tmp_path / "meta_000100.json").write_text(json.dumps({"step": 100, "model_config": sizes}))
    main(["from-nanochat", str(tmp_path), f"--output={tmp_path / 'run'}"])
    assert RunDir.open(tmp_path / "run").model_config.vocab_size == 131
    check_logits(tmp_path / "run", TOKENS, compute_modded(state, TOKENS, heads=4, cap=15.0))


@pytest.mark.parity
def test_nanochat_of_a_later_form_is_refused_by_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = draw_state(kv_heads=4, learned=False) | {"resid_lambdas": np.ones(4, np.float32)}
    sizes = {"sequence_len": 16, "vocab_size": 131, "n_layer": 4, "n_head": 4, "n_kv_head": 4, "n_embd": 32}
    save_torch(tmp_path / "model_000100.pt", state)
    (tmp_path / "meta_000100.json").write_text(json.dumps({"model_config": sizes}))
    with pytest.raises(SystemExit):
        main(["from-nanochat", str(tmp_path), f"--output={tmp_path / 'run'}"])
    assert "holds resid_lambdas, which is not understood" in capsys.readouterr().err.replace("'", "").replace('"', "")
    assert not (tmp_path / "run").exists()


def compute_nanogpt(state: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Logits by nanoGPT's formula, with PyTorch's own layers."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    w = {name: torch.from_numpy(tensor.copy()) for name, tensor in state.items()}
    norm = lambda x, name: F.layer_norm(x, (32,), w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)
    linear = lambda x, name: F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))
    x = w["transformer.wte.weight"][torch.from_numpy(tokens)] + w["transformer.wpe.weight"][: tokens.shape[1]]
    for layer in range(4):
        name = f"transformer.h.{layer}"
        heads = linear(norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn").split(32, dim=2)
        q, k, v = (one.unflatten(-1, (4, 8)).transpose(1, 2) for one in heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + linear(y, f"{name}.attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")), f"{name}.mlp.c_proj")
    return (norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T).numpy()


@pytest.mark.parity
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_checkpoint_computes_as_there(tmp_path: Path, gpt2_tensors: dict[str, np.ndarray], bias: bool) -> None:
    state = {name: tensor for name, tensor in gpt2_tensors.items() if bias or not name.endswith(".bias")}
    sizes = {"n_layer": 4, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 131, "bias": bias, "dropout": 0.1}
    model = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    model["_orig_mod.lm_head.weight"] = state["transformer.wte.weight"]
    content = {
        "model": model,
        "model_args": sizes,
        "iter_num": 7,
        "config": {"dataset": "x"},
        "optimizer": {"state": {}},
    }
    path = save_torch(tmp_path / "ckpt.pt", content)
    main(["from-nanogpt", str(path), f"--output={tmp_path / 'run'}"])
    check_logits(tmp_path / "run", TOKENS, compute_nanogpt(state, TOKENS))


def compute_speedrun(state: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Logits by the formula of the run on one A100. Rotary positions turn forwards, and a skip is a layer's input."""
    epsilon, layers = float(np.finfo(np.float32).eps), 4
    linear = lambda x, name: x @ state[f"{name}.weight"].T
    turn = lambda x: rotate_back(x, sign=-1)
    x, skips = state["wte.weight"][tokens], []
    mask = np.tril(np.ones((tokens.shape[1],) * 2, bool))
    for layer in range(layers):
        if layer < layers // 2:
            skips.append(x)
        else:
            x = x + skips.pop()
        name = f"blocks.{layer}"
        heads = np.split(linear(rms_norm(x, epsilon), f"{name}.attn.c_attn"), 3, axis=-1)
        q, k, v = (one.reshape(*one.shape[:2], -1, 8) for one in heads)
        q, k = turn(rms_norm(q, epsilon)), turn(rms_norm(k, epsilon))
        scores = np.where(mask, np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(8), -np.inf)
        y = np.einsum("bhts,bshk->bthk", softmax(scores), v).reshape(x.shape)
        x = x + linear(y, f"{name}.attn.c_proj") / np.sqrt(2 * layers)
        hidden = np.maximum(linear(rms_norm(x, epsilon), f"{name}.mlp.c_fc"), 0) ** 2
        x = x + linear(hidden, f"{name}.mlp.c_proj")
    return 30.0 * np.tanh(linear(rms_norm(x, epsilon), "lm_head") / 30.0)


def draw_speedrun_state(*, tied: bool) -> dict[str, np.ndarray]:
    random = np.random.RandomState(0)
    draw = lambda *shape: (0.3 * random.standard_normal(shape)).astype(np.float32)
    state = {"wte.weight": draw(131, 32)}
    state["lm_head.weight"] = state["wte.weight"] if tied else draw(131, 32)
    for layer in range(4):
        names = {"attn.c_attn": (96, 32), "attn.c_proj": (32, 32), "mlp.c_fc": (128, 32), "mlp.c_proj": (32, 128)}
        state |= {f"blocks.{layer}.{name}.weight": draw(*shape) for name, shape in names.items()}
    return state


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
def test_speedrun_checkpoint_computes_as_there(tmp_path: Path, tied: bool) -> None:
    """Tied, with its config beside the tensors, as the run saves it; untied, tensors alone, as on the hub."""
    state = draw_speedrun_state(tied=tied)
    content, options = state, ["--num-heads=4", "--context-length=16"]
    if tied:
        sizes = {"num_layers": 4, "num_heads": 4, "model_dim": 32, "max_seq_len": 16, "logit_softcap": 30.0}
        content = {"model": {f"_orig_mod.{name}": one for name, one in state.items()}, "config": sizes, "val_loss": 3.3}
        options = []
    path = save_torch(tmp_path / "pytorch_model.pt", content)
    main(["from-speedrun", str(path), f"--output={tmp_path / 'run'}", *options])
    assert RunDir.open(tmp_path / "run").model_config.tie_embeddings is tied
    check_logits(tmp_path / "run", TOKENS, compute_speedrun(state, TOKENS))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("command", "change", "message"),
    [
        ("modded", lambda state: state | {"value_embeds.0.weight": np.ones((131, 32))}, "holds value_embeds.0.weight"),
        (
            "modded",
            lambda state: {"embed.weight": np.ones((4, 4)), "scalars": np.ones(4)},
            "it holds embed.weight, sca",
        ),
        (
            "speedrun",
            lambda state: state | {"blocks.0.attn.lambda": np.ones(1)},
            "holds blocks.0.attn.lambda, which is",
        ),
        ("modded", lambda state: state | {"transformer.h.1.lambdas": np.ones((1, 2))}, "holds transformer.h.1.lambdas"),
        (
            "modded",
            lambda state: state | {f"transformer.h.{'9' * 5000}.ln": np.ones(1)},
            "holds transformer.h.99999999",
        ),
        ("modded", lambda state: state | {"skip_weights": np.ones(())}, "skip_weights has shape (); wanted: (2,)"),
        ("speedrun", lambda state: state, "holds transformer.wte.weight, lm_head.weight, transformer.h.0.attn.c_q"),
        ("speedrun", lambda state: {"model": state, "config": [1]}, "wte.weight, lm_head.weight and an even number"),
    ],
)
def test_what_is_not_understood_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, change: Any, message: str
) -> None:
    state = draw_state(kv_heads=4, learned=True)
    if message.startswith("holds blocks"):
        state = draw_speedrun_state(tied=True)
    content = change(state)
    path = save_torch(tmp_path / "file.pt", {"model": content} if command == "modded" else content)
    with pytest.raises(SystemExit):
        main([f"from-{command}", str(path), f"--output={tmp_path / 'run'}", "--num-heads=4"])
    assert message in capsys.readouterr().err.replace("'", "")
    assert not (tmp_path / "run").exists()


def change_tensors() -> dict[str, Any]:
    """What cannot be a weight, in place of one, by the message."""
    import torch  # pyright: ignore[reportMissingImports]

    like = lambda shape: torch.ones(*shape)
    return {
        "is sparse_coo on cpu; wanted: a dense tensor": like((96, 32)).to_sparse(),
        "is strided on meta; wanted: a dense tensor": torch.ones(96, 32, device="meta"),
        "is of type complex64; wanted: float32, bfloat16, float16": like((96, 32)) * 1j,
        "is of type float64; wanted: float32": like((96, 32)).double(),
        "by its shape, and 4 are stored": like((1, 1)).expand(96, 32),
    }


@pytest.mark.parity
def test_tensors_that_are_no_weights_are_refused(
    tmp_path: Path, gpt2_tensors: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    import torch  # pyright: ignore[reportMissingImports]

    name = "transformer.h.0.attn.c_attn.weight"
    state = {key: torch.tensor(value) for key, value in gpt2_tensors.items()}
    arguments = {"n_layer": 4, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 131, "bias": True}
    refused = lambda state, message, **changes: check_refused(
        tmp_path, capsys, {"model": state, "model_args": arguments | changes}, message
    )
    for message, tensor in change_tensors().items():
        refused(state | {name: tensor}, f"ckpt.pt: the weight {name} {message}" if "is " in message[:3] else message)
    refused(state | {f"x{i}": state[name] for i in range(40)}, "ckpt.pt: its weights have ")
    refused(state | {name: state[name] * np.nan}, f"ckpt.pt: the weight {name} holds values that are not finite")
    refused(state, "ckpt.pt: its sizes make no model: ", n_head=5)


def check_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str) -> None:
    import torch  # pyright: ignore[reportMissingImports]

    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(SystemExit) as stop:
        main(["from-nanogpt", str(tmp_path / "ckpt.pt"), f"--output={tmp_path / 'run'}"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.replace("'", "")
    assert not (tmp_path / "run").exists()


class Harmful:
    """A pickle of this makes a file when it is loaded by `pickle`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parity
def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_torch(tmp_path / "ckpt.pt", {"model": {}, "model_args": {}, "config": Harmful(tmp_path / "harm")})
    with pytest.raises(SystemExit) as stop:
        main(["from-nanogpt", str(path), f"--output={tmp_path / 'run'}"])
    assert stop.value.code == 2
    assert "reading that can execute code" in capsys.readouterr().err
    assert not (tmp_path / "harm").exists()


@pytest.mark.parity
def test_file_in_the_format_before_archives_is_read(tmp_path: Path) -> None:
    """`torch.load` cannot map it."""
    import torch  # pyright: ignore[reportMissingImports]

    path = tmp_path / "ckpt.pt"
    torch.save({"weight": torch.arange(3.0)}, path, _use_new_zipfile_serialization=False)
    assert read_torch_file(path)["weight"].tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"ckpt\.pt cannot be read as a file that torch.save wrote: .* copy it again"):
        read_torch_file(path)
