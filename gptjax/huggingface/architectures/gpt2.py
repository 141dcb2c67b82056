"""The architecture of GPT-2 and DistilGPT-2.

GPT2LMHeadModel always has biases and gains. A model without them is exported with zeros and ones, and imported again it
has them and computes the same. GPT-2's Conv1D stores (in, out), as this project does, so only the untied head is
transposed.
"""

import re
from typing import Any

from gptjax.huggingface.architectures.architecture import Architecture
from gptjax.huggingface.architectures.weight_map import WeightMapping
from gptjax.model.config import GPTConfig

WEIGHTS = (
    WeightMapping("transformer.wte.weight", "token_embedding", "V D"),
    WeightMapping("transformer.wpe.weight", "position_embedding", "T D"),
    WeightMapping("transformer.h.{}.ln_1.weight", "blocks.attention_norm.scale", "D", default=1.0),
    WeightMapping("transformer.h.{}.ln_1.bias", "blocks.attention_norm.bias", "D", default=0.0),
    WeightMapping("transformer.h.{}.attn.c_attn.weight", "blocks.attention.qkv", "D CHK"),
    WeightMapping("transformer.h.{}.attn.c_attn.bias", "blocks.attention.qkv_bias", "CHK", default=0.0),
    WeightMapping("transformer.h.{}.attn.c_proj.weight", "blocks.attention.out", "HK D"),
    WeightMapping("transformer.h.{}.attn.c_proj.bias", "blocks.attention.out_bias", "D", default=0.0),
    WeightMapping("transformer.h.{}.ln_2.weight", "blocks.mlp_norm.scale", "D", default=1.0),
    WeightMapping("transformer.h.{}.ln_2.bias", "blocks.mlp_norm.bias", "D", default=0.0),
    WeightMapping("transformer.h.{}.mlp.c_fc.weight", "blocks.mlp.up", "D F"),
    WeightMapping("transformer.h.{}.mlp.c_fc.bias", "blocks.mlp.up_bias", "F", default=0.0),
    WeightMapping("transformer.h.{}.mlp.c_proj.weight", "blocks.mlp.down", "F D"),
    WeightMapping("transformer.h.{}.mlp.c_proj.bias", "blocks.mlp.down_bias", "D", default=0.0),
    WeightMapping("transformer.ln_f.weight", "norm.scale", "D", default=1.0),
    WeightMapping("transformer.ln_f.bias", "norm.bias", "D", default=0.0),
    WeightMapping("lm_head.weight", "head", "V D"),
)
FIELDS = {
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "embed_dim",
    "n_positions": "context_length",
    "vocab_size": "vocab_size",
    "n_inner": "mlp_dim",
    "layer_norm_epsilon": "norm_epsilon",
    "tie_word_embeddings": "tie_embeddings",
}
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",  # the same, with √(2 / π) rounded
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
REQUIRED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
"""`reorder_and_upcast_attn` would not change what GPT-2 computes: the softmax is float32 anyway."""


class GPT2Architecture(Architecture):
    """GPT2LMHeadModel."""

    def write_config(self, config: GPTConfig) -> dict[str, Any]:
        content = super().write_config(config)
        content |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
        # Older programs, such as the converters of llama.cpp and MLX, read the context length by this name.
        return content | {"n_ctx": config.context_length}

    def list_losses(self, config: GPTConfig) -> list[str]:
        losses = super().list_losses(config)
        if not (config.bias and config.norm_scale):
            losses.append("GPT-2's class has biases and gains. Those that the model lacks are zeros and ones.")
        if config.norm_epsilon != GPTConfig.norm_epsilon:
            losses.append("ctranslate2 and keras-hub ignore layer_norm_epsilon and compute with 1e-5.")
        if config.activation != GPTConfig.activation:
            losses.append(f"keras-hub computes gelu_new in place of {config.activation}.")
        if not config.tie_embeddings:
            losses.append("keras-hub takes the embedding in place of the untied head.")
        if config.hidden_dim != 4 * config.embed_dim:
            losses.append("keras-hub cannot load an MLP of another width than 4 n_embd.")
        return losses


GPT2 = GPT2Architecture(
    model_type="gpt2",
    hf_class="GPT2LMHeadModel",
    weights=WEIGHTS,
    fields=FIELDS,
    activation_field="activation_function",
    activations=ACTIVATIONS,
    free=frozenset({"bias", "norm_scale"}),
    required=REQUIRED,
    defaults={hf_field: getattr(GPTConfig, name) for hf_field, name in FIELDS.items()},
    prefix="transformer.",
    buffers=re.compile(r"^(transformer\.)?h\.\d+\.attn\.(masked_)?bias$"),  # causal masks, in old files
)
