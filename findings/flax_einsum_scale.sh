#!/usr/bin/env bash
# flax: the weight of `nnx.Einsum` for attention heads starts too small, by the root of the number of heads.
#
# Both layers below map 768 features to 12 heads of 64 and have the same default, `lecun_normal`: outputs of inputs with
# deviation 1 should have deviation 1. `nnx.LinearGeneral` keeps that. `nnx.Einsum` gives the shape of its kernel to the
# initializer, which takes the last axis but one, the heads, for a part of the inputs: it divides by 768 * 12 instead
# of 768. The equation is not looked at. Queries and keys that are both made so have products that are 12 times smaller.
#
# Versions: Python 3.11 or newer, flax 0.12.8, jax 0.10.2. Seen:
#     LinearGeneral: kernel (768, 12, 64), deviation of the outputs 1.00
#     Einsum:        kernel (768, 12, 64), deviation of the outputs 0.29
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "flax==0.12.8" "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import jax
from flax import nnx

FEATURES, HEADS, HEAD_DIM = 768, 12, 64
layers = {
    "LinearGeneral": nnx.LinearGeneral(FEATURES, (HEADS, HEAD_DIM), rngs=nnx.Rngs(0)),
    "Einsum": nnx.Einsum("btd,dhk->bthk", (FEATURES, HEADS, HEAD_DIM), rngs=nnx.Rngs(0)),
}
inputs = jax.random.normal(jax.random.key(0), (4, 64, FEATURES))
found = {name: float(layer(inputs).std()) for name, layer in layers.items()}
for name, deviation in found.items():
    print(f"{name + ':':14} kernel {layers[name].kernel[...].shape}, deviation of the outputs {deviation:.2f}")
assert abs(found["LinearGeneral"] - 1) < 0.03, "the behaviour has changed"
assert abs(found["Einsum"] - HEADS**-0.5) < 0.03, "the behaviour has changed"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
