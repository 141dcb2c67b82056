#!/usr/bin/env bash
# `convert_tiktoken_to_fast` of transformers gives special tokens other ids than tiktoken, and may exchange them.
#
# An encoding names the ids of its special tokens, and there may be a gap behind the ordinary ones, as in OpenAI's
# cl100k_base: 100256 is free, and <|endoftext|> is 100257. The converted tokenizer numbers special tokens in the order
# in which they are named, from the first free id on. Below tiktoken's ids are 260 and 261. A model that was trained
# with them finds other rows of its embedding, and no error is raised.
#
# Versions: Python 3.11 or newer, transformers 5.24.0, tiktoken 0.14.0. Seen:
#     tiktoken:  {'<|end|>': 261, '<|begin|>': 260}, text [260, 257, 261]
#     converted: {'<|end|>': 258, '<|begin|>': 259}, text [259, 257, 258]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "tiktoken==0.14.0" blobfile
cat > "$work/try.py" <<'PY'
import sys

import tiktoken
from transformers import AutoTokenizer
from transformers.integrations.tiktoken import convert_tiktoken_to_fast

ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abc": 257}
specials = {"<|end|>": 261, "<|begin|>": 260}
encoding = tiktoken.Encoding("made", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens=specials)
convert_tiktoken_to_fast(encoding, sys.argv[1])
converted = AutoTokenizer.from_pretrained(sys.argv[1])

text = "<|begin|>abc<|end|>"
theirs = encoding.encode(text, allowed_special="all")
ours = converted.encode(text)
ids = {token: converted.convert_tokens_to_ids(token) for token in specials}
print(f"tiktoken:  {specials}, text {theirs}")
print(f"converted: {ids}, text {ours}")
assert theirs == [260, 257, 261] and ours == [259, 257, 258], "the behaviour has changed"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" "$work/converted" 2> "$work/errors" ||
    { cat "$work/errors" && exit 1; }
