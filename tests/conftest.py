"""Every test runs on eight CPU devices, so that a layout can be real anywhere; no accelerator, no network."""

import os

os.environ["JAX_PLATFORMS"] = "cpu" if "gpu" not in os.environ.get("PYTEST_ADDOPTS", "") else ""
os.environ["HF_HUB_OFFLINE"] = "1"

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
