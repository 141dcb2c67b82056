"""Small tokenizers in the forms of other models' files, which the library `tokenizers` encodes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = "The cat sat on the mat. The theatre of the thing, they said: naïve café 日本 1234\n" * 4
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special(name: str, **flags: bool) -> AddedToken:
    return AddedToken(name, special=True, normalized=False, **flags)


def plain(name: str) -> AddedToken:
    return AddedToken(name, special=False, normalized=False)


def make_qwen() -> Tokenizer:
    """NFC, byte-level BPE, roles that are special, and tools that are not."""
    made = _make_byte_level(normalizers.NFC())
    made.add_tokens([*map(special, ("<|endoftext|>", "<|im_start|>", "<|im_end|>")), plain("<tool_call>")])
    return made


def make_deepseek() -> Tokenizer:
    """Byte-level BPE, roles that are not special, and a token that begins documents."""
    made = _make_byte_level(normalizers.Sequence([]))
    made.add_tokens([*map(special, ("<｜begin｜>", "<｜end｜>")), *map(plain, ("<｜User｜>", "<｜Assistant｜>"))])
    return made


def _make_byte_level(normalizer: normalizers.Normalizer) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return made


def _make_sentencepiece(specials: Sequence[AddedToken], *, blank_first: bool) -> Tokenizer:
    """BPE over text whose blanks are ▁, with bytes for what it has no characters for."""
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learned.train_from_iterator(TEXT.splitlines(), trainers.BpeTrainer(vocab_size=120))
    model = json.loads(learned.to_str())["model"]
    merges = [(left, right) for left, right in model["merges"] if not left.startswith("<")]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    first = [normalizers.Prepend("▁")] if blank_first else []
    made.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    strips = [decoders.Strip(" ", 1, 0)] if blank_first else []
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strips]
    made.decoder = decoders.Sequence(parts)
    made.add_tokens([*map(special, ("<unk>", "<s>", "</s>")), *specials])
    return made


def make_llama() -> Tokenizer:
    """Llama 2's and TinyLlama's: a blank before every text, and <s> before what transformers encodes."""
    made = _make_sentencepiece([], blank_first=True)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def make_phi() -> Tokenizer:
    """Phi 3's: role tokens that take the blanks behind them."""
    roles = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    return _make_sentencepiece([special(name, rstrip=True) for name in roles], blank_first=True)


def make_gemma() -> Tokenizer:
    """No blank in front, words cut behind their blank, and runs of line ends as added tokens."""
    made = _make_sentencepiece([special("<end_of_turn>"), plain("\n\n"), plain("<b>")], blank_first=False)
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return made


def make_mistral() -> Tokenizer:
    """A blank before the first word only, and instructions between special tokens."""
    made = _make_sentencepiece([special("[INST]"), special("[/INST]")], blank_first=True)
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    return made


def make_t5() -> Tokenizer:
    """Unigram, whose vocabulary has the names of special tokens; blanks in a row are one."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    names = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=names, unk_token="<unk>", show_progress=False)
    made.train_from_iterator([TEXT], trainer)
    return made


def make_bert() -> Tokenizer:
    """WordPiece in small letters."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    names = ["[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator([TEXT], trainers.WordPieceTrainer(vocab_size=120, special_tokens=names))
    return made


FORMS: dict[str, Callable[[], Tokenizer]] = {
    "qwen": make_qwen,
    "deepseek": make_deepseek,
    "llama": make_llama,
    "phi": make_phi,
    "gemma": make_gemma,
    "mistral": make_mistral,
    "t5": make_t5,
    "bert": make_bert,
}
ENDS = {"qwen": "<|endoftext|>", "deepseek": "<｜end｜>", "bert": "[SEP]"} | dict.fromkeys(
    ("llama", "phi", "gemma", "mistral", "t5"), "</s>"
)
"""What the file beside them names as end of text."""


def write_form(directory: Path, form: str, **config: Any) -> Path:
    """A directory with the two files of a tokenizer, as a model has them."""
    directory.mkdir(parents=True, exist_ok=True)
    FORMS[form]().save(str(directory / "tokenizer.json"))
    settings = {"eos_token": ENDS[form], "tokenizer_class": "PreTrainedTokenizerFast"} | config
    settings |= {"bos_token": "<｜begin｜>"} if form == "deepseek" else {}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
