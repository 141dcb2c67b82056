"""Changes of gptjax/optim."""

from .mutation import mutate

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
        ("c * product(gram, gram)", "c * gram"),
    ),
)
