"""A directory is told from another one at its path."""

import errno
from pathlib import Path

import pytest

from gptjax.core.directory_identity import LOCK, DirectoryIdentity


@pytest.mark.parametrize(
    ("own", "found", "is_replaced"), [("1", "1", False), ("1", "2", True), (None, "2", True), ("1", None, True)]
)
def test_directory_at_a_path_is_told_by_its_token(
    tmp_path: Path, own: str | None, found: str | None, is_replaced: bool
) -> None:
    """The directory is another one, as is a copy that was put back, and each of a mount that numbers anew."""
    run = tmp_path / "run"
    run.mkdir()
    if own is not None:
        (run / LOCK).write_text(own)
    identity = DirectoryIdentity.read(run)
    identity.check()
    run.rename(tmp_path / "moved")
    assert not identity.is_replaced()
    with pytest.raises(OSError, match="was moved or deleted; put it back") as failure:
        identity.check()
    assert failure.value.errno == errno.ENOENT
    run.mkdir()
    if found is not None:
        (run / LOCK).write_text(found)
    assert identity.is_replaced() == is_replaced
