#!/usr/bin/env bash
# Train on all GPUs of one node (8, say), in one process: JAX needs no launcher for that. All arguments go to gptjax.train:
#
#     launch/gpu_node.sh --config=configs/quickstart.py --layout=fsdp
#
# CUDA_VISIBLE_DEVICES=0,1 takes some of them. PYTHON names the interpreter (default: python). What is already set in the
# environment is kept.
set -euo pipefail

# Without a GPU that JAX can use, fail at once instead of training on the CPU.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"

# The share of each GPU's memory that JAX takes when it starts; the rest is for CUDA, NCCL and cuDNN. JAX's own default
# is 0.75.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"

# Compiled programs, and the kernels chosen while compiling, are kept between runs.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${GPTJAX_CACHE:-$HOME/.cache/gptjax}/compiled}"

# Overlaps collectives with computation: latency-hiding scheduler, pipelined collectives, double-buffered loops (see
# GPU_performance.md in NVIDIA/JAX-Toolbox).
export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}"

# Advice for Hopper from the same document: kernels start in the order in which the scheduler put them.
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"

exec "${PYTHON:-python}" -m gptjax.train "$@"
