#!/usr/bin/env bash
# The first step of heavyball's Scion replaces a model's weights by random ones, also where they were trained before.
#
# The paper starts a model with weights of a certain norm. heavyball's optimizer does that itself, in its first step and
# before anything else: matrices become random orthogonal ones, vectors become 0, the gains of norms among them. What
# the model was is gone, whatever the learning rate is. No warning is given. A state of the optimizer that is loaded
# goes on without it. Muon and AdamW of the same package change nothing at a learning rate of 0.
#
# Versions: Python 3.11 or newer, heavyball 3.2.1, torch 2.13.0. Seen: a trained model, one step at a rate of 0
#     AdamW: loss before 0.0009, behind 0.0009; weights changed by 0.00
#     Muon:  loss before 0.0009, behind 0.0009; weights changed by 0.00
#     Scion: loss before 0.0009, behind 1.6094; weights changed by 1.51, and 5 of 5 vectors are 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "heavyball==3.2.1" "torch==2.13.0" numpy
cat > "$work/try.py" <<'PY'
import heavyball
import torch
from torch.nn.functional import cross_entropy

heavyball.utils.compile_mode = None


def make():
    """A network that tells five classes of points apart."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(6, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.LayerNorm(32)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(32, 5))
    points, classes = torch.randn(60, 6), torch.arange(60) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        cross_entropy(model(points), classes).backward()
        optimizer.step()
    return model, lambda: cross_entropy(model(points), classes)


for name in ("AdamW", "Muon", "Scion"):
    model, compute_loss = make()
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = getattr(heavyball, name)(model.parameters(), lr=0.0)
    first = compute_loss()
    first.backward()
    optimizer.step()
    optimizer.zero_grad()
    changed = max((a - b).abs().max().item() for a, b in zip(model.parameters(), before, strict=True))
    second = compute_loss().item()
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    zeros = sum(not weight.any() for weight in vectors)
    print(f"{name + ':':6} loss before {first.item():.4f}, behind {second:.4f}; weights changed by {changed:.2f}", end="")
    print(f", and {zeros} of {len(vectors)} vectors are 0" if zeros else "")
    erased = changed > 0.5 and second > 1 and zeros == len(vectors)
    assert first.item() < 0.1 and (erased if name == "Scion" else changed == 0), "the behaviour has changed"
PY
TORCHDYNAMO_DISABLE=1 "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
