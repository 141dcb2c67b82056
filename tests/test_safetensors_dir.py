"""Directories of safetensors: several files with an index, permissions, and what is refused."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from hf_models import Tensors, are_identical
from safetensors.numpy import load_file

from gptjax.core.errors import UserError
from gptjax.huggingface.safetensors_dir import open_tensors, read_json, write_json, write_safetensors, write_tensors

TENSORS = {f"weight_{i}": np.full((i + 1, 100), i, np.float32) for i in range(6)}


def read_tensors(directory: Path) -> Tensors:
    with open_tensors(directory) as tensors:
        for name, tensor in tensors.items():
            assert (tensor.shape, tensor.dtype) == (TENSORS[name].shape, "F32")
        return {name: tensor.read() for name, tensor in tensors.items()}


def test_one_file_is_written_and_read(tmp_path: Path):
    write_tensors(tmp_path, TENSORS)
    write_json(tmp_path / "config.json", {})
    assert are_identical(read_tensors(tmp_path), TENSORS)
    files = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert sorted(files) == ["config.json", "model.safetensors"]
    assert files["model.safetensors"] == files["config.json"], "permissions are the usual ones"


def test_arrays_are_written_whatever_their_order_in_memory(tmp_path: Path):
    table = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    given = {
        "transposed": table.T,
        "column": table[:, :, 1],
        "Fortran": np.asfortranarray(table),
        "scalar": np.array(1.0),
    }
    write_safetensors(tmp_path / "x.safetensors", given)
    assert are_identical(load_file(tmp_path / "x.safetensors"), given)


def test_several_files_are_written_and_read(tmp_path: Path):
    write_tensors(tmp_path, TENSORS, shard_bytes=1_300)
    shards = {path.name: load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))}
    assert [len(shard) for shard in shards.values()] == [2, 1, 1, 1, 1]
    assert all(sum(t.nbytes for t in shard.values()) <= 1_300 or len(shard) == 1 for shard in shards.values())
    index = read_json(tmp_path / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    assert index["weight_map"] == {name: file for file, shard in shards.items() for name in shard}
    assert are_identical(read_tensors(tmp_path), TENSORS)
    (tmp_path / min(shards)).unlink()
    with pytest.raises(UserError, match=rf"index\.json names {min(shards)}"):
        read_tensors(tmp_path)


def test_index_cannot_name_files_elsewhere(tmp_path: Path):
    write_tensors(tmp_path, TENSORS)
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "model.safetensors.index.json", {"weight_map": {"a": "../model.safetensors"}})
    with pytest.raises(UserError, match="which is not in"):
        read_tensors(tmp_path / "model")


def test_directory_with_only_a_pickle_is_refused(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(UserError, match=r"\*\.bin, a pickle.*save_pretrained"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("size", "message"),
    [(None, r"has neither model\.safetensors nor"), (5, "Fetch the file again"), (1_000, "Fetch the file again")],
)
def test_missing_and_truncated_weights_are_explained(tmp_path: Path, size: int | None, message: str):
    write_tensors(tmp_path, TENSORS)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(content[:size])
    with pytest.raises(UserError, match=message):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "is not JSON"), (json.dumps([1]), "holds a JSON list; wanted: an object")],
)
def test_damaged_json_is_explained(tmp_path: Path, content: str | None, message: str):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"config\.json {message}"):
        read_json(path)


def test_full_disk_is_an_error_of_the_system(tmp_path: Path):
    """A limit of the size of files stands for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*model\.safetensors"):
            write_tensors(tmp_path, TENSORS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
