"""gptjax: GPT pretraining in JAX and Flax NNX."""
