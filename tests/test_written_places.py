"""What `verify` finds below a path."""

import errno
from pathlib import Path

import pytest

from gptjax.runs import written_places
from gptjax.runs.unknown_files import list_unknown
from gptjax.runs.written_places import find_places


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two directories of prepared data."""
    for name in ("a", "b"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "manifest.json").write_text('{"splits": {}}')
    return tmp_path / "root"


def refuse(error: OSError) -> None:
    raise error


def test_links_lead_to_other_places_only(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text('{"splits": {}}')
    for name, target in (("0", root / "b"), ("latest", root / "a"), ("up", tmp_path), ("elsewhere", other)):
        (root / name).symlink_to(target)
    places = [place.path for place in find_places(root, on_error=refuse)]
    assert places == [root / "a", root / "b", root / "elsewhere"]
    assert list_unknown(root, besides=places) == []


def test_place_that_cannot_be_read_is_told_and_the_others_are_found(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_kind, failed = written_places.name_kind, list[OSError]()

    def fail_in_a(directory: Path) -> str | None:
        if directory.name == "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(directory / "manifest.json"))
        return find_kind(directory)

    monkeypatch.setattr(written_places, "name_kind", fail_in_a)
    assert [place.path.name for place in find_places(root, on_error=failed.append)] == ["b"]
    assert [error.filename for error in failed] == [str(root / "a" / "manifest.json")]
