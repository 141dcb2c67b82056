"""Pieces of a document have exactly its text and its tokens, wherever it is cut."""

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.encode import pieces
from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.encode.pieces import iter_pieces
from gptjax.tokenization.tokenizer import BPE, Bytes, Chars

SAMPLE = (
    "It's the end, they'll say: 1,024 tokens\r\n\r\n of  'quoted' text…"
    "  语言、模型。 naïve café ＡＢ!\n\tx = 'S'ſ;\x1c\x85 \u3000z"
)
TRICKY = [
    *"abzAS0 9'.,\n\r\t\u00a0\u3000\x1c\x85語、。한éñ́\u200d🙂ſⅣ²\ufeff",
    *("<|endoftext|>", "'ll", "'S ", "  ", "\r\n", "\n", " a", ".\nb"),
]


@pytest.fixture(scope="module")
def tokenizers():
    texts = [SAMPLE * 3, "abc ABC 012 the they end x=1.\n\n" * 20]
    own = {name: train_bpe(texts, vocab_size=300, pattern=name) for name in ("gpt2", "gpt4")}
    alphabet = Chars.from_text(["".join(TRICKY), SAMPLE, "\ufffd"])
    return {**own, "bytes": Bytes(), "chars": alphabet}


def cut(text, tokenizer, size):
    return [str(piece.content, "utf-8") for piece in iter_pieces(text.encode(), tokenizer, point=0.0, size=size)]


@pytest.mark.parametrize("name", ["gpt2", "gpt4", "bytes", "chars"])
@settings(max_examples=400, deadline=None)
@given(
    text=st.lists(st.sampled_from(TRICKY), min_size=1, max_size=60).map("".join),
    size=st.integers(1, 9),
    window=st.integers(8, 40),
)
def test_pieces_have_the_tokens_of_the_whole(tokenizers, name, text, size, window):
    """Pieces are so small that every place where a cut is allowed is tried."""
    tokenizer = tokenizers[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "SEARCH_BYTES", window)
        found = cut(text, tokenizer, size)
    assert "".join(found) == text
    np.testing.assert_array_equal(np.concatenate([tokenizer.encode(piece) for piece in found]), tokenizer.encode(text))


@pytest.mark.parametrize("name", ["gpt2", "gpt4"])
@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from(TRICKY), max_size=40).map("".join) | st.text(max_size=60))
def test_fast_pattern_gives_the_tokens_of_the_plain_one(tokenizers, name, text):
    """For speed tiktoken gets another pattern than the tokenizer's."""
    tokenizer = tokenizers[name]
    plain = tiktoken.Encoding(
        name, pat_str=tokenizer.pattern, mergeable_ranks=tokenizer.tokens, special_tokens=tokenizer.specials
    )
    assert tokenizer.encode(text).tolist() == plain.encode_ordinary(text)


def test_pieces_end_before_spaces_and_after_single_line_ends(tokenizers):
    def cut_small(text, name="gpt2"):
        return cut(text, tokenizers[name], 4)

    assert cut_small("Done, two; three\n\nfour five") == ["Done,", " two;", " three\n\nfour", " five"]
    assert cut_small("模型語言。\n語言模型", "gpt4") == ["模型語言。\n", "語言模型"]
    assert cut_small("слово слово\r\nсло") == ["слово", " слово\r\nсло"]
    assert cut_small("abcdefgh") == ["abcdefgh"]
    assert cut_small("étés \u3000 fins fin") == ["étés", " \u3000 fins", " fin"], "not within white space"
    assert cut_small("a b c d e", "bytes") == ["a b c", " d e"]


def test_another_pattern_keeps_documents_whole(tokenizers):
    known = tokenizers["gpt4"]
    other = BPE(known.tokens, known.specials, merges=known.merges, pattern=known.pattern.replace("{1,3}", "{1,2}"))
    assert cut("a b c d e f", other, 2) == ["a b c d e f"]


def test_pieces_say_where_the_document_begins_and_ends(tokenizers):
    found = list(iter_pieces(b"one two three four", tokenizers["gpt2"], point=0.5, size=2))
    assert [piece.begins for piece in found] == [True, False, False, False]
    assert [piece.ends for piece in found] == [False, False, False, True]
    assert {piece.point for piece in found} == {0.5}
