"""Items per second of `HarnessModel` beside lm-evaluation-harness' own class on an export, compilation included.

    python benchmarks/harness_speed.py --items=300

Each class scores the same requests, in turn, in one process: LAMBADA's kind (a context, one short answer), and a
multiple choice with four answers. Weights are drawn, and texts are made.
"""

import random
import sys
import tempfile
import time
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import Any

import jax

from gptjax.convert import main as convert
from gptjax.evaluation.harness_model import HarnessModel
from gptjax.model.config import ComputeConfig, GPTConfig
from gptjax.model.gpt import GPT
from gptjax.runs.run_dir import write_imported_run
from gptjax.tokenization.tokenizer import BPE, END_OF_TEXT, GPT2_PATTERN

TOKENIZER = BPE({bytes([b]): b for b in range(256)}, {END_OF_TEXT: 256}, merges=[], pattern=GPT2_PATTERN)
WORDS = tuple("the other theme then was in that house by the lake with a boat and two cats".split())  # noqa: SIM905


def make_model(*, layers: int, width: int) -> GPT:
    config = GPTConfig(
        num_layers=layers,
        embed_dim=width,
        num_heads=width // 64 or 1,
        context_length=1024,
        vocab_size=50_257,
        compute=ComputeConfig(dtype="float32"),
    )
    return jax.jit(lambda key: GPT(config, key=key))(jax.random.key(0))


def make_requests(items: int) -> dict[str, list[Any]]:
    """Requests by their kind; texts are of bytes, a token each."""
    draw, instance = random.Random(0), import_module("lm_eval.api.instance").Instance
    text = lambda least, most: " ".join(draw.choices(WORDS, k=draw.randint(least, most)))
    make = lambda pairs: [instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    short = [(text(20, 60), f" {draw.choice(WORDS)}") for _ in range(items)]
    questions = [text(20, 50) for _ in range(items // 4)]
    choices = [(question, f" {text(8, 16)}") for question in questions for _ in range(4)]
    return {"a context, one short answer": make(short), "a question, four answers": make(choices)}


def measure(model: Any, requests: list[Any]) -> tuple[float, float, list[float]]:
    """Items per second of wall time and of processor time, and the log-likelihoods."""
    wall, process = time.perf_counter(), time.process_time()
    found = model.loglikelihood(requests, disable_tqdm=True)
    wall, process = time.perf_counter() - wall, time.process_time() - process
    return len(requests) / wall, len(requests) / process, [answer[0] for answer in found]


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    model = make_model(layers=options.layers, width=options.width)
    with tempfile.TemporaryDirectory() as scratch:
        run, export = Path(scratch) / "run", Path(scratch) / "export"
        write_imported_run(run, model=model, tokenizer=TOKENIZER)
        convert(["to-hf", f"--checkpoint={run}", f"--output={export}", "--no-verify"])
        theirs = import_module("lm_eval.models.huggingface").HFLM(
            pretrained=str(export), dtype="float32", batch_size=options.batch_size, device="cpu"
        )
        ours = HarnessModel(model, TOKENIZER, batch_size=options.batch_size)
        for kind, requests in make_requests(options.items).items():
            first, cold, warm = (measure(one, requests) for one in (theirs, ours, ours))
            worst = max(abs(a - b) for a, b in zip(first[2], cold[2], strict=True))
            print(f"{kind}: {len(requests)} items, log-likelihoods differ by at most {worst:.1g}")
            for name, (wall, process, _) in (("HFLM", first), ("native, first call", cold), ("native, second", warm)):
                ratio = f"ratio {wall / first[0]:.2f} and {process / first[1]:.2f}"
                print(f"  {name:<20}{wall:8.2f} items/s{process:8.2f} per processor second, {ratio}")


if __name__ == "__main__":
    main()
