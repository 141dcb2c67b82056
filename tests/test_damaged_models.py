"""Model directories that are damaged or hostile: one line on stderr, exit code 2, and nothing is written."""

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hf_models import Tensors, draw_tensors, make_hf_config
from safetensors.numpy import save_file

from gptjax import convert
from gptjax.core.errors import UserError
from gptjax.huggingface.model_dir import fetch_model
from gptjax.runs.checkpoint_source import open_checkpoint
from gptjax.tokenization.tokenizer import Bytes

CONFIG = make_hf_config(n_layer=2, vocab_size=260)
OWN = {"num_hidden_layers": 2, "hidden_size": 30, "num_attention_heads": 3}
FORGED = "x\nerror: all is well\x1b[2J\u202e"
"""A name that imitates a message and clears a terminal."""
EMBEDDING = "transformer.wte.weight"


def write_model(directory: Path, tensors: Tensors | None = None) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    save_file(draw_tensors(CONFIG) if tensors is None else tensors, directory / "model.safetensors")
    Bytes().save(directory)
    return directory


def set_config(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def set_tensors(**changes: np.ndarray) -> Callable[[Path], object]:
    """Replace or add weights; `__` stands for a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return lambda folder: save_file(draw_tensors(CONFIG) | named, folder / "model.safetensors")


def set_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        change(header)
        written = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(written)) + written + content[8 + size :])

    return damage


def duplicate_in_header(folder: Path) -> None:
    values = np.zeros(1, np.float32).tobytes()
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + entry + b"," + entry + b"}"
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values)


def shard(index: Any, *, both: bool = False) -> Callable[[Path], object]:
    """Two shards that each hold all weights, with this index."""

    def damage(folder: Path) -> None:
        save_file(draw_tensors(CONFIG), folder / "model-1.safetensors")
        save_file(draw_tensors(CONFIG, seed=1), folder / "model-2.safetensors")
        if not both:
            (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def replace_by_pipe(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def link_to_device(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


def set_pair(vocab: str | bytes, merges: str | bytes) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        write("vocab.json", vocab)(folder)
        write("merges.txt", merges)(folder)

    return damage


def embedding(value: float, dtype: Any = np.float32) -> np.ndarray:
    return np.full((260, 30), value, dtype)


def set_parts(**changes: Any) -> str:
    """A tokenizer.json with other parts."""
    return json.dumps(json.loads(Bytes().to_json()) | changes)


MAP = dict.fromkeys(draw_tensors(CONFIG), "model-1.safetensors")
DAMAGES: dict[str, Callable[[Path], object]] = {
    "a million layers": set_config(n_layer=10**6),
    "more layers than can be counted": set_config(n_layer=10**12),
    "an epsilon beyond floats": set_config(layer_norm_epsilon=10**400),
    "a wide claim": set_config(n_embd=10**12, n_head=10),
    "a wide MLP": set_config(n_inner=2**63),
    "a large vocabulary": set_config(vocab_size=10**40),
    "a long context": set_config(n_positions=10**18),
    "no layer": set_config(n_layer=0),
    "a negative width": set_config(n_embd=-30),
    "heads that do not divide": set_config(n_head=7),
    "more heads than channels": set_config(n_head=10**9),
    "a layer as text": set_config(n_layer="2"),
    "a layer as a list": set_config(n_layer=[2]),
    "half a layer": set_config(n_layer=1.5),
    "true layers": set_config(n_layer=True),
    "null layers": set_config(n_layer=None),
    "epsilon NaN": set_config(layer_norm_epsilon=float("nan")),
    "epsilon negative": set_config(layer_norm_epsilon=-1.0),
    "epsilon as text": set_config(layer_norm_epsilon="1e-5"),
    "tied by text": set_config(tie_word_embeddings="yes"),
    "an activation as a list": set_config(activation_function=["gelu_new"]),
    "an activation of a stranger": set_config(activation_function=FORGED),
    "another type": set_config(model_type=FORGED * 1000),
    "the type as an object": set_config(model_type={"gpt2": 1}),
    "scaling of another kind": set_config(scale_attn_by_inverse_layer_idx=[1]),
    "an end beyond the vocabulary": set_config(eos_token_id=10**9),
    "a negative end": set_config(eos_token_id=[-1]),
    "an end as text": set_config(eos_token_id="x"),
    "a begin as an object": set_config(bos_token_id={}),
    "a pattern without an end": set_config(model_type="gptjax", **OWN, value_embeddings="x\n" * 10**5),
    "an option of a stranger": set_config(model_type="gptjax", **OWN, unet_skips=FORGED),
    "a class as text": set_config(architectures="x"),
    "a class as a number": set_config(architectures=[3]),
    "quantized weights": set_config(quantization_config={"quant_method": "gptq"}),
    "a list as config": write("config.json", "[]"),
    "null as config": write("config.json", "null"),
    "no JSON": write("config.json", "{"),
    "an empty config": write("config.json", ""),
    "deep JSON": write("config.json", "[" * 10**5),
    "a number of many digits": write("config.json", '{"n_layer": ' + "9" * 10**5 + "}"),
    "a key twice": write("config.json", '{"model_type": "gpt2", "n_layer": 2, "n_layer": 3}'),
    "a config that is no text": write("config.json", b"\xff\xfe\x00"),
    "a config that is a device": link_to_device,
    "a config of gigabytes": lambda folder: os.truncate(folder / "config.json", 2**32),
    "a config that is a pipe": replace_by_pipe("config.json"),
    "weights that are a pipe": replace_by_pipe("model.safetensors"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "empty weights": write("model.safetensors", b""),
    "a header beyond the file": write("model.safetensors", struct.pack("<Q", 2**62)),
    "a header of zeros": write("model.safetensors", bytes(1000)),
    "offsets beyond the file": set_header(lambda header: header[EMBEDDING].update(data_offsets=[0, 10**15])),
    "a shape that overflows": set_header(lambda header: header[EMBEDDING].update(shape=[2**40, 2**40])),
    "a type of a stranger": set_header(lambda header: header[EMBEDDING].update(dtype=FORGED)),
    "weights of another shape": set_tensors(transformer__wte__weight=np.zeros((30, 260), np.float32)),
    "weights as integers": set_tensors(transformer__wte__weight=embedding(1, np.int32)),
    "NaN weights": set_tensors(transformer__wte__weight=embedding(np.nan)),
    "NaN weights in bfloat16": set_tensors(transformer__wte__weight=embedding(np.nan, ml_dtypes.bfloat16)),
    "infinite weights": set_tensors(transformer__wte__weight=embedding(np.inf)),
    "a weight of a stranger": lambda folder: save_file(
        draw_tensors(CONFIG) | {FORGED: embedding(0.0)}, folder / "model.safetensors"
    ),
    "a weight twice by its prefix": set_tensors(wte__weight=embedding(0.0)),
    "a weight twice by its wrapper": set_tensors(_orig_mod__transformer__wte__weight=embedding(0.0)),
    "a weight twice in the header": duplicate_in_header,
    "one file and several": shard({"weight_map": MAP}, both=True),
    "a weight in two shards": shard({"weight_map": MAP | {EMBEDDING: "model-2.safetensors"}}),
    "an index as a list": shard([]),
    "an index without files": shard({"weight_map": {}}),
    "an index of numbers": shard({"weight_map": dict.fromkeys(MAP, 1)}),
    "an index of lists": shard({"weight_map": [["a", "b"]]}),
    "an index with a NUL": shard({"weight_map": dict.fromkeys(MAP, "a\0b")}),
    "an index that leads out": shard({"weight_map": dict.fromkeys(MAP, "../model.safetensors")}),
    "an index of a stranger": shard({"weight_map": dict.fromkeys(MAP, FORGED)}),
}
TOKENIZER_DAMAGES: dict[str, Callable[[Path], object]] = {
    "a list": write("tokenizer.json", "[]"),
    "no model": write("tokenizer.json", '{"version": "1.0"}'),
    "an id beyond a gap of two thousand millions": write(
        "tokenizer.json", Bytes().to_json().replace(": 209", f": {2**31}", 1)
    ),
    "a token that stands twice": write("tokenizer.json", Bytes().to_json().replace('"b": ', '"a": 7, "a": ', 1)),
    "a model of another type": write(
        "tokenizer.json", json.dumps(json.loads(Bytes().to_json()) | {"model": {"type": FORGED}})
    ),
    "a vocabulary as text": write(
        "tokenizer.json",
        json.dumps(json.loads(Bytes().to_json()) | {"model": {"type": "BPE", "vocab": "x", "merges": []}}),
    ),
    "a panic of the library while it reads": write(
        "tokenizer.json", set_parts(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    ),
    "a panic of the library over a text": write(
        "tokenizer.json",
        set_parts(
            model={"type": "BPE", "vocab": {"A": 0, "z": 1}, "merges": [], "end_of_word_suffix": "\u00e9"},
            normalizer={"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="},
        ),
    ),
    "a config that is no JSON": write("tokenizer_config.json", "{"),
    "an end that is no text": write("tokenizer_config.json", '{"eos_token": 5}'),
    "an id as text": set_pair('{"a": "0"}', "#version"),
    "an id beyond all": set_pair('{"a": 1000000000000}', "#version"),
    "a pair as a list": set_pair('["a"]', "#version"),
    "a token of a stranger": set_pair(json.dumps({FORGED: 0}), "#version"),
    "merges that are no text": set_pair('{"a": 0}', b"\xff\xff"),
}


def import_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """(exit code, lines on stderr) of an import; fails if it writes control characters."""
    code = 0
    try:
        convert.main(["from-hf", f"--model={folder}", f"--output={folder.parent / 'run'}"])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    lines = capsys.readouterr().err.splitlines()
    assert all(line.isprintable() for line in lines)
    return code, lines


def assert_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = import_model(folder, capsys)
    errors = [line for line in lines if not line.startswith("note: ")]
    assert (code, len(errors)) == (2, 1), lines
    assert errors[0].startswith("error: ")
    assert len(errors[0]) < 900 + len(str(folder)) * 3
    assert not (folder.parent / "run").exists()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_refused_in_one_line(
    damage: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    damage(folder := write_model(tmp_path / "model"))
    assert_refused(folder, capsys)


@pytest.mark.parametrize("damage", TOKENIZER_DAMAGES.values(), ids=TOKENIZER_DAMAGES)
def test_a_damaged_tokenizer_is_told_in_one_line(
    damage: Callable[[Path], object],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """Also past Python, where Rust prints its panics."""
    monkeypatch.setattr("gptjax.conversion.imports.write_imported_run", lambda directory, **_: directory.mkdir())
    damage(folder := write_model(tmp_path / "model"))
    code, lines = import_model(folder, capfd)
    assert (code, len(lines)) == (0, 1), lines
    assert lines[0].startswith("note: imported without a tokenizer: ")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_of_a_wrapped_model_are_understood(prefix: str, tmp_path: Path):
    from gptjax.huggingface.model_import import from_hf

    tensors = draw_tensors(CONFIG)
    folder = write_model(tmp_path / "model", {prefix + name: tensor for name, tensor in tensors.items()})
    _, model, _ = from_hf(folder)
    assert np.array_equal(np.asarray(model.token_embedding[...])[:260], tensors[EMBEDDING])


def test_a_directory_named_like_a_model_of_the_hub_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(SystemExit):
        convert.main(["from-hf", "--model=gpt2", "--output=run"])
    assert capsys.readouterr().err == (
        "error: --model=gpt2 is a directory here without config.json. "
        "The hub's model of that name is --model=hf:gpt2.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_bytes_changed_anywhere_end_in_a_model_or_one_line(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Sixty directories a seed, in each of which one file is cut, repeated or changed in places."""
    monkeypatch.setattr("gptjax.conversion.imports.write_imported_run", lambda directory, **_: directory.mkdir())
    draw = random.Random(seed)
    for number in range(60):
        folder = write_model(tmp_path / str(number) / "model")
        path = folder / draw.choice(["config.json", "model.safetensors", "tokenizer.json"])
        content = bytearray(path.read_bytes())
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(min(len(content), 2_000))
            kind = draw.choice(["flip", "cut", "repeat", "insert"])
            if kind == "flip":
                content[at] ^= 1 << draw.randrange(8)
            elif kind == "cut":
                del content[at : at + draw.randint(1, 50)]
            elif kind == "repeat":
                content[at:at] = content[at : at + draw.randint(1, 50)]
            else:
                content[at:at] = draw.choice([b"\x1b[2J", b"null", b"[", b"99999999999", b'"', b"\n", b"\xff"])
        path.write_bytes(content)
        code, lines = import_model(folder, capsys)
        assert code in (0, 2)
        assert len(lines) <= 1, lines
        assert (folder.parent / "run").exists() == (code == 0)


@pytest.mark.parametrize(
    ("name", "model", "advice"),
    [
        ("m/model.safetensors", "m/model.safetensors", "is a file; .*Give its directory: m"),
        ("m.gguf", "m.gguf", "GGUF files are written, but not read"),
        ("ckpt.pt", "ckpt.pt", "from-nanogpt ckpt.pt --output=RUN"),
        ("m/adapter_config.json", "m", "from-peft m --output=RUN"),
        ("m/params.json", "m", "is of Meta's format"),
        ("m/checkpoint-500/config.json", "m", "There is one in m/checkpoint-500"),
        ("models--a--b/snapshots/c/config.json", "models--a--b", "There is one in models--a--b/snapshots/c"),
    ],
)
def test_what_is_no_model_directory_is_told(
    name: str, model: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).touch()
    with pytest.raises(UserError, match=advice):
        fetch_model(model)
    with pytest.raises(UserError, match=advice.removeprefix("is a file; ")):
        open_checkpoint(model)
