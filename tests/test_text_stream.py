"""Text out of tokens that come one by one: whole characters, and stop texts across tokens."""

import pytest

from gptjax.tokenization.text_stream import TextStream
from gptjax.tokenization.tokenizer import Bytes


def feed(text: str, *stop_texts: str, size: int = 1) -> tuple[list[str], TextStream]:
    """What each part of the text adds, and the stream after it."""
    ids, stream = Bytes().encode(text).tolist(), TextStream(Bytes(), stop_texts=stop_texts)
    return [stream.add(ids[i : i + size]) for i in range(0, len(ids), size)], stream


def test_characters_of_several_tokens_come_whole():
    parts, stream = feed("aé☕")
    assert parts == ["a", "", "é", "", "", "☕"]
    assert (stream.finish(), stream.text) == ("", "aé☕")
    _, stream = feed("a")
    stream.add(Bytes().encode("☕").tolist()[:2])
    assert (stream.finish(), stream.text) == ("\ufffd", "a\ufffd")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_stop_text_across_tokens_is_no_part_of_the_text(size: int):
    parts, stream = feed("one STO STOP two", "STOP", "never", size=size)
    assert ("".join(parts), stream.text, stream.stopped) == ("one STO ", "one STO ", True)
    assert stream.finish() == ""


def test_beginning_of_a_stop_text_is_held_back_until_it_is_another():
    parts, stream = feed("aab STO", "STOP", "aac")
    assert parts == ["", "", "aab", " ", "", "", ""]
    assert (stream.finish(), stream.text, stream.stopped) == ("STO", "aab STO", False)


def test_first_of_several_stop_texts_counts():
    assert feed("x two one", "one", "two", size=20)[1].text == "x "
