#!/usr/bin/env bash
# Train on this machine, with whatever devices JAX finds here. All arguments go to gptjax.train:
#
#     launch/local.sh --config=configs/quickstart.py --steps=200
#
# PYTHON names the interpreter (default: python). What is already set in the environment is kept.
set -euo pipefail

# Compiled programs are kept between runs, those that took long enough to be worth it.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${GPTJAX_CACHE:-$HOME/.cache/gptjax}/compiled}"

# On a CPU, much time goes into pages that malloc gives back and asks for again. GPTJAX_KEEP_MEMORY=1 keeps them (glibc
# only): faster steps for a process that never gets smaller. These must be set before Python starts.
if [[ "${GPTJAX_KEEP_MEMORY:-0}" == 1 ]]; then
    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_ARENA_MAX=1
fi

exec "${PYTHON:-python}" -m gptjax.train "$@"
