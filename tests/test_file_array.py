import os
from pathlib import Path

import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.data.file_array import FileArray, iter_chunks

CONTENT = np.arange(100, 150, dtype=np.int32)


@pytest.fixture
def array(tmp_path: Path) -> FileArray:
    (tmp_path / "numbers.bin").write_bytes(b"head" + CONTENT.tobytes())
    return FileArray(tmp_path / "numbers.bin", CONTENT.dtype, offset=4)


def count_open_files() -> int:
    folder = Path("/dev/fd")  # of Linux and macOS
    return len(list(folder.iterdir()))


PLACES = [
    slice(None),
    slice(3, 9),
    slice(-5, None),
    slice(9, 3),
    slice(2, 40, 7),
    slice(40, 2, -7),
    slice(45, 900),
    np.array([], int),
    np.array([7]),
    np.array([3, 4, 5, 5, 4, 40, 41, 0]),
    np.array([[0, 1, 2], [48, 49, 0]]),
]


@pytest.mark.parametrize("places", PLACES, ids=str)
def test_file_array_reads_what_numpy_indexes(array: FileArray, places: slice | np.ndarray) -> None:
    np.testing.assert_array_equal(array[places], CONTENT[places])


def test_file_array_as_array_and_in_chunks_is_the_whole(array: FileArray) -> None:
    np.testing.assert_array_equal(np.asarray(array), CONTENT)
    assert np.asarray(array, np.float32).dtype == np.float32
    parts = list(iter_chunks(array, size=20))
    assert [start for start, _ in parts] == [0, 20, 40]
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), CONTENT)


@pytest.mark.parametrize("places", [np.array([50]), np.array([-1])], ids=str)
def test_file_array_place_outside_is_an_error(array: FileArray, places: np.ndarray) -> None:
    with pytest.raises(IndexError, match="outside of its 50 numbers"):
        array[places]


def test_file_array_keeps_no_file_open(array: FileArray) -> None:
    """A data set may have more files than a process may have open."""
    before = count_open_files()
    many = [FileArray(array.path, array.dtype, offset=4) for _ in range(50)]
    assert [int(one[:1][0]) for one in many] == [100] * 50
    assert count_open_files() == before


def test_file_array_cut_or_removed_file_is_an_error_that_names_it(array: FileArray) -> None:
    """Not SIGBUS, the end of the process without a word."""
    os.truncate(array.path, 24)
    np.testing.assert_array_equal(array[:5], CONTENT[:5])
    with pytest.raises(UserError, match=r"numbers\.bin: 24 bytes, and 204 when it was opened: it was cut"):
        array[3:9]
    array.path.unlink()
    with pytest.raises(UserError, match=r"numbers\.bin: was removed while it was read"):
        array[:5]
