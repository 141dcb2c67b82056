#!/usr/bin/env bash
# LoRA on the embedding of a tied GPT-2: peft merges it into the head as well, without a warning.
#
# Before merging the head computes with the unchanged weight. `merge_and_unload` adds the update to the one weight that
# both share, so the merged model has other logits. With `lm_head` as the target the same happens, and peft warns. A
# merged model whose embedding is not tied has the logits of the adapted one.
#
# Versions: Python 3.11 or newer, peft 0.21.2, transformers 5.24.0, torch 2.13.0. Seen:
#     tied, wte:     logits differ after merging, warnings about tying: 0
#     tied, lm_head: logits differ after merging, warnings about tying: 2
#     untied, wte:   logits are the same after merging, warnings about tying: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "peft==0.21.2" "transformers==5.24.0" "torch==2.13.0" numpy
cat > "$work/try.py" <<'PY'
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, logging

logging.set_verbosity_error()
SIZES = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}


def measure(target, tied):
    """The largest difference of logits before and after merging, and how many warnings speak of tying."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, tie_word_embeddings=tied)).eval()
    tokens = torch.arange(8)[None]
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        adapted = get_peft_model(model, LoraConfig(target_modules=[target], r=2)).eval()
        for name, weight in adapted.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(weight, std=0.1)
        before = adapted(tokens).logits
        after = adapted.merge_and_unload()(tokens).logits
    return (before - after).abs().max().item(), sum("tie" in str(warning.message) for warning in caught)


found = {(target, tied): measure(target, tied) for target, tied in (("wte", True), ("lm_head", True), ("wte", False))}
for (target, tied), (difference, count) in found.items():
    what = "logits differ" if difference > 0.1 else "logits are the same"
    name = f"{'tied' if tied else 'untied'}, {target}:"
    print(f"{name:14} {what} after merging, warnings about tying: {count}")
assert found["wte", True][0] > 0.1 and found["wte", True][1] == 0, "the behaviour has changed"
assert found["lm_head", True][0] > 0.1 and found["lm_head", True][1] > 0, "the behaviour has changed"
assert found["wte", False][0] < 1e-4, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
