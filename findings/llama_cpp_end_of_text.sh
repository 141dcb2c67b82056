#!/usr/bin/env bash
# A GGUF of GPT-2's kind that names no end of text: llama.cpp takes token 11, a comma, and answers end at it.
#
# `tokenizer.ggml.eos_token_id` is optional in the format. Without it one would expect no end, or the token of type
# CONTROL that is called <|endoftext|>. A made model predicts a comma for ever. With the key it writes commas up to the
# limit; without the key it ends at the first one, and says that it has stopped by itself.
#
# Versions: Python 3.11 or newer, gguf 0.19.0, xllamacpp 2026.10.11549 (llama.cpp and its server as a wheel). Seen:
#     with the key: finish_reason 'length', text ',,,,,'
#     without it:   finish_reason 'stop', text ','
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "gguf==0.19.0" "xllamacpp==2026.10.11549" numpy
cat > "$work/try.py" <<'PY'
import sys
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

WIDTH, CONTEXT, COMMA = 32, 64, 11
printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
others = [byte for byte in range(256) if byte not in printable]
letters = [*map(chr, printable), *(chr(0x100 + number) for number in range(len(others)))]  # as GPT-2 writes bytes
names = [*letters, letters[printable.index(ord("a"))] * 2, "<|endoftext|>"]
END = len(names) - 1
assert names[COMMA] == ","


def write(path, *, has_end):
    """A model whose last norm gives a constant, which meets the row of the comma alone."""
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(4 * WIDTH)
    writer.add_head_count(1)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types([gguf.TokenType.NORMAL] * END + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["a a"])
    if has_end:
        writer.add_eos_token_id(END)
    shapes = {"attn_qkv": (3 * WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH)}
    shapes |= {"ffn_up": (4 * WIDTH, WIDTH), "ffn_down": (WIDTH, 4 * WIDTH)}
    tensors = {"token_embd.weight": np.zeros((len(names), WIDTH)), "position_embd.weight": np.zeros((CONTEXT, WIDTH))}
    for name, shape in shapes.items():
        tensors |= {f"blk.0.{name}.weight": np.zeros(shape), f"blk.0.{name}.bias": np.zeros(shape[0])}
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        tensors |= {f"{name}.weight": np.ones(WIDTH), f"{name}.bias": np.ones(WIDTH)}
    tensors["output.weight"] = np.zeros((len(names), WIDTH))
    tensors["output.weight"][COMMA] = 1.0
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def answer(path):
    """How the answer to a prompt of one letter ends, and its text."""
    options = xllamacpp.CommonParams()
    options.model.path, options.n_ctx, options.n_parallel = str(path), CONTEXT, 1
    options.warmup, options.n_gpu_layers, options.verbosity = False, 0, -1
    request = {"prompt": [names.index("b")], "n_predict": 5, "temperature": 0, "cache_prompt": False}
    (choice,) = xllamacpp.Server(options).handle_completions(request)["choices"]
    return choice["finish_reason"], choice["text"]


found = {}
for name, has_end in (("with the key:", True), ("without it:", False)):
    path = Path(sys.argv[1]) / f"{has_end}.gguf"
    write(path, has_end=has_end)
    reason, text = found[has_end] = answer(path)
    print(f"{name:13} finish_reason {reason!r}, text {text!r}", flush=True)
assert found == {True: ("length", ",,,,,"), False: ("stop", ",")}, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
