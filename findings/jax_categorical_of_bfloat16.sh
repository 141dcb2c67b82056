#!/usr/bin/env bash
# `jax.random.categorical` of bfloat16 logits samples a few tokens only, and of equal ones those with the lowest ids.
#
# The noise that is added to the logits is drawn in the type of the logits. In bfloat16 it has 128 different values, so
# in a vocabulary of 50,257 tokens some four hundred share the largest one, and `argmax` takes the first of them. Equal
# logits give ids below 1,500 alone. Logits of Zipf's law give the most frequent token three times as often as its
# probability. The reference speaks of a bias below probabilities of 1e-7, in float32. The cast to float32 before
# sampling removes the fault, although the logits stay rounded.
#
# Versions: Python 3.11 or newer, jax 0.10.2. Seen:
#     bfloat16:          equal logits: largest id 1156; Zipf's law: token 0 in 25% of the samples, expected 9%
#     cast to float32:   equal logits: largest id 50195; Zipf's law: token 0 in 9% of the samples, expected 9%
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import jax
import jax.numpy as jnp

VOCAB, SAMPLES = 50257, 2000
equal = jnp.zeros(VOCAB, jnp.bfloat16)
zipf = -jnp.log(jnp.arange(1.0, VOCAB + 1)).astype(jnp.bfloat16)
expected = float(jax.nn.softmax(zipf.astype(jnp.float32))[0])


def sample(logits):
    return jax.random.categorical(jax.random.key(0), logits, shape=(SAMPLES,))


found = {}
for name, dtype in (("bfloat16", jnp.bfloat16), ("cast to float32", jnp.float32)):
    largest = int(sample(equal.astype(dtype)).max())
    share = float((sample(zipf.astype(dtype)) == 0).mean())
    found[name] = largest, share
    shares = f"token 0 in {share:.0%} of the samples, expected {expected:.0%}"
    print(f"{name + ':':18} equal logits: largest id {largest}; Zipf's law: {shares}")
assert found["bfloat16"][0] < 1500 and found["bfloat16"][1] > 2 * expected, "the behaviour has changed"
assert found["cast to float32"][0] > 50000 and abs(found["cast to float32"][1] - expected) < 0.03
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
