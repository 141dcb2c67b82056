"""Changes of gptjax/core, gptjax/metrics and the modules above the packages."""

from .mutation import mutate

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
        "gptjax/cli/config_files.py",
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
        "gptjax/runs/run_dir.py",
        "test_run_dir.py",
        # Weights are loaded with the tokenizer of another run.
        ("saved not in (None, self.tokenizer.fingerprint)", "saved is False"),
        # A tokenizer that just fits is refused.
        ("self.tokenizer.vocab_size > vocab_size", "self.tokenizer.vocab_size >= vocab_size"),
    ),
    *mutate(
        "gptjax/runs/run_dir.py",
        "test_ema.py::test_opened_run_and_export_use_the_average",
        # The raw weights are loaded though there is an average.
        ("EMA_ITEM if ema and self.has_ema(which) else MODEL", "MODEL"),
    ),
    *mutate(
        "gptjax/finetuning/model_config.py",
        "test_finetuning.py",
        # A run starts with more positions than the weights have.
        ("min(limit, wanted.context_length)", "max(limit, wanted.context_length)"),
    ),
)
