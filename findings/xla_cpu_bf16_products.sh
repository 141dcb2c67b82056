#!/usr/bin/env bash
# XLA on CPUs: what stands around a bfloat16 product decides whether it is computed in bfloat16, in float32, or not at all.
#
# All three programs multiply bfloat16 operands and ask for a float32 result (preferred_element_type), under jit:
# - operands as they are: the compiled product has bfloat16 operands;
# - the same product of heads moved to the front, (B, T, H, K) -> (B, H, T, K) -> cast to bfloat16, as attention writes
#   it: the casts are gone and the compiled product has float32 operands, at half the rate where the CPU has units for
#   bfloat16. A choice at run time between the cast array and NaN keeps them, in the pass that casts;
# - a plain product of matrices whose result is transposed: it compiles, and then raises UNIMPLEMENTED when it runs.
#   An optimization barrier between the product and the transposition lets it run.
#
# It needs a CPU with units for bfloat16 (AVX512-BF16 or AMX) and says so elsewhere.
#
# Versions: Python 3.11 or newer on Linux x86-64, jax and jaxlib 0.10.2 (jax 0.12.0.1 does the same). Seen:
#     {'plain': 'bf16 x bf16', 'heads': 'f32 x f32', 'heads behind a choice': 'bf16 x bf16',
#      'result transposed': 'UNIMPLEMENTED', 'result transposed behind a barrier': 'runs'}
set -euo pipefail
if ! grep -qE "avx512_bf16|amx_bf16" /proc/cpuinfo; then
    echo "this CPU has no units for bfloat16 products: nothing to see"
    exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import re

import jax
import jax.numpy as jnp
from jax import lax

bf16 = jnp.bfloat16


def multiply_heads(q, k):
    return jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32)


def heads_first(x):
    return x.transpose(0, 2, 1, 3).astype(bf16)


def choose(x):
    first = x[(0,) * x.ndim]
    return jnp.where(first == first, x, jnp.asarray(jnp.nan, x.dtype))


def multiply(x, w):
    return jnp.matmul(x, w, preferred_element_type=jnp.float32)


def read_operands(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    [(left, right)] = re.findall(r" dot\(%?([\w.\-]+), %?([\w.\-]+)\)", text)
    types = [re.search(rf"%?{re.escape(name)} = (\w+)\[", text)[1] for name in (left, right)]
    return " x ".join(types)


def run(function, *arguments):
    try:
        jax.block_until_ready(jax.jit(function)(*arguments))
        return "runs"
    except jax.errors.JaxRuntimeError as error:
        return str(error).partition(":")[0]


heads = jnp.ones((2, 256, 4, 64), jnp.float32)
ready = heads_first(heads)
x, w = jnp.ones((64, 32), bf16), jnp.ones((32, 48), bf16)
found = {
    "plain": read_operands(multiply_heads, ready, ready),
    "heads": read_operands(lambda q, k: multiply_heads(heads_first(q), heads_first(k)), heads, heads),
    "heads behind a choice": read_operands(
        lambda q, k: multiply_heads(choose(heads_first(q)), choose(heads_first(k))), heads, heads
    ),
    "result transposed": run(lambda x, w: multiply(x, w).T, x, w),
    "result transposed behind a barrier": run(lambda x, w: lax.optimization_barrier(multiply(x, w)).T, x, w),
}
print(found)
assert found == {
    "plain": "bf16 x bf16",
    "heads": "f32 x f32",
    "heads behind a choice": "bf16 x bf16",
    "result transposed": "UNIMPLEMENTED",
    "result transposed behind a barrier": "runs",
}, "the behaviour has changed"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py"
