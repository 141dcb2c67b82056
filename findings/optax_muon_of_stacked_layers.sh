#!/usr/bin/env bash
# optax: in a model of stacked layers `muon` gives the matrices to Adam, and the scales and biases of norms to Muon.
#
# By default Muon takes each parameter of two axes. Layers that run under `nnx.scan` are stacked by `nnx.vmap`, as the
# documentation of flax shows. Then a matrix has three axes, those of attention four, and a norm's scale two: layers and
# features. Scales and biases of all layers are orthogonalized as one matrix, and so is the embedding. No matrix is. The
# same layers in a list are split as one guesses, but for the matrices of attention and the biases of its heads. Nothing
# is reported: a comparison of optimizers measures something else than its title says.
#
# Versions: Python 3.11 or newer, optax 0.2.8, flax 0.12.8, jax 0.10.2. Seen:
#     listed:  Muon has embed.embedding, query.bias, up.kernel; Adam has norm.scale, query.kernel, up.bias
#     stacked: Muon has embed.embedding, norm.scale, up.bias; Adam has query.bias, query.kernel, up.kernel
#     stacked, singular values of the update of norm.scale: 1.4 to 2.3 for a learning rate of 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "optax==0.2.8" "flax==0.12.8" "jax==0.10.2" "jaxlib==0.10.2"
cat > "$work/try.py" <<'PY'
import jax
import jax.numpy as jnp
import optax
from flax import nnx

LAYERS, WIDTH = 4, 16


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(WIDTH, use_bias=False, rngs=rngs)
        self.query = nnx.LinearGeneral(WIDTH, (2, WIDTH // 2), rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)


class Model(nnx.Module):
    def __init__(self, stacked, rngs):
        self.embed = nnx.Embed(100, WIDTH, rngs=rngs)
        if stacked:
            self.blocks = nnx.split_rngs(splits=LAYERS)(nnx.vmap(Block))(rngs)
        else:
            self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])


def update(stacked):
    """Updates of the first step, by names without the number of the layer."""
    params = nnx.state(Model(stacked, nnx.Rngs(0)), nnx.Param)
    optimizer = optax.contrib.muon(learning_rate=1.0)
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return {".".join(path[-2:]): value[...] for path, value in nnx.to_flat_state(updates)}


def is_adam(array):
    """The first step of Adam has one magnitude everywhere."""
    return bool(jnp.ptp(jnp.abs(array)) < 1e-3)


found = {}
for stacked in (False, True):
    updates = update(stacked)
    adam = sorted(name for name, array in updates.items() if is_adam(array))
    muon = sorted(set(updates) - set(adam))
    found[stacked] = adam, muon
    name = "stacked:" if stacked else "listed: "
    print(f"{name} Muon has {', '.join(muon)}; Adam has {', '.join(adam)}")
values = jnp.linalg.svd(updates["norm.scale"], compute_uv=False)
print(f"stacked, singular values of the update of norm.scale: {values.min():.1f} to {values.max():.1f}", end="")
print(" for a learning rate of 1")
assert found[False][1] == ["embed.embedding", "query.bias", "up.kernel"], "the behaviour has changed"
assert found[True][1] == ["embed.embedding", "norm.scale", "up.bias"], "the behaviour has changed"
PY
JAX_PLATFORMS=cpu "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
