"""Preference pairs, read out of an ordinary split."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tokenizer, write_shards

from gptjax.core.errors import UserError
from gptjax.data.manifest import read_manifest
from gptjax.data.preferences import PreferencePairs, open_preferences
from gptjax.data.splits import open_split

LENGTHS = (3, 4, 2, 5)
"""Two pairs: chosen, rejected, chosen, rejected."""


def write_pairs(directory: Path, *, kind: str = "preferences", lengths: tuple[int, ...] = LENGTHS) -> Path:
    """Token i is i; the last token of each document is its completion. A file ends inside of the second document."""
    ends = np.cumsum(lengths)
    mask = np.isin(np.arange(ends[-1]), ends - 1).astype(np.uint8)
    sidecars = {("train", "documents"): ends - lengths, ("train", "scored"): mask}
    parts = np.split(np.arange(ends[-1]), [5])
    path = write_shards(directory, {"train": parts}, own=tokenizer(), sidecars=sidecars)
    manifest = read_manifest(path)
    assert manifest is not None
    replace(manifest, request={"kind": kind}).write(path)
    return path


def test_pairs_hold_chosen_and_rejected_with_their_masks(tmp_path: Path) -> None:
    pairs = open_preferences(write_pairs(tmp_path / "pairs"), "train")
    assert len(pairs) == 2
    assert [array.tolist() for array in pairs[0]] == [[0, 1, 2], [0, 0, 1], [3, 4, 5, 6], [0, 0, 0, 1]]
    assert [array.tolist() for array in pairs[1]] == [[7, 8], [0, 1], [9, 10, 11, 12, 13], [0, 0, 0, 0, 1]]
    assert [array.dtype for array in pairs[0]] == [np.int32, np.uint8, np.int32, np.uint8]


@pytest.mark.parametrize("index", [-1, 2])
def test_pairs_outside_the_split_are_an_index_error(tmp_path: Path, index: int) -> None:
    with pytest.raises(IndexError, match=f"pair {index} of 2"):
        open_preferences(write_pairs(tmp_path / "pairs"), "train")[index]


def test_open_preferences_refuses_other_data(tmp_path: Path) -> None:
    chat = write_pairs(tmp_path / "chat", kind="chat", lengths=(3, 4, 2))
    with pytest.raises(UserError, match="holds no preference data, but shards of chat"):
        open_preferences(chat, "train")
    with pytest.raises(UserError, match="wanted an even number of documents"):
        PreferencePairs(open_split(chat, "train"))
    foreign = write_shards(tmp_path / "foreign", {"train": [np.arange(9)]})
    with pytest.raises(UserError, match=r"but shards without manifest\.json"):
        open_preferences(foreign, "train")
    with pytest.raises(UserError, match="their starts, a loss mask"):
        PreferencePairs(open_split(foreign, "train"))
