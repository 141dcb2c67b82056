"""How much of bare tiktoken's speed is left in `prepare`, and how much memory all of its processes take.

    python benchmarks/prepare_throughput.py SOURCE [--copies=4] [--processes=2] [--tokenizer=gpt2]

Reads SOURCE into memory, encodes it with tiktoken alone in one process, then prepares the same documents (written as
JSON lines, `copies` times over, so that the start of processes weighs little) through the door. The first ratio is of
bytes a CPU second, all processes counted, which other work on the machine hardly changes; the second of bytes a second
and core, as the clock says. Memory is the largest sum of proportional set sizes, looked at ten times a second, beside
the largest document; Linux only.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from data_pipelines.sources import open_source
from gptjax.tokenizer import BPE, load_tokenizer


def bare(texts: list[str], tokenizer: BPE) -> tuple[float, float]:
    """CPU and wall seconds to encode all texts with tiktoken, and nothing else."""
    encoding = tokenizer._tiktoken  # the very object that prepare uses, without our wrapping
    encoding.encode_to_numpy("warm", disallowed_special=())
    cpu, wall = time.process_time(), time.perf_counter()
    for text in texts:
        encoding.encode_to_numpy(text, disallowed_special=())
    return time.process_time() - cpu, time.perf_counter() - wall


def prepared(source: Path, output: Path, *, tokenizer: str, processes: int) -> tuple[float, float, int]:
    """CPU and wall seconds of the whole command, and the peak of its processes' memory in bytes."""
    command = [sys.executable, "-m", "data_pipelines.prepare", f"--source={source}", f"--output={output}"]
    options = [f"--tokenizer={tokenizer}", f"--processes={processes}", "--split=none"]
    before, wall, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, sum(map(proportional_set_size, family(process.pid))))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - wall
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, peak


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
    tokenizer = load_tokenizer(arguments.tokenizer)
    if not isinstance(tokenizer, BPE):
        parser.error("wanted a BPE tokenizer: tiktoken does no other")
    texts = [text for text in open_source(arguments.source).documents(Counter()) if text.strip()]
    size, largest = sum(len(text.encode()) for text in texts), max(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "texts.jsonl"
        with source.open("w") as file:
            for _ in range(arguments.copies):
                file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        alone_cpu, alone_wall = bare(texts, tokenizer)
        del texts
        output, processes = Path(directory) / "out", arguments.processes
        cpu, wall, peak = prepared(source, output, tokenizer=arguments.tokenizer, processes=processes)
    alone, all_of_it = size / 1e6, arguments.copies * size / 1e6
    print(f"{size / 1e6:.1f} MB, the largest document {largest / 1e6:.1f} MB; {arguments.copies} copies prepared")
    print(f"tiktoken: {alone / alone_cpu:.2f} MB a CPU second, {alone / alone_wall:.2f} MB/s")
    print(f"prepare:  {all_of_it / cpu:.2f} MB a CPU second, {all_of_it / wall:.2f} MB/s on {processes} processes")
    print(f"ratio:    {all_of_it / cpu / (alone / alone_cpu):.3f} by CPU seconds, ", end="")
    print(f"{all_of_it / wall / processes / (alone / alone_wall):.3f} by the clock and core")
    print(f"memory:   {peak / 1e6:.0f} MB at most, over all processes")


if __name__ == "__main__":
    main()
