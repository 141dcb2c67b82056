#!/usr/bin/env bash
# A chat model in minutes on two cores: make the data, pretrain, fine-tune, align, and print the figures of each stage.
#
#     bash launch/chat_cpu.sh                       # arguments are given to all three trainings: --seed=1
#
# PYTHON names the interpreter (default: python). What exists is not made again; a stage that was stopped goes on.
set -euo pipefail

python="${PYTHON:-python}" world=data/small_world
[ -f $world/pairs.jsonl ] || "$python" -m data_pipelines.small_world --output=$world
[ -f $world/tokenizer.json ] || "$python" -m data_pipelines.train_tokenizer --source=$world/text.jsonl \
    --vocab-size=768 --special-tokens=chat --split=none --output=$world
"$python" -m data_pipelines.prepare --source=$world/text.jsonl --tokenizer=$world/tokenizer.json \
    --split=hash:0.02 --output=$world/text
"$python" -m data_pipelines.prepare_chat --source=$world/chat.jsonl --tokenizer=$world/tokenizer.json \
    --split=hash:0.05 --output=$world/chat
"$python" -m data_pipelines.prepare_preferences --source=$world/pairs.jsonl --tokenizer=$world/tokenizer.json \
    --split=hash:0.2 --output=$world/pairs
for stage in chat_cpu chat_cpu_sft chat_cpu_dpo; do
    "$python" -m gptjax.train --config=configs/$stage.py "$@"
done
