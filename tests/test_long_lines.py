"""Long lines of JSON: read as any other, with the text in memory once. See test_documents, too."""

import json
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import documents_by

from data_pipelines.readers import json_lines, long_lines
from data_pipelines.readers.documents import INVALID, ReadContext, parse_json_line
from data_pipelines.readers.json_lines import read_json_lines
from data_pipelines.readers.long_lines import document_of_long_line, document_of_record
from gptjax.errors import UserError


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.characters(codec=None) | st.sampled_from('"\\/\n\ud83d\ude00é☕😀'), max_size=40),
    other=st.text(max_size=30),
    ascii_only=st.booleans(),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
)
def test_any_record_in_any_blocks_is_what_it_is_whole(text, other, ascii_only, cuts):
    record = {"a": [other, {"text": other, "b": None}], "text": text, "c": other}
    line = json.dumps(record, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    blocks, begin, turn = [], 0, 0
    while begin < len(line):
        blocks.append(line[begin : begin + cuts[turn % len(cuts)]])
        begin, turn = begin + len(blocks[-1]), turn + 1
    whole, pieces = ReadContext(), ReadContext()
    wanted = parse_json_line(line, whole, where="x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_lines, "LONG_BYTES", 6)
        found = document_of_long_line(iter(blocks), pieces, where="x")
    assert found == wanted
    assert pieces.notes == whole.notes


def test_lines_after_a_long_one_are_read(tmp_path):
    """Also after one that is broken in its middle, and the numbers of lines stay right."""
    large = "All work and no play. " * 100_000
    lines = [json.dumps({"text": large + "first"}), '{"text": "' + large + "\\x" + large + '"}', '{"text": "small"}']
    lines += [" " * 2_500_000, json.dumps({"html": large, "text": "beside"}), '{"text": "' + large]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))
    context = ReadContext()
    found = list(documents_by(read_json_lines, path, context))
    assert found == [(large + "first").encode(), b"small", b"beside"]
    assert context.notes == {INVALID: 2}
    with pytest.raises(UserError, match=r"x\.jsonl:2: not a line of JSON in UTF-8: Invalid \\escape"):
        list(documents_by(read_json_lines, path, ReadContext(strict=True)))
    path.write_text("\n".join(lines[2:]))
    with pytest.raises(UserError, match=r"x\.jsonl:4: not a line of JSON in UTF-8: it ends within a string"):
        list(documents_by(read_json_lines, path, ReadContext(strict=True)))


def test_a_line_of_exactly_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", 64)
    path = tmp_path / "x.jsonl"
    for length in range(60, 70):
        line = json.dumps({"text": "x" * (length - len('{"text": ""}'))})
        path.write_text(f"{line}\n{line}\n\n{line}")
        assert list(map(len, documents_by(read_json_lines, path, ReadContext(strict=True)))) == [length - 12] * 3


def test_escapes_take_no_memory():
    """A line six times as long as its text never lies in memory, and escapes are many."""
    rng = random.Random(0)
    unit = json.dumps("".join(rng.choices('éπ\n"\\ a', k=5000)))[1:-1].encode()
    count = 2000
    blocks = (b'{"text": "', *[unit] * count, b'"}')
    tracemalloc.start()
    found = document_of_long_line(iter(blocks), ReadContext(strict=True), where="x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert found == json.loads(b'"' + unit + b'"').encode() * count
    assert peak < 1.5 * len(found) + 3 * long_lines.LONG_BYTES


def test_a_record_in_memory_is_read_in_either_way(monkeypatch):
    record = json.dumps({"text": "some text é"}).encode()
    for limit in (6, 1000):
        monkeypatch.setattr(long_lines, "LONG_BYTES", limit)
        assert document_of_record(record, ReadContext(strict=True), where="x") == "some text é".encode()


def test_a_record_of_endless_numbers_is_broken_and_takes_no_memory(tmp_path, monkeypatch):
    """And what is in strings does not count, however often they end."""
    monkeypatch.setattr(long_lines, "MOST_STRUCTURE", 2**20)
    path = tmp_path / "x.jsonl"
    words = json.dumps({"text": "good", "words": ['such, [as] \\ " these' * 10_000] * 20})
    assert len(words) > 2 * long_lines.MOST_STRUCTURE
    with path.open("w") as file:
        file.write('{"text": "lost", "embedding": [')
        for _ in range(1000):
            file.write("0, " * 10_000)
        file.write(f"0]}}\n{words}\n")
    context = ReadContext()
    tracemalloc.start()
    assert list(documents_by(read_json_lines, path, context)) == [b"good"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert context.notes == {long_lines.TOO_MUCH: 1}
    assert peak < 4 * len(words)
    with pytest.raises(UserError, match=r"x\.jsonl:1: more than 1,048,576 bytes of it are not in strings"):
        list(documents_by(read_json_lines, path, ReadContext(strict=True)))


def test_what_is_wrong_is_told_alike_each_time(tmp_path):
    """No name that stands for a long string is told, nor a place in what is left when such names stand there."""
    long, told = "x" * 5_000_000, []
    lines = [
        json.dumps([long]),
        json.dumps({long: 1, "a": 2}),
        json.dumps({"text": {"a": long}}),
        f'{{"text": "{long}" oops}}',
    ]
    for line in lines:
        (tmp_path / "x.jsonl").write_text(line)
        for _ in range(2):
            with pytest.raises(UserError) as error:
                list(documents_by(read_json_lines, tmp_path / "x.jsonl", ReadContext(strict=True)))
            told.append(str(error.value).split("x.jsonl")[1])
    assert told[::2] == told[1::2]
    wanted = ':1: wanted an object with a string "text", got '
    assert told[0] == f"{wanted}['…0']."
    assert told[2] == f"{wanted}one with …0, a (--text-field chooses another)."
    assert told[4] == f"{wanted}{{'text': {{'a': '…0'}}}}."
    assert told[6] == ":1: not a line of JSON in UTF-8: Expecting ',' delimiter."
