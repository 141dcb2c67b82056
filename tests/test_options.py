"""Wrong options are named as on the command line."""

from pathlib import Path

import pytest

from data_pipelines.runtime.options import ShardOptions, require_at_least
from data_pipelines.runtime.split_specs import enlarge_split, find_used_split
from gptjax.core.errors import UserError
from gptjax.data.manifest import Counts

NONE, SOME = Counts(0, 0, 0), Counts(3, 30, 60)


def test_require_at_least_names_the_option():
    require_at_least(2, shard_tokens=2, max_bytes=None, processes=7)
    with pytest.raises(UserError, match=r"^--max-document-tokens=1: wanted at least 2\.$"):
        require_at_least(2, shard_tokens=2, max_document_tokens=1)


def test_shard_options_have_one_validation():
    def split_of(**options):
        options = ShardOptions(source="x", output=Path("out"), **options)
        return options.effective_split, options.split_names

    both = ("train", "val")
    assert split_of() == ("hash:0.005", both)
    assert split_of(split="none") == ("none", ("train",))
    assert split_of(validation_source="val.jsonl") == ("none", both)
    with pytest.raises(UserError, match="choose one"):
        split_of(split="none", validation_source="val.jsonl")
    for name in ("shard_tokens", "max_document_tokens"):
        with pytest.raises(UserError, match=name.replace("_", "-")):
            split_of(**{name: 0})


@pytest.mark.parametrize(
    ("other", "train", "val", "message"),
    [
        (None, NONE, NONE, r"^source x: holds no text\. 2 invalid records"),
        ("y", SOME, NONE, r"^source y: holds no text\."),
        ("y", NONE, SOME, r"^source x: holds no text\."),
        (None, SOME, NONE, r"^--split=hash:0\.005 leaves no text for val \(of 3 documents\)\. .*none\. 2 invalid"),
    ],
)
def test_check_splits_names_what_is_empty(other, train, val, message):
    options = ShardOptions(source="x", output=Path("out"), validation_source=other)
    options.check_splits({"train": SOME, "val": SOME}, notes="", what="text")
    with pytest.raises(UserError, match=message):
        options.check_splits({"train": train, "val": val}, notes="2 invalid records skipped", what="text")


@pytest.mark.parametrize(
    ("split", "notes", "larger"),
    [
        ("hash:0.005", "", "hash:0.05"),
        ("hash:0.05", "", "hash:0.1"),
        ("tail:0.2", "", "tail:0.4"),
        ("tail:0.3", "", None),
        ("random:1/9/0", "", "tail:0.1"),
        ("none", "", None),
        ("hash:0.02", "1 document, too few for hash:0.02: split by tail:0.1 instead", "tail:0.2"),
    ],
)
def test_a_larger_split_is_larger_than_the_one_in_use(split, notes, larger):
    assert enlarge_split(find_used_split(split, notes)) == larger
