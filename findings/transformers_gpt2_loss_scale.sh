#!/usr/bin/env bash
# transformers' Trainer trains GPT-2 with a loss and gradients that are too small by the first token of each row.
#
# The loss is a sum over predictions, divided by a count of labels. A row of T tokens has T - 1 predictions. For Llama
# the count leaves the first label of each row out; for GPT-2 it does not, so loss and gradients are (T - 1) / T of the
# mean: 8/9 for rows of nine tokens. The number of micro-batches makes no difference. AdamW hides it, while clipping and
# SGD do not; a loss beside another program's is lower than it is. Labels of -100 at the first token give the mean.
#
# Versions: Python 3.11 or newer, transformers 5.24.0, accelerate 1.15.0, torch 2.13.0. Seen:
#     GPT2LMHeadModel, 1 micro-batches: 0.8889 of the mean over predictions; first label -100: 1.0000
#     GPT2LMHeadModel, 4 micro-batches: 0.8889 of the mean over predictions; first label -100: 1.0000
#     LlamaForCausalLM, 1 micro-batches: 1.0000 of the mean over predictions; first label -100: 1.0000
#     LlamaForCausalLM, 4 micro-batches: 1.0000 of the mean over predictions; first label -100: 1.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "transformers==5.24.0" "accelerate==1.15.0" "torch==2.13.0" numpy
cat > "$work/try.py" <<'PY'
import tempfile

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    logging,
)

VOCAB, ROWS, LENGTH = 50, 8, 9
TOKENS = torch.randint(VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS = {
    GPT2LMHeadModel: GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=1, n_head=2, **dropout),
    LlamaForCausalLM: LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    ),
}
logging.set_verbosity_error()


def measure(model_type, micro_batches, ignore_first):
    """The loss of one step of the Trainer, over the mean of the predictions' losses."""
    torch.manual_seed(0)
    model = model_type(MODELS[model_type])
    with torch.no_grad():
        logits = model(TOKENS).logits[:, :-1]
    mean = cross_entropy(logits.reshape(-1, VOCAB), TOKENS[:, 1:].reshape(-1)).item()
    labels = TOKENS.clone()
    if ignore_first:
        labels[:, 0] = -100
    rows = [{"input_ids": row, "labels": label} for row, label in zip(TOKENS, labels, strict=True)]
    with tempfile.TemporaryDirectory() as directory:
        settings = TrainingArguments(
            directory,
            max_steps=1,
            per_device_train_batch_size=ROWS // micro_batches,
            gradient_accumulation_steps=micro_batches,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        return Trainer(model, settings, train_dataset=rows).train().training_loss / mean


for model_type in MODELS:
    for micro_batches in (1, 4):
        plain, ignored = (measure(model_type, micro_batches, ignore_first) for ignore_first in (False, True))
        what = f"{model_type.__name__}, {micro_batches} micro-batches"
        print(f"{what}: {plain:.4f} of the mean over predictions; first label -100: {ignored:.4f}")
        expected = (LENGTH - 1) / LENGTH if model_type is GPT2LMHeadModel else 1.0
        assert abs(plain - expected) < 1e-4 and abs(ignored - 1.0) < 1e-4, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" 2> "$work/errors" > "$work/out" || { cat "$work/errors" "$work/out" && exit 1; }
grep micro-batches "$work/out"
