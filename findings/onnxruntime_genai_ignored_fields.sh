#!/usr/bin/env bash
# onnxruntime-genai computes Llama without linear and yarn scaling of its positions, and OLMo's norm without the mean.
#
# Its builder writes an ONNX file from a directory of transformers. Llama with other epsilons, bases and head sizes, and
# with scaling of kind llama3, comes out exact. The builder's base class reads linear and yarn scaling, too. Its class
# of Llama replaces that function by one that knows llama3 alone. The norm of OLMo subtracts the mean and has no weights.
# The builder gives it weights of 1 and writes the node of Llama's norm, which subtracts nothing. No warning is given.
# Compared are the logits of the last token of 40, by onnxruntime-genai's generator and by transformers.
#
# Versions: Python 3.11 or newer, onnxruntime-genai 0.18.0, onnxruntime 1.32.0, transformers 5.24.0, torch 2.13.0. Seen:
#     llama:                  largest difference of logits 0.00
#     llama, llama3 scaling:  largest difference of logits 0.00
#     llama, linear scaling:  largest difference of logits 5.72, with the scaling left out 0.00
#     llama, yarn scaling:    largest difference of logits 5.73, with the scaling left out 0.00
#     olmo:                   largest difference of logits 1.25, with the mean left in 0.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "onnxruntime-genai==0.18.0" "onnxruntime==1.32.0" \
    "onnx-ir==1.1.0" "transformers==5.24.0" "torch==2.13.0" numpy
cat > "$work/try.py" <<'PY'
import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import torch
from onnxruntime_genai.models.builder import create_model, parse_extra_options
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, OlmoConfig, OlmoForCausalLM, PreTrainedTokenizerFast

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 256}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
SCALED = {"rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
directory = Path(sys.argv[1])


def make(config_class, model_class, **fields):
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, **fields)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model


def read_logits(model, text):
    with torch.no_grad():
        return model(torch.tensor([text])).logits[0, -1].numpy()


def convert(model, name):
    source, target = str(directory / name), str(directory / f"{name}-onnx")
    model.save_pretrained(source)
    vocabulary = Tokenizer(models.WordLevel({f"t{i}": i for i in range(96)}, unk_token="t0"))
    names = {"unk_token": "t0", "bos_token": "t1", "eos_token": "t2", "pad_token": "t2"}
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, **names).save_pretrained(source)
    place = (None, source, target, "fp32", "cpu", str(directory / "cache"))
    with contextlib.redirect_stdout(io.StringIO()):
        create_model(*place, **parse_extra_options(*place, []))
    return og.Model(target)


def generate_logits(converted, text):
    params = og.GeneratorParams(converted)
    params.set_search_options(max_length=128)
    generator = og.Generator(converted, params)
    generator.append_tokens(np.array([text], np.int32))
    return generator.get_logits().reshape(-1)


def compare(label, model, other=None, note=""):
    text = [3 + index % 90 for index in range(40)]
    found = generate_logits(convert(model, "".join(filter(str.isalnum, label))), text)
    far = np.abs(found - read_logits(model, text)).max()
    line = f"{label + ':':23} largest difference of logits {far:.2f}"
    if other is None:
        print(line)
        assert far < 1e-3, "the behaviour has changed"
        return
    near = np.abs(found - read_logits(other, text)).max()
    print(f"{line}, with {note} {near:.2f}")
    assert near < 5e-3 < 0.1 < far, "the behaviour has changed"


def leave_mean(model):
    for module in model.modules():
        if type(module).__name__ == "OlmoLayerNorm":
            module.forward = lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return model


LLAMA, OLMO = (LlamaConfig, LlamaForCausalLM), (OlmoConfig, OlmoForCausalLM)
compare("llama", make(*LLAMA))
compare("llama, llama3 scaling", make(*LLAMA, rope_parameters={"rope_type": "llama3", **SCALED, **LLAMA3}))
linear = {"rope_type": "linear", **SCALED}
compare("llama, linear scaling", make(*LLAMA, rope_parameters=linear), make(*LLAMA), note="the scaling left out")
yarn = {"rope_type": "yarn", **SCALED, "original_max_position_embeddings": 64}
compare("llama, yarn scaling", make(*LLAMA, rope_parameters=yarn), make(*LLAMA), note="the scaling left out")
compare("olmo", make(*OLMO), leave_mean(make(*OLMO)), note="the mean left in")
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
