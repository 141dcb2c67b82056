#!/usr/bin/env bash
# Train on all GPUs of one node, in one process: JAX needs no launcher for that. All arguments go to gptjax.train:
#
#     launch/gpu_node.sh --config=configs/quickstart.py --mesh=fsdp
#
# CUDA_VISIBLE_DEVICES=0,1 selects GPUs. PYTHON names the interpreter (default: python). Variables that are already set
# are kept.
set -euo pipefail

# Fail at once without a GPU that JAX can use, instead of training on the CPU.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"

# The fraction of each GPU's memory that JAX allocates at the start (its own default is 0.75). The rest is for CUDA, NCCL
# and cuDNN.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"

# Overlap communication with computation: latency-hiding scheduler, pipelined collectives, double-buffered loops (see
# GPU_performance.md in NVIDIA/JAX-Toolbox).
export JAX_OPTIMIZATION_LEVEL="${JAX_OPTIMIZATION_LEVEL:-O1}"

# Hopper starts kernels in the scheduler's order with one connection (advice of the same document).
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"

exec "${PYTHON:-python}" -m gptjax.train "$@"
