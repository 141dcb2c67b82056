"""The whole model once more, in numpy and float64, option by option as the papers have them: what tests rely on."""

import math

import numpy as np

from gptjax.training.checkpoint_format import flatten_by_name

ACTIVATIONS = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "relu": lambda x: np.where(x > 0, x, 0),
    "relu2": lambda x: np.where(x > 0, x**2, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def rms(x, epsilon):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)


def normed(x, config, w, name):
    if config.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    return rms(x, config.norm_epsilon) * w.get(f"{name}.scale", 1) + w.get(f"{name}.bias", 0)


def turned(x, config):
    """Pairs as complex numbers, each turned by its own speed times the position."""
    pairs, base = x.shape[-1] // 2, config.rotary_base or 10_000.0
    if config.rotary_dims == "all":
        speeds = [base ** (-i / pairs) for i in range(pairs)]
    else:
        moving = pairs // 2
        speeds = [base ** (-i / (moving - 1)) for i in range(moving)] + [0.0] * (pairs - moving)
    angles = np.arange(x.shape[1])[:, None] * np.array(speeds)
    z = (x[..., :pairs] + 1j * x[..., pairs:]) * np.exp(1j * angles)[None, :, None]
    return np.concatenate([z.real, z.imag], axis=-1)


def attention(q, k, v, config, *, window, segments, sinks, drop):
    """Every query by itself; `sinks` are queries as sinks meet them, and the sinks' keys and values."""
    scale = config.attention_scale or 1 / math.sqrt(q.shape[-1])
    distance = np.arange(q.shape[1])[:, None] - np.arange(q.shape[1])[None]
    seen = (distance >= 0) & (distance < (window or np.inf))
    seen = np.broadcast_to(seen, (len(q), *seen.shape))
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    scores = np.where(seen[:, None], np.einsum("bthk,bshk->bhts", q, k), -np.inf)
    if sinks is not None:
        scores = np.concatenate([np.einsum("bthk,ihk->bhti", sinks[0], sinks[1]), scores], axis=-1)
    probabilities = drop(softmax(scale * scores))
    if sinks is None:
        return np.einsum("bhts,bshk->bthk", probabilities, v)
    count = len(sinks[1])
    text = np.einsum("bhts,bshk->bthk", probabilities[..., count:], v)
    return text + np.einsum("bhti,ihk->bthk", probabilities[..., :count], sinks[2])


def logits(model, tokens, *, segments=None, places=None, drop=lambda x, *site: x):
    """(B, T, V) of a GPT; `drop(x, layer, site)` is what dropout makes of x, at site 0 of the probabilities of a layer,
    1 and 2 of what its halves add, and at (layers,) of the embeddings."""
    config, tokens = model.config, np.asarray(tokens)
    everything = {name: np.asarray(array, np.float64) for name, array in flatten_by_name(model).items()}
    layers, heads, epsilon = config.num_layers, config.num_heads, config.norm_epsilon
    group = heads // (config.num_kv_heads or heads)
    shared = lambda x: np.repeat(x, group, axis=-2)
    pattern = config.value_embeddings or "."
    tables = [pattern[layer % len(pattern)] for layer in range(layers)]
    names = sorted(set(tables) - {"."})

    x = everything["tokens"][tokens]
    if config.positions == "learned":
        x = x + everything["positions"][np.arange(tokens.shape[1])[None] if places is None else places]
    x = drop(rms(x, epsilon) if config.embedding_norm else x, layers)
    x0, first, skips = x, None, []
    for layer in range(layers):
        own = {name[7:]: array[layer] for name, array in everything.items() if name.startswith("blocks.")}
        if config.unet_skips != "none" and layer >= layers - layers // 2:
            strength = 1.0 if config.unet_skips == "plain" else everything["unet.skip_weights"][layers - 1 - layer]
            x = x + strength * skips.pop()
        if config.x0_mix:
            x = own["mix.residual_mix"] * x + own["mix.x0_mix"] * x0

        h = normed(x, config, own, "attention_norm")
        if group == 1:
            q, k, v = np.einsum("btd,dchk->cbthk", h, own["attention.qkv"]) + np.expand_dims(
                own.get("attention.qkv_bias", np.zeros((3, 1, 1))), (1, 2)
            )
        else:
            q = np.einsum("btd,dhk->bthk", h, own["attention.q"]) + own.get("attention.q_bias", 0)
            k, v = np.einsum("btd,dcjk->cbtjk", h, own["attention.kv"]) + np.expand_dims(
                own.get("attention.kv_bias", np.zeros((2, 1, 1))), (1, 2)
            )
        others = first if config.value_residual else None
        if tables[layer] != ".":
            others = everything["value_embeddings.tables"][names.index(tables[layer])][tokens].reshape(v.shape)
        if others is not None and config.value_gate:
            v = v + 3 / (1 + np.exp(-h[..., :12] @ own["attention.value_mix.gate"]))[..., None] * others
        elif others is not None:
            mix = own["attention.value_mix.mix"]
            v = mix[0] * v + mix[1] * others
        first = v if first is None else first
        if config.qk_norm:
            q, k = rms(q, epsilon), rms(k, epsilon)
        sinks = None
        if config.num_sinks:
            sinks = q, shared(own["attention.sinks.keys"]), shared(own["attention.sinks.values"])
        if config.positions == "rotary":
            q, k = turned(q, config), turned(k, config)
        far = config.window_pattern[layer % len(config.window_pattern)] == "L"
        y = attention(
            q,
            shared(k),
            shared(v),
            config,
            window=config.long_window if far else config.short_window,
            segments=segments,
            sinks=sinks,
            drop=lambda p, layer=layer: drop(p, layer, 0),
        )
        out = np.einsum("bthk,hkd->btd", y, own["attention.out"]) + own.get("attention.out_bias", 0)
        x = x + drop(out, layer, 1)

        h = normed(x, config, own, "mlp_norm")
        up = h @ own["mlp.up"] + own.get("mlp.up_bias", 0)
        activation = ACTIVATIONS[config.activation]
        hidden = up * activation(h @ own["mlp.gate"]) if config.gated_mlp else activation(up)
        x = x + drop(hidden @ own["mlp.down"] + own.get("mlp.down_bias", 0), layer, 2)
        if layer < layers // 2:
            skips.append(x)

    x = normed(x, config, everything, "norm")
    z = x @ (everything["tokens"].T if config.tie_embeddings else everything["head"])
    z = z + everything.get("head_bias", 0)
    if (cap := config.logit_softcap) is not None:
        z = cap * np.tanh(z / cap) if config.logit_softcap_curve == "tanh" else z / np.sqrt(1 + (z / cap) ** 2)
    return z[..., : config.vocab_size]


def loss(model, rows):
    """Mean cross-entropy of a batch in groups, as the loader gives them."""
    flat = {name: np.asarray(array).reshape(-1, array.shape[-1]) for name, array in rows.items()}
    z = logits(model, flat["tokens"], segments=flat.get("segments"), places=flat.get("positions"))
    targets = flat["targets"]
    picked = np.take_along_axis(softmax(z), np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return -np.log(picked)[targets >= 0].mean()
