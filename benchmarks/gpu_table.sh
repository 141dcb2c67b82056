#!/usr/bin/env bash
# The table of one GPU, in at most 8 minutes: training and generation of GPT-2 124M beside torch, Muon beside AdamW,
# memory, kernels, and the tests that need a GPU.
#
#     benchmarks/gpu_table.sh OUTPUT                                    # beside transformers
#     NANOGPT=DIR benchmarks/gpu_table.sh OUTPUT                        # beside nanoGPT, whose model.py is in DIR
#     DRY_RUN=1 JAX_PLATFORMS=cpu benchmarks/gpu_table.sh OUTPUT        # tiny sizes, to try the script without a GPU
#
# Needs the extras `cuda13` (or `cuda12`) and `hf`; `dev` for the tests. BATCH sets the sequences of a step (default 32).
# PYTHON names the interpreter. A part that fails or takes too long does not stop the others. Each part writes tables,
# JSON and a picture into OUTPUT/<part>. The script fails if a part failed.
set -uo pipefail
cd "$(dirname "$0")/.."

output=${1:?"usage: benchmarks/gpu_table.sh OUTPUT"}
python=${PYTHON:-python} failed=0
mkdir -p "$output"
output=$(cd "$output" && pwd)

if [[ ${DRY_RUN:-0} == 1 ]]; then
    changes='num_layers=1, embed_dim=32, num_heads=2, context_length=32, vocab_size=128'
    batch=2 rows=1,2 tokens=(--prompt-tokens=8 --new-tokens=4) modes=eager
    short=(--rounds=2 --round-seconds=0.01 --warmup=1)
else
    export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}
    changes='context_length=1024'
    batch=${BATCH:-32} rows=1,64 tokens=(--prompt-tokens=128 --new-tokens=256) modes=compile
    short=(--rounds=8 --round-seconds=1)
fi

# config NAME OPTIMIZER: writes a config with random data in mind: GPT-2 124M as nanoGPT has it, with biases.
config() {
    cat >"$output/$1.py" <<END
"""GPT-2 124M for a benchmark of one GPU."""

from dataclasses import replace

from configs.gpt2_124m import config as base
from gptjax.optim import AdamW, Muon
from gptjax.sharding.mesh import MeshConfig

model = replace(base.model, bias=True, activation="${3:-gelu_tanh}", $changes)
config = replace(
    base, name="$1", batch_size=$batch, grad_accum=1, model=model, optimizer=$2, mesh=MeshConfig("single"), evaluators=()
)
END
}

# part NAME SECONDS COMMAND...: runs a part with a time limit, and keeps what it prints.
part() {
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    printf '\n=== %s\n' "$name"
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$output/$name.log" || { failed=1 && echo "--- $name FAILED"; }
    echo "--- $name: $((SECONDS - start)) s"
}

bench() {
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$python" -m gptjax.bench --random-data "${short[@]}" --output="$output/$name" "$@"
}

peer=transformers activation=gelu_tanh
if [[ -n ${NANOGPT:-} ]]; then peer=nanogpt:$NANOGPT activation=gelu; fi
config adamw 'AdamW(learning_rate=6e-4, beta2=0.95)' "$activation"
config muon 'Muon()' "$activation"

bench train 160 --config="$output/adamw.py" --peer="$peer" --torch-mode="$modes"
bench decode 110 --config="$output/adamw.py" --decode --decode-batches="$rows" "${tokens[@]}" --peer=transformers \
    --torch-mode=eager
# Command buffers (CUDA graphs) would hide the names of kernels.
XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer=" \
    bench optimizers 90 --config="$output/adamw.py" --peer=config:"$output/muon.py" --profile
if [[ ${DRY_RUN:-0} == 1 ]]; then
    part tests 60 "$python" -m pytest -q -m gpu -n 0 --collect-only
else
    part tests 110 "$python" -m pytest -q -m gpu -n 1
fi
exit "$failed"
