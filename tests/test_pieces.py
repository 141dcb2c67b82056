"""Pieces of a document: exactly its text, and exactly its tokens, wherever they are cut."""

import itertools
import random

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.encode import pieces as module
from data_pipelines.encode.batching import Batch, Found
from data_pipelines.encode.encoder import Encoder
from data_pipelines.encode.pieces import pieces
from data_pipelines.encode.split_rules import Only
from data_pipelines.readers.documents import Notes, ReadContext
from data_pipelines.train_tokenizer import train_bpe
from gptjax.tokenizer import BPE, Bytes, Chars

SAMPLE = (
    "It's the end, they'll say: 1,024 tokens\r\n\r\n of  'quoted' text…"
    "  语言、模型。 naïve café ＡＢ!\n\tx = 'S'ſ;\x1c\x85 \u3000z"
)
TRICKY = [
    *"abzAS0 9'.,\n\r\t\u00a0\u3000\x1c\x85語、。한éñ́\u200d🙂ſⅣ²\ufeff",
    *("<|endoftext|>", "'ll", "'S ", "  ", "\r\n"),
]


@pytest.fixture(scope="module")
def tokenizers():
    texts = [SAMPLE * 3, "abc ABC 012 the they end x=1\n" * 20]
    own = {name: train_bpe(texts, vocab_size=300, pattern=name) for name in ("gpt2", "gpt4")}
    alphabet = Chars.from_text(["".join(TRICKY), SAMPLE, "\ufffd"])
    two_digits = own["gpt4"].pattern.replace("{1,3}", "{1,2}")
    another = BPE(own["gpt4"].tokens, own["gpt4"].specials, merges=own["gpt4"].merges, pattern=two_digits)
    return {**own, "another": another, "bytes": Bytes(), "chars": alphabet}


def texts_of_pieces(text, tokenizer):
    return [str(piece.content, "utf-8") for piece in pieces(text.encode(), tokenizer)]


@pytest.mark.parametrize("name", ["gpt2", "gpt4", "bytes", "chars"])
@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(st.sampled_from(TRICKY), min_size=1, max_size=60).map("".join),
    size=st.integers(1, 9),
    look=st.integers(16, 30),
)
def test_pieces_have_the_tokens_of_the_whole(tokenizers, name, text, size, look):
    """Pieces so small that every place where a cut is allowed is tried."""
    tokenizer = tokenizers[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", size)
        patch.setattr(module, "LOOK_BYTES", look)
        found = texts_of_pieces(text, tokenizer)
    assert "".join(found) == text
    np.testing.assert_array_equal(np.concatenate([tokenizer.encode(piece) for piece in found]), tokenizer.encode(text))


@pytest.mark.parametrize("name", ["gpt2", "gpt4"])
@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from(TRICKY), max_size=40).map("".join) | st.text(max_size=60))
def test_the_fast_pattern_cuts_the_same_words(tokenizers, name, text):
    """What tiktoken is given instead of the pattern itself, for speed."""
    tokenizer = tokenizers[name]
    plain = tiktoken.Encoding(
        name, pat_str=tokenizer.pattern, mergeable_ranks=tokenizer.tokens, special_tokens=tokenizer.specials
    )
    assert tokenizer.encode(text).tolist() == plain.encode_ordinary(text)


@pytest.mark.parametrize("name", ["gpt2", "gpt4"])
@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1, max_size=80).filter(lambda text: not text.isspace()), size=st.integers(1, 5))
def test_any_text_comes_back_byte_for_byte(tokenizers, name, text, size):
    tokenizer = tokenizers[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", size)
        found = Encoder(tokenizer, ReadContext())(Batch(Only("train"), [Found(text.encode(), Notes())], 1))
    ids = found.tokens
    assert ids[0] == tokenizer.end_of_text
    assert not (ids[1:] == tokenizer.end_of_text).any(), "text never makes a special token"
    assert tokenizer.decode(ids[1:]) == text
    np.testing.assert_array_equal(ids[1:], tokenizer.encode(text))


def test_where_texts_are_cut(tokenizers, monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 4)

    def cut(text, name="gpt2"):
        return texts_of_pieces(text, tokenizers[name])

    assert cut("Done, two; three\n\nfour") == ["Done", ", two", "; three", "\n\nfour"]
    assert cut("12345678") == ["12345678"]
    assert cut("123,45,6789\n1") == ["123,45", ",6789", "\n1"]
    assert cut("模型語言。あああああ、x") == ["模型語言", "。あああああ", "、x"]
    assert cut("été à la fin") == ["été", " à la", " fin"]
    assert cut("été à la fin", "chars") == ["été", " à ", "la f", "in"]
    assert cut("a" * 9, "bytes") == ["aaaa", "aaaa", "a"]
    assert cut("abc😀xyz", "chars") == ["abc😀", "xyz"]


@pytest.mark.parametrize(("name", "blank"), [("gpt2", " "), ("gpt2", "\n"), ("gpt4", " "), ("gpt4", "\n")])
def test_a_million_blanks(tokenizers, name, blank):
    """More than tiktoken can look at when a word follows."""
    tokenizer, many = tokenizers[name], 1_200_000
    found = texts_of_pieces(f"x{blank * many}yes", tokenizer)
    ids = np.concatenate([tokenizer.encode(piece) for piece in found])
    assert tokenizer.decode(ids) == f"x{blank * many}yes"
    few = tokenizer.encode(f"x{blank * 64}yes")
    assert ids[:8].tolist() == few[:8].tolist()
    assert ids[-3:].tolist() == few[-3:].tolist()


ENDLESS = [
    "a",
    "ab",
    "acgt",
    "é",
    "-",
    "=!",
    "!\n",
    " ",
    " \n",
    "\n",
    "012",
    "1²Ⅳ",
    "模型",
    "ก่า",
    "\u00a0 ",
    "'s",
    "\x1c ",
    "!\u0558\u0560",
]


@pytest.mark.parametrize("name", ["gpt2", "gpt4", "another"])
@settings(max_examples=100, deadline=None)
@given(
    runs=st.lists(
        st.tuples(
            st.sampled_from(["", " ", "x", "'", "\n", ". "]),
            st.sampled_from(ENDLESS).flatmap(lambda some: st.text(some, min_size=1, max_size=120)),
        ),
        min_size=1,
        max_size=4,
    ),
    size=st.integers(8, 40),
    looks=st.integers(2, 4),
)
def test_words_without_end_are_cut_between_their_tokens(tokenizers, name, runs, size, looks):
    """Runs of one kind, random and regular, with no place for far longer than a piece."""
    text = "".join(itertools.chain.from_iterable(runs))
    with pytest.MonkeyPatch.context() as patch:
        for constant, value in (("PIECE_BYTES", size), ("LOOK_BYTES", 20), ("MOST_LOOKS", looks)):
            patch.setattr(module, constant, value)
        found = texts_of_pieces(text, tokenizers[name])
    assert "".join(found) == text
    ids = np.concatenate([tokenizers[name].encode(piece) for piece in found])
    np.testing.assert_array_equal(ids, tokenizers[name].encode(text))


@pytest.mark.parametrize(
    ("name", "letters"),
    [("gpt2", "acgt"), ("gpt2", "-"), ("gpt2", "é"), ("gpt4", "abc"), ("gpt4", "0123456789"), ("another", "01")],
)
def test_no_piece_is_much_longer_than_wanted(tokenizers, monkeypatch, name, letters):
    for constant, value in (("PIECE_BYTES", 400), ("LOOK_BYTES", 50), ("MOST_LOOKS", 4)):
        monkeypatch.setattr(module, constant, value)
    text = "".join(random.Random(1).choices(letters, k=3000))
    found = texts_of_pieces(text, tokenizers[name])
    assert "".join(found) == text
    assert max(len(piece.encode()) for piece in found) <= 600
    ids = np.concatenate([tokenizers[name].encode(piece) for piece in found])
    np.testing.assert_array_equal(ids, tokenizers[name].encode(text))


def test_a_pattern_that_looks_back_is_cut_where_it_makes_no_difference(tokenizers, monkeypatch):
    for constant, value in (("PIECE_BYTES", 8), ("LOOK_BYTES", 16), ("MOST_LOOKS", 2)):
        monkeypatch.setattr(module, constant, value)
    known = tokenizers["gpt2"]
    other = BPE(known.tokens, known.specials, merges=known.merges, pattern=r"(?<=o)nn|\w")
    text = "onn" * 40
    found = texts_of_pieces(text, other)
    assert len(found) > 5
    assert all(piece.startswith("o") for piece in found)
    unreadable = BPE(known.tokens, known.specials, merges=known.merges, pattern=r"\x{6f}|\w")
    assert texts_of_pieces(text, unreadable) == [text], "a pattern for tiktoken alone"


def test_going_on_after_any_piece(tokenizers, monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 6)
    document = " ".join(random.Random(0).choices(["one", "four", "eleven"], k=30)).encode()
    every = list(pieces(document, tokenizers["gpt4"]))
    assert len(every) > 15
    assert [piece.ends for piece in every] == [False] * (len(every) - 1) + [True]
    assert [piece.begin for piece in every] == [0, *(piece.end for piece in every[:-1])]
    for i, piece in enumerate(every):
        assert piece.content == document[piece.begin : piece.end]
        assert list(pieces(document, tokenizers["gpt4"], begin=piece.begin)) == every[i:]


@pytest.mark.parametrize("character", ["x", "\N{GRINNING FACE}"])
def test_a_place_far_away_is_found(tokenizers, monkeypatch, character):
    """Wherever it lies in what is looked at, also across two looks."""
    monkeypatch.setattr(module, "PIECE_BYTES", 8)
    monkeypatch.setattr(module, "LOOK_BYTES", 16)
    for far in range(60):
        for blanks in (" ", "   "):
            text = character * far + blanks + "end"
            found = texts_of_pieces(text, tokenizers["gpt2"])
            assert "".join(found) == text
            ids = np.concatenate([tokenizers["gpt2"].encode(piece) for piece in found])
            np.testing.assert_array_equal(ids, tokenizers["gpt2"].encode(text))
            if far * len(character.encode()) > 8:
                assert found[-1] == f"{' ' if len(blanks) == 1 else blanks}end", "cut behind the last character"
