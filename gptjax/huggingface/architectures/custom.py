"""The architecture of every other config: our own PyTorch file, which transformers loads for those who trust it."""

from pathlib import Path
from typing import Any

from gptjax.huggingface.architectures.architecture import Architecture
from gptjax.huggingface.architectures.weight_map import WeightMapping
from gptjax.model.config import GPTConfig

CODE_FILE = "modeling_gptjax.py"


def map_block() -> tuple[WeightMapping, ...]:
    """The weights of a layer. `nn.Linear` stores (out, in)."""
    joint = [(name, "blocks.attention.qkv", "HK", entry) for entry, name in enumerate("qkv")]
    grouped = [(name, "blocks.attention.kv", "JK", entry) for entry, name in enumerate("kv")]
    inputs = [*joint, ("q", "blocks.attention.q", "HK", None), *grouped]
    weights = [WeightMapping(f"blocks.{{}}.attention.{n}.weight", path, f"{a} D", entry=i) for n, path, a, i in inputs]
    biases = [
        WeightMapping(f"blocks.{{}}.attention.{n}.bias", f"{path}_bias", axes, entry=i) for n, path, axes, i in inputs
    ]
    others = {
        "attention.out.weight": ("attention.out", "D HK"),
        "attention.out.bias": ("attention.out_bias", "D"),
        "attention.q_scale": ("attention.q_scale", "K"),
        "attention.k_scale": ("attention.k_scale", "K"),
        "attention.value_gate.weight": ("attention.value_mix.gate", "J P"),
        "attention.value_mix": ("attention.value_mix.mix", "C"),
        "attention.sink_keys": ("attention.sinks.keys", "I J K"),
        "attention.sink_values": ("attention.sinks.values", "I J K"),
        "attention_norm.weight": ("attention_norm.scale", "D"),
        "attention_norm.bias": ("attention_norm.bias", "D"),
        "mlp_norm.weight": ("mlp_norm.scale", "D"),
        "mlp_norm.bias": ("mlp_norm.bias", "D"),
        "mlp.up.weight": ("mlp.up", "F D"),
        "mlp.up.bias": ("mlp.up_bias", "F"),
        "mlp.gate.weight": ("mlp.gate", "F D"),
        "mlp.down.weight": ("mlp.down", "D F"),
        "mlp.down.bias": ("mlp.down_bias", "D"),
        "residual_mix": ("mix.residual_mix", ""),
        "x0_mix": ("mix.x0_mix", ""),
    }
    rest = [WeightMapping(f"blocks.{{}}.{name}", f"blocks.{path}", axes) for name, (path, axes) in others.items()]
    return *weights, *biases, *rest


WEIGHTS = (
    WeightMapping("token_embedding.weight", "token_embedding", "V D"),
    WeightMapping("position_embedding.weight", "position_embedding", "T D"),
    WeightMapping("value_tables.{}.weight", "value_embeddings.tables", "V E"),
    *map_block(),
    WeightMapping("skip_weights", "unet.skip_weights", "N"),
    WeightMapping("norm.weight", "norm.scale", "D"),
    WeightMapping("norm.bias", "norm.bias", "D"),
    WeightMapping("lm_head.weight", "head", "V D"),
    WeightMapping("lm_head.bias", "head_bias", "V"),
)
RENAMED = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "hidden_size": "embed_dim",
    "max_position_embeddings": "context_length",
    "intermediate_size": "mlp_dim",
    "tie_word_embeddings": "tie_embeddings",
}
SAME = (
    "vocab_size",
    "bias",
    "norm_epsilon",
    "positions",
    "rotary_base",
    "rotary_fraction",
    "norm",
    "norm_scale",
    "qk_norm",
    "qk_norm_scale",
    "embedding_norm",
    "attention_scale",
    "window_pattern",
    "long_window",
    "short_window",
    "num_sinks",
    "gated_mlp",
    "unet_skips",
    "x0_mix",
    "value_residual",
    "value_embeddings",
    "value_gate",
    "head_bias",
    "logit_softcap",
    "logit_softcap_curve",
)
FIELDS = RENAMED | {name: name for name in SAME}


class CustomArchitecture(Architecture):
    """GPTJaxForCausalLM, whose code travels with the weights."""

    @property
    def title(self) -> str:
        return f"our PyTorch file {CODE_FILE}"

    @property
    def code(self) -> Path:
        return Path(__file__).with_name(CODE_FILE)

    def list_losses(self, config: GPTConfig) -> list[str]:
        only = f"transformers alone reads it, with trust_remote_code=True: {CODE_FILE} beside the weights computes it."
        return [*super().list_losses(config), only]

    def write_config(self, config: GPTConfig) -> dict[str, Any]:
        module = CODE_FILE.removesuffix(".py")
        names = {"AutoConfig": "GPTJaxConfig", "AutoModelForCausalLM": self.hf_class}
        content = super().write_config(config) | {"dropout": config.dropout}
        return content | {"auto_map": {name: f"{module}.{kind}" for name, kind in names.items()}}


CUSTOM = CustomArchitecture(
    model_type="gptjax",
    hf_class="GPTJaxForCausalLM",
    weights=WEIGHTS,
    fields=FIELDS,
    activation_field="activation",
    activations={name: name for name in ("gelu_tanh", "gelu", "relu", "relu2", "silu")},
    defaults={hf_field: getattr(GPTConfig, name) for hf_field, name in FIELDS.items()},
)
