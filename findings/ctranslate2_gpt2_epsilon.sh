#!/usr/bin/env bash
# ctranslate2's converter takes the epsilon of Llama from a directory of transformers, but not that of GPT-2.
#
# It converts made models of one layer, each with two epsilons and otherwise the same weights. Llama with 1e-1 computes
# what transformers computes. GPT-2 with layer_norm_epsilon 1e-1 is converted without an error, and its logits are
# those of 1e-5.
#
# PyTorch for CPUs is enough: set PIP_EXTRA_INDEX_URL to its index for a smaller installation.
#
# Versions: Python 3.11 or newer, ctranslate2 4.8.5, transformers 5.24.0, torch 2.13.0. Seen:
#     {'Llama 1e-05': 'as transformers', 'Llama 0.1': 'as transformers',
#      'GPT-2 1e-05': 'as transformers', 'GPT-2 0.1': 'as transformers with 1e-05'}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "ctranslate2==4.8.5" "transformers==5.24.0" "torch==2.13.0"
cat > "$work/try.py" <<'PY'
import sys
from pathlib import Path

import ctranslate2
import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(32)]
TEXT = list(range(1, 9))
work = Path(sys.argv[1])
words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w0", unk_token="w0")


def make_gpt2(epsilon):
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, layer_norm_epsilon=epsilon, **sizes, **ids))


def make_llama(epsilon):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, rms_norm_eps=epsilon, **sizes, **ids))


def compute(make, epsilon):
    """The logits of transformers and of ctranslate2."""
    torch.manual_seed(0)
    model = make(epsilon).eval()
    directory = work / f"{make.__name__}_{epsilon}"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    with torch.no_grad():
        expected = model(torch.tensor([TEXT])).logits.numpy()
    ctranslate2.converters.TransformersConverter(str(directory)).convert(str(directory / "converted"))
    generator = ctranslate2.Generator(str(directory / "converted"), device="cpu")
    return expected, np.array(generator.forward_batch([[WORDS[token] for token in TEXT]]))


def close(left, right):
    return bool(np.abs(left - right).max() < 1e-5)


found = {}
for name, make in (("Llama", make_llama), ("GPT-2", make_gpt2)):
    logits = {epsilon: compute(make, epsilon) for epsilon in (1e-5, 1e-1)}
    default, _ = logits[1e-5]
    assert not close(logits[1e-1][0], default)
    for epsilon, (expected, converted) in logits.items():
        same, fixed = close(converted, expected), close(converted, default)
        found[f"{name} {epsilon}"] = (
            "as transformers" if same else "as transformers with 1e-05" if fixed else "otherwise"
        )
print(found)
assert found == {
    "Llama 1e-05": "as transformers",
    "Llama 0.1": "as transformers",
    "GPT-2 1e-05": "as transformers",
    "GPT-2 0.1": "as transformers with 1e-05",
}, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
