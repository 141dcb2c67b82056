#!/usr/bin/env bash
# keras-hub reads directories of transformers, and says nothing about fields of config.json that it leaves out.
#
# Made models of one layer are written twice, in files that differ in one thing:
# - Llama with rms_norm_eps 1e-6 and 1e-1: the logits are the same to the last bit, those of 1e-6;
# - GPT-2 with tie_word_embeddings=false and a head of zeros: the embedding takes the head's place, and the logits are
#   those of the tied model.
# No reference is needed: inputs of the first RMSNorm have a mean square of 0.01, so an epsilon of 0.1 makes its output
# three times smaller, and a head of zeros gives zeros.
#
# Versions: Python 3.11 or newer, keras-hub 0.32.0, Keras 3.15.1, jax 0.10.2. Seen:
#     {'Llama, epsilon in use': 1e-06, 'Llama, logits of both epsilons': 'the same',
#      'GPT-2, logits of a head of zeros': 'those of the embedding'}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "keras-hub==0.32.0" "keras==3.15.1" "jax==0.10.2" "jaxlib==0.10.2" safetensors
cat > "$work/try.py" <<'PY'
import json
import sys
from pathlib import Path

import keras_hub
import numpy as np
from safetensors.numpy import save_file

VOCAB, WIDTH, INNER, HEADS, LENGTH = 32, 16, 64, 2, 8
TOKENS = np.arange(1, LENGTH + 1)[None]
work = Path(sys.argv[1])


def draw(shapes):
    generator = np.random.default_rng(0)
    return {name: generator.normal(0.0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def compute(name, config, weights):
    """The logits of keras-hub, and its model."""
    directory = work / name
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    model = keras_hub.models.CausalLM.from_preset(str(directory), preprocessor=None)
    return np.asarray(model({"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)})), model


square = (WIDTH, WIDTH)
llama = draw(
    {"model.embed_tokens.weight": (VOCAB, WIDTH), "lm_head.weight": (VOCAB, WIDTH)}
    | {f"model.layers.0.self_attn.{name}_proj.weight": square for name in "qkvo"}
    | {f"model.layers.0.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
    | {"model.layers.0.mlp.down_proj.weight": (WIDTH, INNER)}
)
gains = ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm")
llama |= {f"model.{name}.weight": np.ones(WIDTH, np.float32) for name in gains}
llama_config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": LENGTH,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
small, model = compute("small", llama_config | {"rms_norm_eps": 1e-6}, llama)
large, _ = compute("large", llama_config | {"rms_norm_eps": 1e-1}, llama)

layer = "transformer.h.0"
gpt2 = draw(
    {"transformer.wte.weight": (VOCAB, WIDTH), "transformer.wpe.weight": (LENGTH, WIDTH)}
    | {f"{layer}.attn.c_attn.weight": (WIDTH, 3 * WIDTH), f"{layer}.attn.c_attn.bias": (3 * WIDTH,)}
    | {f"{layer}.attn.c_proj.weight": square, f"{layer}.attn.c_proj.bias": (WIDTH,)}
    | {f"{layer}.mlp.c_fc.weight": (WIDTH, INNER), f"{layer}.mlp.c_fc.bias": (INNER,)}
    | {f"{layer}.mlp.c_proj.weight": (INNER, WIDTH), f"{layer}.mlp.c_proj.bias": (WIDTH,)}
)
for name in (f"{layer}.ln_1", f"{layer}.ln_2", "transformer.ln_f"):
    gpt2 |= {f"{name}.weight": np.ones(WIDTH, np.float32), f"{name}.bias": np.zeros(WIDTH, np.float32)}
gpt2_config = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_embd": WIDTH,
    "n_layer": 1,
    "n_head": HEADS,
    "n_positions": LENGTH,
    "n_ctx": LENGTH,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
}
tied, _ = compute("tied", gpt2_config | {"tie_word_embeddings": True}, gpt2)
head = {"lm_head.weight": np.zeros((VOCAB, WIDTH), np.float32)}
untied, _ = compute("untied", gpt2_config | {"tie_word_embeddings": False}, gpt2 | head)

assert np.abs(small).max() > 0.1 and np.abs(tied).max() > 0.1
found = {
    "Llama, epsilon in use": model.backbone.layer_norm_epsilon,
    "Llama, logits of both epsilons": "the same" if (small == large).all() else "others",
    "GPT-2, logits of a head of zeros": "those of the embedding" if (untied == tied).all() else "others",
}
print(found)
assert found == {
    "Llama, epsilon in use": 1e-6,
    "Llama, logits of both epsilons": "the same",
    "GPT-2, logits of a head of zeros": "those of the embedding",
}, "the behaviour has changed"
PY
KERAS_BACKEND=jax JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 KERAS_HOME="$work/keras" \
    "$work/venv/bin/python" "$work/try.py" "$work"
