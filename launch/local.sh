#!/usr/bin/env bash
# Train on this machine, on whatever devices JAX finds. All arguments go to gptjax.train:
#
#     launch/local.sh --config=configs/quickstart.py --steps=200
#
# PYTHON names the interpreter (default: python). Variables that are already set are kept.
set -euo pipefail

# On a CPU, malloc spends much time on returning memory to the system and requesting it again. GPTJAX_KEEP_MEMORY=1 keeps
# it (glibc only): steps are faster, and the process never shrinks. These variables must be set before Python starts.
if [[ "${GPTJAX_KEEP_MEMORY:-0}" == 1 ]]; then
    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_ARENA_MAX=1
fi

exec "${PYTHON:-python}" -m gptjax.train "$@"
