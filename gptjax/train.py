"""Entry point: `python -m gptjax.train --config=configs/quickstart.py` trains, and the same command again resumes.

JAX is imported once the command names a config that exists. Everything that trains is imported once the config is read.
A worker process that prepares data imports this module and so does not pay for either.
"""

import faulthandler
import shlex
import sys
from typing import TYPE_CHECKING

from gptjax.cli.command_line import list_resume_words, parse_config, require_config
from gptjax.core.compile_cache import enable_compile_cache
from gptjax.core.diff import diff_configs
from gptjax.core.environment import check_environment
from gptjax.core.errors import exit_on_user_error
from gptjax.process.console import print_once, safe_console
from gptjax.process.early_exit import exit_early, remove_early_handler, skip_python_end
from gptjax.process.garbage_collection import postpone_garbage_collection
from gptjax.process.restarts import LONG_PAUSE_SECONDS, PAUSE_SECONDS, follow_parent, is_supervised, run_with_restarts
from gptjax.sharding.start_marker import StartMarker

if TYPE_CHECKING:
    from gptjax.config import TrainConfig

PROG = "python -m gptjax.train"
DESCRIPTION = "Train a GPT, or resume its training."


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    # Until GracefulShutdown takes over, Ctrl-C and SIGUSR1 end the process where it is.
    with safe_console(), exit_on_user_error(keeps_early_handler=True), exit_early():
        code = run(words)
    raise SystemExit(code)


def run(words: list[str]) -> int:
    """Train as the command line says, and return the exit status."""
    marker = StartMarker.begin(words)
    require_config(words, prog=PROG, description=DESCRIPTION)
    check_environment()
    # A crash of native code, such as SIGBUS from a data file that is cut while it is read, says where it was.
    faulthandler.enable(sys.__stderr__ or 2, all_threads=False)
    with postpone_garbage_collection():
        from gptjax.config import TrainConfig
        from gptjax.runs.run_dir import has_trained
        from gptjax.sharding.distributed import initialize_distributed

        request = parse_config(TrainConfig, words, prog=PROG, description=DESCRIPTION)
        resume_words = list_resume_words(words, request)
        if request.config.max_restarts and not is_supervised():
            if marker is not None:
                marker.close()  # the child leaves its own
            return supervise(request.config, words, again=resume_words)
        follow_parent()
        command, directory = shlex.join([*PROG.split(), *resume_words]), request.config.directory
        if marker is not None:
            marker.add_place(directory.parent)
        initialize_distributed(command=command, resumes=has_trained(directory), marker=marker, runs=directory.parent)
        changes = diff_configs(request.base, request.config)
        print_once(f"config {request.path}", *(f"  {path}: {old!r} → {new!r}" for path, old, new in changes))
        enable_compile_cache()
        from gptjax.runs.trainer import train
    source = request.path.read_text(encoding="utf-8")
    return train(
        request.config, modules=request.modules, source=source, command=command, explicit_fields=request.explicit_fields
    )


def supervise(config: "TrainConfig", words: list[str], *, again: list[str]) -> int:
    """Train in a process that is started after a failure with the words `again`."""
    from gptjax.checkpoints.integrity import complete_steps
    from gptjax.runs.run_dir import CHECKPOINTS
    from gptjax.sharding.distributed import has_several_processes

    remove_early_handler()
    limit, end = config.max_restarts, config.max_seconds
    command = [sys.executable, *PROG.split()[1:]]
    return run_with_restarts(
        [*command, *words],
        again=[*command, *again],
        limit=limit,
        find_step=lambda: max(complete_steps(config.directory / CHECKPOINTS), default=None),
        is_over=lambda seconds: end is not None and seconds >= end,
        pause=LONG_PAUSE_SECONDS if has_several_processes() else PAUSE_SECONDS,
    )


if __name__ == "__main__":
    with skip_python_end():
        main()
