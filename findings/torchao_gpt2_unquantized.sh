#!/usr/bin/env bash
# GPT-2 quantized with torchao is not quantized: no matrix of its layers becomes int8, and it may take more memory.
#
# torchao quantizes `nn.Linear`. The layers of transformers' GPT-2 are of a class of its own, so all of them are left as
# they are. `from_pretrained` with a `TorchAoConfig` changes nothing at all. `quantize_` changes the head: that ends its
# being one array with the embedding, so the model is larger than before. A measured loss "in int8" is that of float32
# layers. No error or warning says so. Llama of the same size has all its matrices in int8, and is half as large.
#
# Versions: Python 3.11 or newer, torchao 0.18.0, torch 2.13.0, transformers 5.24.0, accelerate 1.15.0. Seen:
#     GPT2LMHeadModel, from_pretrained: 0 arrays in int8, 100% of the memory, warnings: 0
#     GPT2LMHeadModel, quantize_: 1 arrays in int8, 106% of the memory, warnings: 0
#     LlamaForCausalLM, from_pretrained: 14 arrays in int8, 48% of the memory, warnings: 0
#     LlamaForCausalLM, quantize_: 15 arrays in int8, 55% of the memory, warnings: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "torchao==0.18.0" "torch==2.13.0" "transformers==5.24.0" "accelerate==1.15.0" numpy
cat > "$work/try.py" <<'PY'
import sys
import warnings

from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, TorchAoConfig

SIZES = {"vocab_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64}
SIZES |= {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
MODELS = {
    GPT2LMHeadModel: GPT2Config(n_positions=64, **SIZES),
    LlamaForCausalLM: LlamaConfig(intermediate_size=128, **SIZES),
}


def measure(model):
    """How many arrays are quantized, and the bytes of all."""
    arrays = [parameter.data for parameter in model.parameters()]
    quantized = [array for array in arrays if type(array).__name__ == "Int8Tensor"]
    parts = [getattr(array, name) for array in quantized for name in array.tensor_data_names]
    parts += [array for array in arrays if type(array).__name__ == "Tensor"]
    return len(quantized), sum(part.untyped_storage().nbytes() for part in parts)


def load_quantized(kind, directory, way):
    if way == "from_pretrained":
        return kind.from_pretrained(directory, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    model = kind.from_pretrained(directory)
    quantize_(model, Int8WeightOnlyConfig())
    return model


found = {}
for kind, config in MODELS.items():
    directory = f"{sys.argv[1]}/{kind.__name__}"
    plain = kind(config)
    plain.save_pretrained(directory)
    for way in ("from_pretrained", "quantize_"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            count, size = measure(load_quantized(kind, directory, way))
        share = size / measure(plain)[1]
        told = sum("quant" in str(warning.message) for warning in caught)
        found[kind, way] = count, share > 0.99, told
        print(f"{kind.__name__}, {way}: {count} arrays in int8, {share:.0%} of the memory, warnings: {told}")
assert found[GPT2LMHeadModel, "from_pretrained"] == (0, True, 0), "the behaviour has changed"
assert found[GPT2LMHeadModel, "quantize_"] == (1, True, 0), "the behaviour has changed"
assert found[LlamaForCausalLM, "from_pretrained"] == (14, False, 0), "the behaviour has changed"
assert found[LlamaForCausalLM, "quantize_"] == (15, False, 0), "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
