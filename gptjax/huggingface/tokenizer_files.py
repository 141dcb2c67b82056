"""The files of a tokenizer beside exported weights, as transformers and programs that read older files want them."""

from pathlib import Path
from typing import Any

from gptjax.huggingface.safetensors_dir import write_json
from gptjax.tokenization.chat import write_jinja
from gptjax.tokenization.tokenizer import GPT2_PATTERN, Tokenizer
from gptjax.tokenization.tokenizer_json import write_vocab_and_merges


def write_tokenizer(directory: Path, tokenizer: Tokenizer, *, context_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and, where they mean the same, vocab.json and merges.txt.

    The last two do not say how words are cut. Their readers, such as keras-hub, cut as GPT-2 does.
    """
    tokenizer.save(directory)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.keeps_text:  # of another's file, transformers would change the pre-tokenizer by it
        settings["add_prefix_space"] = False
    if (end := tokenizer.end_of_text_name) is not None:
        # A byte-level BPE has no unknown token, but ctranslate2 refuses to load a model without the name of one.
        settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
    if (unknown := tokenizer.unknown) is not None:
        settings["unk_token"] = tokenizer.decode([unknown])
    if (begin := tokenizer.begin_of_text_name) is not None:
        settings["bos_token"] = begin
    write_json(directory / "tokenizer_config.json", settings)
    if (jinja := write_jinja(tokenizer)) is not None:
        (directory / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    if has_gpt2_files(tokenizer):
        write_vocab_and_merges(directory, tokens=tokenizer.tokens, specials=tokenizer.specials, merges=tokenizer.merges)


def list_tokenizer_losses(tokenizer: Tokenizer | None) -> list[str]:
    """What programs that read older files miss; one sentence each."""
    if tokenizer is None or has_gpt2_files(tokenizer):
        return []
    return ["vocab.json and merges.txt are left out, for their readers cut words as GPT-2 does. keras-hub needs them."]


def has_gpt2_files(tokenizer: Tokenizer) -> bool:
    """True if vocab.json and merges.txt say all about a tokenizer."""
    return tokenizer.kind == "bpe" and tokenizer.pattern == GPT2_PATTERN


def make_generation_config(
    tokenizer: Tokenizer | None, *, context_length: int, end_of_text: int | None
) -> dict[str, Any]:
    """The content of generation_config.json: where a text ends, and how long it may be."""
    content: dict[str, Any] = {"max_length": context_length}
    if end_of_text is None:
        return content
    template = tokenizer.chat_template if tokenizer else None
    end_of_turn = tokenizer.specials[template.assistant.end] if tokenizer and template else end_of_text
    ends = end_of_text if end_of_turn == end_of_text else [end_of_turn, end_of_text]
    begin = end_of_text if tokenizer is None or tokenizer.begin_of_text_name is None else tokenizer.begin_of_text
    return content | {"bos_token_id": begin, "eos_token_id": ends, "pad_token_id": end_of_text}
