"""Apply each change of this package to a copy of the tree, and check that the tests of the changed module fail.

python tests/mutations/run.py [--only=SUBSTRING] [--jobs=2] [--seconds=300]

The default suite does not run this: a change takes ten seconds or more of a core. Exit code 1 means that fewer than
95 % of the changes were noticed or that one does not apply. 2 means that the tests fail without any change.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # tests/ in place of this directory
from mutations import MUTATIONS, Mutation  # noqa: E402

ROOT = Path(__file__).parents[2]
NEEDED = ("configs", "data_pipelines", "gptjax", "tests", "pyproject.toml")
"""The parts of the tree that tests read; the others are linked."""
WANTED_SHARE = 0.95
FAILED, INTERRUPTED = 1, 2
"""Exit codes of pytest for a failed test and for an error in collection. Others mean that no test was found."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the changes whose file, text or tests contain this")
    parser.add_argument("--jobs", type=int, default=2, help="changes that are tested at a time")
    parser.add_argument("--seconds", type=float, default=300, help="time limit of the tests of a change")
    options = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if options.only in repr(mutation)]
    if not chosen:
        parser.error(f"no change contains {options.only!r}")
    with tempfile.TemporaryDirectory() as directory:
        trees = [copy_tree(Path(directory) / str(number)) for number in range(options.jobs)]
        tests = list(dict.fromkeys(test for mutation in chosen for test in mutation.tests))
        code, output = run_tests(trees[0], tests, seconds=options.seconds * max(1, len(tests)))
        if code:
            print(f"{output}\nThe tests fail without any change. Fix them first.")
            return 2
        results = check_all(chosen, trees, seconds=options.seconds)
    noticed = results.count("noticed")
    print(f"{noticed} of {len(chosen)} noticed")
    return int(noticed < WANTED_SHARE * len(chosen) or "does not apply" in results)


def copy_tree(target: Path) -> Path:
    """Copy the parts of the tree that are needed, and link the others."""
    target.mkdir()
    for path in ROOT.iterdir():
        if path.name not in NEEDED:
            (target / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, target / path.name)
    return target


def check_all(mutations: Sequence[Mutation], trees: Sequence[Path], *, seconds: float) -> list[str]:
    """Check each change in a tree that is free, and print its result."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for tree in trees:
        free.put(tree)

    def check(mutation: Mutation) -> str:
        tree = free.get()
        try:
            result = check_mutation(mutation, tree, seconds=seconds)
        finally:
            free.put(tree)
        print(f"{result:<15} {mutation.file}: {mutation.old!r} -> {mutation.new!r}", flush=True)
        return result

    with ThreadPoolExecutor(len(trees)) as pool:
        return list(pool.map(check, mutations))


def check_mutation(mutation: Mutation, tree: Path, *, seconds: float) -> str:
    """Apply a change, run its tests and restore the file. Return `noticed`, `MISSED` or `does not apply`."""
    path = tree / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        return "does not apply"
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, _ = run_tests(tree, mutation.tests, seconds=seconds)
    except subprocess.TimeoutExpired:  # a change that hangs is noticed
        return "noticed"
    finally:
        path.write_text(text, encoding="utf-8")
    if code in (FAILED, INTERRUPTED):
        return "noticed"
    return "does not apply" if code else "MISSED"


def run_tests(tree: Path, tests: Sequence[str], *, seconds: float) -> tuple[int, str]:
    """Return the exit code and the output of pytest on these files or node ids of a tree."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    # Compiled files would outlive a change of equal length within a second.
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, text=True
    )
    return done.returncode, done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
