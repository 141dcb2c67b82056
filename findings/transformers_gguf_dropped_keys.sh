#!/usr/bin/env bash
# transformers reads a GGUF of Llama's kind without its rotary scaling, and puts a blank in front that the file forbids.
#
# `llama.rope.scaling.type` and `.factor` are keys of the format, and `tokenizer.ggml.add_space_prefix` is false for
# models whose texts get no leading blank. From the file transformers builds a model with plain rotary positions and a
# tokenizer that writes a blank, whatever these keys say. No warning is given. The reference is the model from which
# the file was written.
#
# Versions: Python 3.11 or newer, transformers 5.24.0, accelerate 1.15.0, gguf 0.19.0, torch 2.13.0. Seen:
#     plain rotary positions: largest difference of logits 0.00
#     linear rotary positions: largest difference of logits 0.72
#     add_space_prefix=False: 'ab' is ['▁a', 'b'], expected ['a', 'b']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "transformers==5.24.0" "accelerate==1.15.0" "gguf==0.19.0" "torch==2.13.0" numpy
cat > "$work/try.py" <<'PY'
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

WIDTH, HIDDEN, HEADS, CONTEXT, BASE, FACTOR = 32, 64, 4, 256, 10000.0, 4.0
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
KINDS = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
KINDS += [gguf.TokenType.NORMAL] * 4
NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
NAMES |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output"}
NAMES |= {f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"}
NAMES |= {f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")}
directory = Path(sys.argv[1])


def make(rope):
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": HEADS}
    sizes |= {"vocab_size": len(TOKENS), "max_position_embeddings": CONTEXT}
    model = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters={"rope_theta": BASE, **rope})).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def write(model, *, scaling, prefix):
    writer = gguf.GGUFWriter(directory / "made.gguf", "llama")
    writer.add_name("made")
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(TOKENS))
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(BASE)
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(FACTOR)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([-float(i) for i in range(len(TOKENS))])
    writer.add_token_types(KINDS)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(prefix)
    for name, weight in model.state_dict().items():
        name, tensor = name.removeprefix("model.").removesuffix(".weight"), weight.numpy()
        block, name = ("blk.0.", name.removeprefix("layers.0.")) if name.startswith("layers.0.") else ("", name)
        if NAMES[name] in ("attn_q", "attn_k"):  # the format holds the halves of a head interleaved
            tensor = tensor.reshape(HEADS, 2, -1, WIDTH).swapaxes(1, 2).reshape(WIDTH, WIDTH)
        writer.add_tensor(f"{block}{NAMES[name]}.weight", np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(model):
    read = AutoModelForCausalLM.from_pretrained(directory, gguf_file="made.gguf").eval()
    tokens = torch.arange(3, 63)[None]
    with torch.no_grad():
        return (model(tokens).logits - read(tokens).logits).abs().max().item()


found = {}
for name, rope in (("plain", {"rope_type": "default"}), ("linear", {"rope_type": "linear", "factor": FACTOR})):
    model = make(rope)
    write(model, scaling=name == "linear", prefix=False)
    found[name] = compare(model)
    print(f"{name} rotary positions: largest difference of logits {found[name]:.2f}")
spelled = AutoTokenizer.from_pretrained(directory, gguf_file="made.gguf").tokenize("ab")
expected = LlamaTokenizer(vocab={t: i for i, t in enumerate(TOKENS)}, merges=[("▁", "a")], add_prefix_space=False)
print(f"add_space_prefix=False: 'ab' is {spelled}, expected {expected.tokenize('ab')}")
assert found["plain"] < 1e-4 < 0.1 < found["linear"], "the behaviour has changed"
assert spelled == ["▁a", "b"] and expected.tokenize("ab") == ["a", "b"], "the behaviour has changed"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" > "$work/out" ||
    { cat "$work/errors" "$work/out" && exit 1; }
cat "$work/out"
