"""What is appended is what lies on the disk, in the format that the manifest promises."""

import hashlib

import numpy as np
import pytest

from data_pipelines.companions import CompanionWriter


@pytest.mark.parametrize(("kind", "dtype"), [("documents", "<i8"), ("scored", "u1")])
def test_numbers_are_appended(tmp_path, kind, dtype):
    with CompanionWriter(tmp_path, "val", kind) as writer:
        for values in ([0], [], np.array([1, 0], np.uint8), [1]):
            writer.append(values)
    content = (tmp_path / f"val.{kind}").read_bytes()
    assert np.frombuffer(content, dtype).tolist() == [0, 1, 0, 1]
    companion = writer.files[f"val.{kind}"]
    assert (companion.split, companion.kind, companion.bytes) == ("val", kind, len(content))
    assert companion.sha256 == hashlib.sha256(content).hexdigest()


def test_after_an_error_nothing_is_listed(tmp_path):
    writer = CompanionWriter(tmp_path, "train", "scored")
    with pytest.raises(ZeroDivisionError), writer:
        writer.append([1 // 0])
    assert writer.files == {}
