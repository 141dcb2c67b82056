"""The whole model in numpy and float64, option by option as in the papers: the reference of the tests."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT

Arrays = Mapping[str, Any]
Dropout = Callable[..., np.ndarray]

xp: Any = np
"""What computes: numpy, or JAX within `traced_by_jax`."""
given_weights: Arrays | None = None
"""The weights within `traced_by_jax`."""
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + xp.vectorize(math.erf)(x / math.sqrt(2))),
    "relu": lambda x: xp.where(x > 0, x, 0),
    "relu2": lambda x: xp.where(x > 0, x**2, 0),
    "silu": lambda x: x / (1 + xp.exp(-x)),
}


def read_weights(model: GPT) -> Arrays:
    """All weights by dotted path."""
    if given_weights is not None:
        return given_weights
    leaves = jax.tree.leaves_with_path(model, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return {name(path): np.asarray(parameter[...], np.float64) for path, parameter in leaves}


@contextlib.contextmanager
def traced_by_jax(weights: Arrays) -> Iterator[None]:
    """Within it the formula computes with these weights, of whatever model, in JAX: it can be differentiated."""
    global xp, given_weights
    xp, given_weights = jnp, weights
    try:
        with jax.numpy_rank_promotion("allow"):
            yield
    finally:
        xp, given_weights = np, None


def softmax(x: np.ndarray) -> np.ndarray:
    x = xp.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def rms_norm(x: np.ndarray, epsilon: float) -> np.ndarray:
    return x / xp.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)


def normalize(x: np.ndarray, config: GPTConfig, weights: Arrays, *, name: str) -> np.ndarray:
    if config.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    return rms_norm(x, config.norm_epsilon) * weights.get(f"{name}.scale", 1) + weights.get(f"{name}.bias", 0)


def rotate(x: np.ndarray, config: GPTConfig) -> np.ndarray:
    """Pairs as complex numbers, each rotated by its own speed times the position."""
    pairs, base = x.shape[-1] // 2, config.rotary_base or 10_000.0
    if config.rotary_fraction == 1.0:
        speeds = [base ** (-i / pairs) for i in range(pairs)]
    else:
        moving = int(pairs * config.rotary_fraction)
        speeds = [base ** (-i / (moving - 1)) for i in range(moving)] + [0.0] * (pairs - moving)
    angles = xp.arange(x.shape[1])[:, None] * xp.array(speeds)
    z = (x[..., :pairs] + 1j * x[..., pairs:]) * xp.exp(1j * angles)[None, :, None]
    return xp.concatenate([z.real, z.imag], axis=-1)


def project_qkv(h: np.ndarray, weights: Arrays, *, is_grouped: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not is_grouped:
        bias = xp.expand_dims(weights.get("attention.qkv_bias", xp.zeros((3, 1, 1))), (1, 2))
        q, k, v = xp.einsum("btd,dchk->cbthk", h, weights["attention.qkv"]) + bias
        return q, k, v
    q = xp.einsum("btd,dhk->bthk", h, weights["attention.q"]) + weights.get("attention.q_bias", 0)
    bias = xp.expand_dims(weights.get("attention.kv_bias", xp.zeros((2, 1, 1))), (1, 2))
    k, v = xp.einsum("btd,dcjk->cbtjk", h, weights["attention.kv"]) + bias
    return q, k, v


def attend(
    qkv: tuple[np.ndarray, np.ndarray, np.ndarray],
    config: GPTConfig,
    *,
    window: int | None,
    segments: np.ndarray | None,
    sinks: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    drop: Dropout,
) -> np.ndarray:
    """softmax(scale · q kᵀ) v. `sinks` are queries before their rotation, and the sinks' keys and values."""
    q, k, v = qkv
    scale = config.attention_scale or 1 / math.sqrt(q.shape[-1])
    distance = xp.arange(q.shape[1])[:, None] - xp.arange(q.shape[1])[None]
    mask = (distance >= 0) & (distance < (window or xp.inf))
    mask = xp.broadcast_to(mask, (len(q), *mask.shape))
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    scores = xp.where(mask[:, None], xp.einsum("bthk,bshk->bhts", q, k), -xp.inf)
    if sinks is not None:
        scores = xp.concatenate([xp.einsum("bthk,ihk->bhti", sinks[0], sinks[1]), scores], axis=-1)
    probabilities = drop(softmax(scale * scores))
    if sinks is None:
        return xp.einsum("bhts,bshk->bthk", probabilities, v)
    count = len(sinks[1])
    text = xp.einsum("bhts,bshk->bthk", probabilities[..., count:], v)
    return text + xp.einsum("bhti,ihk->bthk", probabilities[..., :count], sinks[2])


def mix_values(v: np.ndarray, extra: np.ndarray | None, h: np.ndarray, config: GPTConfig, weights: Arrays) -> Any:
    if extra is None:
        return v
    if config.value_gate:
        return v + 3 / (1 + xp.exp(-h[..., :12] @ weights["attention.value_mix.gate"]))[..., None] * extra
    own, other = weights["attention.value_mix.mix"]
    return own * v + other * extra


def compute_logits(model: GPT, tokens: Any, **given: Any) -> np.ndarray:
    """(B, T, V) of a GPT; `given` is for `compute_hidden`."""
    config, weights = model.config, read_weights(model)
    x = compute_hidden(model, tokens, **given)
    z = x @ (weights["token_embedding"].T if config.tie_embeddings else weights["head"])
    z = z + weights.get("head_bias", 0)
    if (cap := config.logit_softcap) is not None:
        z = cap * xp.tanh(z / cap) if config.logit_softcap_curve == "tanh" else z / xp.sqrt(1 + (z / cap) ** 2)
    return z[..., : config.vocab_size]


def compute_hidden(
    model: GPT,
    tokens: Any,
    *,
    segments: np.ndarray | None = None,
    positions: np.ndarray | None = None,
    drop: Dropout = lambda x, *site: x,
) -> np.ndarray:
    """The final hidden states (B, T, D) of a GPT.

    `drop(x, layer, site)` returns x after dropout: site 0 is a layer's probabilities, 1 and 2 its branches' outputs.
    `drop(x, num_layers)` is for the embeddings.
    """
    config, tokens, weights = model.config, xp.asarray(tokens), read_weights(model)
    layers, epsilon = config.num_layers, config.norm_epsilon
    group = config.num_heads // (config.num_kv_heads or config.num_heads)
    repeat = lambda x: xp.repeat(x, group, axis=-2)
    pattern = config.value_embeddings or "."
    tables = [pattern[layer % len(pattern)] for layer in range(layers)]
    table_names = sorted(set(tables) - {"."})

    x = weights["token_embedding"][tokens]
    if config.positions == "learned":
        x = x + weights["position_embedding"][xp.arange(tokens.shape[1])[None] if positions is None else positions]
    x = drop(rms_norm(x, epsilon) if config.embedding_norm else x, layers)
    x0, first_values, skips = x, None, []
    for layer in range(layers):
        own = {name[7:]: array[layer] for name, array in weights.items() if name.startswith("blocks.")}
        if config.unet_skips == "inputs" and layer < layers // 2:
            skips.append(x)
        if config.unet_skips != "none" and layer >= layers - layers // 2:
            is_learned = config.unet_skips == "learned"
            strength = weights["unet.skip_weights"][layers - 1 - layer] if is_learned else 1.0
            x = x + strength * skips.pop()
        if config.x0_mix:
            x = own["mix.residual_mix"] * x + own["mix.x0_mix"] * x0

        h = normalize(x, config, own, name="attention_norm")
        q, k, v = project_qkv(h, own, is_grouped=group > 1)
        extra = first_values if config.value_residual else None
        if tables[layer] != ".":
            extra = weights["value_embeddings.tables"][table_names.index(tables[layer])][tokens].reshape(v.shape)
        v = mix_values(v, extra, h, config, own)
        first_values = v if first_values is None else first_values
        if config.qk_norm:
            q = rms_norm(q, epsilon) * own.get("attention.q_scale", 1)
            k = rms_norm(k, epsilon) * own.get("attention.k_scale", 1)
        sinks = None
        if config.num_sinks:
            sinks = q, repeat(own["attention.sinks.keys"]), repeat(own["attention.sinks.values"])
        if config.positions == "rotary":
            q, k = rotate(q, config), rotate(k, config)
        is_long = config.window_pattern[layer % len(config.window_pattern)] == "L"
        window = config.long_window if is_long else config.short_window
        drop_probabilities = lambda p, layer=layer: drop(p, layer, 0)
        qkv = q, repeat(k), repeat(v)
        y = attend(qkv, config, window=window, segments=segments, sinks=sinks, drop=drop_probabilities)
        out = xp.einsum("bthk,hkd->btd", y, own["attention.out"]) + own.get("attention.out_bias", 0)
        x = x + drop(out, layer, 1)

        h = normalize(x, config, own, name="mlp_norm")
        up = h @ own["mlp.up"] + own.get("mlp.up_bias", 0)
        activation = ACTIVATIONS[config.activation]
        hidden = up * activation(h @ own["mlp.gate"]) if config.gated_mlp else activation(up)
        x = x + drop(hidden @ own["mlp.down"] + own.get("mlp.down_bias", 0), layer, 2)
        if config.unet_skips != "inputs" and layer < layers // 2:
            skips.append(x)

    return normalize(x, config, weights, name="norm")


def compute_loss(model: GPT, batch: Mapping[str, Any]) -> float:
    """Mean cross-entropy of a batch (G, B, T), as the loader gives it."""
    flat = {name: xp.asarray(array).reshape(-1, array.shape[-1]) for name, array in batch.items()}
    z = compute_logits(model, flat["tokens"], segments=flat.get("segments"), positions=flat.get("positions"))
    targets = flat["targets"]
    picked = xp.take_along_axis(softmax(z), xp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return -xp.log(picked)[targets >= 0].mean()


def assert_gradient_equals(gradient: GPT, wanted: Arrays) -> None:
    """All gradients, each weight's difference to 1e-5 of the norm of all."""
    found = read_weights(gradient)
    assert found.keys() == wanted.keys()
    norm = math.sqrt(sum(float((array**2).sum()) for array in wanted.values()))
    assert norm > 1e-2, "small gradients would prove little"
    for name, array in wanted.items():
        assert math.sqrt(((found[name] - array) ** 2).sum()) < 1e-5 * norm, name
