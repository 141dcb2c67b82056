#!/usr/bin/env bash
# With three options of x-transformers a causal decoder reads the tokens behind a position: its loss is too low.
#
# `orthog_residual`, `mv_split_residual` and `attn_orthog_projected_values` take from a vector its part along another
# one. The papers do so position by position. The library flattens all positions of a row to one vector first, so the
# length and the product that it divides by are sums over the whole text. What comes later changes what was predicted
# before. Training and evaluation see the whole text and report a loss that generation cannot have, where the text
# behind is missing: a model trained here and read token by token has other logits. No other option of the decoder
# that was tried does so.
#
# Versions: Python 3.11 or newer, x-transformers 2.31.10, torch 2.13.0. Seen: largest change of the logits of tokens
# 0 to 11, when tokens 12 to 19 are exchanged, and when they are left out:
#     plain decoder:                exchanged 0.000, left out 0.000
#     orthog_residual:              exchanged 0.037, left out 0.070
#     mv_split_residual:            exchanged 0.142, left out 0.237
#     attn_orthog_projected_values: exchanged 0.097, left out 0.408
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "x-transformers==2.31.10" "torch==2.13.0"
cat > "$work/try.py" <<'PY'
import torch
from x_transformers import Decoder, TransformerWrapper

VOCABULARY, LENGTH, BORDER = 50, 20, 12


def measure(**options):
    torch.manual_seed(0)
    layers = Decoder(dim=32, depth=2, heads=4, attn_dim_head=16, **options)
    model = TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=64, attn_layers=layers).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        text = torch.randint(0, VOCABULARY, (2, LENGTH))
        other = text.clone()
        other[:, BORDER:] = (other[:, BORDER:] + 7) % VOCABULARY
        logits = model(text)[:, :BORDER]
        return [(model(tokens)[:, :BORDER] - logits).abs().max().item() for tokens in (other, text[:, :BORDER])]


for name in ("plain decoder", "orthog_residual", "mv_split_residual", "attn_orthog_projected_values"):
    exchanged, left_out = measure(**({} if name == "plain decoder" else {name: True}))
    print(f"{name + ':':29} exchanged {exchanged:.3f}, left out {left_out:.3f}")
    causal = max(exchanged, left_out) < 1e-4
    assert causal == (name == "plain decoder"), "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
