"""What is said of a file system that cannot hold the checkpoints of a run."""

import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptjax.checkpoints import disk_space
from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.checkpoints.disk_space import check_space, describe_lack

MIB = 2**20


@pytest.mark.parametrize(
    ("changes", "existing", "wanted"),
    [
        ({"every": 100}, [], 4),  # two newest, the best, one in writing
        ({"every": 100, "keep_best": False}, [], 3),
        ({"every": 100}, [100, 200], 2),
        ({"every": 100}, [100, 200, 300, 400], 1),  # the first save is followed by a deletion
        ({"every": None}, [], 1),  # the end
        ({"every": 1000}, [], 1),  # the end alone
        ({"every": 500}, [], 2),
        ({"every": 600, "every_minutes": 5.0}, [], 4),
        ({"every": 100, "keep_every": 200}, [], 7),
        ({"every": 100, "keep_every": 200}, [400, 500], 4),  # the first of these stays for good
        ({"every": 100, "keep_every": 100}, [], 10),  # none twice
        ({"every": 100, "keep_every": 100}, list(range(100, 1000, 100)), 1),
        ({"every": 200, "keep_every": 200, "keep": 5}, [], 5),
        ({"every": 100}, [1000], 0),
    ],
)
def test_checkpoints_that_will_be_there_at_a_time_are_counted(
    changes: dict[str, Any], existing: list[int], wanted: int
):
    config, start = CheckpointConfig(**changes), max(existing, default=0)
    assert config.count_saves(existing, best=None, evaluates=True, start=start, steps=1000) == wanted


@pytest.mark.parametrize(("best", "evaluates", "wanted"), [(None, False, 1), (None, True, 2), (100, False, 2)])
def test_best_is_counted_where_one_is_there_or_may_be_found(best: int | None, evaluates: bool, wanted: int):
    config = CheckpointConfig(every=100)
    assert config.count_saves([100, 200], best=best, evaluates=evaluates, start=200, steps=1000) == wanted


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A file system with 10 MiB free, and 1 MiB more for root alone."""
    found = SimpleNamespace(
        f_frsize=4096, f_blocks=10**6, f_bavail=10 * MIB // 4096, f_bfree=11 * MIB // 4096, f_files=10**6, f_favail=10
    )
    monkeypatch.setattr(disk_space, "os", SimpleNamespace(**vars(os) | {"statvfs": lambda _: found}))
    monkeypatch.setattr(disk_space.os, "geteuid", lambda: 1000)
    return found


@pytest.mark.parametrize(
    ("nbytes", "found"),
    [
        (2 * MIB, ""),
        (
            3 * MIB,
            r"Up to 4 more will be there at a time \(13\.0 MiB\).* another --output-dir\. Fewer .* --x\.",
        ),
        (10 * MIB, r"takes 10\.2 MiB\. No save may find room\..* or choose another --output-dir\.$"),
    ],
)
def test_start_says_what_may_find_no_room(
    nbytes: int, found: str, disk: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def check(count: int = 4) -> str:
        check_space(tmp_path, count, nbytes=nbytes, savings=["--x"])
        return capsys.readouterr().out.strip()

    said = check()
    assert re.match(f"warning: {tmp_path} has 10.0 MiB free.*{found}", said) if found else said == ""
    assert check(count=0) == ""  # nothing is to be saved
    (tmp_path / "100").mkdir()  # another directory would begin anew
    assert check() == said.replace("choose another --output-dir", "move the run directory to another disk")
    disk.f_blocks = 0  # as of some network file systems
    assert check() == ""


def test_room_is_that_of_this_user_with_what_unfinished_saves_give_back(
    disk: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    remains = tmp_path / "100.unfinished"
    remains.mkdir()
    (remains / "arrays").write_bytes(b"x" * (2 * MIB))
    check_space(tmp_path, 1, nbytes=20 * MIB)
    assert "has 12.0 MiB free" in capsys.readouterr().out
    monkeypatch.setattr(disk_space.os, "geteuid", lambda: 0)
    check_space(tmp_path, 1, nbytes=20 * MIB)
    assert "has 13.0 MiB free" in capsys.readouterr().out


def test_options_that_save_nothing_are_not_advised():
    assert CheckpointConfig(keep=1, keep_best=False).savings == []
    assert [option.split(".")[1] for option in CheckpointConfig(keep_every=5).savings] == [
        "keep",
        "keep-best=False",
        "keep-every=None",
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_failed_save_says_what_it_needed_where_room_is_what_it_lacked(
    number: int, disk: SimpleNamespace, tmp_path: Path
):
    lack = describe_lack(tmp_path, f"A checkpoint could not be written: {os.strerror(number)}.", nbytes=40 * MIB)
    wanted = " A checkpoint takes 40.2 MiB, and 10.0 MiB are free on its file system."
    assert lack == ("" if number == errno.EIO else wanted)
    lack = describe_lack(tmp_path, os.strerror(number), nbytes=MIB)
    assert lack.endswith("10.0 MiB are free on its file system, so its inodes (df -i) or a quota may be used up.") == (
        number != errno.EIO
    )
