"""What is appended is what lies on the disk, in the format that the manifest promises."""

import hashlib

import numpy as np
import pytest

from data_pipelines.output.sidecars import DTYPES, CompanionWriter

KINDS = pytest.mark.parametrize(("kind", "dtype"), [("documents", "<i8"), ("scored", "u1")])


@KINDS
def test_numbers_are_appended(tmp_path, kind, dtype):
    writer = CompanionWriter(tmp_path, "val", kind)
    for values in ([0], [], np.array([1, 0], np.uint8), [1]):
        writer.append(values)
    assert writer.count == 4
    files = writer.finish()
    content = (tmp_path / f"val.{kind}").read_bytes()
    assert DTYPES[kind] == np.dtype(dtype)
    assert np.frombuffer(content, dtype).tolist() == [0, 1, 0, 1]
    companion = files.pop(f"val.{kind}")
    assert not files
    assert (companion.split, companion.kind, companion.bytes) == ("val", kind, len(content))
    assert companion.sha256 == hashlib.sha256(content).hexdigest()


@KINDS
def test_writing_goes_on_behind_what_is_known(tmp_path, kind, dtype):
    killed = CompanionWriter(tmp_path, "val", kind)
    killed.append([0, 1, 1])
    killed.flush()
    assert (tmp_path / f"val.{kind}").stat().st_size == 3 * np.dtype(dtype).itemsize
    killed.append([1] * 7)
    killed.close()
    writer = CompanionWriter(tmp_path, "val", kind, after=3)
    writer.append([0])
    assert writer.count == 4
    writer.finish()
    assert np.fromfile(tmp_path / f"val.{kind}", dtype).tolist() == [0, 1, 1, 0]
