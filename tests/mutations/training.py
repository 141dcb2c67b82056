"""Changes of gptjax/training."""

from .mutation import mutate

TRAINING = (
    *mutate(
        "gptjax/checkpoints/checkpoint_format.py",
        "test_checkpoint.py::test_best_has_the_lowest_finite_loss",
        # The worst checkpoint is kept as the best.
        ("key=lambda row: (row[2], row[0])", "key=lambda row: (-row[2], row[0])"),
        # Of equal losses the last is the best.
        ("key=lambda row: (row[2], row[0])", "key=lambda row: (row[2], -row[0])"),
    ),
    *mutate(
        "gptjax/checkpoints/checkpoint_format.py",
        "test_checkpoint_format.py::test_find_step_lists_the_steps_that_exist",
        # `latest` is the first step.
        ('steps[::-1] if which == "latest"', 'steps if which == "latest"'),
    ),
    *mutate(
        "gptjax/checkpoints/rotation.py",
        "test_checkpoint.py::test_prune_keeps_the_newest_and_the_best",
        # One checkpoint too many is kept.
        ("sorted(existing)[-keep:]", "sorted(existing)[-keep - 1 :]"),
        # The best is kept where it should not be.
        ("if keep_best else None", "if not keep_best else None"),
    ),
    *mutate(
        "gptjax/checkpoints/checkpoint.py",
        "test_checkpoint.py::test_config_decides_when_to_save",
        # The last step is not saved.
        ("return step == steps or any(", "return any("),
    ),
    *mutate(
        "gptjax/checkpoints/integrity.py",
        "test_checkpoint_integrity.py",
        # A checkpoint counts before it is on the disk.
        ("pool.submit(sync_tree, unfinished)", "pool.submit(list)"),
        # The record of the run is not synced.
        ("        sync_path(path)\n", ""),
        # Its name may be lost.
        ("    sync_path(step_directory.parent)\n", ""),
        # Changed bytes are not noticed.
        ("if not (problems := find_damage(path, new)):", "if not (problems := []):"),
    ),
    *mutate(
        "gptjax/checkpoints/saver.py",
        "test_saver.py",
        # A failed save is not tried again.
        ("now - self._failed_at >= RETRY_SECONDS", "False"),
    ),
    *mutate(
        "gptjax/checkpoints/checkpoint.py",
        "test_resume.py::test_going_back_keeps_later_checkpoints_and_happens_once test_checkpoint_integrity.py",
        # What a start that is accepted passes over keeps its name, and mixes with what comes.
        ("            make_way(self._directory, self._choice)\n", ""),
    ),
    *mutate(
        "gptjax/process/process_end.py",
        "test_trainer.py::test_refused_start_removes_only_what_gptjax_has_written_in_it",
        # A start that another process refuses leaves its directory.
        ("    if (undo := _undo) is not None:\n        undo()\n", ""),
    ),
    *mutate(
        "gptjax/sharding/start_judge.py",
        "test_start_judge.py",
        # A process that imports from a slow disk is called dead.
        ("SILENCE_SECONDS = 40.0", "SILENCE_SECONDS = 10.0"),
        # A marker that an earlier start has left ends this one.
        ('float("-inf") if is_old else 0.0', "0.0"),
        # The end of an earlier start of this process ends this one.
        ("if not is_fresh or of_earlier:", "if not is_fresh:"),
    ),
    *mutate(
        "gptjax/sharding/start_place.py",
        "test_start_marker.py",
        # A process takes the place of one that lives.
        ("return not is_alive and self._twin_looks > STILL_BEATS", "return self._twin_looks > STILL_BEATS"),
        # A user's own empty directories are removed.
        ("[: max(1, self._made)]", ""),
    ),
    *mutate(
        "gptjax/sharding/joining.py",
        "test_joining.py::test_process_whose_connection_has_ended_is_gone",
        # A probe of the port that leaves ends the start.
        ("HELD_LOOKS = 30", "HELD_LOOKS = 1"),
    ),
    *mutate(
        "gptjax/supervision/divergence.py",
        "test_divergence.py",
        # The run ends one skipped update late.
        ("if skips >= self._limit", "if skips > self._limit"),
        # A checkpoint whose next step was bad counts as good.
        ("last_good=first_bad - 2", "last_good=first_bad - 1"),
        # Weights that may be bad are saved.
        ("step == self._steps or int(state.consecutive_skips) == 0", "True"),
    ),
    *mutate(
        "gptjax/training/step.py",
        "test_step.py",
        # An update is applied though it is not finite.
        ("& jnp.isfinite(in_optimizer(optax.tree.norm)(updates))", ""),
        # The moments of a skipped update stay.
        ("optimizer=select(moments, state.optimizer)", "optimizer=moments"),
        # Skipped updates are counted through the run.
        ("jnp.where(finite, 0, state", "jnp.where(finite, state.consecutive_skips, state"),
        # All steps drop the same channels.
        ("jax.random.fold_in(jax.random.key(seed), step)", "jax.random.key(seed)"),
        # Micro-batches drop the same channels.
        ("jnp.arange(micro_batches * rows))", "jnp.arange(micro_batches * rows) % rows)"),
    ),
    *mutate(
        "gptjax/training/step.py",
        "test_step.py::test_unscored_copies_of_rows_change_neither_loss_nor_gradient",
        # The gradient is divided by all tokens, scored or not.
        ("jnp.maximum(sums.scored, 1)\n    return", 'jnp.int32(batch["targets"].size)\n    return'),
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
        "gptjax/evaluators/validation.py",
        "test_evaluators.py",
        # The loss mask is that of the inputs.
        ("mask[1 : 1 + self.predicted]", "mask[: self.predicted]"),
        # Bytes are those of the inputs.
        ("ids[1:] if mask is None", "ids[:-1] if mask is None"),
    ),
    *mutate(
        "gptjax/evaluators/bigram.py",
        "test_evaluators.py",
        # Bits are nats times ln 2.
        ("(len(ids) - 1) / math.log(2)", "(len(ids) - 1) * math.log(2)"),
    ),
    *mutate(
        "gptjax/evaluators/evaluator.py",
        "test_evaluators.py",
        # The last weights are not evaluated.
        ("(step % self.every == 0 or step == steps)", "step % self.every == 0"),
    ),
    *mutate(
        "gptjax/evaluators/bigram.py",
        "test_bigram.py",
        # Probabilities do not sum to 1 after the last token of the text.
        ("(counts.followed[tokens[:-1]] + constant)", "(counts.unigrams[tokens[:-1]] + constant)"),
    ),
)
