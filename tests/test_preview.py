"""What a model reads of prepared data, shown as text."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_models import PLAIN, TOKENIZER

from data_pipelines.prepare_chat import PrepareChat, prepare_chat
from data_pipelines.prepare_preferences import PreparePreferences, prepare_preferences
from data_pipelines.preview import Preview, preview
from gptjax.core.errors import UserError
from gptjax.data.packing import Packing
from gptjax.data.sequences import open_sequences
from gptjax.data.splits import open_split


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty conversations of about fifty tokens; the first contains an escape sequence."""
    directory = tmp_path_factory.mktemp("preview")
    PLAIN.save(directory / "plain")
    turns = [[("user", f"say {i}"), ("assistant", f"this is {i}")] for i in range(20)]
    turns[0][1] = ("assistant", "red \x1b[31m")
    lines = [json.dumps([{"role": role, "content": text} for role, text in each]) for each in turns]
    (directory / "chat.jsonl").write_text("\n".join(lines))
    request: dict[str, Any] = {
        "source": str(directory / "chat.jsonl"),
        "tokenizer": str(directory / "plain"),
        "split": "none",
    }
    prepare_chat(PrepareChat(**request, output=directory / "chat"))
    return directory / "chat"


def test_rows_show_what_is_trained_on_and_where_they_cut(chat: Path, capsys: pytest.CaptureFixture) -> None:
    preview(Preview(data=chat, rows=2, context_length=60, packing="concat"))
    out = capsys.readouterr().out
    assert "── row 0: 60 tokens, 2 documents" in out
    assert "user\nsay 0<|im_end|>\n<|im_start|>assistant\n⟦red \\x1b[31m⟧⟦<|im_end|>⟧" in out
    assert "\x1b" not in out
    left = re.search(r"cut here: (\d+) tokens", out)
    starts = open_split(chat, "train").document_starts
    assert left is not None
    assert int(left[1]) == starts[2] - 60
    assert "✂ a document goes on that began before" in out


def test_colors_are_those_of_the_kinds(chat: Path, capsys: pytest.CaptureFixture) -> None:
    preview(Preview(data=chat, rows=1, first=1, context_length=100, color="always"))
    out = capsys.readouterr().out
    assert "\x1b[32mthis is" in out
    assert "\x1b[1;32m<|im_end|>" in out
    assert "positions of padding" in out
    assert "cut here" not in out


def test_pairs_are_shown_as_training_cuts_them(chat: Path, capsys: pytest.CaptureFixture) -> None:
    pair = {"prompt": "say ", "chosen": "this and that", "rejected": "no"}
    (chat.parent / "pairs.jsonl").write_text(json.dumps(pair))
    request: dict[str, Any] = {
        "source": str(chat.parent / "pairs.jsonl"),
        "tokenizer": str(chat.parent / "plain"),
        "split": "none",
    }
    prepare_preferences(PreparePreferences(**request, output=chat.parent / "pairs"))
    preview(Preview(data=chat.parent / "pairs", context_length=16))
    out = capsys.readouterr().out
    assert re.search(r"pair 0, chosen: \d+ tokens, 3 trained on\n<\|endoftext\|>say ⟦th.{1,4}⟧\n", out)
    assert re.search(r"cut here: \d+ tokens do not fit beside the other", out)
    assert "rejected: 8 tokens, 3 trained on\n<|endoftext|>say ⟦no⟧⟦<|endoftext|>⟧" in out
    assert "left out" not in out
    preview(Preview(data=chat.parent / "pairs", context_length=8))
    out = capsys.readouterr().out
    assert "left out in training: what is left of the answers" in out
    assert "⟧" not in out.split("\n", 1)[1]


def test_rows_that_do_not_exist_are_named(chat: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="there is no row 99"):
        preview(Preview(data=chat, first=99))
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="--rows=0"):
        Preview(data=chat, rows=0)


@pytest.mark.parametrize("packing", ["concat", "bos_aligned", "best_fit", "bos_best_fit", "best_fit_truncate"])
def test_located_tokens_are_those_that_are_read(chat: Path, packing: Packing) -> None:
    stream = open_split(chat, "train")
    sequences = open_sequences(stream, 40, packing, end_of_text=TOKENIZER.end_of_text)
    rows = np.array([2, 0, 5])
    tokens, places = sequences.read(rows)["tokens"], sequences.locate_tokens(rows)
    for row, column in itertools.product(range(3), range(40)):
        if places[row, column] >= 0:
            assert tokens[row, column] == stream.read(int(places[row, column]), 1)[0]
