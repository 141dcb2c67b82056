"""The same spec names the same files."""

import os

import pytest

from data_pipelines.readers.documents import ReadContext
from data_pipelines.readers.files import open_files
from data_pipelines.readers.paths import EXPLAIN_DEAD, find_files, hash_names_sizes_times, identify_files
from data_pipelines.readers.record_sources import open_records
from gptjax.core.errors import UserError


def find(spec):
    return find_files(str(spec), lambda name: name.endswith(".txt"), known=".txt", otherwise=" Or else.").paths


def find_below(root, spec):
    return [path.relative_to(root).as_posix() for path in find(f"{root}/{spec}")]


def test_spec_names_file_directory_or_pattern(tmp_path):
    (tmp_path / "sub.txt").mkdir()
    for name in ("b.txt", "a.md", "sub.txt/c.txt", ".hidden.txt"):
        (tmp_path / name).write_text(name)
    assert find_below(tmp_path, "") == ["b.txt", "sub.txt/c.txt"], "in a directory, files of known formats"
    assert find_below(tmp_path, "a.md") == ["a.md"], "a named file may have any name"
    assert find_below(tmp_path, "*") == ["a.md", "b.txt"]
    assert find_below(tmp_path, "**/*.txt") == ["b.txt", "sub.txt/c.txt"]
    (tmp_path / "[x].txt").write_text("a name that looks like a pattern")
    assert find_below(tmp_path, "[x].txt") == ["[x].txt"]


def test_no_file_is_read_twice(tmp_path):
    """Links beside a folder or upwards, and a pattern with two `**`, lead to it several times."""
    (tmp_path / "d/data/deep").mkdir(parents=True)
    for name in ("data/a.txt", "data/deep/b.txt"):
        (tmp_path / "d" / name).write_text(name)
    (tmp_path / "d/latest").symlink_to("data")
    (tmp_path / "d/data/z.txt").symlink_to("a.txt")
    assert find_below(tmp_path, "d/**/**/*.txt") == ["d/data/a.txt", "d/data/deep/b.txt"]
    assert find_below(tmp_path, "d/latest/*.txt") == ["d/latest/a.txt"], "what is named by a link is read through it"
    (tmp_path / "d/data/deep/up").symlink_to("../..")
    assert find_below(tmp_path, "d") == ["d/data/a.txt", "d/data/deep/b.txt"]


def test_broken_links_and_pipes_are_told_and_left_out_or_refused_alone(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to("nowhere")
    (tmp_path / "b.log").symlink_to("nowhere either")
    for spec in (tmp_path, f"{tmp_path}/*.txt"):
        files, context = open_files(str(spec)), ReadContext()
        assert files.paths == (tmp_path / "a.txt",)
        list(files.chunks(context))
        told = f"1 link to nothing not read; the first: {tmp_path}/b.txt: {EXPLAIN_DEAD}"
        assert told in context.notes.lines()
        with pytest.raises(UserError, match=r"b\.txt: is a link to nothing\. Remove"):
            list(files.chunks(ReadContext(strict=True)))
    (tmp_path / "c.jsonl").write_text("{}")
    (tmp_path / "d.jsonl").symlink_to("nowhere")
    found = [each for block in open_records(f"{tmp_path}/*.jsonl").iter_blocks((), 1) for each in block.read()]
    assert (found[0][1], str(found[1][1])) == ({}, f"{tmp_path}/d.jsonl: {EXPLAIN_DEAD}")
    for spec in (f"{tmp_path}/b.*", tmp_path / "b.txt"):
        with pytest.raises(UserError, match=r"b\.(log|txt): is a link to nothing, a pipe or a device"):
            find(spec)
    (tmp_path / "b.txt").unlink()
    assert find_below(tmp_path, "") == ["a.txt"], "other formats are not looked for"
    os.mkfifo(tmp_path / "x.txt")
    with pytest.raises(UserError, match=r"x\.txt: is .* a pipe"):
        find(tmp_path / "x.txt")
    (tmp_path / "a\nerror: b").mkdir()
    for name in ("a\nerror: b.txt", "a\nerror: b/c.txt"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=r"a\\nerror: b(/c)?\.txt: its path has a line end"):
            find(tmp_path / name)


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.txt").write_text("x")
    for spec in ("~/x.txt", "~", "~/*.txt"):
        assert find(spec) == (tmp_path / "x.txt",)
    assert identify_files("~/x.txt", [])["source"] == f"{tmp_path}/x.txt"


def test_spec_that_names_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"the directory holds no \.txt files"):
        find(tmp_path)
    with pytest.raises(UserError, match=r"no such file, directory or pattern\. Or else\."):
        find(tmp_path / "*.txt")
    (tmp_path / "book.txt").touch()
    with pytest.raises(UserError, match=rf"pattern\. Did you mean {tmp_path}/book\.txt\? Or else\."):
        find(tmp_path / "bok.txt")


def test_identity_is_of_names_sizes_and_times(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    os.utime(path, ns=(5, 5))
    hashed = hash_names_sizes_times({path.as_posix(): path})
    assert identify_files("a", [path]) == {"source": os.path.abspath("a"), "files": 1, "names_sizes_times": hashed}
    hashes = {hash_names_sizes_times({"a.txt": path}), hash_names_sizes_times({"b.txt": path})}
    path.write_text("ab")
    for time in (5, 6):
        os.utime(path, ns=(time, time))
        hashes.add(hash_names_sizes_times({"a.txt": path}))
    assert len(hashes) == 4


def test_directory_that_may_not_be_read_is_not_called_empty(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"Permission denied\. Make the directory readable"):
        find_files(str(tmp_path), bool, known=".txt")
