"""Changes of gptjax/model."""

from .mutation import mutate

MODEL = (
    *mutate(
        "gptjax/model/attention_inputs.py",
        "test_attention.py",
        # A token sees the next one.
        ("return (distance >= 0) if window", "return (distance >= -1) if window"),
        # A window is one token too wide.
        ("(distance < window)", "(distance <= window)"),
        # A token sees earlier documents.
        ("queries[:, :, None] == keys[:, None, :]", "queries[:, :, None] >= keys[:, None, :]"),
    ),
    *mutate(
        "gptjax/model/flash_attention.py",
        "test_attention.py",
        # A window of cuDNN's kernel is one token too wide.
        ("(options.window - 1, 0)", "(options.window, 0)"),
    ),
    *mutate(
        "gptjax/model/flash_attention.py",
        "test_flash_attention.py",
        # The same with documents.
        ("sliding_window_length=options.window", "sliding_window_length=None"),
        # Documents of a packed row begin a token late.
        ("jnp.where(is_used, starts, -1), jnp.all", "jnp.where(is_used, starts + 1, -1), jnp.all"),
        # A document too many is dropped.
        ("jnp.all(count <= max_documents)", "jnp.all(count <= max_documents + 1)"),
        # A window of splash attention is one token too wide.
        ("(window - 1, 0), offset=0", "(window, 0), offset=0"),
        # Splash attention does not scale scores.
        ("heads_first(q * options.scale)", "heads_first(q)"),
    ),
    *mutate(
        "gptjax/model/xla_attention.py",
        "test_attention.py",
        # Query head h reads key head h mod J.
        (
            "x.reshape(rows, length, shared, -1, width).transpose(0, 2, 3, 1, 4)",
            "x.reshape(rows, length, -1, shared, width).transpose(0, 3, 2, 1, 4)",
        ),
        # A block of queries misses the first key in its window.
        ("max(0, first - window + 1)", "max(0, first - window + 2)"),
        # Scores of sinks are not scaled.
        ("[extra * options.scale, scores]", "[extra, scores]"),
        # Values of sinks are not added.
        ('"BJRTI,IJK->BJRTK", weights[..., :count]', '"BJRTI,IJK->BJRTK", 0 * weights[..., :count]'),
        # Dropout of probabilities loses their mean.
        ("weights / (1.0 - options.dropout), 0.0", "weights, 0.0"),
        # The first queries of a block miss keys within their window.
        ("options.window + size)", "options.window)"),
        # Every block of queries drops the same probabilities.
        (
            "(jax.random.fold_in, (0, None)), (0, None))(dropout_keys, data)",
            "(lambda k, d: k, (0, None)), (0, None))(dropout_keys, data)",
        ),
    ),
    *mutate(
        "gptjax/model/layers.py",
        "test_layers.py",
        # RMSNorm divides by the norm, not by the root mean square.
        ("jax.lax.rsqrt(jnp.square(x32).mean(axis=-1", "jax.lax.rsqrt(jnp.square(x32).sum(axis=-1"),
        # LayerNorm divides by the root mean square, not by the standard deviation.
        ("jnp.square(centred).mean", "jnp.square(x32).mean"),
        # Logits are not divided by the cap.
        ("cap * jnp.tanh(ratio)", "cap * jnp.tanh(logits)"),
        # Dropout keeps the share that it should drop.
        ("bernoulli(key, 1.0 - rate", "bernoulli(key, rate"),
    ),
    *mutate(
        "gptjax/model/positions.py",
        "test_positions.py",
        # Rotation in the other direction: trained and imported weights compute something else.
        ("first * cos - second * sin, first * sin + second", "first * cos + second * sin, -first * sin + second"),
        # Speeds fall by half of the exponent.
        ("-jnp.arange(pairs) / pairs", "-jnp.arange(pairs) / self.head_dim"),
        # Pairs that should stand still turn.
        ("jnp.zeros(pairs - rotated)", "jnp.ones(pairs - rotated)"),
    ),
    *mutate(
        "gptjax/model/positions.py",
        "test_generation.py::test_greedy_text_equals_decoding_without_cache",
        # A token that is read alone gets the embedding of position 0.
        ("(rows, positions[0], len", "(rows, 0 * positions[0], len"),
    ),
    *mutate(
        "gptjax/model/attention.py",
        "test_model_extras.py::test_option_equals_formula_and_cache_and_is_causal",
        # Sinks depend on the position of the query.
        ("else self.sinks(q)", "else self.sinks(config.position_scheme.rotate(q, k, positions)[0])"),
    ),
    *mutate(
        "gptjax/model/block.py",
        "test_model_extras.py::test_option_equals_formula_and_cache_and_is_causal",
        # The MLP reads the residual stream without its norm.
        ("self.mlp(self.mlp_norm(x))", "self.mlp(x)"),
    ),
    *mutate(
        "gptjax/model/block.py",
        "test_gpt.py::test_dropout_sites_equal_formula",
        # All layers drop the same channels.
        ("fold_in_rows(inputs.dropout_keys, layer))", "inputs.dropout_keys)"),
        # Attention and MLP drop the same channels.
        ("fold_in_rows(dropout_keys, MLP_OUTPUT)", "fold_in_rows(dropout_keys, ATTENTION_OUTPUT)"),
    ),
    *mutate(
        "gptjax/model/extras.py",
        "test_model_extras.py::test_unet_returns_the_first_half_in_reverse",
        # The U-Net keeps one skip too many, and the second half reads the wrong ones.
        ("layer < self.half and self.config.unet_skips !=", "layer <= self.half and self.config.unet_skips !="),
    ),
    *mutate(
        "gptjax/model/extras.py",
        "test_model_extras.py::test_x0_is_mixed_in_before_every_block",
        # The residual stream and the embeddings change places.
        (
            "add_scaled(self.residual_mix[...], x, self.x0_mix[...], x0)",
            "add_scaled(self.residual_mix[...], x0, self.x0_mix[...], x)",
        ),
    ),
    *mutate(
        "gptjax/model/gpt.py",
        "test_model_extras.py::test_option_equals_formula_and_cache_and_is_causal",
        # A layer mixes in the values of the layer before, not of the first.
        ("self.config.value_residual and first_values is None", "self.config.value_residual"),
        # Embeddings are not normalised.
        ("if config.embedding_norm else x", "if False else x"),
    ),
    *mutate(
        "gptjax/model/gpt.py",
        "test_model_extras.py::test_norms_positions_activations_and_heads_equal_formula",
        # An untied head is reshaped, not transposed.
        ("self.head[...].T", "self.head[...].reshape(self.token_embedding.shape)"),
    ),
    *mutate(
        "gptjax/model/config.py",
        "test_model_config.py",
        # The pattern of windows begins with its second letter.
        ("self.window_pattern[layer %", "self.window_pattern[(layer + 1) %"),
        # Scores are divided by √D, not by √K.
        ("1.0 / math.sqrt(self.head_dim)", "1.0 / math.sqrt(self.embed_dim)"),
        # FLOPs count one key too few for each query of a window.
        ("window * (window - 1) / (2", "window * (window + 1) / (2"),
    ),
    *mutate(
        "gptjax/model/config.py",
        "test_gpt.py::test_initial_weights_have_the_spread_of_gpt2",
        # Each layer adds one matrix to the residual stream, not two.
        ("math.sqrt(2 * self.num_layers)", "math.sqrt(self.num_layers)"),
    ),
    *mutate(
        "gptjax/model/loss.py",
        "test_loss.py::test_bfloat16_gradients_compile_in_full_optimization",
        # XLA may move a transposition into a product that CPUs then cannot multiply.
        ("return finish_product(jnp.einsum(", "return (jnp.einsum("),
    ),
    *mutate(
        "gptjax/model/loss.py",
        "test_loss.py",
        # A column that pads the vocabulary takes part.
        ("column < options.vocab_size", "column <= options.vocab_size"),
        # z-loss drives the partition away from 1.
        ("scored * (1.0 + 2.0 * options.z_loss", "scored * (1.0 - 2.0 * options.z_loss"),
        # Tokens that are not scored add to the gradient.
        ("weight = scored if", "weight = jnp.ones_like(scored) if"),
        # Tokens that are not scored add to the loss.
        ("nats = (log_partition - label) * scored", "nats = log_partition - label"),
        # Tokens that are not scored are counted.
        ("targets), jnp.sum(targets != IGNORE_INDEX)", "targets), jnp.int32(targets.size)"),
        # The last chunk is filled with a token that is scored.
        ("fill=0 if i else IGNORE_INDEX", "fill=0"),
        # A last chunk that is not full is left out.
        ("-(-jnp.sum(scored) // size)", "jnp.sum(scored) // size"),
        # Gradients go to other tokens.
        ("jnp.argsort(self.order)", "self.order"),
        # The gradient of the head misses the softcap.
        ("softcap_vjp(d_logits)[0]", "d_logits"),
    ),
    *mutate(
        "gptjax/generation/sampling.py",
        "test_generation.py::test_filters_equal_plain_numpy "
        "test_generation.py::test_filters_break_ties_towards_the_lower_id",
        # top-p keeps a token more where the probabilities reach p exactly.
        ("before < top_p", "before <= top_p"),
        # top-p keeps only what sums to less than p.
        ("axis=-1) - probabilities", "axis=-1)"),
        # top-k keeps a token more.
        ("min(top_k, logits.shape[-1])", "min(top_k + 1, logits.shape[-1])"),
    ),
    *mutate(
        "gptjax/generation/decoding_loop.py",
        "test_generation.py::test_samples_follow_the_probabilities_of_the_model "
        "test_generation.py::test_row_depends_neither_on_other_rows_nor_on_the_length",
        # A high temperature sharpens the distribution.
        ("logits / request.temperature", "logits * request.temperature"),
        # All rows draw alike.
        ("jnp.arange(len(logits))", "0 * jnp.arange(len(logits))"),
    ),
    *mutate(
        "gptjax/generation/decoding_loop.py",
        "test_generation.py::test_seed_decides_the_text",
        # All positions draw with one key.
        ("(row_keys, position)", "(row_keys, 0 * position)"),
    ),
    *mutate(
        "gptjax/generation/kv_cache.py",
        "test_kv_cache.py",
        # A token sees a slot that was never written.
        ("mask = age <= positions", "mask = age <= 1 + positions"),
        # Rows with positions of their own all write at the first one's.
        ("positions[row, 0] % size", "positions[0, 0] % size"),
        # A window in the cache is one token too wide.
        ("(age < window)", "(age <= window)"),
    ),
    *mutate(
        "gptjax/generation/kv_cache.py",
        "test_model_extras.py::test_text_beyond_the_context_sees_one_context_length",
        # Past its end the cache replaces the newest token, not the oldest.
        ("positions[0] % size", "jnp.minimum(positions[0], size - 1)"),
    ),
    *mutate(
        "gptjax/model/products.py",
        "invariants/test_precision.py",
        # The gradient of a weight is a sum in bfloat16.
        ("left, right = (d_product, x) if transposed else (x, d_product)", "left, right = (x, d_product)"),
    ),
    *mutate(
        "gptjax/model/projection.py",
        "invariants/test_precision.py",
        ("        preferred_element_type=jnp.float32,\n    )\n    return d_x", "    )\n    return d_x"),
    ),
    *mutate(
        "gptjax/model/stored_matrix.py",
        "test_decoding.py",
        # Operands that are not rounded as the full forward pass rounds them.
        ("jax.lax.reduce_precision(x, 8, 7)", "x"),
        # Every layer reads the first one's weights.
        ("(index, 0, i, 0), (1,", "(0, 0, i, 0), (1,"),
    ),
    *mutate(
        "gptjax/model/gpt.py",
        "invariants/test_precision.py",
        # The gradients of an embedding are added in bfloat16.
        (
            "embedding_lookup(gather(self.token_embedding, mesh), tokens",
            "embedding_lookup(gather(self.token_embedding, mesh).astype(jnp.bfloat16), tokens",
        ),
    ),
    *mutate(
        "gptjax/model/gpt.py",
        "test_gpt.py::test_compute_options_change_no_result",
        # The gradient of stacked weights is in another order.
        ("jnp.stack(leaves), *d_blocks", "jnp.stack(leaves), *d_blocks[::-1]"),
    ),
)
