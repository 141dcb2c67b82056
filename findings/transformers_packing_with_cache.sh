#!/usr/bin/env bash
# transformers: documents in a row of `DataCollatorWithFlattening` attend to each other, unless `use_cache=False`.
#
# Positions that start anew tell where a document begins, and the mask hides the documents before it. That holds only
# where no cache is made. A forward pass makes one by default, in training too, so the loss of a packed batch is not the
# loss of its documents. The Trainer turns the cache off; a loop of one's own has to. No warning is given.
#
# Versions: Python 3.11 or newer, transformers 5.24.0, torch 2.13.0. Seen:
#     GPT2LMHeadModel: documents alone 8.021, packed 7.921, use_cache=False 8.021
#     LlamaForCausalLM: documents alone 9.084, packed 8.639, use_cache=False 9.084
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "torch==2.13.0" numpy
cat > "$work/try.py" <<'PY'
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorWithFlattening,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    logging,
)

VOCAB = 64
dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS = {
    GPT2LMHeadModel: GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=32, n_layer=2, n_head=4, **dropout),
    LlamaForCausalLM: LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    ),
}
logging.set_verbosity_error()
torch.manual_seed(0)
documents = [torch.randint(VOCAB, (length,)) for length in (5, 7, 4)]
batch = DataCollatorWithFlattening()([{"input_ids": document.tolist()} for document in documents])
assert set(batch) == {"input_ids", "labels", "position_ids"}
for model_type, config in MODELS.items():
    model = model_type(config).train()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)
    with torch.no_grad():
        sums = [cross_entropy(model(d[None]).logits[0, :-1], d[1:], reduction="sum").item() for d in documents]
        alone = sum(sums) / sum(len(document) - 1 for document in documents)
        packed, without_cache = model(**batch).loss.item(), model(**batch, use_cache=False).loss.item()
    losses = f"documents alone {alone:.3f}, packed {packed:.3f}, use_cache=False {without_cache:.3f}"
    print(f"{model_type.__name__}: {losses}")
    assert abs(without_cache - alone) < 1e-4 < 0.01 < abs(packed - alone), "the behaviour has changed"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
