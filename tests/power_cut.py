"""Cut the power of a file system under a run, again and again, and check that nothing counted is lost.

    sudo python tests/power_cut.py [--cuts=12] [--type=ext4] [--megabytes=256] [--seed=0]

A run writes into an image that is mounted through a loop device. At a random moment the file system is shut down by
`FS_IOC_SHUTDOWN` without a flush of its journal, as in xfstests: what was not synced is gone. The run is killed, the
image is unmounted, checked (`fsck -n`) and mounted again. Then every checkpoint must be as it was written, the newest
one at least that which had counted before the cut, and the same command must go on from it. After all cuts the losses
are compared with those of a run that nobody disturbed.

It needs Linux, root and loop devices, so neither CI nor pytest runs it. A cache in the device, which loses or reorders
what was flushed to it, is not simulated. Exit code 1 means that something was lost.
"""

import argparse
import contextlib
import fcntl
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FS_IOC_SHUTDOWN, WITHOUT_LOG_FLUSH = 0x8004587D, 2
EVERY, STEPS = 5, 100_000
CONFIG = f"""
from dataclasses import replace
from configs.smoke import config as base
from gptjax.evaluators.validation import ValidationLoss

config = replace(
    base, name="cut", steps={STEPS}, batch_size=4,
    model=replace(base.model, num_layers=1, embed_dim=32, num_heads=2, context_length=32),
    checkpoint=replace(base.checkpoint, every={EVERY}, keep=1, keep_best=False),
    evaluators=(ValidationLoss(every=50, tokens=1024),),
)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=12)
    parser.add_argument("--type", default="ext4", help="a file system that mkfs and FS_IOC_SHUTDOWN know")
    parser.add_argument("--megabytes", type=int, default=256, help="size of the image")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("mounting an image needs root")
    draw, problems = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "cut.py").write_text(CONFIG)
        image, mounted = directory / "image", directory / "mounted"
        mounted.mkdir()
        with image.open("wb") as file:
            file.truncate(options.megabytes * 2**20)
        subprocess.run([f"mkfs.{options.type}", "-q", image], check=True)
        for cut in range(1, options.cuts + 1):
            with mount(image, mounted):
                counted, line = run_until_cut(directory, mounted, moment=draw.uniform(0.2, 3))
            checked = subprocess.run([f"fsck.{options.type}", "-n", image], capture_output=True, text=True, check=False)
            with mount(image, mounted):
                found = check_run(mounted / "cut", counted)
            problems += found
            print(f"cut {cut}: {line}; step {counted} had counted; fsck {checked.returncode}: {found or 'kept'}")
        with mount(image, mounted):
            found = compare_losses(directory, mounted / "cut")
        problems += found
        print("losses:", *(found or ["those of a run without cuts"]))
    print(f"{options.cuts} cuts on {options.type}: {len(problems)} problems")
    return 1 if problems else 0


@contextlib.contextmanager
def mount(image: Path, directory: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def start(directory: Path, output: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start training, or go on with it."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "gptjax.train", f"--config={directory / 'cut.py'}", f"--output-dir={output}"]
    with (directory / "output").open("wb") as file:
        return subprocess.Popen(
            [*command, *words],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def run_until_cut(directory: Path, mounted: Path, *, moment: float) -> tuple[int, str]:
    """Train, cut the power `moment` seconds after the second save; (the step that had counted, what was resumed)."""
    checkpoints = mounted / "cut/checkpoints"
    begin = max(list_steps(checkpoints), default=0)
    process = start(directory, mounted)
    try:
        while min(list_steps(checkpoints), default=0) < begin + 2 * EVERY:
            if process.poll() is not None:
                raise SystemExit(f"the run ended by itself:\n{(directory / 'output').read_text()}")
            time.sleep(0.02)
        time.sleep(moment)
        # Older steps are deleted once the newest has counted, so the oldest one has.
        counted = min(list_steps(checkpoints))
        shut_down(mounted)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = re.search(r"resuming .* at step ([\d,]+)", (directory / "output").read_text())
    if begin and (resumed is None or int(resumed[1].replace(",", "")) < begin):
        raise SystemExit(f"the run did not go on from step {begin}:\n{(directory / 'output').read_text()}")
    return counted, resumed[0].split("/")[-1] if resumed else "new"


def shut_down(mounted: Path) -> None:
    descriptor = os.open(mounted, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_LOG_FLUSH))
    finally:
        os.close(descriptor)


def list_steps(checkpoints: Path) -> list[int]:
    return [int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()]


def check_run(run: Path, counted: int) -> list[str]:
    """What is lost or damaged after a cut."""
    problems = []
    if max(list_steps(run / "checkpoints"), default=0) < counted:
        problems.append(f"step {counted} had counted and is gone")
    command = [sys.executable, "-m", "gptjax.verify", str(run)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    verified = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    if verified.returncode:
        problems.append(f"verify: {verified.stdout}{verified.stderr}".strip())
    return problems


def compare_losses(directory: Path, run: Path) -> list[str]:
    """Compare the losses of the run that was cut with those of one that was not, up to its last checkpoint."""
    last = max(list_steps(run / "checkpoints"))
    steps = [f"--steps={last}", f"--schedule-steps={STEPS}"]
    if start(directory, directory, *steps).wait():
        return [f"the run without cuts failed:\n{(directory / 'output').read_text()}"]
    wanted, found = (read_losses(path / "metrics.jsonl", last) for path in (directory / "cut", run))
    different = [step for step in range(1, last + 1) if wanted.get(step) != found.get(step)]
    return [f"{len(different)} losses differ, from step {different[0]} on"] if different else []


def read_losses(path: Path, last: int) -> dict[int, float]:
    records = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return {one["step"]: one["loss"] for one in records if "loss" in one and one["step"] <= last}


if __name__ == "__main__":
    sys.exit(main())
