#!/usr/bin/env bash
# With `cache_implementation="static"` transformers' GPT-Neo attends through a misplaced window and generates other
# tokens than without a cache, with no warning. The models of TinyStories are GPT-Neo.
#
# Every second layer of GPT-Neo sees the last `window_size` tokens, 256 by default. The layer takes the rows of its
# window from the end of the keys. A static cache has keys for all tokens to come, so the rows belong to positions that
# are still empty. The same happens with text longer than 256 tokens at the default size. Models whose window holds the
# whole text, and the dynamic cache, are right.
#
# Versions: Python 3.11 or newer, transformers 5.24.0, torch 2.13.0. Seen:
#     window   8, dynamic cache: as without a cache
#     window   8, static cache:  other tokens, the first of them new token 2
#     window 256, dynamic cache: as without a cache
#     window 256, static cache:  as without a cache
#     window 256 and a prompt of 300 tokens, static cache: probabilities of the next token differ by 0.08
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "torch==2.13.0" numpy
cat > "$work/try.py" <<'PY'
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

VOCAB, NEW = 100, 20


def make(window):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 64, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 512}
    config = GPTNeoConfig(
        **sizes,
        attention_types=[[["global", "local"], 2]],
        window_size=window,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = GPTNeoForCausalLM(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def generate(model, prompt, **options):
    """Scores (new, vocab) and ids (new,) of greedy decoding."""
    options |= {"do_sample": False, "max_new_tokens": NEW, "output_scores": True, "return_dict_in_generate": True}
    found = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return torch.cat(found.scores), found.sequences[0, prompt.shape[1] :].tolist()


STATIC = {"cache_implementation": "static", "disable_compile": True}
differ = []
prompt = torch.randint(3, VOCAB, (1, 21), generator=torch.Generator().manual_seed(1))
for window in (8, 256):
    model = make(window)
    _, expected = generate(model, prompt, use_cache=False)
    for name, options in (("dynamic", {}), ("static", STATIC)):
        _, ids = generate(model, prompt, **options)
        differ.append(ids != expected)
        first = next((i for i, pair in enumerate(zip(ids, expected, strict=True), 1) if len(set(pair)) > 1), None)
        result = f"other tokens, the first of them new token {first}" if first else "as without a cache"
        print(f"window {window:3}, {name + ' cache:':14} {result}")
prompt = torch.randint(3, VOCAB, (1, 300), generator=torch.Generator().manual_seed(1))
expected, found = (generate(model, prompt, **options)[0][0].softmax(-1) for options in ({"use_cache": False}, STATIC))
far = (found - expected).abs().max().item()
print(f"window 256 and a prompt of 300 tokens, static cache: probabilities of the next token differ by {far:.2f}")
assert differ == [False, True, False, False] and far > 0.05, "the behaviour has changed"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
