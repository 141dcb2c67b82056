"""The architecture of Qwen3: Llama with RMSNorm, and a gain, over each head of the queries and keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptjax.core.errors import UserError
from gptjax.huggingface.architectures.llama import LLAMA, RotaryArchitecture
from gptjax.huggingface.architectures.weight_map import WeightMapping
from gptjax.model.config import GPTConfig

LAYER = "model.layers.{}.self_attn"


class Qwen3Architecture(RotaryArchitecture):
    """Qwen3ForCausalLM."""

    def read_config(self, content: Mapping[str, Any], *, path: Path) -> GPTConfig:
        if content.get("head_dim") is None:  # 128 in transformers, whatever the width
            raise UserError(f"{path} lacks head_dim. Give the config of a saved qwen3 model.")
        return super().read_config(content, path=path)

    def list_losses(self, config: GPTConfig) -> list[str]:
        return super(RotaryArchitecture, self).list_losses(config)


QWEN3 = Qwen3Architecture(
    model_type="qwen3",
    hf_class="Qwen3ForCausalLM",
    weights=(
        *LLAMA.weights,
        WeightMapping(f"{LAYER}.q_norm.weight", "blocks.attention.q_scale", "K", default=1.0),
        WeightMapping(f"{LAYER}.k_norm.weight", "blocks.attention.k_scale", "K", default=1.0),
    ),
    fields=LLAMA.fields,
    activation_field="hidden_act",
    activations=LLAMA.activations,
    implied={**LLAMA.implied, "qk_norm": True, "qk_norm_scale": True},
    free=frozenset({"norm_scale", "qk_norm_scale", "rotary_base"}),
    required={"attention_bias": False, "use_sliding_window": False},
    defaults=LLAMA.defaults,
    prefix="model.",
)
