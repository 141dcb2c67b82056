#!/usr/bin/env bash
# Under the name LlamaTokenizer transformers 5 reads every model of SentencePiece as a BPE like Llama's, with a prefix.
#
# A directory holds a `tokenizer.model` of SentencePiece and no tokenizer.json. Its class used to be one that runs
# SentencePiece. In version 5 a class of LlamaTokenizer builds the tokenizer itself, and takes the pieces alone from the
# file: a Unigram model becomes a BPE with merges made up of its pieces, NFKC is left out, and a blank is put in front
# where the model has none. No warning is given, and `save_pretrained` writes that as tokenizer.json. Read as
# PreTrainedTokenizerFast, the same directory follows the file in all of this.
#
# Versions: Python 3.11 or newer, transformers 5.24.0, sentencepiece 0.2.3, protobuf 7.36.2. Seen: of 24 texts
#     BPE:               24 have SentencePiece's ids as LlamaTokenizer, 24 as PreTrainedTokenizerFast
#     BPE, no prefix:     0 have SentencePiece's ids as LlamaTokenizer, 24 as PreTrainedTokenizerFast
#     BPE, NFKC:         12 have SentencePiece's ids as LlamaTokenizer, 24 as PreTrainedTokenizerFast
#     Unigram:            3 have SentencePiece's ids as LlamaTokenizer, 24 as PreTrainedTokenizerFast
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "transformers==5.24.0" "tokenizers==0.23.3" "sentencepiece==0.2.3" "protobuf==7.36.2"
cat > "$work/try.py" <<'PY'
import io
import json
import random
import sys
from pathlib import Path

import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerFast

draw = random.Random(0)
words = ["".join(draw.choices("aeioubdgklmnprst", k=draw.randint(2, 7))) for _ in range(400)]
corpus = [" ".join(draw.choices(words, k=8)) for _ in range(2000)]
texts = [" ".join(draw.choices(words, k=4)) for _ in range(12)]
texts += [text.replace("a", "ａ").replace("e", "ｅ") + " ①" for text in texts]
COMMON = {"byte_fallback": True, "remove_extra_whitespaces": False, "vocab_size": 500, "minloglevel": 5}
KINDS = {
    "BPE": {},
    "BPE, no prefix": {"add_dummy_prefix": False},
    "BPE, NFKC": {"normalization_rule_name": "nfkc"},
    "Unigram": {"model_type": "unigram"},
}


def read(reader, directory, wanted):
    tokenizer = reader.from_pretrained(directory)
    return sum(tokenizer.encode(text, add_special_tokens=False) == wanted[text] for text in texts)


for name, options in KINDS.items():
    options = COMMON | {"model_type": "bpe", "normalization_rule_name": "identity"} | options
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=made, **options)
    processor = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    directory = Path(sys.argv[1]) / name.replace(", ", "-")
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(made.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    wanted = {text: processor.encode(text) for text in texts}
    as_llama, as_file = (read(reader, directory, wanted) for reader in (AutoTokenizer, PreTrainedTokenizerFast))
    print(f"{name + ':':17} {as_llama:3} have SentencePiece's ids as LlamaTokenizer, ", end="")
    print(f"{as_file} as PreTrainedTokenizerFast")
    assert as_file == len(texts) and (as_llama == len(texts)) == (name == "BPE"), "the behaviour has changed"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
