"""Measure how well weights predict text, or run tasks: `python -m gptjax.evaluate --help`.

    python -m gptjax.evaluate --checkpoint=runs/quickstart
    python -m gptjax.evaluate --checkpoint=runs/a --baseline=runs/b --text=book.txt --json=result.json
    python -m gptjax.evaluate --checkpoint=runs/a --tasks=lambada_openai,hellaswag --limit=500 --responses=items.jsonl

Often given:

    --checkpoint        a run, the directory of a model that transformers saved, or hf:OWNER/REPO; several are compared
    --text, --data      a text or shards; without them the run's own validation split
    --protocol          how windows are cut: gptjax, nanogpt, hf-stride-512, harness and others
    --tasks             tasks of lm-evaluation-harness, with --limit and --num-fewshot
    --json, --picture   files for the result
    --batch-size        rows at a time, if memory is short
"""

import sys
from typing import Any

from gptjax.cli.command_line import parse_options
from gptjax.core.compile_cache import enable_compile_cache
from gptjax.core.errors import exit_on_user_error
from gptjax.core.files import expand_path
from gptjax.evaluation.checkpoints import evaluate_all
from gptjax.evaluation.comparison import Evaluation, draw_bars
from gptjax.evaluation.options import Evaluate
from gptjax.evaluation.report import describe, to_result, write_result
from gptjax.sharding.devices import start_backend


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        words = sys.argv[1:] if argv is None else argv
        options = parse_options(Evaluate, words, prog="python -m gptjax.evaluate", introduction=__doc__ or "")
        enable_compile_cache()
        start_backend()
        evaluations: list[Evaluation] = []
        try:
            evaluate_all(options, evaluations)
        finally:  # what was measured before an error is worth its time
            if any(e.figures for e in evaluations):
                report(options, evaluations)


def report(options: Evaluate, evaluations: list[Evaluation]) -> None:
    """Print the table, and write the files that were asked for."""
    output = sys.stderr if options.json == "-" else sys.stdout
    print(describe(evaluations, baseline=options.compared, quantize=options.quantize), file=output)
    if options.json is not None:
        write_result(
            options.json, to_result(evaluations, baseline=options.compared, several=len(options.checkpoints) > 1)
        )
    if options.picture is not None:
        draw_bars(expand_path(options.picture), evaluations)


def evaluate(options: Evaluate) -> dict[str, Any]:
    """The result that `--json` writes; see `to_result`."""
    return to_result(evaluate_all(options), baseline=options.compared)


if __name__ == "__main__":
    main()
