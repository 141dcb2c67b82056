"""Changes that would be bugs, each with the tests that must fail because of it. `run.py` applies them."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """`old` occurs exactly once in `file`. With `new` in its place at least one of `tests` must fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutate(file: str, tests: str, *changes: tuple[str, str]) -> tuple[Mutation, ...]:
    """Changes of one file that the same tests notice. `tests` are files or node ids below tests/, split by blanks."""
    paths = tuple(f"tests/{test}" for test in tests.split())
    return tuple(Mutation(file, old, new, paths) for old, new in changes)


MODEL = (
    *mutate(
        "gptjax/model/attention.py",
        "test_attention.py",
        # A token sees the next one.
        ("return (distance >= 0) if window", "return (distance >= -1) if window"),
        # A window is one token too wide.
        ("(distance < window)", "(distance <= window)"),
        # The same in the flash kernel.
        ("(options.window - 1, 0)", "(options.window, 0)"),
        # A token sees earlier documents.
        ("queries[:, :, None] == keys[:, None, :]", "queries[:, :, None] >= keys[:, None, :]"),
        # Query head h reads key head h mod J.
        (
            "x.reshape(*x.shape[:2], k.shape[2], -1, width)",
            "x.reshape(*x.shape[:2], -1, k.shape[2], width).swapaxes(2, 3)",
        ),
        # Scores of sinks are not scaled.
        ("[extra * options.scale, scores]", "[extra, scores]"),
        # Values of sinks are not added.
        ('"BJRTI,IJK->BTJRK", probabilities[..., :count]', '"BJRTI,IJK->BTJRK", 0 * probabilities[..., :count]'),
        # Dropout of probabilities loses their mean.
        ("probabilities / (1.0 - options.dropout), 0.0", "probabilities, 0.0"),
        # The first queries of a block miss keys within their window.
        ("options.window + size)", "options.window)"),
        # Every block of queries drops the same probabilities.
        ("fold_in(head_keys, first)", "fold_in(head_keys, 0 * first)"),
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
        "gptjax/model/block.py",
        "test_model_extras.py::test_option_equals_formula_and_cache_and_is_causal",
        # Sinks depend on the position of the query.
        ("else self.sinks(q)", "else self.sinks(config.position_scheme.rotate(q, k, positions)[0])"),
        # The MLP reads the residual stream without its norm.
        ("self.mlp(self.mlp_norm(x))", "self.mlp(x)"),
    ),
    *mutate(
        "gptjax/model/block.py",
        "test_gpt.py::test_dropout_sites_equal_formula",
        # All layers drop the same channels.
        ("fold_in_rows(inputs.dropout_keys, layer))", "inputs.dropout_keys)"),
        # Attention and MLP drop the same channels.
        ("ATTENTION_OUTPUT, MLP_OUTPUT = 1, 2", "ATTENTION_OUTPUT, MLP_OUTPUT = 1, 1"),
    ),
    *mutate(
        "gptjax/model/extras.py",
        "test_model_extras.py::test_unet_returns_the_first_half_in_reverse",
        # The U-Net keeps one skip too many, and the second half reads the wrong ones.
        ("if layer < self.half else skips", "if layer <= self.half else skips"),
    ),
    *mutate(
        "gptjax/model/extras.py",
        "test_model_extras.py::test_x0_is_mixed_in_before_every_block",
        # The residual stream and the embeddings change places.
        (
            "self.residual_mix[...].astype(x.dtype) * x + self.x0_mix[...].astype(x.dtype) * x0",
            "self.residual_mix[...].astype(x.dtype) * x0 + self.x0_mix[...].astype(x.dtype) * x",
        ),
    ),
    *mutate(
        "gptjax/model/gpt.py",
        "test_model_extras.py::test_option_equals_formula_and_cache_and_is_causal",
        # A layer mixes in the values of the layer before, not of the first.
        ("self.config.value_residual and first_values is None", "self.config.value_residual"),
    ),
    *mutate(
        "gptjax/model/gpt.py",
        "test_model_extras.py::test_norms_positions_activations_and_heads_equal_formula",
        # An untied head is reshaped, not transposed.
        ("self.head[...].T", "self.head[...].reshape(self.tokens.shape)"),
        # Embeddings are not normalised.
        ("if config.embedding_norm else x", "if False else x"),
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
        ("constant_values=IGNORE_INDEX", "constant_values=0"),
        # The gradient of the head misses the softcap.
        ("softcap_vjp(d_logits)[0]", "d_logits"),
    ),
    *mutate(
        "gptjax/model/generation.py",
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
        "gptjax/model/generation.py",
        "test_generation.py::test_samples_follow_the_probabilities_of_the_model "
        "test_generation.py::test_row_depends_neither_on_other_rows_nor_on_the_length",
        # A high temperature sharpens the distribution.
        ("logits / request.temperature", "logits * request.temperature"),
        # All rows draw alike.
        ("jnp.arange(len(logits))", "0 * jnp.arange(len(logits))"),
    ),
    *mutate(
        "gptjax/model/generation.py",
        "test_generation.py::test_seed_decides_the_text",
        # All positions draw with one key.
        ("(row_keys, position)", "(row_keys, 0 * position)"),
    ),
    *mutate(
        "gptjax/model/kv_cache.py",
        "test_kv_cache.py",
        # A token sees a slot that was never written.
        ("mask = age <= positions", "mask = age <= 1 + positions"),
        # Rows with positions of their own all write at the first one's.
        ("positions[row, 0] % size", "positions[0, 0] % size"),
        # A window in the cache is one token too wide.
        ("(age < window)", "(age <= window)"),
    ),
    *mutate(
        "gptjax/model/kv_cache.py",
        "test_model_extras.py::test_text_beyond_the_context_sees_one_context_length",
        # Past its end the cache replaces the newest token, not the oldest.
        ("positions[0] % size", "jnp.minimum(positions[0], size - 1)"),
    ),
)

OPTIM = (
    *mutate(
        "gptjax/optim/adamw.py",
        "test_optim.py",
        # The second moment has no bias correction.
        ("v / (1 - hp.beta2**count)", "v"),
        # Epsilon is inside the root.
        ("jnp.sqrt(v) + hp.epsilon", "jnp.sqrt(v + hp.epsilon)"),
        # Norm scales and biases decay.
        ('0.0 if weight_role(axis_names) == "vector" else self.weight_decay', "self.weight_decay"),
        # Adam's updates are clipped, not the gradients.
        (
            '("clip", clip_by_norm(self.clip_norm)),\n            ("adam", scale_by_adam(self.hyperparams)),',
            '("adam", scale_by_adam(self.hyperparams)),\n            ("clip", clip_by_norm(self.clip_norm)),',
        ),
        # The learning rate ignores the schedule.
        ("-hp.learning_rate * multiplier * u", "-hp.learning_rate * u"),
        # Cautious decay acts where the update grows the element.
        ("update * param >= 0", "update * param <= 0"),
    ),
    *mutate(
        "gptjax/optim/param_groups.py",
        "test_optim.py",
        # The group of the role overrides the named one.
        ("for group in groups:", "for group in reversed(groups):"),
        # `mix` matches `x0_mix`.
        ('path.endswith(f".{self.name}")', "path.endswith(self.name)"),
        # A group cannot set a field to 0.
        ("if value is not None}", "if value}"),
    ),
    *mutate(
        "gptjax/optim/schedules.py",
        "test_schedules.py",
        # The first step does not train.
        ("jnp.float32) + 1.0) / (warmup_steps + 1.0)", "jnp.float32)) / (warmup_steps + 1.0)"),
        # The decay ends a step too early.
        ("/ max(end - start, 1)", "/ max(end - start - 1, 1)"),
        # The cosine rises.
        ("0.5 * (1.0 + jnp.cos", "0.5 * (1.0 - jnp.cos"),
        # The stable part ends a step late.
        ("steps - round(self.decay_fraction * steps))", "steps - round(self.decay_fraction * steps) + 1)"),
    ),
    *mutate(
        "gptjax/optim/ema.py",
        "test_ema.py::test_average_is_the_plain_mean_until_it_forgets "
        "test_ema.py::test_average_equals_the_weights_before_it_starts",
        # The initial weights are in the mean.
        ("averaged / (averaged + 1.0)", "(averaged + 1.0) / (averaged + 2.0)"),
        # The beginning of the run is averaged, not its end.
        ("return steps - round(self.fraction * steps)", "return round(self.fraction * steps)"),
        # The average begins a step late.
        ("completed > self.start_step(steps=steps) + 1", "completed > self.start_step(steps=steps) + 2"),
    ),
    *mutate(
        "gptjax/optim/muon.py",
        "test_muon.py",
        # Nesterov's momentum has the bias correction of the step before.
        ("momentum / (1 - product * momentum)", "momentum / (1 - product)"),
        # The factor is √(in / out).
        ("view.output_dim / view.input_dim", "view.input_dim / view.output_dim"),
        # The factor is by the smaller side.
        ("0.2 * math.sqrt(max(", "0.2 * math.sqrt(min("),
        # NorMuon's decay and its complement change places.
        ("beta2 * second_moment + (1 - beta2) * mean_square", "(1 - beta2) * second_moment + beta2 * mean_square"),
    ),
    *mutate(
        "gptjax/optim/muon.py",
        "test_optim.py",
        # Matrices with a group of their own are still Muon's.
        ('== "matrix" and not any(', '== "matrix" or any('),
    ),
    *mutate(
        "gptjax/optim/orthogonalize.py",
        "test_muon.py",
        # An iteration without its fifth power.
        ("c * (gram @ gram)", "c * gram"),
    ),
)

DATA = (
    *mutate(
        "gptjax/data/sequences.py",
        "test_sequences.py",
        # The last row reaches beyond the stream.
        ("max(0, (len(self.stream) - 1) //", "max(0, len(self.stream) //"),
        # Every row skips a token.
        ("return rows * self.context_length", "return rows * self.context_length + 1"),
        # Padding is scored as token 0.
        ("IGNORE_INDEX), IGNORE_INDEX)}", "IGNORE_INDEX), 0)}"),
        # The end of a document is predicted from the beginning of another.
        ("scored[last] &= end is not None and targets[last] == end", "pass"),
        # The first document of a row has the number of padding.
        ("first_of_row[row] + 1, lengths)", "first_of_row[row], lengths)"),
        # The loss mask is of the input, not of the target.
        ("np.arange(1, self.context_length + 1)] == 1", "np.arange(self.context_length)] == 1"),
        # The same in packed rows.
        ("(mask[np.minimum(positions + 1, last)] == 1)", "(mask[positions] == 1)"),
        # Positions count through the documents of a row.
        ("positions = places - np.maximum.accumulate(", "positions = places - 0 * np.maximum.accumulate("),
    ),
    *mutate(
        "gptjax/data/packing.py",
        "test_packing.py",
        # A last document that just fits is dropped.
        ("document_starts + context_length + 1 <= tokens", "document_starts + context_length + 1 < tokens"),
        # A row may begin with a document that the row before has reached.
        ("usable + context_length)", "usable + context_length - 1)"),
        # A piece that just fills a row is not marked as its document's end.
        ("left <= context_length", "left < context_length"),
        # The last piece of a document is as long as a row.
        ("np.minimum(context_length, left), left", "np.full_like(left, context_length), left"),
        # A cropped document is marked as its document's end.
        ("cropped == lengths[pieces]", "cropped <= lengths[pieces]"),
        # The shortest documents are packed first.
        ("np.argsort(-lengths", "np.argsort(lengths"),
        # Groups after the first are packed from the documents of the first.
        ("order.append(begin + np.argsort", "order.append(np.argsort"),
    ),
    *mutate(
        "gptjax/data/readers.py",
        "test_loader.py",
        # Sequences of two epochs are mixed.
        (".shuffle(seed=spec.seed).repeat()", ".repeat(2).shuffle(seed=spec.seed).repeat()"),
        # All epochs have one order.
        (".repeat()", ".repeat(reseed_each_epoch=False)"),
        # The seed is not used.
        ("seed=spec.seed", "seed=0"),
        # A component of a mixture skips what the other components read.
        (".read(numbers[own])", ".read(rows[own])"),
        # Passes are counted in whole numbers.
        ("rows / len(self.sequences)", "rows // len(self.sequences)"),
    ),
    *mutate(
        "gptjax/data/config.py",
        "test_data_config.py::test_mixture_components_read_in_different_orders",
        # All members of a mixture have one order.
        ("(spec.seed + 7919 * i) % 2**32", "spec.seed"),
    ),
    *mutate(
        "gptjax/data/mixture.py",
        "test_mixture.py",
        # A change of weights repeats rows of the components.
        ("self._count(j, int(begin - self._begins[j]))", "self._count(j, int(begin - self._begins[j]) - 1)"),
        # The component furthest ahead is next.
        ("np.argmax(behind)", "np.argmax(-behind)"),
    ),
    *mutate(
        "gptjax/data/loader.py",
        "test_loader.py",
        # A resumed run skips a step.
        ("[step:].map(", "[step + 1 :].map("),
        # A process reads the rows of the first process.
        ("self.spec.batch_schedule) + places)", "self.spec.batch_schedule) + np.arange(len(places)))"),
        # A process reads the rows of all.
        ("sharding.addressable_devices_indices_map", "sharding.devices_indices_map"),
        # The loss mask of validation is that of the inputs.
        ("mask[start + 1 : start + 1 + count]", "mask[start : start + count]"),
        # Validation drops its last batch where it is not full.
        ("range(0, predicted, per_batch)", "range(0, predicted - per_batch + 1, per_batch)"),
        # A new batch size begins a step late.
        ("batch_schedule) if begin <= step", "batch_schedule) if begin < step or not begin"),
    ),
    *mutate(
        "gptjax/data/batch_size.py",
        "test_loader.py::test_changing_batch_sizes_read_the_same_sequence_of_rows",
        # Rows are counted by micro-batches.
        ("count * batch.size", "count * batch.microbatch"),
    ),
    *mutate(
        "gptjax/data/token_stream.py",
        "test_shards.py test_sequences.py",
        # Positions of an id are those within its file.
        ("begin + start + np.flatnonzero", "start + np.flatnonzero"),
    ),
    *mutate(
        "gptjax/data/shards.py",
        "test_shards.py",
        # 65,536 ids take four bytes.
        ("vocab_size <= 2**16", "vocab_size < 2**16"),
    ),
    *mutate(
        "gptjax/data/splits.py",
        "test_shards.py",
        # Any name that contains a split's belongs to it.
        ('split in re.split(r"[^A-Za-z]+", name)', "split in name"),
    ),
    *mutate(
        "gptjax/data/checksums.py",
        "test_checksums.py test_verify.py",
        # Hashes are not compared.
        ("if found != listed[name].sha256:", "if not found:"),
        # A file that was read once is never read again.
        ("known.get(name) != state", "name not in known"),
        # The id after the last of the vocabulary is accepted.
        ("largest >= manifest.vocab_size", "largest > manifest.vocab_size"),
        # Empty documents are accepted.
        ("prepend=before) <= 0)", "prepend=before) < 0)"),
    ),
    *mutate(
        "gptjax/data/preferences.py",
        "test_preferences.py",
        # Chosen and rejected change places.
        (
            "*self._read_document(2 * index), *self._read_document(2 * index + 1)",
            "*self._read_document(2 * index + 1), *self._read_document(2 * index)",
        ),
    ),
)

TRAINING = (
    *mutate(
        "gptjax/training/checkpoint_format.py",
        "test_checkpoint.py::test_best_has_the_lowest_finite_loss",
        # The worst checkpoint is kept as the best.
        ("return min(losses, key", "return max(losses, key"),
        # Of equal losses the last is the best.
        ("(losses[step], step), default", "(losses[step], -step), default"),
    ),
    *mutate(
        "gptjax/training/checkpoint_format.py",
        "test_checkpoint_format.py::test_find_step_lists_the_steps_that_exist",
        # `latest` is the first step.
        ("return steps[-1]", "return steps[0]"),
    ),
    *mutate(
        "gptjax/training/checkpoint.py",
        "test_checkpoint.py::test_prune_keeps_the_newest_and_the_best",
        # One checkpoint too many is kept.
        ("steps[-config.keep :]", "steps[-config.keep - 1 :]"),
        # The best is kept where it should not be.
        ("if config.keep_best else []", "if not config.keep_best else []"),
    ),
    *mutate(
        "gptjax/training/checkpoint.py",
        "test_checkpoint.py::test_config_decides_when_to_save",
        # The last step is not saved.
        ("return step == steps or (self.every", "return (self.every"),
    ),
    *mutate(
        "gptjax/training/nonfinite.py",
        "test_nonfinite.py",
        # The run ends one skipped update late.
        ('["consecutive_skips"]) < self._limit', '["consecutive_skips"]) <= self._limit'),
        # Weights that may be bad are saved.
        ("step == self._steps or int(state.consecutive_skips) == 0", "True"),
    ),
    *mutate(
        "gptjax/training/step.py",
        "test_step.py",
        # An update is applied though it is not finite.
        ("& jnp.isfinite(optax.tree.norm(updates))", ""),
        # The moments of a skipped update stay.
        ("optimizer=select(moments, state.optimizer)", "optimizer=moments"),
        # Skipped updates are counted through the run.
        ("jnp.where(finite, 0, state", "jnp.where(finite, state.consecutive_skips, state"),
        # All steps drop the same channels.
        ("jax.random.fold_in(jax.random.key(seed), step)", "jax.random.key(seed)"),
        # Micro-batches drop the same channels.
        ("jnp.arange(groups * rows))", "jnp.arange(groups * rows) % rows)"),
    ),
    *mutate(
        "gptjax/training/step.py",
        "invariants/test_layout.py::test_scored_tokens_weigh_the_same_in_every_micro_batch",
        # The loss is divided by all tokens, scored or not.
        ('scored = jnp.sum(batch["targets"] != IGNORE_INDEX)', 'scored = jnp.int32(batch["targets"].size)'),
    ),
    *mutate(
        "gptjax/training/step.py",
        "test_stages.py::test_lr_scale_at_is_that_of_the_last_phase",
        # The learning rate of a stage begins a step late.
        ("step >= first_step", "step > first_step"),
    ),
    *mutate(
        "gptjax/training/step.py",
        "test_stages.py::test_lr_scale_scales_learning_rates_and_decay",
        # The learning rate of a stage is logged and not applied.
        ("lambda update: factor * update", "lambda update: update"),
    ),
    *mutate(
        "gptjax/training/stages.py",
        "test_stages.py::test_lr_scale_scales_learning_rates_and_decay",
        # The learning rate of a stage is lost.
        ("replace(model, **windows), stage.lr_scale)", "replace(model, **windows))"),
    ),
    *mutate(
        "gptjax/training/evaluators.py",
        "test_evaluators.py",
        # The loss mask is that of the inputs.
        ("mask[1 : 1 + self.predicted]", "mask[: self.predicted]"),
        # Bits are nats times ln 2.
        ("nats / math.log(2) / text_bytes}", "nats * math.log(2) / text_bytes}"),
        # Bytes are those of the inputs.
        ("ids[1:] if mask is None", "ids[:-1] if mask is None"),
        # The last weights are not evaluated.
        ("return step % self.every == 0 or step == steps", "return step % self.every == 0"),
    ),
    *mutate(
        "gptjax/training/bigram.py",
        "test_bigram.py",
        # Probabilities do not sum to 1 after the last token of the text.
        ("(counts.followed[tokens[:-1]] + constant)", "(counts.unigrams[tokens[:-1]] + constant)"),
    ),
)

TOKENIZATION = (
    *mutate(
        "gptjax/tokenization/chat.py",
        "test_chat.py",
        # The first answer of a completion is not scored.
        ("number >= scored_from", "number > scored_from"),
        # The end of an answer is not learned.
        ("yield self._end, scored", "yield self._end, False"),
        # The header of an answer is learned.
        ("yield self._headers[message.role], False", "yield self._headers[message.role], scored"),
    ),
    *mutate(
        "gptjax/tokenization/tokenizer.py",
        "test_tokenizer.py test_bpe_trainer.py",
        # Special tokens leave an id free.
        ("self.vocab_size + i for i", "self.vocab_size + 1 + i for i"),
        # Tokenizers with other special tokens are taken for the same.
        ("table, sorted(self.specials.items())]", "table]"),
        # Text can contain special tokens.
        ("disallowed_special=())", 'allowed_special="all")'),
    ),
    *mutate(
        "gptjax/huggingface/gpt2_mapping.py",
        "test_huggingface_gpt2.py",
        # Heads and q, k, v change places.
        ('"D CHK"', '"D HCK"'),
        # Channels and heads change places.
        ('"HK D"', '"KH D"'),
        # An untied head is not transposed.
        ('"head", "V D"', '"head", "D V"'),
    ),
)

CORE = (
    *mutate(
        "gptjax/core/serialization.py",
        "test_serialization.py",
        # Any module of the environment is imported.
        ('module.partition(".")[0] != "gptjax" or not _is_dotted_name(module)', "not _is_dotted_name(module)"),
        # Classes that gptjax only imports are built.
        ('getattr(found, "__module__", None) != module', "found is None"),
        # A class is built before it is known to fit.
        ("if not _may_fit(cls, hint):", "if False:"),
    ),
    *mutate(
        "gptjax/core/files.py",
        "test_core_files.py",
        # Two processes hold a lock.
        ("fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),
        # A file that could not be written is replaced by a part of it.
        ('path.with_name(f".{path.name}.{os.getpid()}.tmp")', "path"),
    ),
    *mutate(
        "gptjax/core/config_files.py",
        "test_config_files.py",
        # A file in the working directory replaces a module of the environment.
        ("sys.path.append(str(here))", "sys.path.insert(0, str(here))"),
    ),
)

METRICS = (
    *mutate(
        "gptjax/metrics/metrics_file.py",
        "test_metrics_file.py",
        # A resumed run loses the line of the step at which it resumes.
        ('record["step"] <= step', 'record["step"] < step'),
    ),
    *mutate(
        "gptjax/metrics/throughput.py",
        "test_logger.py",
        # The work of a step is that of the next one.
        ("count(step) - count(step - 1)", "count(step + 1) - count(step)"),
    ),
    *mutate(
        "gptjax/metrics/logger.py",
        "test_logger.py",
        # Evaluation counts as training time.
        ("self._step_began_at += seconds", "self._step_began_at += 0"),
        # A resumed run counts its training time from 0.
        ("self._seconds = self._seconds_before", "self._seconds = 0.0"),
    ),
    *mutate(
        "gptjax/metrics/logger.py",
        "test_loggers.py",
        # A resumed run sends the last step of the run before again.
        ("first_step=self._start_step + 1", "first_step=self._start_step"),
    ),
)

RUN_DIR = (
    *mutate(
        "gptjax/run_dir.py",
        "test_run_dir.py",
        # Weights are loaded with the tokenizer of another run.
        ("saved not in (None, self.tokenizer.fingerprint)", "saved is False"),
        # A tokenizer that just fits is refused.
        ("self.tokenizer.vocab_size > vocab_size", "self.tokenizer.vocab_size >= vocab_size"),
    ),
    *mutate(
        "gptjax/run_dir.py",
        "test_ema.py::test_opened_run_and_export_use_the_average",
        # The raw weights are loaded though there is an average.
        ("EMA_ITEM if ema and self.has_ema(which) else MODEL", "MODEL"),
    ),
    *mutate(
        "gptjax/model/finetuning.py",
        "test_finetuning.py",
        # A run starts with more positions than the weights have.
        ("min(limit, wanted.context_length)", "max(limit, wanted.context_length)"),
    ),
)

DATA_PIPELINES = (
    *mutate(
        "data_pipelines/encode/splits.py",
        "test_splits.py",
        # The documents of another part of the hash are for validation.
        ("digest()[:8]", "digest()[8:16]"),
        # The validation fraction is for training.
        ("return points < self.fraction", "return points > self.fraction"),
        # The last of the permutation are drawn.
        (".permutation(total)[:chosen]", ".permutation(total)[-chosen:]"),
        # A document that lies over the cut is for training only.
        ("if 0 < left < length:", "if False:"),
    ),
    *mutate(
        "data_pipelines/encode/encoder.py",
        "test_encoder.py test_journal.py::test_prepare_continues_after_any_batch",
        # A run that continues loses a unit.
        ("[Unit](), 0, start", "[Unit](), 0, start + 1"),
        # A run that continues writes the first units again.
        ("islice(units, start, None)", "islice(units, 0, None)"),
    ),
    *mutate(
        "data_pipelines/encode/encoder.py",
        "test_encoder.py",
        # Every piece of a document begins with the end-of-text id.
        ("if piece.begins else [ids]", "if True else [ids]"),
        # Blank documents have no number.
        ("            number += piece.ends", "                number += piece.ends"),
        # Every piece is counted as a document.
        ('starts[parts["begins"]]', "starts"),
        # Tokens of validation are written to training, too.
        ('self.tokens[np.repeat(mask, self.parts["tokens"])]', "self.tokens"),
        # Parts of a long document are one token too long.
        ("self.max_tokens - len(before)", "self.max_tokens"),
        # The rest of a long document is dropped.
        ("range(0, len(ids), length)", "range(0, len(ids) - length + 1, length)"),
    ),
    *mutate(
        "data_pipelines/encode/pieces.py",
        "test_pieces.py",
        # A document is cut before any white space, where a token may cross.
        ("%b(?= )|", r"%b(?=\s)|"),
    ),
    *mutate(
        "data_pipelines/output/shard_writer.py",
        "test_shard_writer.py",
        # Documents begin where they do within a call.
        ('"documents", starts + self.tokens', '"documents", starts'),
        # What was written after the record stays.
        ("file.truncate(size)", "pass"),
        # Writing continues at the beginning of a file.
        ("file.seek(size)", "file.seek(0)"),
        # Files that are cut short are taken for complete.
        ("st_size >= size for", "st_size >= 0 for"),
    ),
    *mutate(
        "data_pipelines/output/journal.py",
        "test_journal.py",
        # A run continues behind what is in the files.
        ('Progress(content["units"],', 'Progress(content["units"] + 1,'),
        # A run continues the work of another request.
        ("if self._header.items() <= content.items():", "if content:"),
    ),
    *mutate(
        "data_pipelines/prepare.py",
        "test_journal.py test_prepare.py",
        # After a kill documents are numbered from 0.
        ("documents, notes = done.documents", "documents, notes = 0"),
    ),
    *mutate(
        "data_pipelines/scored_shards.py",
        "test_prepare_chat.py test_prepare_preferences.py",
        # Conversations without anything scored are kept.
        ("document.loss_mask.any() for document in short", "True for document in short"),
        # The loss mask of a document that is cut off is too long.
        ("document.loss_mask[:limit]", "document.loss_mask"),
    ),
    *mutate(
        "data_pipelines/prepare_preferences.py",
        "test_prepare_preferences.py",
        # Answers of the prompt are scored.
        ("scored_from=len(prompt)", "scored_from=0"),
        # Pairs of one prompt are on both sides of a split.
        ("Example(repr(prompt)", "Example(repr(completions)"),
    ),
)

MUTATIONS = (
    *MODEL,
    *OPTIM,
    *DATA,
    *TRAINING,
    *TOKENIZATION,
    *CORE,
    *METRICS,
    *RUN_DIR,
    *DATA_PIPELINES,
)
