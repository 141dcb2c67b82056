#!/usr/bin/env bash
# ctranslate2 converts a Llama with rotary scaling of kind llama3 without an error, and computes it without the scaling.
#
# Llama 3.1 and later have it. The converter names llama3 among the kinds that it supports and writes the factors into
# the model. The log-probabilities are those of the same weights with plain rotary positions, not those of transformers.
# Linear scaling is computed as transformers does. Other kinds, such as yarn, are refused.
#
# Versions: Python 3.11 or newer, ctranslate2 4.8.5, transformers 5.24.0, torch 2.13.0. Seen:
#     linear: the same log-probabilities as transformers', other as without scaling
#     llama3: other log-probabilities as transformers', the same as without scaling
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "ctranslate2==4.8.5" "transformers==5.24.0" "torch==2.13.0" numpy
cat > "$work/try.py" <<'PY'
import sys
from pathlib import Path

import ctranslate2
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = [*(f"t{i}" for i in range(60)), "<unk>", "<s>", "</s>"]
IDS = np.random.default_rng(0).integers(60, size=100).tolist()
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
SCALINGS = {
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(NAMES)}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def make(rope):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(NAMES), **sizes, rope_parameters=dict(rope))).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def compute(rope):
    with torch.no_grad():
        return torch.log_softmax(make(rope)(torch.tensor([IDS])).logits[0], -1).numpy()


def compute_converted(rope, name):
    directory = Path(sys.argv[1]) / name
    make(rope).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    ctranslate2.converters.TransformersConverter(str(directory)).convert(str(directory / "converted"))
    generator = ctranslate2.Generator(str(directory / "converted"))
    return np.array(generator.forward_batch([[NAMES[i] for i in IDS]], return_log_probs=True))[0]


found = {}
for name, rope in SCALINGS.items():
    converted = compute_converted(rope, name)
    found[name] = [np.abs(converted - compute(reference)).max() for reference in (rope, PLAIN)]
    close = ["the same" if difference < 1e-3 else "other" for difference in found[name]]
    print(f"{name}: {close[0]} log-probabilities as transformers', {close[1]} as without scaling")
assert found["linear"][0] < 1e-3 < 0.1 < found["linear"][1], "the behaviour has changed"
assert found["llama3"][1] < 1e-3 < 0.1 < found["llama3"][0], "the behaviour has changed"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
