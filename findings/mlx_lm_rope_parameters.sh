#!/usr/bin/env bash
# mlx-lm reads a Llama that transformers 5 has saved with rotary positions of base 10,000, whatever its config says.
#
# transformers 5 writes the base into `rope_parameters` alone. mlx-lm takes `rope_theta` at the top of the config, where
# versions before 5 had it, and 10,000 if it is not there. The two configs below mean the same to transformers. mlx-lm
# computes the first one with 10,000; Llama 3 has 500,000. No warning is given.
#
# Versions: Python 3.11 or newer, mlx-lm 0.32.2, mlx 0.32.4 on a CPU, transformers 5.24.0. Seen:
#     as transformers saves it:  base 10,000
#     with rope_theta on top:    base 500,000
#     largest difference of logits: 0.53
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "mlx[cpu]==0.32.4" "mlx-lm==0.32.2" "transformers==5.24.0" "safetensors==0.8.0" numpy
cat > "$work/try.py" <<'PY'
import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model
from safetensors.numpy import save_file
from transformers import LlamaConfig

WIDTH, HIDDEN, VOCAB, BASE = 32, 64, 50, 500000.0
config = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=HIDDEN,
    num_hidden_layers=1,
    num_attention_heads=2,
    rope_parameters={"rope_type": "default", "rope_theta": BASE},
)
shapes = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
shapes |= {"mlp.gate_proj": (HIDDEN, WIDTH), "mlp.up_proj": (HIDDEN, WIDTH), "mlp.down_proj": (WIDTH, HIDDEN)}
shapes |= {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
shapes = {f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()}
shapes |= {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH)}
random = np.random.default_rng(0)
weights = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
tokens = mx.array(random.integers(VOCAB, size=(1, 40)))


def compute(name, **changes):
    directory = Path(sys.argv[1]) / name
    config.save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert LlamaConfig.from_pretrained(directory).rope_parameters["rope_theta"] == BASE
    save_file(weights, directory / "model.safetensors")
    model, _ = load_model(directory)
    return model.args.rope_theta, np.array(model(tokens))


saved, written_out, default = (
    compute("saved"),
    compute("written_out", rope_theta=BASE),
    compute("default", rope_theta=10000.0),
)
print(f"as transformers saves it:  base {saved[0]:,.0f}")
print(f"with rope_theta on top:    base {written_out[0]:,.0f}")
print(f"largest difference of logits: {np.abs(saved[1] - written_out[1]).max():.2f}")
assert np.abs(saved[1] - default[1]).max() < 1e-4 < 0.1 < np.abs(saved[1] - written_out[1]).max(), "has changed"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
