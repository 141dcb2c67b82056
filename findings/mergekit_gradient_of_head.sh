#!/usr/bin/env bash
# mergekit takes the first value of a gradient for the final norm and the head, which are behind the last layer.
#
# A parameter may be a list that is interpolated over the layers: with `t: [0, 1]` a SLERP has the first model's first
# layer and the second model's last. What is in front of the layers takes the first value, and so does what is behind
# them: the output of the second model's last layer is read with the first model's norm and head. With a filter named
# lm_head or norm a value of its own can be given. The same holds for the weights of `linear`. No warning is given.
#
# Versions: Python 3.11 or newer, mergekit 0.1.5, transformers 5.24.0, torch 2.13.0. Seen: of two Llamas A and B of 4
# layers the part of B (0 to 1) in the merged weights
#     slerp, t [0, 1]: embedding 0.00, layers 0.00 0.34 0.66 1.00, norm 0.00, head 0.00
#     linear, weights [1, 0] and [0, 1]: embedding 0.00, layers 0.00 0.33 0.67 1.00, norm 0.00, head 0.00
#     slerp, the head given as 1: embedding 0.00, layers 0.00 0.34 0.66 1.00, norm 0.00, head 1.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "mergekit==0.1.5" "transformers==5.24.0" "torch==2.13.0"
cat > "$work/try.py" <<'PY'
import math
import sys
from pathlib import Path

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 96}
NAMES = ["model.embed_tokens", *(f"model.layers.{i}.mlp.up_proj" for i in range(4)), "model.norm", "lm_head"]
directory = Path(sys.argv[1])


def make(name, seed):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(directory / name)
    return load_file(directory / name / "model.safetensors")


def merge(**fields):
    """The part of B in some weights: the angle to A over that between A and B, or the share of a mean."""
    config = MergeConfiguration.model_validate({"dtype": "float32", **fields})
    run_merge(config, str(directory / "out"), options=MergeOptions(copy_tokenizer=False, quiet=True))
    found = {}
    for file in (directory / "out").glob("*.safetensors"):
        found |= load_file(file)
        file.unlink()
    parts = []
    for name in NAMES:
        a, b, c = (weights[f"{name}.weight"].double().flatten() for weights in (A, B, found))
        if fields["merge_method"] == "linear":
            parts.append(((c - a) @ (b - a) / ((b - a) @ (b - a))).item())
            continue
        cosines = ((x @ a / (x.norm() * a.norm())).clamp(-1, 1).item() for x in (c, b))
        parts.append(math.acos(next(cosines)) / math.acos(next(cosines)))
    return parts


def show(label, parts):
    embedding, *layers, norm, head = (f"{abs(part):.2f}" for part in parts)
    print(f"{label}: embedding {embedding}, layers {' '.join(layers)}, norm {norm}, head {head}")


A, B = make("A", 0), make("B", 1)
a, b = (str(directory / name) for name in "AB")
slerp = {"merge_method": "slerp", "base_model": a, "models": [{"model": a}, {"model": b}]}
weighed = [{"model": a, "parameters": {"weight": [1, 0]}}, {"model": b, "parameters": {"weight": [0, 1]}}]
first = merge(**slerp, parameters={"t": [0, 1]})
second = merge(merge_method="linear", models=weighed)
named = merge(**slerp, parameters={"t": [{"filter": "lm_head", "value": 1}, {"value": [0, 1]}]})
show("slerp, t [0, 1]", first)
show("linear, weights [1, 0] and [0, 1]", second)
show("slerp, the head given as 1", named)
for parts in (first, second):
    assert parts[4] > 0.99 and max(map(abs, parts[-2:])) < 0.01, "the behaviour has changed"
assert named[-1] > 0.99, "the behaviour has changed"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
