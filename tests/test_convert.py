"""The door to and from Hugging Face: what lies in the directories, whole or not at all."""

import contextlib
import importlib.util
import json
import sys
import types

import jax
import numpy as np
import pytest
import tokenizers
from hf_models import draw, make_config, same_bits, write
from safetensors.numpy import load_file

from gptjax import convert as door
from gptjax.convert import ORIGIN_FILE, main
from gptjax.huggingface.gpt2 import from_hf, to_hf
from gptjax.model.config import GPTConfig, InitConfig
from gptjax.model.gpt import GPT
from gptjax.run_dir import RunDir, write_imported_run
from gptjax.tokenization.tokenizer import BPE, END_OF_TEXT, GPT2_PATTERN, Bytes, Chars

TOKENIZER = BPE(
    {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257},
    {END_OF_TEXT: 258},
    merges=[(b"t", b"h"), (b"th", b"e")],
    pattern=GPT2_PATTERN,
)
CONFIG = GPTConfig(num_layers=2, embed_dim=16, num_heads=2, context_length=12, vocab_size=259, init=InitConfig(std=0.3))


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda key: GPT(CONFIG, key=key))(jax.random.key(0))


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A run that was trained here, as far as this door can tell."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    write_imported_run(directory, model=model, tokenizer=TOKENIZER)
    return directory


@pytest.fixture
def without_transformers(monkeypatch):
    find = importlib.util.find_spec
    hidden = lambda name: None if name == "transformers" else object() if name == "torch" else find(name)
    monkeypatch.setattr(importlib.util, "find_spec", hidden)


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def export(run, output, *words):
    main(["to-hf", f"--checkpoint={run}", f"--output={output}", *words])


def import_model(directory, output):
    main(["from-hf", f"--model={directory}", f"--output={output}"])


def read(path):
    return json.loads(path.read_text())


def test_an_export_holds_all_that_transformers_reads(capsys, run, model, tmp_path, without_transformers):
    output = tmp_path / "out"
    export(run, output)
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = read(output / "config.json")
    assert (config["vocab_size"], config["n_positions"], config["dtype"]) == (259, 12, "float32")
    assert (
        config["bos_token_id"]
        == config["eos_token_id"]
        == read(output / "generation_config.json")["eos_token_id"]
        == 258
    )
    settings = read(output / "tokenizer_config.json")
    assert (settings["tokenizer_class"], settings["model_max_length"]) == ("PreTrainedTokenizerFast", 12)
    assert settings["eos_token"] == END_OF_TEXT
    assert same_bits(to_hf(from_hf(output)[1]), to_hf(model))
    assert capsys.readouterr().out.splitlines() == [
        f"{output}: step 0 of tiny in float32, with its tokenizer",
        "not verified: transformers not installed",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing temporary stays"


def test_the_exported_tokenizer_is_the_runs(run, tmp_path):
    export(run, tmp_path / "out", "--no-verify")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    text = "the thing, they said — 123\r\n"
    assert theirs.encode(text).ids == TOKENIZER.encode(text).tolist()


def test_a_model_from_there_goes_back_bit_for_bit(capsys, tmp_path):
    config = make_config(tie_word_embeddings=False, vocab_size=260)
    tensors = draw(config, dtype="bfloat16")
    write(tmp_path / "theirs", config, tensors)
    TOKENIZER.save(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "runs" / "ours")
    export(tmp_path / "runs" / "ours", tmp_path / "back", "--no-verify")
    assert same_bits(load_file(tmp_path / "back" / "model.safetensors"), tensors)
    back = read(tmp_path / "back" / "config.json")
    assert {key: back[key] for key in config if key != "dtype"} == {k: v for k, v in config.items() if k != "dtype"}
    assert back["dtype"] == "bfloat16"
    assert (tmp_path / "back" / "tokenizer.json").read_text() == (tmp_path / "theirs" / "tokenizer.json").read_text()
    assert "parameters from bfloat16, tokenizer bpe-259; computes in bfloat16" in capsys.readouterr().out


def test_another_type_may_be_asked_for(tmp_path, run, model):
    export(run, tmp_path / "out", "--dtype=bfloat16", "--no-verify")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype.name for tensor in tensors.values()} == {"bfloat16"}
    assert read(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"
    expected = np.asarray(model.tokens[...])[:259].astype(tensors["transformer.wte.weight"].dtype)
    np.testing.assert_array_equal(tensors["transformer.wte.weight"], expected)


def test_an_imported_run_is_a_run(capsys, tmp_path):
    config = make_config()
    import_model(write(tmp_path / "theirs", config, draw(config)), tmp_path / "ours")
    run = RunDir.open(tmp_path / "ours")
    assert (run.find_step(), run.tokenizer, run.config.name) == (0, None, "ours")
    assert run.config.model == from_hf(tmp_path / "theirs")[0]
    assert read(tmp_path / "ours" / ORIGIN_FILE) == {"config": config, "dtype": "float32"}
    printed = capsys.readouterr()
    assert "note: imported without a tokenizer" in printed.err
    assert "no tokenizer; computes in float32" in printed.out


def test_a_run_without_tokenizer_is_exported_without(capsys, tmp_path):
    config = make_config()
    import_model(write(tmp_path / "theirs", config, draw(config)), tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back", "--no-verify")
    assert not list((tmp_path / "back").glob("tokenizer*"))
    assert "without a tokenizer: the run has none" in capsys.readouterr().out


def test_a_tokenizer_without_end_of_text_leaves_the_ids_out(tmp_path, model):
    write_imported_run(tmp_path / "run", model=model, tokenizer=Bytes())
    export(tmp_path / "run", tmp_path / "out", "--no-verify")
    assert read(tmp_path / "out" / "config.json")["eos_token_id"] is None
    assert read(tmp_path / "out" / "generation_config.json") == {}
    assert "eos_token" not in read(tmp_path / "out" / "tokenizer_config.json")


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(capsys, tmp_path):
    config = make_config(vocab_size=251)
    TOKENIZER.save(write(tmp_path / "theirs", config, draw(config)))
    message = refused(capsys, "from-hf", f"--model={tmp_path / 'theirs'}", f"--output={tmp_path / 'ours'}")
    assert "the tokenizer has 259 ids, but the model only 251" in message
    assert not (tmp_path / "ours").exists()


def test_what_exists_is_never_overwritten(capsys, tmp_path, run):
    full, empty, file = tmp_path / "full", tmp_path / "empty", tmp_path / "file"
    full.mkdir()
    (full / "thesis.tex").touch()
    empty.mkdir()
    file.touch()
    for output in (full, file):
        assert "is not an empty directory" in refused(capsys, "to-hf", f"--checkpoint={run}", f"--output={output}")
        assert "is not an empty directory" in refused(capsys, "from-hf", f"--model={tmp_path}", f"--output={output}")
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]
    export(run, empty, "--no-verify")
    assert (empty / "config.json").exists()


def test_an_export_that_fails_leaves_nothing(capsys, monkeypatch, tmp_path, run):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(door, "write_tensors", fail)
    message = refused(capsys, "to-hf", f"--checkpoint={run}", f"--output={tmp_path / 'out'}")
    assert "cannot be written" in message
    assert "No space left" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "good"), [(1e-5, True), (0.01, False), (float("nan"), False)])
def test_an_export_is_kept_only_if_transformers_computes_the_same(capsys, monkeypatch, tmp_path, run, error, good):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    ours = door._our_logits
    computed = []
    monkeypatch.setattr(door, "_our_logits", lambda *args, **kw: computed.append(ours(*args, **kw)) or computed[-1])
    monkeypatch.setattr(
        door, "_their_logits", lambda directory, tokens: ours(from_hf(directory)[1], tokens, dtype="float32") + error
    )
    words = ("to-hf", f"--checkpoint={run}", f"--output={tmp_path / 'out'}")
    if good:
        main(list(words))
        assert "verified: over 12 tokens" in capsys.readouterr().out
        assert computed[0].shape == (1, 12, 259)
    else:
        assert "transformers computes other logits" in refused(capsys, *words)
        assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_directory_is_asked_for_on_the_hub(capsys, monkeypatch, tmp_path):
    config = make_config()
    directory = write(tmp_path / "cache", config, draw(config))
    asked = []
    fake = types.ModuleType("huggingface_hub")
    fake.snapshot_download = lambda name, **options: asked.append((name, options)) or str(directory)
    fake.__spec__ = importlib.util.spec_from_loader("huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    import_model("someone/tiny", tmp_path / "ours")
    [(name, options)] = asked
    assert name == "someone/tiny"
    assert not any("bin" in pattern or pattern == "*" for pattern in options["allow_patterns"])

    def unknown(name, **options):
        raise LookupError("404: no such repository")

    fake.snapshot_download = unknown
    message = refused(capsys, "from-hf", "--model=someone/typo", f"--output={tmp_path / 'other'}")
    assert "the hub did not give it: LookupError: 404" in message


def test_a_path_that_is_not_there_is_not_asked_for_on_the_hub(capsys, tmp_path):
    message = refused(capsys, "from-hf", f"--model={tmp_path / 'gone'}", f"--output={tmp_path / 'ours'}")
    assert "no such directory" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "usage:"), (["to-onnx"], "not 'to-onnx'"), (["--checkpoint=x"], "to-hf or from-hf first")],
)
def test_the_direction_must_be_said(capsys, words, message):
    assert message in refused(capsys, *words)


def test_a_directory_that_is_no_run_is_explained(capsys, tmp_path):
    message = refused(capsys, "to-hf", f"--checkpoint={tmp_path}", f"--output={tmp_path / 'out'}")
    assert "is not a run directory" in message


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--help"], ("to-hf", "from-hf")),
        (["to-hf", "--help"], ("--checkpoint", "--output", "--step", "--dtype", "--no-verify")),
        (["from-hf", "--help"], ("--model", "--output")),
    ],
)
def test_help_explains_both_directions(capsys, words, options):
    with contextlib.suppress(SystemExit):  # tyro exits after its help
        main(words)
    out = capsys.readouterr().out
    assert all(option in out for option in options)


# --- with transformers ---


@pytest.mark.parity
@pytest.mark.filterwarnings("default")  # torch and transformers warn of their own affairs
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_transformers_loads_and_verifies_an_export(capsys, tmp_path, run, dtype):
    transformers = pytest.importorskip("transformers")
    export(run, tmp_path / "out", f"--dtype={dtype}")
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
def test_transformers_loads_the_other_tokenizers(tmp_path, model, tokenizer):
    transformers = pytest.importorskip("transformers")
    write_imported_run(tmp_path / "run", model=model, tokenizer=tokenizer)
    export(tmp_path / "run", tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the thing, they said 123"
    assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token is None


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
def test_a_wrong_export_is_caught(capsys, monkeypatch, tmp_path, run):
    pytest.importorskip("transformers")
    honest = door.to_hf
    twist = lambda tensors: tensors | {"transformer.h.0.mlp.c_fc.bias": tensors["transformer.h.0.mlp.c_fc.bias"] + 0.1}
    monkeypatch.setattr(door, "to_hf", lambda *args, **options: twist(honest(*args, **options)))
    assert "computes other logits" in refused(capsys, "to-hf", f"--checkpoint={run}", f"--output={tmp_path / 'out'}")
