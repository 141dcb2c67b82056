"""What is said of a file system that cannot hold the checkpoints of a run."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptjax.checkpoints import disk_space
from gptjax.checkpoints.checkpoint import CheckpointConfig
from gptjax.checkpoints.disk_space import check_space, describe_lack
from gptjax.core.errors import UserError

MIB = 2**20


@pytest.mark.parametrize(
    ("changes", "existing", "start", "wanted"),
    [
        ({"every": 100}, [], 0, 4),  # two newest, the best, one in writing
        ({"every": 100, "keep_best": False}, [], 0, 3),
        ({"every": 100}, [100, 200], 200, 2),
        ({"every": 100}, [100, 200, 300, 400], 400, 1),
        ({"every": None}, [], 0, 1),  # the end
        ({"every": 600}, [], 0, 2),
        ({"every": 600, "every_minutes": 5.0}, [], 0, 4),
        ({"every": 100, "keep_every": 200}, [], 0, 9),
        ({"every": 100, "keep_every": 200}, [400, 500], 500, 6),  # the first of these stays for good
    ],
)
def test_checkpoints_that_will_be_there_at_a_time_are_counted(
    changes: dict[str, Any], existing: list[int], start: int, wanted: int
):
    config = CheckpointConfig(**changes)
    assert config.count_saves(existing, start=start, steps=1000) == wanted


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A file system with 10 MiB free, and 1 MiB more for root alone."""
    found = SimpleNamespace(f_frsize=4096, f_blocks=10**6, f_bavail=10 * MIB // 4096, f_bfree=11 * MIB // 4096)
    monkeypatch.setattr(disk_space, "os", SimpleNamespace(**vars(os) | {"statvfs": lambda _: found}))
    monkeypatch.setattr(disk_space.os, "geteuid", lambda: 1000)
    return found


@pytest.mark.parametrize(("nbytes", "warns"), [(2 * MIB, False), (3 * MIB, True), (10 * MIB, True), (11 * MIB, None)])
def test_start_says_what_finds_no_room_and_is_refused_where_nothing_does(
    nbytes: int, warns: bool | None, disk: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def check(count: int = 4) -> str:
        check_space(tmp_path, count, nbytes=nbytes)
        return capsys.readouterr().out

    if warns is None:
        with pytest.raises(UserError, match=r"has 10\.0 MiB free, .* takes 11\.2 MiB: nothing could be saved"):
            check()
    else:
        assert check().startswith(f"warning: {tmp_path} has 10.0 MiB free") == warns
    assert check(count=0) == ""  # nothing is to be saved
    disk.f_blocks = 0  # as of some network file systems
    assert check() == ""


def test_room_is_that_of_this_user_with_what_unfinished_saves_give_back(
    disk: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    remains = tmp_path / "100.unfinished"
    remains.mkdir()
    (remains / "arrays").write_bytes(b"x" * (2 * MIB))
    with pytest.raises(UserError, match=r"has 12\.0 MiB free"):
        check_space(tmp_path, 1, nbytes=20 * MIB)
    monkeypatch.setattr(disk_space.os, "geteuid", lambda: 0)
    with pytest.raises(UserError, match=r"has 13\.0 MiB free"):
        check_space(tmp_path, 1, nbytes=20 * MIB)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_failed_save_says_what_it_needed_where_room_is_what_it_lacked(
    number: int, disk: SimpleNamespace, tmp_path: Path
):
    lack = describe_lack(tmp_path, f"A checkpoint could not be written: {os.strerror(number)}.", nbytes=40 * MIB)
    wanted = " A checkpoint takes 40.2 MiB, and 10.0 MiB are free on its file system."
    assert lack == ("" if number == errno.EIO else wanted)
