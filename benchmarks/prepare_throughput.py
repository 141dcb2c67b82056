"""How much of bare tiktoken's speed is left in `prepare`, and how much memory all of its processes take.

    python benchmarks/prepare_throughput.py SOURCE [--copies=4] [--processes=2] [--tokenizer=gpt2]

Prepares SOURCE's documents, as JSON lines, through the door: once, and so many `copies` more. The difference is what
further text costs; starting processes and loading tokenizers is told apart. Then encodes the same text with tiktoken
alone, in as many processes at once. The first ratio is of bytes a CPU second, all processes counted, which other work
on the machine hardly changes; the second of bytes a second and core by the clock, starting included.
The clock says little where others use the machine too; so it is also told for which share of their life the processes
that encode slept, instead of running or waiting for a core: what is lost by feeding them too slowly, and by starting.
One process finds the text for all others and gathers what they return; what further text costs it says how many cores
it can feed. Memory is the largest sum of proportional set sizes. All is looked at ten times a second; Linux only.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import tiktoken

from data_pipelines.readers.documents import ReadContext, iter_documents
from data_pipelines.readers.sources import open_source
from gptjax.tokenization.tokenizer import BPE, load_tokenizer

LEAST_SECONDS = 10
"""Processor seconds that the further copies should take: below, the noise of starting shows."""


def bare(texts: list[str], name: str) -> tuple[float, float]:
    """CPU and wall seconds to encode all texts with tiktoken as it comes, and nothing else."""
    tokenizer = load_tokenizer(name)
    assert isinstance(tokenizer, BPE)
    encoding = tiktoken.get_encoding("gpt2") if name == "gpt2" else tokenizer._tiktoken
    encoding.encode_to_numpy("warm", disallowed_special=())
    cpu, wall = time.process_time(), time.perf_counter()
    for text in texts:
        encoding.encode_to_numpy(text, disallowed_special=())
    return time.process_time() - cpu, time.perf_counter() - wall


class Cost(NamedTuple):
    """CPU and wall seconds of the whole command, CPU seconds of the process that gathers, the peak of all processes'
    memory in bytes, and the share of their life for which those that encode slept."""

    cpu: float
    wall: float
    gathering: float
    peak: int
    asleep: float


def prepared(source: Path, output: Path, *, tokenizer: str, processes: int) -> Cost:
    """What it costs to prepare a source through the door."""
    command = [sys.executable, "-m", "data_pipelines.prepare", f"--source={source}", f"--output={output}"]
    options = [f"--tokenizer={tokenizer}", f"--processes={processes}", "--split=none"]
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    gathering, peak = 0.0, 0
    born: dict[int, float] = {}
    awake: dict[int, tuple[float, float]] = {}
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        running, now = family(process.pid), time.perf_counter()
        gathering = max(gathering, cpu_seconds(process.pid))
        peak = max(peak, sum(map(proportional_set_size, running)))
        for one in running:
            if seconds := seconds_awake(one):
                awake[one] = seconds, now - born.setdefault(one, now - seconds)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - wall
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    busiest = sorted(awake.values(), reverse=True)[:processes]  # beside them one that reads, and one that watches
    asleep = 1 - sum(seconds for seconds, _ in busiest) / sum(life for _, life in busiest)
    return Cost(cpu, wall, gathering, peak, asleep)


def family(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [root]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def cpu_seconds(process: int) -> float:
    """Of all threads of a process; 0 for one that is gone."""
    try:
        user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def seconds_awake(process: int) -> float:
    """How long the threads of a process have run or waited for a core; 0 for a process that is gone."""
    try:
        threads = list(Path(f"/proc/{process}/task").iterdir())
        return sum(sum(map(int, (thread / "schedstat").read_text().split()[:2])) for thread in threads) / 1e9
    except OSError:
        return 0.0


def proportional_set_size(process: int) -> int:
    """Bytes, a page that several share counted in equal parts; 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokenizer", default="gpt2")
    arguments = parser.parse_args()
    context_length = ReadContext()
    documents = iter_documents(open_source(arguments.source).chunks(context_length), context_length)
    texts = [text for text in (str(document, "utf-8") for document in documents) if text.strip()]
    size, largest = sum(len(text.encode()) for text in texts), max(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "texts.jsonl"
        costs = []
        for copies in (1, 1 + arguments.copies):
            with source.open("w") as file:
                for _ in range(copies):
                    file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
            output, processes = Path(directory) / f"out{copies}", arguments.processes
            costs.append(prepared(source, output, tokenizer=arguments.tokenizer, processes=processes))
        # In as many processes at once, for two on the threads of one core hinder each other.
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            alone = [pool.submit(bare, texts, arguments.tokenizer) for _ in range(processes)]
            alone_cpu, alone_wall = (
                sum(times) / processes for times in zip(*(one.result() for one in alone), strict=True)
            )
    (first_cpu, _, first_gathering, *_), (all_cpu, wall, gathering, peak, asleep) = costs
    if all_cpu - first_cpu < LEAST_SECONDS:
        print("note: too little text to trust these figures; use a larger SOURCE or more --copies")
    cpu, further, everything = all_cpu - first_cpu, arguments.copies * size, (1 + arguments.copies) * size
    print(f"{size / 1e6:.1f} MB, the largest document {largest / 1e6:.1f} MB; once, and {arguments.copies} times more")
    print(f"tiktoken: {size / 1e6 / alone_cpu:.2f} MB a CPU second, {size / 1e6 / alone_wall:.2f} MB/s by one")
    print(f"prepare:  {further / 1e6 / cpu:.2f} MB a CPU second, {everything / 1e6 / wall:.2f} MB/s by all {processes}")
    print(f"ratio:    {further / cpu / (size / alone_cpu):.3f} by CPU seconds, ", end="")
    print(f"{everything / wall / processes / (size / alone_wall):.3f} by the clock and core")
    gathered = further / (gathering - first_gathering)
    cores = gathered / (size / alone_cpu)
    print(f"gathers:  {gathered / 1e6:.0f} MB a CPU second of one process, enough for {cores:.0f} cores")
    print(f"starting: {first_cpu - cpu / arguments.copies:.1f} CPU seconds over all processes")
    print(f"asleep:   {asleep:.1%} of the life of those that encode")
    print(f"memory:   {peak / 1e6:.0f} MB at most over all processes")


if __name__ == "__main__":
    main()
