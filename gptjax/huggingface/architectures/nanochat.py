"""The architecture of nanochat's first models: no windows, value embeddings or x0.

transformers rotates by -θ there, so the halves of each head of q and k are exchanged. It normalises q and k after the
rotation, which is the same, because a rotation keeps the norm.
"""

from typing import Any

from gptjax.huggingface.architectures.llama import FIELDS, WEIGHTS, RotaryArchitecture, map_attention
from gptjax.huggingface.architectures.weight_map import WeightMapping
from gptjax.model.config import GPTConfig

LAYER = "model.layers.{}"
KEPT = {"token_embedding", "head"}


class NanoChatArchitecture(RotaryArchitecture):
    """NanoChatForCausalLM."""

    def write_config(self, config: GPTConfig) -> dict[str, Any]:
        content = super().write_config(config)
        del content["head_dim"]  # the class divides
        return content | {"pad_token_id": None}

    def list_losses(self, config: GPTConfig) -> list[str]:
        return [
            *super(RotaryArchitecture, self).list_losses(config),
            "ctranslate2 and keras-hub cannot read this class.",
        ]


NANOCHAT = NanoChatArchitecture(
    model_type="nanochat",
    hf_class="NanoChatForCausalLM",
    weights=(
        *(row for row in WEIGHTS if row.path in KEPT),
        *map_attention(LAYER, head_order="swapped"),
        WeightMapping(f"{LAYER}.mlp.fc1.weight", "blocks.mlp.up", "F D"),
        WeightMapping(f"{LAYER}.mlp.fc2.weight", "blocks.mlp.down", "D F"),
    ),
    fields=FIELDS | {"final_logit_softcapping": "logit_softcap"},
    activation_field="hidden_act",
    activations={"relu2": "relu2", "silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"},
    implied={
        "positions": "rotary",
        "norm": "rms",
        "norm_scale": False,
        "bias": False,
        "qk_norm": True,
        "embedding_norm": True,
    },
    free=frozenset({"rotary_base"}),
    required={"attention_bias": False},
    defaults={"num_key_value_heads": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    | {"final_logit_softcapping": 15.0},
    prefix="model.",
)
