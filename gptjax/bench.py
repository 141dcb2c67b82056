"""Time a config, alone or beside peers: `python -m gptjax.bench --help`.

    python -m gptjax.bench --config=gpt2_cpu
    python -m gptjax.bench --config=gpt2_124m --random-data --peer=transformers --torch-mode=compile
    python -m gptjax.bench --config=quickstart --decode --decode-batches=1,8 --json=decoding.json

Often given:

    --peer              another implementation in turn with ours: nanogpt:DIR, transformers, flax or config:FILE
    --best-batch        batch sizes to try, such as 4,8,16
    --random-data       no data from disk
    --decode            generation instead of training
    --profile           a step by parts of the model
    --json, --output    files for the result
"""

import json
import os
import shlex
import sys

from gptjax.benchmark.options import BenchOptions
from gptjax.cli.command_line import parse_config, parse_known_options
from gptjax.config import TrainConfig
from gptjax.core.errors import exit_on_user_error
from gptjax.core.files import check_output_file, expand_path, write_output

PROG = "python -m gptjax.bench"
DESCRIPTION = "Flags of the config, as in gptjax.train."


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        words = sys.argv[1:] if argv is None else argv
        options, rest = parse_known_options(BenchOptions, words, prog=PROG, introduction=__doc__ or "")
        request = parse_config(TrainConfig, rest, prog=PROG, description=DESCRIPTION, options_type=BenchOptions)
        check_outputs(options)
        if options.peer:  # torch needs memory of the same GPU
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        from gptjax.benchmark import bench_decoding, bench_training, report  # slow to import

        measure = bench_decoding.benchmark_decoding if options.decode else bench_training.benchmark_training
        command = shlex.join([*PROG.split(), *words])
        show = lambda line: print(f"... {line}", file=sys.stderr, flush=True)
        result = measure(request.config, options, modules=request.modules, command=command, report=show)
        text, content = report.format_result(result), json.dumps(result.to_json(), indent=2) + "\n"
        print(text, file=sys.stderr if options.json == "-" else sys.stdout)
        if options.json == "-":
            print(content, end="")
        elif options.json is not None:
            write_output(expand_path(options.json), content)
        if options.output is not None:
            directory = expand_path(options.output)
            write_output(directory / "benchmark.md", text)
            write_output(directory / "benchmark.json", content)
            report.write_picture(result, directory / "benchmark.png")


def check_outputs(options: BenchOptions) -> None:
    """Make the output directory, and find out before anything is measured whether files can be written."""
    if options.output is not None:
        expand_path(options.output).mkdir(parents=True, exist_ok=True)
    if options.json not in (None, "-"):
        check_output_file("json", options.json)


if __name__ == "__main__":
    main()
