#!/usr/bin/env bash
# torch's Muon takes the inputs of GPT-2's matrices for their outputs: steps of its MLPs are half and twice as long.
#
# Muon multiplies the orthogonalized update by the root of outputs over inputs, where that is above 1. torch reads the
# outputs off the first axis, as `nn.Linear` has them. In transformers the layers of GPT-2 have the inputs there. So the
# matrix that widens is stepped half as far as it should be, and the one that narrows twice as far; the matrix of query,
# key and value misses a factor of 1.7. The same model as Linear layers gets the right factors. Nothing is reported.
#
# Versions: Python 3.11 or newer, torch 2.13.0, transformers 5.24.0. Seen:
#     attn.c_attn  32 to  96: the step in GPT-2 is 0.58 of that of nn.Linear
#     attn.c_proj  32 to  32: the step in GPT-2 is 1.00 of that of nn.Linear
#     mlp.c_fc     32 to 128: the step in GPT-2 is 0.50 of that of nn.Linear
#     mlp.c_proj  128 to  32: the step in GPT-2 is 2.00 of that of nn.Linear
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "torch==2.13.0" numpy
cat > "$work/try.py" <<'PY'
import torch
from transformers import GPT2Config, GPT2LMHeadModel, logging

logging.set_verbosity_error()
torch.manual_seed(0)
block = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=1, n_head=2)).transformer.h[0]


def measure_step(parameter, gradient):
    """The norm of the first update by Muon with a learning rate of 1 and no decay."""
    before = parameter.detach().clone()
    parameter.grad = gradient.contiguous()
    torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0).step()
    return (before - parameter.detach()).norm().item()


EXPECTED = {"attn.c_attn": 3**-0.5, "attn.c_proj": 1.0, "mlp.c_fc": 0.5, "mlp.c_proj": 2.0}
for name, expected in EXPECTED.items():
    weight = block.get_submodule(name).weight
    inputs, outputs = weight.shape
    gradient = torch.randn(inputs, outputs)
    ratio = measure_step(weight, gradient) / measure_step(torch.nn.Linear(inputs, outputs).weight, gradient.T)
    print(f"{name:11} {inputs:3} to {outputs:3}: the step in GPT-2 is {ratio:.2f} of that of nn.Linear")
    assert abs(ratio - expected) < 0.02 * expected, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
