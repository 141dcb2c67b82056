#!/usr/bin/env bash
# PEFT's `add_weighted_adapter` makes an adapter of rank-stabilized LoRA too strong: with the weight 1 and rank r the
# new adapter changes the model by the root of r times what the old one does. No warning is given.
#
# The scale of the old adapters, alpha / sqrt(r) with `use_rslora`, is multiplied into the new matrices. The new adapter
# then has alpha = r, so that alpha / r would be 1. But it inherits `use_rslora`, and so its scale is sqrt(r), with
# every `combination_type`. Adapters of plain LoRA are right.
#
# Versions: Python 3.11 or newer, peft 0.21.2, torch 2.13.0, transformers 5.24.0. Seen:
#     plain LoRA, rank  4, one adapter with the weight 1: cat 1.00, linear 1.00, svd 1.00
#     plain LoRA, rank 16, one adapter with the weight 1: cat 1.00, linear 1.00, svd 1.00
#     use_rslora, rank  4, one adapter with the weight 1: cat 2.00, linear 2.00, svd 2.00
#     use_rslora, rank 16, one adapter with the weight 1: cat 4.00, linear 4.00, svd 4.00
#     use_rslora, rank 16, two adapters, cat: 5.66 times 0.7 of one and 0.3 of the other
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "peft==0.21.2" "torch==2.13.0" "transformers==5.24.0" "accelerate==1.15.0" numpy
cat > "$work/try.py" <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from torch import nn


def make(rank, stabilized):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32))
    configs = [LoraConfig(r=rank, lora_alpha=8, target_modules=["0"], use_rslora=stabilized) for _ in "ab"]
    model = get_peft_model(model, configs[0], adapter_name="a")
    model.add_adapter("b", configs[1])
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight)
    return model


def change(model, name):
    """What an adapter adds to the outputs of inputs of deviation 1, by running the model with and without it."""
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.set_adapter(name)
        changed = model(x)
        with model.disable_adapter():
            return changed - model(x)


def ratio(found, expected):
    times = (found.norm() / expected.norm()).item()
    torch.testing.assert_close(found, times * expected, atol=1e-2, rtol=1e-3)  # another length, the same direction
    return times


seen = []
for stabilized in (False, True):
    for rank in (4, 16):
        model, times = make(rank, stabilized), {}
        for kind in ("cat", "linear", "svd"):
            model.add_weighted_adapter(["a"], [1.0], kind, combination_type=kind)
            times[kind] = ratio(change(model, kind), change(model, "a"))
        seen += [round(value / (rank**0.5 if stabilized else 1), 2) for value in times.values()]
        kinds = ", ".join(f"{kind} {value:.2f}" for kind, value in times.items())
        name = "use_rslora" if stabilized else "plain LoRA"
        print(f"{name}, rank {rank:2}, one adapter with the weight 1: {kinds}")
model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type="cat")
times = ratio(change(model, "both"), 0.7 * change(model, "a") + 0.3 * change(model, "b"))
print(f"use_rslora, rank 16, two adapters, cat: {times:.2f} times 0.7 of one and 0.3 of the other")
assert set(seen) == {1.0} and round(times, 2) == 5.66, "the behaviour has changed"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
