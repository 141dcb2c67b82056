"""Kill a tiny run at random moments of all its phases, and check that nothing saved is lost and the curve is the same.

    nice python tests/kill_runs.py [--kills=60] [--seed=0]

Every second kill comes at a moment between the start of the command and its first new checkpoint: imports, opening of
the data, restore, compilation. The others come within two seconds after a checkpoint has counted: steps, evaluations,
saves, deletions. After each, no file of a checkpoint may have changed, and none that had counted may be gone. At the
end the losses are compared with those of a run that nobody disturbed.

It takes minutes, so neither CI nor pytest runs it. Exit code 1 means that something was lost.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from power_cut import CONFIG, compare_losses, list_steps, start

from gptjax.checkpoints.integrity import find_checkpoint_damage


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    draw, problems = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "cut.py").write_text(CONFIG)
        run, startup = directory / "runs/cut", 10.0
        for kill in range(1, options.kills + 1):
            early = draw.uniform(0, startup) if kill % 2 == 0 else None
            counted, seconds, phase = run_until_killed(directory, run, early=early, late=draw.uniform(0, 2))
            startup = seconds if early is None else startup
            found = check_run(run, counted)
            problems += found
            print(f"kill {kill}: {phase}; step {counted} had counted: {found or 'kept'}", flush=True)
        problems += compare_losses(directory, run)
    print(f"{options.kills} kills: {len(problems)} problems", *problems, sep="\n")
    return 1 if problems else 0


def run_until_killed(directory: Path, run: Path, *, early: float | None, late: float) -> tuple[int, float, str]:
    """Train until `early` seconds after the start, or `late` seconds after the first new checkpoint.

    Returns the newest step that had counted, the seconds to the first new checkpoint, and what was being done.
    """
    checkpoints, began = run / "checkpoints", time.monotonic()
    before = max(list_steps(checkpoints), default=0)
    process = start(directory, directory / "runs")
    seconds = 0.0
    try:
        while max(list_steps(checkpoints), default=0) == before:
            seconds = time.monotonic() - began
            if early is not None and seconds >= early:
                break
            if process.poll() is not None:
                raise SystemExit(f"the run ended by itself:\n{(directory / 'output').read_text()}")
            time.sleep(0.01)
        else:
            time.sleep(late)
        counted = max(list_steps(checkpoints), default=0)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    said = (directory / "output").read_text().splitlines()
    return counted, seconds, f"after {time.monotonic() - began:.1f} s, at {said[-1][:40] if said else 'the imports'!r}"


def check_run(run: Path, counted: int) -> list[str]:
    """What is lost or damaged after a kill."""
    steps = list_steps(run / "checkpoints")
    problems = [line for step in steps for line in find_checkpoint_damage(run / "checkpoints" / str(step))]
    if max(steps, default=0) < counted:
        problems.append(f"step {counted} had counted and is gone")
    return problems


if __name__ == "__main__":
    sys.exit(main())
