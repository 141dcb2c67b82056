"""Token files of other projects: recorded in place, or copied with their documents."""

import io
import json
import os
import pickle
import struct

import numpy as np
import pyarrow
import pytest

from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.index_shards import IndexShards, main
from data_pipelines.readers.files import open_files
from data_pipelines.verify import VerifyShards, verify_directory
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.data.manifest import read_manifest
from gptjax.data.shards import Format, guess_width, open_shard, write_shard
from gptjax.data.splits import open_split

ORDINARY = 600
END = ORDINARY
MDS_INDEX = b"""{"shards": [{"raw_data": {"basename": "x.mds"}, "column_names": %b, "column_encodings": [],
"column_sizes": [], "compression": %b}]}"""


MDS_SHARD = b"""{"raw_data": {"basename": "x.mds"}, "column_names": [], "column_encodings": [], "column_sizes": []}, """


MANY_AXES = str({"descr": "<u2", "fortran_order": False, "shape": (9,) * 70}).encode() + b"\n"


def save(array):
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def make_index(lengths, begins):
    """A Megatron index of 32-bit ids."""
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, len(lengths), len(lengths) + 1)
    return header + np.array(lengths, "<i4").tobytes() + np.array(begins, "<i8").tobytes()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The directory of a tokenizer whose end of text is its last id."""
    words = [f"{left}{right}" for left in "abcdefghijklmnopqrstuvwxyz" for right in range(400)]
    directory = tmp_path_factory.mktemp("tokenizer")
    train_bpe([" ".join(words)], vocab_size=ORDINARY + 1).save(directory)
    return str(directory)


@pytest.fixture(scope="module")
def documents():
    random = np.random.RandomState(0)
    return [random.randint(0, ORDINARY, length) for length in (40, 1, 300, 7, 80)]


@pytest.fixture(scope="module")
def expected(documents):
    return np.concatenate([part for document in documents for part in ([END], document)])


def write_megatron(prefix, documents, dtype, code):
    """Each document ends with the end of text, as preprocess_data.py --append-eod writes it."""
    ended = [np.append(document, END).astype(dtype) for document in documents]
    lengths = np.array([len(document) for document in ended], "<i4")
    begins = (np.cumsum(lengths) - lengths).astype("<i8") * np.dtype(dtype).itemsize
    prefix.with_suffix(".bin").write_bytes(b"".join(document.tobytes() for document in ended))
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(ended), len(ended) + 1)
    index = np.arange(len(ended) + 1, dtype="<i8")
    prefix.with_suffix(".idx").write_bytes(header + lengths.tobytes() + begins.tobytes() + index.tobytes())


def write_mds(directory, rows, encoding, compression=None):
    directory.mkdir(parents=True)
    samples = []
    for row in rows:
        if encoding == "bytes":
            datum = row.astype("<i8").tobytes()
        else:
            datum = bytes([1 << 2 | 1]) + struct.pack("<H", len(row)) + row.astype("<i4").tobytes()
        samples.append(struct.pack("<I", len(datum)) + datum)
    config = json.dumps({"column_names": ["tokens"]}).encode()
    offsets = 4 + 4 * (len(samples) + 1) + len(config) + np.cumsum([0, *map(len, samples)])
    content = struct.pack("<I", len(samples)) + offsets.astype("<u4").tobytes() + config + b"".join(samples)
    if compression is None:
        (directory / "shard.00000.mds").write_bytes(content)
    else:
        with pyarrow.CompressedOutputStream(str(directory / "shard.00000.mds.zstd"), "zstd") as file:
            file.write(content)
    raw = {"basename": "shard.00000.mds", "bytes": len(content)}
    columns = {"column_names": ["tokens"], "column_encodings": [encoding], "column_sizes": [None], "raw_data": raw}
    columns["compression"] = compression
    (directory / "index.json").write_text(json.dumps({"version": 2, "shards": [columns]}))


def copy(source, tokenizer, tmp_path):
    main(IndexShards(source, tokenizer, output=tmp_path / "copied"))
    verify_directory(VerifyShards(tmp_path / "copied"))
    return read_all(tmp_path / "copied")


def read_all(directory):
    """The tokens of both splits, one behind the other."""
    parts = [open_split(directory, split) for split in ("train", "val")]
    assert parts[1].document_starts[0] == 0
    return np.concatenate([part.read(0, len(part)) for part in parts])


@pytest.mark.parametrize(("dtype", "code"), [("<u2", 8), ("<i4", 4)])
def test_megatron_is_copied_document_by_document(dtype, code, documents, expected, tokenizer, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_megatron(source / "books_text_document", documents, dtype, code)
    np.testing.assert_array_equal(copy(source, tokenizer, tmp_path), expected)
    assert open_split(tmp_path / "copied", "train").document_starts.tolist() == [0, 41, 43, 344]


@pytest.mark.parametrize(("encoding", "compression"), [("bytes", None), ("ndarray:int32", "zstd:3")])
def test_mds_is_copied_as_a_stream(encoding, compression, documents, expected, tokenizer, tmp_path, capsys):
    ended = np.append(expected[1:], END)[: len(expected) // 9 * 9]
    write_mds(tmp_path / "source" / "train", ended.reshape(-1, 9), encoding, compression)
    write_mds(tmp_path / "source" / "val", ended[:90].reshape(-1, 9), encoding)
    np.testing.assert_array_equal(copy(tmp_path / "source", tokenizer, tmp_path)[:-91], np.insert(ended, 0, END))
    assert len(open_split(tmp_path / "copied", "val")) == 91


@pytest.mark.parametrize("nested", [True, False], ids=["with their own", "without"])
def test_merged_index_of_mds_is_read_once(nested, expected, tokenizer, tmp_path):
    source, shards = tmp_path / "source", []
    for number, half in enumerate((expected[:41], expected[41:])):
        write_mds(source / f"{number}", [half], "bytes")
        index = source / f"{number}" / "index.json"
        shard = json.loads(index.read_text())["shards"][0]
        shard["raw_data"]["basename"] = f"{number}/shard.00000.mds"
        shards.append(shard)
        if not nested:
            index.unlink()
    (source / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    np.testing.assert_array_equal(copy(source, tokenizer, tmp_path), expected)


def test_single_file_is_named_with_its_directory(tokenizer, tmp_path):
    (tmp_path := tmp_path / "my data").mkdir()
    np.save(tmp_path / "train.npy", np.arange(9))
    with pytest.raises(UserError, match=f"is a file. Give the directory that holds it: {tmp_path}$"):
        main(IndexShards(tmp_path / "train.npy", tokenizer))
    with pytest.raises(UserError, match=rf"token files \(.npy\) and no text.*index_shards '{tmp_path}'$"):
        open_files(str(tmp_path))


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8"])
@pytest.mark.parametrize("is_npy", [True, False])
def test_arrays_are_copied_whatever_their_type(dtype, is_npy, expected, tokenizer, tmp_path):
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "part-00000.npy"
    if is_npy:
        np.save(path, expected.astype(dtype))
    else:
        expected.astype(dtype).tofile(path)  # as OLMo's files of that name
    np.testing.assert_array_equal(copy(tmp_path / "source", tokenizer, tmp_path), expected)


@pytest.mark.parametrize(("dtype", "format"), [("<u2", "raw-uint16"), ("<i4", "raw-uint32")])
def test_files_without_a_header_are_recorded_in_place(dtype, format, expected, tokenizer, tmp_path):
    for split in ("train", "validation"):
        expected.astype(dtype).tofile(tmp_path / f"{split}.bin")
    main(IndexShards(tmp_path, tokenizer))
    assert read_manifest(tmp_path).format == format
    verify_directory(VerifyShards(tmp_path))
    for split in ("train", "val"):
        stream = TokenShards(path=str(tmp_path)).open_stream(split)
        np.testing.assert_array_equal(stream.read(0, len(stream)), expected)
    other: Format = "raw-uint32" if format == "raw-uint16" else "raw-uint16"
    with pytest.raises(UserError, match=f"use format {format}"):
        open_shard(tmp_path / "train.bin", format=other)
    with pytest.raises(UserError, match=f"index_shards records that, or train with --data.format={format}"):
        open_shard(tmp_path / "train.bin")


@pytest.mark.parametrize("width", [7, 400])
def test_validation_of_a_stream_is_its_end(width, tokenizer, tmp_path):
    random = np.random.RandomState(1)
    documents = [np.append(random.randint(0, ORDINARY, length), END) for length in random.randint(20, 60, 140)]
    stream = np.concatenate(documents)
    stream = stream[: len(stream) // width * width]
    write_mds(tmp_path / "source", stream.reshape(-1, width), "ndarray:int32")
    main(IndexShards(tmp_path / "source", tokenizer, output=tmp_path / "copied"))
    train, val = (open_split(tmp_path / "copied", split) for split in ("train", "val"))
    cut, rest = len(train) - 1, val.read(0, len(val))
    np.testing.assert_array_equal(train.read(1, cut), stream[:cut])
    np.testing.assert_array_equal(rest[int(stream[cut] != END) :], stream[cut:])
    assert rest[0] == END
    assert len(stream) * 0.05 < len(rest) < len(stream) * 0.15


def test_copied_shards_lose_their_header(expected, tokenizer, tmp_path, capsys):
    (tmp_path / "source").mkdir()
    for split in ("train", "val", "test"):
        write_shard(tmp_path / "source" / f"own_{split}_000000.bin", expected.astype(np.uint16))
    np.testing.assert_array_equal(copy(tmp_path / "source", tokenizer, tmp_path), np.tile(expected, 2))
    assert "not copied: 1 file of the test split" in capsys.readouterr().err


def test_small_ids_of_32_bits_are_seen(tmp_path):
    (np.arange(1000, dtype="<u4") % 5).tofile(tmp_path / "a.bin")
    assert guess_width(tmp_path / "a.bin") == 4


@pytest.mark.parametrize("dtype", [">u4", ">i8"])
@pytest.mark.parametrize("vocab", [65, 50257, 200_000])
def test_ids_with_the_highest_byte_first_are_refused(dtype, vocab, tmp_path):
    np.random.default_rng(vocab).integers(0, vocab, 1000).astype(dtype).tofile(tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"a\.bin: looks like ids of 32 or 64 bits with the highest byte first"):
        guess_width(tmp_path / "a.bin")


def test_mds_of_bytes_with_a_short_first_sample(tokenizer, tmp_path, expected):
    write_mds(tmp_path / "source" / "train", [expected[:0], expected], "bytes")
    write_mds(tmp_path / "source" / "val", [expected], "bytes")
    np.testing.assert_array_equal(copy(tmp_path / "source", tokenizer, tmp_path)[1:], np.tile(expected, 2))


def test_tokens_that_are_all_equal_are_no_tokens(tmp_path):
    np.full(1000, 7, "<u2").tofile(tmp_path / "train.bin")
    with pytest.raises(UserError, match="all values are 7"):
        open_shard(tmp_path / "train.bin", format="raw-uint16")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.bin", np.arange(500, dtype="<i8").tobytes(), r"64-bit ids, which cannot be read in place\. Give"),
        ("part.npy", b"", "no .bin files with train or val in their names"),
        ("part.txt", b"", "no .bin files"),
    ],
)
def test_files_that_cannot_be_mapped_need_an_output(name, content, message, tokenizer, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        main(IndexShards(tmp_path, tokenizer))
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.idx", b"MMIDIDX\0\0", "is not an index of Megatron"),
        ("a.idx", b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 7, 5, 5), "type 7"),
        ("a.idx", b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 2**60, 5), "is cut short"),
        ("a.idx", make_index([3, -2], [0, 0]), "sequences are longer than a.bin together"),
        ("a.idx", make_index([4] * 9, [0] * 9), "sequences are longer than a.bin together"),
        ("a.idx", make_index([1, 1], [0, 0]), "two of its sequences overlap"),
        ("a.idx", make_index([2], [2]), "a sequence lies outside of a.bin, or between ids"),
        ("index.json", b"[]", "is not an index of MDS"),
        ("index.json", MDS_INDEX.replace(b'sizes": []', b'sizes": [-4]') % (b"[]", b"null"), "its column_sizes are"),
        ("index.json", b'{"shards": [{"raw_data": 7}]}', "is not an index of MDS"),
        ("index.json", MDS_INDEX.replace(b"[{", b"[%b{") % (MDS_SHARD, b"[]", b"null"), "names a file twice"),
        (
            "index.json",
            b'{"shards": [{"raw_data": {"basename": "../x"}, "column_names": [], '
            b'"column_encodings": [], "column_sizes": []}]}',
            "is not below its folder",
        ),
        ("index.json", MDS_INDEX % (b"[1, 2]", b"null"), "wanted a column tokens or input_ids; it has 1, 2"),
        ("index.json", MDS_INDEX % (b'["tokens"]', b'"a/b"'), "x.mds is not there, though index.json names it"),
        ("a.bin", b"", "no tokens for training"),
        ("a.bin", bytes(range(101)), "101 bytes are not a whole number of 16-bit ids"),
        ("a.npy", b"\x93NUMPY garbage", "cannot be read as an array"),
        ("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(MANY_AXES)) + MANY_AXES, "cannot be read as an array"),
        ("a.npy", np.arange(9000, dtype="<u4").tobytes(), "holds the id"),
        ("a.npy", save(np.ones((3, 4), "<u2", order="F")), "by columns .*Write it again"),
        ("test.npy", np.arange(9000, dtype="<u4").tobytes(), "holds files of the test split only"),
        ("train.bin", "It's plain text: è.\n".encode() * 9, "is plain text; .*data_pipelines.prepare"),
        ("train.bin", bytes(np.random.default_rng(0).integers(1, 9, 4000, "u1")), "ids of 8 bits"),
        ("train.bin", bytes(range(97, 123)) * 9, "is plain text"),
        ("train.bin", bytes(np.random.default_rng(0).binomial(40, 0.5, 200).astype("u1")), "ids of 8 bits"),
        ("train.bin", bytes(np.random.default_rng(0).geometric(0.02, 4000).astype("u1")), "ids of 8 bits"),
        ("train.bin", np.array([5, 9, 7000, -100] * 99, "<i4").tobytes(), "holds the negative value -100"),
        ("train.bin", np.array([5, 9, 7000, -100] * 99, "<i8").tobytes(), "holds the negative value -100"),
        ("a.txt", b"text", "holds no token files"),
        ("train.bin", b"LITPKDS" + bytes(range(200)), "is a file of LitGPT"),
    ],
)
def test_damaged_token_files_are_refused(name, content, message, tokenizer, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / name).write_bytes(content)
    if b"MMIDIDX" in content and len(content) > 34:
        (source / "a.bin").write_bytes(bytes(32))
    with pytest.raises(UserError, match=message):
        main(IndexShards(source, tokenizer, output=tmp_path / "copied"))
    assert not (tmp_path / "copied").exists()


def test_datatrove_files_are_copied(tokenizer, tmp_path, capsys):
    ids = np.random.RandomState(0).randint(0, 9, 4000)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "00000_tokens.ds").write_bytes(ids.astype("<u4").tobytes())
    (tmp_path / "d" / "00000_tokens.ds.index").write_bytes(bytes(80))
    main(IndexShards(tmp_path / "d", tokenizer, output=tmp_path / "copied"))
    np.testing.assert_array_equal(open_split(tmp_path / "copied", "train").take(np.arange(1, 3600)), ids[:3599])
    assert "the largest id is 8, of 601. If bpe-601 did not make these files, name" in capsys.readouterr().out


def write_characters(directory, meta):
    directory.mkdir()
    (directory / "train.bin").write_bytes(np.random.RandomState(0).randint(0, 3, 900).astype("<u2").tobytes())
    (directory / "meta.pkl").write_bytes(meta if isinstance(meta, bytes) else pickle.dumps(meta))
    return directory


def test_nanogpts_table_of_characters_is_the_tokenizer(tmp_path, capsys):
    directory = write_characters(
        tmp_path / "d", {"vocab_size": 3, "stoi": {"\n": 0, "a": 1, "é": 2}, "itos": [None, True]}
    )
    main(IndexShards(directory))
    assert TokenShards(path=str(directory)).load_tokenizer().decode([2, 1, 0]) == "éa\n"
    assert "largest id" not in capsys.readouterr().out


class Attack:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"stoi": Attack()}, "it has the operation STACK_GLOBAL. Name the --tokenizer"),
        ({"stoi": {("a",): 0}}, "it has the operation TUPLE1"),
        (b"\x80\x04}r\x63\x00\x00\x00.", "it numbers more values than it has"),
        (b"(dI1099511627776\nNs.", "it has a number of more than 31 bits"),
        ({"stoi": {"a": 0}, "itos": [[] for _ in range(101)]}, "it has more than 100 lists and tables"),
        (b"no pickle", "cannot be read as a table of characters"),
        ({"stoi": {"a": 0, "b": 2}}, "does not number single characters"),
        ({"stoi": {"a": 0, "bc": 1}}, "does not number single characters"),
        ({"stoi": {"a": 0, "\ud800": 1}}, "does not number single characters"),
    ],
)
def test_other_pickles_are_refused_and_not_executed(meta, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(IndexShards(write_characters(tmp_path / "d", meta)))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["d", "meta.pkl", "train.bin"]


@pytest.mark.parametrize("vocab", [300, 1024, 50257, 65536])
@pytest.mark.parametrize("count", [100, 700, 20_000])
def test_made_ids_of_16_bits_are_not_taken_for_others(vocab, count, tmp_path):
    """Evenly spread ids are the hardest: the upper byte of 65,536 of them is as even as the lower."""
    path = tmp_path / "train.bin"
    np.random.default_rng(count).integers(0, vocab, count).astype("<u2").tofile(path)
    assert guess_width(path) == 2


def test_small_ids_beside_65535_as_a_marker_are_of_16_bits(tmp_path):
    ids = np.array([*range(12), 0, 65535] * 99, "<u2")
    path = tmp_path / "train.bin"
    path.write_bytes(ids.tobytes())
    assert guess_width(path) == 2


def test_what_is_no_file_is_passed_over(tokenizer, tmp_path):
    """A pipe would never end; a link to itself and a directory cannot be read."""
    source = tmp_path / "source"
    (source / "train.bin").mkdir(parents=True)
    (source / "a.npy").symlink_to(source / "a.npy")
    os.mkfifo(source / "val.bin")
    for output in (tmp_path / "copied", None):
        with pytest.raises(UserError, match=r"no token files|no \.bin files"):
            main(IndexShards(source, tokenizer, output=output))


def test_compressed_mds_is_not_unpacked_beyond_what_its_index_says(tokenizer, documents, tmp_path):
    write_mds(tmp_path / "source", documents, "bytes", "zstd")
    index = tmp_path / "source" / "index.json"
    content = json.loads(index.read_text())
    content["shards"][0]["raw_data"]["bytes"] -= 1
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"shard.00000.mds.zstd: holds more than the [\d,]+ bytes of index.json"):
        main(IndexShards(tmp_path / "source", tokenizer, output=tmp_path / "copied"))
    assert not (tmp_path / "copied").exists()
