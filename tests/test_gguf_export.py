"""GGUF files: what is refused and, with the package gguf, what they hold."""

import errno
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hf_architectures import GPT2_CONFIG, LLAMA_CONFIG, draw_model

from gptjax.convert import main
from gptjax.core import files
from gptjax.core.errors import UserError
from gptjax.core.files import file_sha256
from gptjax.huggingface.architectures import gpt2 as architectures
from gptjax.huggingface.gguf_export import choose_gguf_architecture, write_gguf
from gptjax.model.config import GPTConfig
from gptjax.runs.run_dir import write_imported_run
from gptjax.tokenization.tokenizer import BPE, END_OF_TEXT, GPT2_PATTERN, Bytes, Tokenizer

TOKENIZER = BPE(
    {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257},
    {END_OF_TEXT: 258},
    merges=[(b"t", b"h"), (b"th", b"e")],
    pattern=GPT2_PATTERN,
)
GPT2, LLAMA = (replace(config, vocab_size=264) for config in (GPT2_CONFIG, replace(LLAMA_CONFIG, num_kv_heads=2)))


@pytest.mark.parametrize(
    ("config", "tokenizer", "message"),
    [
        (replace(GPT2, activation="gelu"), TOKENIZER, "llama.cpp computes gelu_tanh in a gpt2; the model has gelu"),
        (replace(LLAMA, activation="relu"), TOKENIZER, "llama.cpp computes silu in a llama; the model has relu"),
        (replace(LLAMA, num_sinks=2), TOKENIZER, r"as llama: model\.num_sinks=2"),
        (GPT2, None, "a GGUF needs a tokenizer with an end-of-text token"),
        (GPT2, Bytes(), "a GGUF needs a tokenizer with an end-of-text token"),
        (
            GPT2,
            BPE(TOKENIZER.tokens, TOKENIZER.specials, merges=TOKENIZER.merges, pattern=r"[\s\S]"),
            "llama.cpp cannot encode with the bpe-259 tokenizer",
        ),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, config: GPTConfig, tokenizer: Tokenizer | None, message: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=message):
        choose_gguf_architecture(config, tokenizer)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'gptjax\[gguf\]'"):
        choose_gguf_architecture(GPT2, TOKENIZER)


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gguf_holds_weights_tokens_and_their_end(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    gguf = pytest.importorskip("gguf")
    model = draw_model({"gpt2": GPT2, "llama": LLAMA}[name])
    write_imported_run(tmp_path / "run", model=model, tokenizer=TOKENIZER)
    main(["to-gguf", f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'x.gguf'}"])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "nothing temporary stays"
    assert (tmp_path / "x.gguf.sha256").read_text() == f"{file_sha256(tmp_path / 'x.gguf')}  x.gguf\n"
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    field = lambda key: reader.get_field(key).contents()
    assert field("general.architecture") == name
    assert field("tokenizer.ggml.eos_token_id") == field("tokenizer.ggml.bos_token_id") == 258
    assert field("tokenizer.ggml.merges") == ["t h", "th e"]
    kinds = field("tokenizer.ggml.token_type")
    assert (kinds[0], kinds[258], kinds[263]) == (1, 3, 5), "normal, control, unused"
    tensors: dict[str, Any] = {tensor.name: tensor.data for tensor in reader.tensors}
    np.testing.assert_array_equal(tensors["token_embd.weight"], np.asarray(model.token_embedding[...])[:264])
    if name == "llama":
        attention: Any = model.blocks.attention
        key = np.asarray(attention.kv[...])[1, :, 0].reshape(32, 2, 2, 4).transpose(1, 3, 2, 0)
        np.testing.assert_array_equal(tensors["blk.1.attn_k.weight"], key.reshape(16, 32))
    assert "note: " not in capsys.readouterr().out
    main(["to-gguf", f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'h.gguf'}", "--dtype=float16"])
    assert "note: in float16 llama.cpp's log-probabilities differ by about 1e-3 to 1e-2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["to-gguf", f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'x.gguf'}"])


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
def test_gguf_that_cannot_be_written_leaves_no_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("gguf")
    (tmp_path / "x.gguf.sha256").write_text("of an earlier file")
    monkeypatch.setattr(files, "sync_path", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        write_gguf(
            tmp_path / "x.gguf",
            draw_model(GPT2),
            architecture=architectures.GPT2,
            tokenizer=TOKENIZER,
            name="x",
            dtype="float32",
        )
    assert list(tmp_path.iterdir()) == []
