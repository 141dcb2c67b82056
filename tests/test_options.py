"""An option out of place is named as it is written on the command line."""

import pytest

from data_pipelines.runtime.options import at_least, one_validation
from gptjax.errors import UserError


def test_the_option_that_is_too_small_is_named():
    at_least(2, shard_tokens=2, max_bytes=None, processes=7)
    with pytest.raises(UserError, match=r"^--max-document-tokens=1: wanted at least 2\.$"):
        at_least(2, shard_tokens=2, max_document_tokens=1)
    with pytest.raises(UserError, match=r"^--shards=-1: wanted at least 0\.$"):
        at_least(0, shards=-1)


def test_validation_has_one_origin():
    for split, source in [(None, None), ("none", None), (None, "val.jsonl")]:
        one_validation(split=split, validation_source=source)
    with pytest.raises(UserError, match="choose one"):
        one_validation(split="none", validation_source="val.jsonl")
