"""The changes of tests/mutations apply to the tree. `python tests/mutations/run.py` checks that tests notice them."""

from collections import Counter
from pathlib import Path

from mutations import MUTATIONS

ROOT = Path(__file__).parents[1]


def test_every_mutation_applies_once() -> None:
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in {mutation.file for mutation in MUTATIONS}}
    wrong = [(one.file, one.old) for one in MUTATIONS if texts[one.file].count(one.old) != 1 or one.old == one.new]
    assert not wrong
    assert max(Counter((one.file, one.old, one.new) for one in MUTATIONS).values()) == 1


def test_every_test_of_a_mutation_exists() -> None:
    for test in {test for mutation in MUTATIONS for test in mutation.tests}:
        file, _, function = test.partition("::")
        assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), test
        assert (ROOT / file).is_file(), test
