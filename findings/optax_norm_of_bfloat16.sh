#!/usr/bin/env bash
# optax adds the norms of bfloat16 gradients in bfloat16: with many arrays the sum stands still, and nothing is clipped.
#
# A thousand arrays of norm 1 have a global norm of 31.6. optax gives 16: its sum of squares stops at 256, because 257
# is no bfloat16. `clip_by_global_norm(20)` then leaves them as they are. In float32 both are right. Models whose layers
# are arrays of their own have as many.
#
# Versions: Python 3.11 or newer, optax 0.2.8, jax 0.10.2. Seen:
#     bfloat16: global norm 16.0, after clip_by_global_norm(20) 31.6
#     float32: global norm 31.6, after clip_by_global_norm(20) 20.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "optax==0.2.8" "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import jax.numpy as jnp
import optax

found = {}
for dtype in (jnp.bfloat16, jnp.float32):
    gradients = [jnp.ones(1, dtype) for _ in range(1000)]
    clip = optax.clip_by_global_norm(20)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    true = float(jnp.linalg.norm(jnp.concatenate(clipped).astype(jnp.float32)))
    found[dtype.__name__] = round(float(optax.global_norm(gradients)), 1), round(true, 1)
for name, (norm, clipped) in found.items():
    print(f"{name}: global norm {norm}, after clip_by_global_norm(20) {clipped}")
assert found == {"bfloat16": (16.0, 31.6), "float32": (31.6, 20.0)}, "the behaviour has changed"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
