#!/usr/bin/env bash
# trl's DPO compares with a model that nobody gave it where LoRA is started by PiSSA or OLoRA: the first loss is not
# ln 2, though nothing has been learned yet.
#
# The policy is the given model, since these starts take from each weight what the adapter adds. The reference is said
# to be the given model, too. trl computes it by switching the adapter off, and what is left then is the weight without
# its largest singular vectors. The log-probabilities of the reference are the ones of that rest. Pairs that the given
# model has no opinion on start with large rewards. No warning is given.
#
# Versions: Python 3.11 or newer, trl 1.16.0, peft 0.21.2, torch 2.13.0, transformers 5.24.0, datasets 5.2.0. Seen:
#     start of LoRA     loss   reward of the chosen   (before any step; expected: 0.693 and 0)
#     True             0.693   0.000
#     pissa            0.854   0.032
#     olora            0.785   -0.084
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "trl==1.16.0" "peft==0.21.2" "torch==2.13.0" \
    "transformers==5.24.0" "accelerate==1.15.0" "datasets==5.2.0" numpy
cat > "$work/try.py" <<'PY'
import math
import random
import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

SPECIAL = ("<unk>", "<pad>", "</s>")
WORDS = [f"w{i}" for i in range(40)]
TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


def make_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def make_tokenizer():
    vocab = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    names = dict(zip(("unk_token", "pad_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def start(kind):
    """Loss and reward of the chosen texts in the first step, with a learning rate of 0."""
    arguments = DPOConfig(
        output_dir=sys.argv[1],
        per_device_train_batch_size=8,
        max_steps=1,
        logging_steps=1,
        learning_rate=0.0,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = DPOTrainer(
        make_model(),
        args=arguments,
        train_dataset=Dataset.from_list(pairs),
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(
            r=8, lora_alpha=8, target_modules=TARGETS, init_lora_weights=kind, task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return first["loss"], first["rewards/chosen"]


choose = random.Random(0).choices
lengths = {"prompt": 6, "chosen": 5, "rejected": 7}
pairs = [{name: " " + " ".join(choose(WORDS, k=count)) for name, count in lengths.items()} for _ in range(16)]
losses = {kind: start(kind) for kind in (True, "pissa", "olora")}
print("start of LoRA     loss   reward of the chosen   (before any step; expected: 0.693 and 0)")
for kind, (loss, reward) in losses.items():
    print(f"{kind!s:14} {loss:7.3f}   {reward:.3f}")
far = [abs(loss - math.log(2)) for loss, _ in losses.values()]
assert far[0] < 1e-5 and min(far[1:]) > 0.01, "the behaviour has changed"
PY
HF_HUB_OFFLINE=1 HF_HOME="$work/cache" TQDM_DISABLE=1 "$work/venv/bin/python" "$work/try.py" "$work/out" \
    > "$work/seen" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
grep -v "^{" "$work/seen"
