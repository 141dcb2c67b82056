#!/usr/bin/env bash
# Train on this machine, on whatever devices JAX finds. All arguments go to gptjax.train:
#
#     launch/local.sh --config=configs/quickstart.py --steps=200
#
# PYTHON names the interpreter (default: python). Variables that are already set are kept.
set -euo pipefail

exec "${PYTHON:-python}" -m gptjax.train "$@"
