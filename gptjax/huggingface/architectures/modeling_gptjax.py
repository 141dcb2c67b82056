"""A GPT that gptjax trained, in PyTorch for transformers: every option of its config in one file.

`AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)` loads it. The shapes in comments name axes:
B batch, T queries, S keys, D hidden size, H heads, J heads of keys and values, K channels of a head, V vocabulary.
"""

# pyright: reportMissingImports=false

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

GATE_CHANNELS = 12
ACTIVATIONS = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
}


Rotation = tuple[Tensor, Tensor]
"""cos and sin of the angles, (B, 1, T, K / 2)."""
Context = tuple[Rotation | None, Tensor, Tensor | None, Cache | None]
"""What all layers share: the rotation, the places of the queries (T,), the attention mask and the cache."""


class GPTJaxConfig(PreTrainedConfig):
    """Architecture. Fields that transformers knows have its names; the others have those of gptjax's `GPTConfig`."""

    model_type = "gptjax"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    defaults = {
        "vocab_size": 50257,
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_key_value_heads": None,
        "max_position_embeddings": 1024,
        "intermediate_size": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bias": True,
        "activation": "gelu_tanh",
        "norm_epsilon": 1e-5,
        "dropout": 0.0,
        "positions": "learned",
        "rotary_base": None,
        "rotary_fraction": 1.0,
        "norm": "layer",
        "norm_scale": True,
        "qk_norm": False,
        "qk_norm_scale": False,
        "embedding_norm": False,
        "attention_scale": None,
        "window_pattern": "L",
        "long_window": None,
        "short_window": None,
        "num_sinks": 0,
        "gated_mlp": False,
        "unet_skips": "none",
        "x0_mix": False,
        "value_residual": False,
        "value_embeddings": "",
        "value_gate": False,
        "head_bias": False,
        "logit_softcap": None,
        "logit_softcap_curve": "tanh",
    }

    def __init__(self, **kwargs: Any) -> None:
        fields = {name: kwargs.pop(name, default) for name, default in self.defaults.items()}
        super().__init__(**kwargs)
        for name, value in fields.items():
            setattr(self, name, value)
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size

    def window(self, layer: int) -> int | None:
        """Tokens that a layer sees, the query's own included; None: all."""
        letter = self.window_pattern[layer % len(self.window_pattern)]
        return self.long_window if letter == "L" else self.short_window

    def value_table(self, layer: int) -> str:
        """The name of the table of value embeddings that a layer reads; "." is none."""
        pattern = self.value_embeddings or "."
        return pattern[layer % len(pattern)]


def rms_norm(x: Tensor, epsilon: float, scale: Tensor | None = None) -> Tensor:
    y = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
    return (y if scale is None else y * scale.float()).to(x.dtype)


def add_scaled(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    return (a.float() * x.float() + b.float() * y.float()).to(x.dtype)


class Norm(nn.Module):
    """LayerNorm or RMSNorm, with a gain or without, computed in float32."""

    def __init__(self, config: GPTJaxConfig) -> None:
        super().__init__()
        self.kind, self.epsilon = config.norm, config.norm_epsilon
        has_bias = config.bias and config.norm_scale and config.norm == "layer"
        self.weight = nn.Parameter(torch.ones(config.hidden_size)) if config.norm_scale else None
        self.bias = nn.Parameter(torch.zeros(config.hidden_size)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        if self.kind == "layer":
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
        y = y if self.weight is None else y * self.weight.float()
        y = y if self.bias is None else y + self.bias.float()
        return y.to(x.dtype)


class Attention(nn.Module):
    """Attention over a mask, with the extras of later models: sinks, extra values, QK-norm."""

    def __init__(self, config: GPTJaxConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim = width // heads
        self.scale = config.attention_scale or 1 / math.sqrt(self.head_dim)
        self.q = nn.Linear(width, heads * self.head_dim, bias=config.bias)
        self.k = nn.Linear(width, kv_heads * self.head_dim, bias=config.bias)
        self.v = nn.Linear(width, kv_heads * self.head_dim, bias=config.bias)
        self.out = nn.Linear(heads * self.head_dim, width, bias=config.bias)
        mixes_values = config.value_residual or config.value_embeddings
        self.value_gate = nn.Linear(GATE_CHANNELS, kv_heads, bias=False) if config.value_gate else None
        self.value_mix = nn.Parameter(torch.full((2,), 0.5)) if mixes_values and not config.value_gate else None
        gain = lambda: nn.Parameter(torch.ones(self.head_dim)) if config.qk_norm_scale else None
        self.q_scale, self.k_scale = gain(), gain()
        sinks = lambda: nn.Parameter(torch.zeros(config.num_sinks, kv_heads, self.head_dim))
        self.sink_keys = sinks() if config.num_sinks else None
        self.sink_values = sinks() if config.num_sinks else None

    def forward(self, x: Tensor, extra_values: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        """x (B, T, D), extra values (B, J, T, K) or None → output (B, T, D), own values (B, J, T, K)."""
        config, (rotation, places, attention_mask, cache) = self.config, context
        split = lambda y: y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        if extra_values is not None and self.value_gate is not None:
            gate = 3 * torch.sigmoid(self.value_gate(x[..., :GATE_CHANNELS]))
            v = v + gate.transpose(1, 2)[..., None] * extra_values
        elif extra_values is not None and self.value_mix is not None:
            v = add_scaled(self.value_mix[0], v, self.value_mix[1], extra_values)
        own_values = v
        if config.qk_norm:
            q, k = rms_norm(q, config.norm_epsilon, self.q_scale), rms_norm(k, config.norm_epsilon, self.k_scale)
        unrotated = q
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)

        repeat = lambda y, axis: y.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, axis)
        k, v = repeat(k, 1), repeat(v, 1)
        scores = self.scale * q.float() @ k.float().transpose(-1, -2)
        mask = make_mask(places, k.shape[2], config.window(self.layer), attention_mask)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        if config.num_sinks:  # keys and values without a position, which queries meet before their rotation
            sink_keys, sink_values = repeat(self.sink_keys, 1), repeat(self.sink_values, 1)
            sink_scores = self.scale * torch.einsum("bhtk,ihk->bhti", unrotated.float(), sink_keys.float())
            scores = torch.cat([sink_scores, scores], dim=-1)
            sink_values = sink_values.transpose(0, 1)[None].expand(len(v), -1, -1, -1)
            v = torch.cat([sink_values.to(v.dtype), v], dim=-2)
        probabilities = F.dropout(torch.softmax(scores, dim=-1), config.dropout, self.training)
        y = (probabilities.to(v.dtype) @ v).transpose(1, 2).flatten(-2)
        return self.out(y), own_values


class MLP(nn.Module):
    """down(activation(up x)); with a gate down(up x * activation(gate x))."""

    def __init__(self, config: GPTJaxConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False) if config.gated_mlp else None
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return self.down(self.activation(up) if self.gate is None else up * self.activation(self.gate(x)))


class Block(nn.Module):
    """One layer. It reads α x + β x0 if `x0_mix`."""

    def __init__(self, config: GPTJaxConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = Norm(config), Attention(config, layer)
        self.mlp_norm, self.mlp = Norm(config), MLP(config)
        self.residual_mix = nn.Parameter(torch.tensor(1.0)) if config.x0_mix else None
        self.x0_mix = nn.Parameter(torch.tensor(0.0)) if config.x0_mix else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, x0: Tensor, extra_values: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        if self.residual_mix is not None and self.x0_mix is not None:
            x = add_scaled(self.residual_mix, x, self.x0_mix, x0)
        y, values = self.attention(self.attention_norm(x), extra_values, context)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.mlp_norm(x))), values


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + K / 2) of x (B, H, T, K) by angles whose cos and sin are (B, 1, T, K / 2)."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class GPTJaxForCausalLM(PreTrainedModel, GenerationMixin):
    """Token ids → logits of the token that follows each."""

    config_class = GPTJaxConfig
    base_model_prefix = ""
    _no_split_modules = ["Block"]
    _tied_weights_keys = {"lm_head.weight": "token_embedding.weight"}

    def __init__(self, config: GPTJaxConfig) -> None:
        super().__init__(config)
        layers, width, vocabulary = config.num_hidden_layers, config.hidden_size, config.vocab_size
        head_dim = width // config.num_attention_heads
        self.token_embedding = nn.Embedding(vocabulary, width)
        has_table = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_position_embeddings, width) if has_table else None
        tables = sorted({config.value_table(layer) for layer in range(layers)} - {"."})
        kv_width = config.num_key_value_heads * head_dim
        self.value_tables = nn.ModuleList([nn.Embedding(vocabulary, kv_width) for _ in tables])
        self.table_of_layer = [tables.index(n) if (n := config.value_table(i)) != "." else None for i in range(layers)]
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(layers)])
        learned_skips = config.unet_skips == "learned"
        self.skip_weights = nn.Parameter(torch.ones(layers // 2)) if learned_skips else None
        self.norm = Norm(config)
        self.lm_head = nn.Linear(width, vocabulary, bias=config.head_bias)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        if input_ids is None:
            raise ValueError("GPTJaxForCausalLM needs input_ids: some of its layers read the tokens themselves.")
        cache = past_key_values if cache is None else cache  # the name before and since transformers 5.24
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = DynamicCache()
        x = self.run_layers(input_ids, attention_mask, position_ids, cache if use_cache else None)
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.norm(x)[:, rows]).float()
        if (cap := self.config.logit_softcap) is not None:
            is_tanh = self.config.logit_softcap_curve == "tanh"
            logits = cap * torch.tanh(logits / cap) if is_tanh else logits * torch.rsqrt(1 + (logits / cap).square())
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        name = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
        state: dict[str, Any] = {name: cache if use_cache else None}
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **state)
        return output.to_tuple() if return_dict is False else output

    def run_layers(
        self, ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """Ids (B, T) → the residual stream after the last layer (B, T, D)."""
        config, layers, half = self.config, len(self.blocks), len(self.blocks) // 2
        past = int(cache.get_seq_length()) if cache is not None else 0
        places = torch.arange(past, past + ids.shape[1], device=ids.device)
        if position_ids is None:
            position_ids = places[None]
            if attention_mask is not None and attention_mask.ndim == 2:  # rows that are padded on the left begin later
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        x = self.token_embedding(ids)
        x = x if self.position_embedding is None else x + self.position_embedding(position_ids)
        x = rms_norm(x, config.norm_epsilon) if config.embedding_norm else x
        x = x0 = self.dropout(x)
        rotation = self.compute_rotation(position_ids) if config.positions == "rotary" else None
        skips, first_values, context = [], None, (rotation, places, attention_mask, cache)
        for layer, block in enumerate(self.blocks):
            if layer < half and config.unet_skips == "inputs":
                skips.append(x)
            if config.unet_skips != "none" and layer >= layers - half:
                weight = 1.0 if self.skip_weights is None else self.skip_weights[layers - 1 - layer]
                x = (x.float() + weight * skips.pop().float()).to(x.dtype)
            extra_values = first_values if config.value_residual else None
            if (table := self.table_of_layer[layer]) is not None:
                split = (config.num_key_value_heads, -1)
                extra_values = self.value_tables[table](ids).unflatten(-1, split).transpose(1, 2)
            x, values = block(x, x0, extra_values, context)
            first_values = values if first_values is None else first_values
            if layer < half and config.unet_skips != "inputs":
                skips.append(x)
        return x

    def compute_rotation(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (B, 1, T, K / 2) of the angle of each pair at each position."""
        config = self.config
        pairs = config.hidden_size // config.num_attention_heads // 2
        base = config.rotary_base or 10_000.0
        steps = torch.arange(pairs, dtype=torch.float32, device=position_ids.device)
        if config.rotary_fraction == 1.0:
            speeds = base ** (-steps / pairs)
        else:  # only the first pairs turn, by speeds from 1 to 1 / base
            rotated = int(config.rotary_fraction * pairs)
            speeds = base ** (-steps / max(rotated - 1, 1)) * (steps < rotated)
        angles = position_ids[:, None, :, None].float() * speeds
        return angles.cos(), angles.sin()


def make_mask(places: Tensor, length: int, window: int | None, attention_mask: Tensor | None) -> Tensor:
    """(B or 1, 1, T, S), true where a query sees a key: itself and the past, in the window, and no padding."""
    distance = places[:, None] - torch.arange(length, device=places.device)[None]
    mask = (distance >= 0) & (distance < (window or math.inf))
    if attention_mask is None:
        return mask[None, None]
    if attention_mask.ndim == 4:  # made by transformers for a cache of fixed size: true, or 0 where a key is seen
        seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
        return mask[None, None] & seen[..., :length]
    padding = F.pad(attention_mask.bool(), (0, length - attention_mask.shape[1]), value=True)
    return mask[None, None] & padding[:, None, None, :]
