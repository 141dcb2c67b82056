"""Compare the speed of `data_pipelines.prepare` with bare tiktoken, and measure the memory of all its processes.

    python benchmarks/prepare_throughput.py --source=books/ --copies=4 --processes=2
    python benchmarks/prepare_throughput.py --source=a.txt --tokenizer=DIR/tokenizer.json --copies=1      # in seconds

The documents of SOURCE, as JSON lines, are prepared once, and again with `copies` further copies. The difference is the
cost of the further text, without the start of processes and the loading of tokenizers. The same text is then encoded
with tiktoken alone, by as many processes at once. Linux only.

- ratio by CPU seconds: bytes per CPU second of all processes, over tiktoken's. Other jobs hardly change it.
- ratio by wall time: bytes per second and core, including the start, over tiktoken's.
- gathering: one process finds the text for all others and collects the tokens. Its CPU seconds for the further text
  say how many encoding cores it can feed.
- asleep: share of the encoding processes' life in which they neither ran nor waited for a core. It shows how much is
  lost by feeding them too slowly, and by the start.
- memory: the largest sum of proportional set sizes.

Processes are sampled ten times a second. A figure for which there is too little text is `nan`. Results: RESULTS.md,
"Preparation".
"""

import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import tiktoken
import tyro

from data_pipelines.readers.documents import ReadContext, iter_documents
from data_pipelines.readers.sources import open_source
from gptjax.core.errors import UserError, exit_on_user_error
from gptjax.tokenization.tokenizer import BPE, load_tokenizer

MIN_SECONDS = 10
"""CPU seconds that the further copies should take. Below, the noise of the start shows."""


@dataclass(frozen=True)
class Options:
    """The text and how it is prepared."""

    source: str
    """A source as `data_pipelines.prepare` takes it."""
    copies: int = 4
    """Further copies of the text."""
    processes: int = len(os.sched_getaffinity(0))
    """Worker processes."""
    tokenizer: str = "gpt2"
    """`gpt2` or the tokenizer.json of a byte-level BPE."""


def encode_bare(texts: list[str], tokenizer_spec: str) -> tuple[float, float]:
    """(CPU seconds, wall seconds) to encode all texts with tiktoken and nothing else."""
    tokenizer = load_tokenizer(tokenizer_spec)
    if not isinstance(tokenizer, BPE):
        raise UserError(f"tokenizer {tokenizer_spec!r} is no byte-level BPE. Use gpt2, or a tokenizer.json of one.")
    encoding = tiktoken.get_encoding("gpt2") if tokenizer_spec == "gpt2" else tokenizer._tiktoken
    encoding.encode_to_numpy("warm", disallowed_special=())
    cpu, wall = time.process_time(), time.perf_counter()
    for text in texts:
        encoding.encode_to_numpy(text, disallowed_special=())
    return time.process_time() - cpu, time.perf_counter() - wall


def encode_bare_in_parallel(texts: list[str], options: Options) -> tuple[float, float]:
    """Mean of `encode_bare` over as many processes at once: two on the threads of one core slow each other down."""
    with ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(encode_bare, texts, options.tokenizer) for _ in range(options.processes)]
        results = [process.result() for process in running]
    return sum(cpu for cpu, _ in results) / len(results), sum(wall for _, wall in results) / len(results)


@dataclass(frozen=True)
class Cost:
    """Cost of a whole command."""

    cpu: float
    """CPU seconds of all processes."""
    wall: float
    """Seconds."""
    gathering: float
    """CPU seconds of the process that gathers."""
    peak: int
    """Largest memory of all processes together, in bytes."""
    asleep: float
    """Share of the encoding processes' life in which they slept."""


@dataclass
class ProcessSamples:
    """What is known of a running command and its descendants."""

    gathering: float = 0.0
    peak: int = 0
    born: dict[int, float] = field(default_factory=dict)
    awake: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Process → (seconds awake, seconds of life)."""

    def sample(self, root: int) -> None:
        """Look at all processes once."""
        running, now = list_descendants(root), time.perf_counter()
        self.gathering = max(self.gathering, read_cpu_seconds(root))
        self.peak = max(self.peak, sum(map(read_proportional_set_size, running)))
        for process in running:
            if seconds := read_awake_seconds(process):
                self.awake[process] = seconds, now - self.born.setdefault(process, now - seconds)

    def compute_asleep(self, processes: int) -> float:
        """The share of life asleep of the busiest processes: those that encode."""
        busiest = sorted(self.awake.values(), reverse=True)[:processes]
        return 1 - divide(sum(seconds for seconds, _ in busiest), sum(life for _, life in busiest))


def measure_prepare(source: Path, output: Path, *, options: Options) -> Cost:
    """Run the command in a process of its own."""
    flags = [f"--source={source}", f"--output={output}", f"--tokenizer={options.tokenizer}", "--split=none"]
    command = [sys.executable, "-m", "data_pipelines.prepare", *flags, f"--processes={options.processes}"]
    before, start, samples = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), ProcessSamples()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        samples.sample(process.pid)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu, wall, samples.gathering, samples.peak, samples.compute_asleep(options.processes))


def list_descendants(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = [root]
    for one in family:
        family += [child for child, parent in parents.items() if parent == one]
    return family


def read_cpu_seconds(process: int) -> float:
    """CPU seconds of all threads of a process; 0 for one that has ended."""
    try:
        user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def read_awake_seconds(process: int) -> float:
    """Seconds in which the threads of a process have run or waited for a core; 0 for one that has ended."""
    try:
        threads = list(Path(f"/proc/{process}/task").iterdir())
        return sum(sum(map(int, (thread / "schedstat").read_text().split()[:2])) for thread in threads) / 1e9
    except OSError:
        return 0.0


def read_proportional_set_size(process: int) -> int:
    """Bytes of a process, where a shared page counts in equal parts; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def read_texts(source: str) -> list[str]:
    """The documents of a source that are not blank."""
    context = ReadContext()
    documents = iter_documents(open_source(source).chunks(context), context)
    return [text for text in (str(document, "utf-8") for document in documents) if text.strip()]


def write_json_lines(path: Path, texts: Iterable[str], *, copies: int) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    with path.open("w") as file:
        for _ in range(copies):
            file.write(lines)


def divide(amount: float, by: float) -> float:
    """The quotient; nan if the divisor is not positive."""
    return amount / by if by > 0 else math.nan


def print_report(options: Options, texts: list[str], *, first: Cost, all: Cost, bare: tuple[float, float]) -> None:
    """Print all figures: `first` is the cost of the text once, `all` with the further copies."""
    sizes = [len(text.encode()) / 1e6 for text in texts]
    megabytes, further, cpu = sum(sizes), options.copies * sum(sizes), all.cpu - first.cpu
    bare_cpu, bare_wall = (divide(megabytes, seconds) for seconds in bare)
    prepare_cpu, prepare_wall = divide(further, cpu), divide(megabytes + further, all.wall)
    gathering = divide(further, all.gathering - first.gathering)
    if cpu < MIN_SECONDS:
        print("note: too little text to trust these figures; use a larger --source or more --copies")
    print(f"text:     {megabytes:.1f} MB, largest document {max(sizes):.1f} MB; once, and {options.copies} times more")
    print(f"tiktoken: {bare_cpu:.2f} MB per CPU second, {bare_wall:.2f} MB/s by one process")
    print(f"prepare:  {prepare_cpu:.2f} MB per CPU second, {prepare_wall:.2f} MB/s by all {options.processes}")
    by_wall = divide(prepare_wall / options.processes, bare_wall)
    print(f"ratio:    {divide(prepare_cpu, bare_cpu):.3f} by CPU seconds, {by_wall:.3f} by wall time and core")
    print(f"gathering: {gathering:.0f} MB per CPU second, enough for {divide(gathering, bare_cpu):.0f} cores")
    print(f"start:    {first.cpu - divide(cpu, options.copies):.1f} CPU seconds of all processes")
    print(f"asleep:   {all.asleep:.1%} of the life of the encoding processes")
    print(f"memory:   {all.peak / 1e6:.0f} MB at most, all processes")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    texts = read_texts(options.source)
    with tempfile.TemporaryDirectory() as directory:
        source, costs = Path(directory) / "texts.jsonl", []
        for copies in (1, 1 + options.copies):
            write_json_lines(source, texts, copies=copies)
            costs.append(measure_prepare(source, Path(directory) / f"out{copies}", options=options))
    print_report(options, texts, first=costs[0], all=costs[1], bare=encode_bare_in_parallel(texts, options))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
