"""The same spec names the same files, whatever is read from them."""

import os

import pytest

from data_pipelines.readers.paths import files_identity, find_files, names_sizes_times
from gptjax.core.errors import UserError


def is_text(name):
    return name.endswith(".txt")


def found(root, spec):
    return [path.relative_to(root).as_posix() for path in find_files(f"{root}/{spec}", is_text, known=".txt")]


def test_what_a_spec_names(tmp_path):
    (tmp_path / "sub.txt").mkdir()
    for name in ("b.txt", "a.md", "sub.txt/c.txt"):
        (tmp_path / name).write_text(name)
    assert found(tmp_path, "") == ["b.txt", "sub.txt/c.txt"], "in a directory only files, and only those that are known"
    assert found(tmp_path, "a.md") == ["a.md"], "what is named may have any name"
    assert found(tmp_path, "*") == ["a.md", "b.txt"]
    assert found(tmp_path, "**/*.txt") == ["b.txt", "sub.txt/c.txt"]
    (tmp_path / "[x].txt").write_text("a name that looks like a pattern")
    assert found(tmp_path, "[x].txt") == ["[x].txt"]


def test_no_file_is_read_twice(tmp_path):
    """Though a link beside a folder, a link upwards or a pattern with two `**` leads to it several times."""
    (tmp_path / "d/data/deep").mkdir(parents=True)
    for name in ("data/a.txt", "data/deep/b.txt"):
        (tmp_path / "d" / name).write_text(name)
    (tmp_path / "d/latest").symlink_to("data")
    (tmp_path / "d/data/z.txt").symlink_to("a.txt")
    assert found(tmp_path, "d/**/**/*.txt") == ["d/data/a.txt", "d/data/deep/b.txt"]
    assert found(tmp_path, "d/latest/*.txt") == ["d/latest/a.txt"], "what is named by a link is read through it"
    (tmp_path / "d/data/deep/up").symlink_to("../..")
    assert found(tmp_path, "d") == ["d/data/a.txt", "d/data/deep/b.txt"]


def test_a_link_to_nothing_is_text_that_is_missing(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to("nowhere")
    (tmp_path / "b.log").symlink_to("nowhere either")
    for spec in (tmp_path, f"{tmp_path}/*.txt"):
        with pytest.raises(UserError, match=r"b\.txt: is a link to nothing"):
            find_files(str(spec), is_text, known=".txt")
    (tmp_path / "b.txt").unlink()
    assert found(tmp_path, "") == ["a.txt"], "other kinds are not looked for"


def test_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.txt").write_text("x")
    for spec in ("~/x.txt", "~", "~/*.txt"):
        assert find_files(spec, is_text, known=".txt") == (tmp_path / "x.txt",)
    assert files_identity("~/x.txt", [])["source"] == f"{tmp_path}/x.txt"


def test_what_names_nothing(tmp_path):
    with pytest.raises(UserError, match=r"the directory holds no \.txt files"):
        find_files(str(tmp_path), is_text, known=".txt")
    with pytest.raises(UserError, match=r"no such file, directory or pattern\. Or else\."):
        find_files(f"{tmp_path}/*.txt", is_text, known=".txt", otherwise=" Or else.")


def test_identity(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    os.utime(path, ns=(5, 5))
    first = files_identity("a", [path])
    assert first == {
        "source": os.path.abspath("a"),
        "files": 1,
        "names_sizes_times": names_sizes_times({path.as_posix(): path}),
    }
    hashes = {names_sizes_times({"a.txt": path}), names_sizes_times({"b.txt": path})}
    path.write_text("ab")
    os.utime(path, ns=(5, 5))
    hashes.add(names_sizes_times({"a.txt": path}))
    os.utime(path, ns=(6, 6))
    hashes.add(names_sizes_times({"a.txt": path}))
    assert len(hashes) == 4


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.txt")
    with pytest.raises(UserError, match=r"is a pipe or a device, which cannot be read twice\. Save it as a file\."):
        found(tmp_path, "x.txt")


def test_nothing_is_not_the_directory_where_one_is():
    with pytest.raises(UserError, match="source '': names nothing"):
        find_files("", is_text, known=".txt")
