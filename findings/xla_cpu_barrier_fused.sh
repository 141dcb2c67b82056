#!/usr/bin/env bash
# XLA on CPUs, jax 0.10.2: lax.optimization_barrier separates nothing in the compiled program. What stands before it and
# what stands after it become one loop. A branch, lax.cond, is a border.
#
# The barrier acts on the passes before: equal expressions on its two sides are not merged. Then it is removed, and
# fusion comes later. So it cannot keep a result in memory, or keep a buffer from being read late. jax 0.12.0.1 (jaxlib of
# the same number, Python 3.13) compiles two loops.
#
# Versions: Python 3.11 or newer, jax and jaxlib 0.10.2. Seen:
#     {'plain': (1, False), 'barrier': (1, False), 'branch': (2, True)}
# for each program the number of its loops that compute sine or cosine, and whether none computes both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import re

import jax
import jax.numpy as jnp
from jax import lax


def plain(x, go):
    return jnp.cos(jnp.sin(x))


def barrier(x, go):
    return jnp.cos(lax.optimization_barrier(jnp.sin(x)))


def branch(x, go):
    return lax.cond(go, jnp.cos, lambda y: y, jnp.sin(x))


def count_loops(function):
    text = jax.jit(function).lower(jnp.ones((1024, 1024)), True).compile().as_text()
    bodies = re.split(r"\n(?=%|ENTRY )", text)
    found = [{name for name in ("sine(", "cosine(") if f" {name}" in body} for body in bodies]
    found = [names for names in found if names]
    return len(found), all(len(names) == 1 for names in found)


seen = {function.__name__: count_loops(function) for function in (plain, barrier, branch)}
print(seen)
assert seen == {"plain": (1, False), "barrier": (1, False), "branch": (2, True)}, "the behaviour has changed"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py"
