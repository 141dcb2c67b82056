"""A file with its SHA-256 beside it, as `sha256sum` writes and reads it."""

import os
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from tiny import write_text_shards

from gptjax.core.errors import UserError
from gptjax.core.file_sums import sum_file, write_sum_beside
from gptjax.core.files import file_sha256
from gptjax.verify import verify

DIGEST = sha256(bytes(99)).hexdigest()


def test_file_with_its_sum_beside_it_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As a GGUF, by its own name, by that of its sum, and in its directory."""
    file, own = tmp_path / "x.gguf", tmp_path / "x.gguf.sha256"
    file.write_bytes(bytes(99))
    write_sum_beside(file, sum_file(file))
    assert own.read_text() == f"{file_sha256(file)}  x.gguf\n"
    for path in (file, own, tmp_path):
        assert verify(path) == []
        assert capsys.readouterr().out == f"{file} is unchanged\n"
    for damaged in (file, own):
        content = damaged.read_bytes()
        for place in range(len(content) if damaged == file else 66):  # what follows is a name, and no sum
            damaged.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            (problem,) = verify(tmp_path)
            assert damaged.name in problem, place
        damaged.write_bytes(content)
    file.unlink()
    assert verify(own) == [f"{file} cannot be read (No such file or directory)"]
    file.write_bytes(bytes(99))
    own.unlink()
    with pytest.raises(UserError, match=r"there is no x\.gguf\.sha256 beside it"):
        verify(file)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize(
    ("line", "note"),
    [
        (f"{DIGEST} *x.gguf\n", ""),
        (f"{DIGEST}  x.gguf", ""),
        (f"{DIGEST.upper()}  x.gguf\r\n", ""),
        (f"{DIGEST}\n", ""),
        (f"SHA256 (x.gguf) = {DIGEST}\n", ""),
        (f"{'0' * 64}  other\n{DIGEST}  x.gguf\n", ""),
        (f"{DIGEST}  old.gguf\n", "has the sum of x.gguf under the name old.gguf"),
    ],
)
def test_sum_of_another_tool_beside_a_file_is_compared(
    line: str, note: str, right: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (file := tmp_path / "x.gguf").write_bytes(bytes(99) if right else bytes(98))
    (tmp_path / "x.gguf.sha256").write_text(line)
    changed = f"{file} and x.gguf.sha256 differ: one of them has changed since they were written"
    assert verify(tmp_path) == ([] if right else [changed])
    assert (f"{file} is unchanged\n" in (printed := capsys.readouterr().out)) == right
    assert ("note: " in printed) == bool(note and right)
    assert note in printed or not right


def test_list_of_sums_of_other_files_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "all.sha256").write_text(f"{DIGEST}  a\n{DIGEST}  b\n")
    write_text_shards(tmp_path / "shards").rename(tmp_path / "x")
    for path in (tmp_path / "x").iterdir():
        path.rename(tmp_path / path.name)
    assert verify(tmp_path) == []
    assert "all.sha256 has sums of other files. Compare them with sha256sum --check\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", [b"x.gguf", b"a\nb\\c", b"caf\xe9.gguf"])
def test_sum_beside_a_file_of_any_name_is_as_sha256sum_writes_it(name: bytes, tmp_path: Path):
    file = tmp_path / os.fsdecode(name)
    file.write_bytes(bytes(99))
    write_sum_beside(file, sum_file(file))
    subprocess.run(["sha256sum", "--check", os.fsdecode(name + b".sha256")], cwd=tmp_path, check=True)
    assert verify(file) == []
