#!/usr/bin/env bash
# flax: behind the length of its cache `nnx.MultiHeadAttention` decodes on, with wrong outputs and no error.
#
# A cache for four tokens is given seven. An error would be expected at the fifth. Instead its key and value replace
# those of the fourth, since the position of a write beyond the end is moved to the end. Then the layer attends to what
# is left. Outputs for all seven tokens at once are the reference: the first four agree with it, the others do not.
#
# Versions: Python 3.11 or newer, flax 0.12.8, jax 0.10.2. Seen:
#     token 0 to 3: largest difference below 1e-6
#     token 4 to 6: differences of 0.79, 0.86, 0.28
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "flax==0.12.8" "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import jax
import jax.numpy as jnp
from flax import nnx

FEATURES, CACHED, TOKENS = 8, 4, 7
decoding, reference = (
    nnx.MultiHeadAttention(num_heads=2, in_features=FEATURES, decode=decode, rngs=nnx.Rngs(0))
    for decode in (True, False)
)
decoding.init_cache((1, CACHED, FEATURES))
inputs = jax.random.normal(jax.random.key(1), (1, TOKENS, FEATURES))
expected = reference(inputs, mask=nnx.make_causal_mask(jnp.ones((1, TOKENS))))
outputs = jnp.concatenate([decoding(inputs[:, i : i + 1]) for i in range(TOKENS)], axis=1)
differences = jnp.abs(outputs - expected).max(axis=(0, 2))
assert bool(jnp.isfinite(outputs).all()), "the behaviour has changed"
assert float(differences[:CACHED].max()) < 1e-6, "the behaviour has changed"
print(f"token 0 to {CACHED - 1}: largest difference below 1e-6")
print(f"token {CACHED} to {TOKENS - 1}: differences of {', '.join(f'{float(d):.2f}' for d in differences[CACHED:])}")
assert float(differences[CACHED:].min()) > 0.1, "the behaviour has changed"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
