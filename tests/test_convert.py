"""Conversion of runs to and from Hugging Face's format: the files that appear, and that a failure leaves none."""

import contextlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from hf_models import are_identical, draw_tensors, make_hf_config, write_model_dir
from safetensors.numpy import load_file
from tiny import write_text_shards

from gptjax.conversion.exports import describe_data
from gptjax.conversion.imports import ORIGIN_FILE
from gptjax.convert import main
from gptjax.data.config import Mixture, MixtureComponent, TokenShards
from gptjax.huggingface import model_dir
from gptjax.huggingface.model_export import to_hf
from gptjax.huggingface.model_import import from_hf
from gptjax.model.config import GPTConfig, InitConfig
from gptjax.model.gpt import GPT
from gptjax.runs.run_dir import RunDir, write_imported_run
from gptjax.tokenization.tokenizer import BPE, END_OF_TEXT, GPT2_PATTERN, Bytes, Chars, Tokenizer

TOKENIZER = BPE(
    {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257},
    {END_OF_TEXT: 258},
    merges=[(b"t", b"h"), (b"th", b"e")],
    pattern=GPT2_PATTERN,
)
CONFIG = GPTConfig(num_layers=2, embed_dim=16, num_heads=2, context_length=12, vocab_size=259, init=InitConfig(std=0.3))


@pytest.fixture(scope="module")
def model() -> GPT:
    return jax.jit(lambda key: GPT(CONFIG, key=key))(jax.random.key(0))


@pytest.fixture(scope="module")
def run(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with a tokenizer."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    write_imported_run(directory, model=model, tokenizer=TOKENIZER)
    return directory


def run_and_fail(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run the command, which must exit with status 2; returns its error message."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    assert stop.value.code == 2
    return capsys.readouterr().err


def fake_packages(monkeypatch: pytest.MonkeyPatch, **specs: object) -> None:
    """Let `find_spec` find these packages, or not."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: specs[name] if name in specs else find(name))


def export_run(run: Path, output: Path, *options: str) -> None:
    main(["to-hf", f"--checkpoint={run}", f"--output={output}", *options])


def import_model(directory: Path | str, output: Path) -> None:
    main(["from-hf", f"--model={directory}", f"--output={output}"])


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_export_writes_all_files_of_transformers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: Path, model: GPT, tmp_path: Path
):
    fake_packages(monkeypatch, torch=object(), transformers=None)
    output = tmp_path / "out"
    export_run(run, output)
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "checksums.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    config, generation = read_json(output / "config.json"), read_json(output / "generation_config.json")
    assert (config["vocab_size"], config["n_positions"], config["dtype"]) == (259, 12, "float32")
    assert config["bos_token_id"] == config["eos_token_id"] == generation["eos_token_id"] == 258
    assert (config["n_ctx"], generation["max_length"]) == (12, 12)
    settings = read_json(output / "tokenizer_config.json")
    assert (settings["tokenizer_class"], settings["model_max_length"]) == ("PreTrainedTokenizerFast", 12)
    assert settings["eos_token"] == settings["unk_token"] == END_OF_TEXT
    assert are_identical(to_hf(from_hf(output)[1]), to_hf(model))
    assert capsys.readouterr().out.splitlines() == [
        f"{output}: weights of tiny at step 0 as GPT2LMHeadModel in float32, with its tokenizer",
        "not verified: transformers not installed",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing temporary stays"


def test_exported_tokenizer_encodes_as_the_run(run: Path, tmp_path: Path):
    export_run(run, tmp_path / "out", "--no-verify")
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    text = "the thing, they said — 123\r\n"
    assert exported.encode(text).ids == TOKENIZER.encode(text).tolist()


def test_imported_model_is_exported_bit_for_bit(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    config = make_hf_config(tie_word_embeddings=False, vocab_size=260)
    tensors = draw_tensors(config, dtype="bfloat16")
    original = write_model_dir(tmp_path / "original", config, tensors)
    TOKENIZER.save(original)
    import_model(original, tmp_path / "runs" / "imported")
    export_run(tmp_path / "runs" / "imported", tmp_path / "exported", "--no-verify")
    assert are_identical(load_file(tmp_path / "exported" / "model.safetensors"), tensors)
    exported = read_json(tmp_path / "exported" / "config.json")
    assert {key: exported[key] for key in config} == config | {"dtype": "bfloat16"}
    assert (tmp_path / "exported" / "tokenizer.json").read_text() == (original / "tokenizer.json").read_text()
    assert "parameters in bfloat16, tokenizer bpe-259; computes in bfloat16" in capsys.readouterr().out


def test_export_casts_to_the_given_type(tmp_path: Path, run: Path, model: GPT):
    export_run(run, tmp_path / "out", "--dtype=bfloat16", "--no-verify")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype.name for tensor in tensors.values()} == {"bfloat16"}
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"
    expected = np.asarray(model.token_embedding[...])[:259].astype(tensors["transformer.wte.weight"].dtype)
    np.testing.assert_array_equal(tensors["transformer.wte.weight"], expected)


def test_model_without_tokenizer_is_imported_and_exported(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    config = make_hf_config()
    import_model(write_model_dir(tmp_path / "original", config, draw_tensors(config)), tmp_path / "imported")
    run = RunDir.open(tmp_path / "imported")
    assert (run.find_step(), run.tokenizer, run.config.name) == (0, None, "imported")
    assert run.config.model == from_hf(tmp_path / "original")[0]
    assert read_json(tmp_path / "imported" / ORIGIN_FILE) == {"config": config, "dtype": "float32"}
    printed = capsys.readouterr()
    assert "note: imported without a tokenizer" in printed.err
    assert "no tokenizer; computes in float32" in printed.out
    export_run(tmp_path / "imported", tmp_path / "exported", "--no-verify")
    assert not list((tmp_path / "exported").glob("tokenizer*"))
    assert "without a tokenizer, because the run has none" in capsys.readouterr().out


def test_tokenizer_without_end_of_text_omits_its_ids(tmp_path: Path, model: GPT):
    write_imported_run(tmp_path / "run", model=model, tokenizer=Bytes())
    export_run(tmp_path / "run", tmp_path / "out", "--no-verify")
    assert read_json(tmp_path / "out" / "config.json")["eos_token_id"] is None
    assert read_json(tmp_path / "out" / "generation_config.json") == {"max_length": 12}
    assert "eos_token" not in read_json(tmp_path / "out" / "tokenizer_config.json")


def test_import_refuses_a_tokenizer_with_too_many_ids(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    config = make_hf_config(vocab_size=251)
    directory = write_model_dir(tmp_path / "original", config, draw_tensors(config))
    TOKENIZER.save(directory)
    message = run_and_fail(capsys, "from-hf", f"--model={directory}", f"--output={tmp_path / 'imported'}")
    assert "the tokenizer has 259 ids, but the model only 251" in message
    assert not (tmp_path / "imported").exists()


def test_output_is_never_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path):
    full, empty, file = tmp_path / "full", tmp_path / "empty", tmp_path / "file"
    full.mkdir()
    (full / "thesis.tex").touch()
    empty.mkdir()
    file.touch()
    for output in (full, file):
        for words in (("to-hf", f"--checkpoint={run}"), ("from-hf", f"--model={tmp_path}")):
            assert "is not an empty directory" in run_and_fail(capsys, *words, f"--output={output}")
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]
    export_run(run, empty, "--no-verify")
    assert (empty / "config.json").exists()


def test_failed_export_leaves_no_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Path
):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_dir, "write_tensors", fail)
    message = run_and_fail(capsys, "to-hf", f"--checkpoint={run}", f"--output={tmp_path / 'out'}")
    assert "cannot be written" in message
    assert "No space left" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "is_kept"), [(1e-5, True), (0.01, False), (float("nan"), False)])
def test_export_is_kept_only_if_logits_agree(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    run: Path,
    error: float,
    is_kept: bool,
):
    def compute_wrong_logits(directory: Path, tokens: np.ndarray) -> np.ndarray:
        assert tokens.shape == (1, 9)
        return model_dir.compute_jax_logits(from_hf(directory)[1], tokens, dtype="float32") + error

    fake_packages(monkeypatch, torch=object(), transformers=object())
    monkeypatch.setattr(model_dir, "compute_torch_logits", compute_wrong_logits)
    monkeypatch.setattr(model_dir, "VERIFIED_TOKENS", 9)
    words = ("to-hf", f"--checkpoint={run}", f"--output={tmp_path / 'out'}")
    if is_kept:
        main(list(words))
        assert "verified: over 9 tokens" in capsys.readouterr().out
    else:
        assert "transformers computes other logits" in run_and_fail(capsys, *words)
        assert list(tmp_path.iterdir()) == []


def test_other_names_are_fetched_from_the_hub(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    config = make_hf_config()
    directory = write_model_dir(tmp_path / "cache", config, draw_tensors(config))
    requests = []

    def download(name: str, **options: Any) -> str:
        requests.append((name, options))
        if name == "someone/typo":
            raise LookupError("404: no such repository")
        return str(directory)

    fake_hub = types.ModuleType("huggingface_hub")
    monkeypatch.setattr(fake_hub, "snapshot_download", download, raising=False)
    fake_hub.__spec__ = importlib.util.spec_from_loader("huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake_hub)
    import_model("someone/tiny", tmp_path / "imported")
    [(name, options)] = requests
    assert name == "someone/tiny"
    assert not any("bin" in pattern or pattern == "*" for pattern in options["allow_patterns"])
    message = run_and_fail(capsys, "from-hf", "--model=someone/typo", f"--output={tmp_path / 'other'}")
    assert "fetching it from the hub failed: LookupError: 404" in message


def test_a_run_is_not_taken_for_a_model_of_hugging_face(capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path):
    message = run_and_fail(capsys, "from-hf", f"--model={run}", f"--output={tmp_path / 'out'}")
    assert "is a run of gptjax already. Name it with --checkpoint" in message


def test_missing_paths_are_not_fetched_from_the_hub(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    message = run_and_fail(capsys, "from-hf", f"--model={tmp_path / 'gone'}", f"--output={tmp_path / 'imported'}")
    assert "is neither a directory nor the name of a model" in message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "usage:"),
        (["to-onnx"], "to-onnx; wanted: to-hf, to-peft, to-gguf, from-hf"),
        (["--checkpoint=x"], "gptjax.convert to-hf --checkpoint=x"),
    ],
)
def test_missing_direction_is_explained(capsys: pytest.CaptureFixture[str], argv: list[str], message: str):
    assert message in run_and_fail(capsys, *argv)


def test_export_of_another_directory_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    message = run_and_fail(capsys, "to-hf", f"--checkpoint={tmp_path}", f"--output={tmp_path / 'out'}")
    assert "is not a run directory" in message


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--help"], ("to-hf", "from-hf")),
        (["to-hf", "--help"], ("--checkpoint", "--output", "--step", "--dtype", "--no-verify")),
        (["from-hf", "--help"], ("--model", "--output")),
    ],
)
def test_help_explains_both_directions(capsys: pytest.CaptureFixture[str], argv: list[str], expected: tuple[str, ...]):
    with contextlib.suppress(SystemExit):  # tyro exits after its help
        main(argv)
    out = capsys.readouterr().out
    assert all(option in out for option in expected)


# --- with transformers ---


@pytest.mark.parity
@pytest.mark.filterwarnings("default")  # torch and transformers have warnings of their own
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_transformers_loads_and_verifies_an_export(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path, dtype: str
):
    transformers = pytest.importorskip("transformers")
    export_run(run, tmp_path / "out", f"--dtype={dtype}")
    assert "verified: over 12 tokens" in capsys.readouterr().out
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert str(model.dtype) == f"torch.{dtype}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the thing, they said — 123"
    assert tokenizer(text)["input_ids"] == TOKENIZER.encode(text).tolist()
    assert tokenizer.decode(TOKENIZER.encode(text)) == text
    assert (tokenizer.eos_token_id, model.config.eos_token_id, tokenizer.model_max_length) == (258, 258, 12)
    written = model.generate(**tokenizer("the", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert written.shape[1] <= 4


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("tokenizer", [Bytes(), Chars.from_text("the thing, they said 123\n")])
def test_transformers_loads_other_tokenizers(tmp_path: Path, model: GPT, tokenizer: Tokenizer):
    transformers = pytest.importorskip("transformers")
    write_imported_run(tmp_path / "run", model=model, tokenizer=tokenizer)
    export_run(tmp_path / "run", tmp_path / "out")
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the thing, they said 123"
    assert exported(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert exported.decode(tokenizer.encode(text)) == text
    assert exported.eos_token is None


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
def test_wrong_export_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Path
):
    pytest.importorskip("transformers")

    def export_wrong_bias(*args: Any, **options: Any) -> dict[str, np.ndarray]:
        tensors, name = to_hf(*args, **options), "transformer.h.0.mlp.c_fc.bias"
        return tensors | {name: tensors[name] + 0.1}

    monkeypatch.setattr(model_dir, "to_hf", export_wrong_bias)
    message = run_and_fail(capsys, "to-hf", f"--checkpoint={run}", f"--output={tmp_path / 'out'}")
    assert "computes other logits" in message


def test_data_are_told_with_their_source_and_counts(tmp_path: Path):
    shards = TokenShards(path=str(write_text_shards(tmp_path / "shards", lines=12)))
    told = dict(describe_data(shards))
    splits = json.loads((tmp_path / "shards" / "manifest.json").read_text())["splits"]
    assert told["train"].startswith(f"{splits['train']['documents']:,} document")
    assert f"{splits['train']['tokens']:,} tokens, " in told["train"]
    assert f"{splits['val']['bytes']:,} bytes of text" in told["val"]
    assert told["tokenizer"].endswith("48 ids")
    mixed = dict(describe_data(Mixture((MixtureComponent(shards), MixtureComponent(TokenShards(path="/gone"))))))
    assert mixed["train of component 0"] == told["train"]
    assert not any("component 1" in name for name in mixed)
