"""Export of GPT-2's and Llama's shapes as GGUF, the one-file format of llama.cpp. Needs the package `gguf`."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.errors import UserError
from gptjax.core.file_sums import remove_sum_beside, sum_file, write_sum_beside
from gptjax.core.files import atomic_file
from gptjax.huggingface.architectures.architecture import Architecture
from gptjax.huggingface.architectures.gpt2 import GPT2
from gptjax.huggingface.architectures.llama import LLAMA, map_projections
from gptjax.huggingface.architectures.weight_map import WeightMapping
from gptjax.huggingface.model_export import cast_tensor, export_tensors
from gptjax.model.config import GPTConfig
from gptjax.model.gpt import GPT
from gptjax.model.positions import DEFAULT_ROTARY_BASE
from gptjax.sharding.devices import DType
from gptjax.tokenization.chat import write_jinja
from gptjax.tokenization.tokenizer import GPT2_PATTERN, GPT4_PATTERN, Tokenizer
from gptjax.tokenization.tokenizer_json import spell_token

LAYER = "blk.{}"
NORMS = {"attn_norm": "blocks.attention_norm", "ffn_norm": "blocks.mlp_norm"}
EMBEDDINGS = (
    WeightMapping("token_embd.weight", "token_embedding", "V D"),
    WeightMapping("output_norm.weight", "norm.scale", "D", default=1.0),
    WeightMapping("output.weight", "head", "V D"),
    WeightMapping(f"{LAYER}.attn_output.weight", "blocks.attention.out", "D HK"),
    WeightMapping(f"{LAYER}.ffn_up.weight", "blocks.mlp.up", "F D"),
    WeightMapping(f"{LAYER}.ffn_down.weight", "blocks.mlp.down", "D F"),
    *(WeightMapping(f"{LAYER}.{name}.weight", f"{path}.scale", "D", default=1.0) for name, path in NORMS.items()),
)
GPT2_WEIGHTS = (
    *EMBEDDINGS,
    WeightMapping("position_embd.weight", "position_embedding", "T D"),
    WeightMapping("output_norm.bias", "norm.bias", "D", default=0.0),
    WeightMapping(f"{LAYER}.attn_qkv.weight", "blocks.attention.qkv", "CHK D"),
    WeightMapping(f"{LAYER}.attn_qkv.bias", "blocks.attention.qkv_bias", "CHK", default=0.0),
    WeightMapping(f"{LAYER}.attn_output.bias", "blocks.attention.out_bias", "D", default=0.0),
    WeightMapping(f"{LAYER}.ffn_up.bias", "blocks.mlp.up_bias", "F", default=0.0),
    WeightMapping(f"{LAYER}.ffn_down.bias", "blocks.mlp.down_bias", "D", default=0.0),
    *(WeightMapping(f"{LAYER}.{name}.bias", f"{path}.bias", "D", default=0.0) for name, path in NORMS.items()),
)
LLAMA_WEIGHTS = (
    *EMBEDDINGS,
    *map_projections({name: f"{LAYER}.attn_{name}.weight" for name in "qkv"}, head_order="interleaved"),
    WeightMapping(f"{LAYER}.ffn_gate.weight", "blocks.mlp.gate", "F D"),
)
WEIGHTS = {"gpt2": GPT2_WEIGHTS, "llama": LLAMA_WEIGHTS}
ACTIVATIONS = {"gpt2": "gelu_tanh", "llama": "silu"}
"""What llama.cpp computes in each architecture, whatever the file says."""
PRETOKENIZERS = {GPT2_PATTERN: "gpt-2", GPT4_PATTERN: "dbrx"}
"""llama.cpp's name of a rule by which words are cut."""


def choose_gguf_architecture(config: GPTConfig, tokenizer: Tokenizer | None) -> Architecture:
    """GPT-2's or Llama's architecture. Raises `UserError` with what llama.cpp cannot run, before a file is written."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("a GGUF is written by the package gguf: pip install 'gptjax[gguf]'.")
    architecture = next((each for each in (GPT2, LLAMA) if not each.list_refused(config)), None)
    if architecture is None:
        refused = "; ".join(f"as {each.model_type}: {', '.join(each.list_refused(config))}" for each in (GPT2, LLAMA))
        raise UserError(f"a GGUF holds GPT-2's and Llama's shapes, which cannot express {refused}.")
    if config.activation != (computed := ACTIVATIONS[architecture.model_type]):
        raise UserError(
            f"llama.cpp computes {computed} in a {architecture.model_type}; the model has {config.activation}."
        )
    if tokenizer is None or tokenizer.end_of_text is None:
        raise UserError("a GGUF needs a tokenizer with an end-of-text token: without its id, llama.cpp takes another.")
    if not tokenizer.merges or tokenizer.pattern not in PRETOKENIZERS:
        raise UserError(
            f"llama.cpp cannot encode with the {tokenizer.name} tokenizer; wanted: byte-level BPE with merges, with "
            "words cut by the rule of GPT-2 or GPT-4."
        )
    return architecture


def write_gguf(
    path: Path, model: GPT, *, architecture: Architecture, tokenizer: Tokenizer, name: str, dtype: DType
) -> None:
    """Write the file, and its sum beside it.

    Matrices are of type `dtype`; vectors and positions stay float32, as llama.cpp wants them.
    """
    import gguf  # pyright: ignore[reportMissingImports]

    if path.exists():
        raise UserError(f"--output={path} exists. Choose another path, or remove it.")
    with atomic_file(path) as partial:
        writer = gguf.GGUFWriter(partial, architecture.model_type)
        _add_settings(writer, model.config, name=name, dtype=dtype)
        _add_tokenizer(writer, tokenizer, vocab_size=model.config.resolved_vocab_size)
        tensors = export_tensors(model, WEIGHTS[architecture.model_type], title="GGUF", dtype="float32")
        for tensor_name, tensor in tensors.items():
            if tensor.ndim > 1 and tensor_name != "position_embd.weight":
                tensor = cast_tensor(tensor, dtype, name=tensor_name)
            raw = gguf.GGMLQuantizationType.BF16 if tensor.dtype.name == "bfloat16" else None
            tensor = np.ascontiguousarray(tensor)
            writer.add_tensor(tensor_name, tensor.view(np.uint8) if raw else tensor, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file_sum = sum_file(partial)
        remove_sum_beside(path)
    write_sum_beside(path, file_sum)  # only now: a sum without its file looks like damage


def _add_settings(writer: Any, config: GPTConfig, *, name: str, dtype: DType) -> None:
    import gguf  # pyright: ignore[reportMissingImports]

    types = gguf.LlamaFileType
    writer.add_name(name)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_vocab_size(config.resolved_vocab_size)
    by_dtype = {"float32": types.ALL_F32, "float16": types.MOSTLY_F16, "bfloat16": types.MOSTLY_BF16}
    writer.add_file_type(by_dtype[dtype])
    if config.norm == "rms":
        writer.add_layer_norm_rms_eps(config.norm_epsilon)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rotary_base or DEFAULT_ROTARY_BASE)
    else:
        writer.add_layer_norm_eps(config.norm_epsilon)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, *, vocab_size: int) -> None:
    """The tokens by id. Ids without a token are marked as unused."""
    import gguf  # pyright: ignore[reportMissingImports]

    names = [f"[PAD{i}]" for i in range(vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * vocab_size
    for token, i in tokenizer.tokens.items():
        names[i], kinds[i] = spell_token(token), gguf.TokenType.NORMAL
    for special, i in tokenizer.specials.items():
        names[i], kinds[i] = special, gguf.TokenType.CONTROL
    template, end = tokenizer.chat_template, tokenizer.end_of_text
    last = end if template is None else tokenizer.specials[template.assistant.end]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRETOKENIZERS[tokenizer.pattern or ""])
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{spell_token(left)} {spell_token(right)}" for left, right in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.begin_of_text)
    writer.add_eos_token_id(last)
    writer.add_add_bos_token(False)
    if (jinja := write_jinja(tokenizer)) is not None:
        writer.add_chat_template(jinja)
