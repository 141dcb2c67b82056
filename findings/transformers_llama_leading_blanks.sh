#!/usr/bin/env bash
# transformers encodes blanks at the start of a text otherwise than the tokenizer.json of a Llama says.
#
# It writes a tokenizer.json in Llama 2's form, with seven tokens and the bytes: a normalizer puts a blank in front and
# writes blanks as letters. The library tokenizers encodes texts with it, and so does AutoTokenizer of transformers. If
# tokenizer_config.json names LlamaTokenizer, as those of Llama 2 and its relatives do, transformers drops the
# normalizer and splits by rules of its own class: no blank is put before a text that begins with one. Under the name
# PreTrainedTokenizerFast it keeps the file's rules.
#
# Versions: Python 3.11 or newer, transformers 5.24.0, tokenizers 0.23.3. Seen (None: no normalizer):
#     PreTrainedTokenizerFast keeps the normalizer; 6 of 6 texts have the ids of tokenizer.json
#     LlamaTokenizer: None; other ids for [' ', ' ab', '  ab'], the same for ['ab', 'a b', 'ab ab']
#     ' ab': ['▁▁', 'ab'] in tokenizers, ['▁ab'] in transformers
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "tokenizers==0.23.3"
cat > "$work/try.py" <<'PY'
import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer

directory = Path(sys.argv[1])
names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁▁", "▁a", "ab", "▁ab"]
merges = [("▁", "▁"), ("▁", "a"), ("a", "b"), ("▁a", "b")]
vocabulary = {name: i for i, name in enumerate(names)}
written = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
written.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
blank = decoders.Replace("▁", " ")
written.decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
written.add_special_tokens([AddedToken(name, normalized=False) for name in names[:3]])
written.save(str(directory / "tokenizer.json"))

texts = [" ", " ab", "  ab", "ab", "a b", "ab ab"]
expected = {text: written.encode(text, add_special_tokens=False).tokens for text in texts}


def read(tokenizer_class):
    config = {"tokenizer_class": tokenizer_class, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return tokenizer, {text: tokenizer.tokenize(text, add_special_tokens=False) for text in texts}


kept, found = read("PreTrainedTokenizerFast")
assert kept.backend_tokenizer.normalizer is not None and found == expected, "the behaviour has changed"
print(f"PreTrainedTokenizerFast keeps the normalizer; {len(found)} of {len(texts)} texts have the ids of tokenizer.json")
llama, found = read("LlamaTokenizer")
other = [text for text in texts if found[text] != expected[text]]
same = [text for text in texts if text not in other]
print(f"LlamaTokenizer: {llama.backend_tokenizer.normalizer}; other ids for {other}, the same for {same}")
print(f"' ab': {expected[' ab']} in tokenizers, {found[' ab']} in transformers")
assert llama.backend_tokenizer.normalizer is None and other == [" ", " ab", "  ab"], "the behaviour has changed"
assert (expected[" ab"], found[" ab"]) == (["▁▁", "ab"], ["▁ab"]), "the behaviour has changed"
PY
mkdir "$work/model"
"$work/venv/bin/python" "$work/try.py" "$work/model" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
