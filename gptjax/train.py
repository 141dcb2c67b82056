"""Entry point: `python -m gptjax.train --config=configs/quickstart.py` trains, and the same command again resumes."""

import shlex
import sys

from gptjax.config import TrainConfig
from gptjax.core.command_line import parse_config
from gptjax.core.console import print_once
from gptjax.core.diff import diff_configs
from gptjax.core.errors import exit_on_user_error
from gptjax.sharding.distributed import initialize_distributed
from gptjax.trainer import train

PROG = "python -m gptjax.train"


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        initialize_distributed()
        words = sys.argv[1:] if argv is None else argv
        request = parse_config(TrainConfig, words, prog=PROG, description="Train a GPT, or resume its training.")
        changes = diff_configs(request.base, request.config)
        print_once(f"config {request.path}", *(f"  {path}: {old!r} → {new!r}" for path, old, new in changes))
        source = request.path.read_text(encoding="utf-8")
        command = shlex.join([*PROG.split(), *words])
        code = train(request.config, modules=request.modules, source=source, command=command)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
