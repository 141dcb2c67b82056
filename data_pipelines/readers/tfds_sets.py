"""Sets that TensorFlow Datasets has prepared, read through its data sources and ArrayRecord, without TensorFlow.

They are found by their directories under `$TFDS_DATA_DIR` (`~/tensorflow_datasets`), so a set can also be read whose
builder needs TensorFlow. To prepare a set: `python -m data_pipelines.fetch tfds:lm1b`, which mostly needs TensorFlow.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from data_pipelines.readers.documents import TEXT_FIELD, Chunk, Document, DocumentBlock, ReadContext, validate_utf8
from data_pipelines.readers.fields import join_bytes, split_field
from data_pipelines.readers.formats.array_records import split_records
from data_pipelines.readers.optional_packages import needs_extra
from data_pipelines.readers.paths import hash_names_sizes_times
from gptjax.core.errors import UserError, quote_error

PREFIX = "tfds:"
_SPEC = re.compile(r"tfds:(?P<set>\w+(?:/[\w.+-]+)?)(?::(?P<version>\d+\.\d+\.\d+))?(?:@(?P<split>.+))?")


@dataclass(frozen=True)
class TfdsSet:
    """One split of a prepared set; where it has no feature `text`, its only feature of text is taken instead."""

    spec: str
    set: str
    version: str | None
    split: str

    @property
    def name(self) -> str:
        return self.set.replace("/", "-")

    def chunks(self, context: ReadContext) -> Iterator[Chunk]:
        size, records = self._mean_size, self._records
        _find_features(self.spec, self.directory, context.text_field)
        for begin, end in split_records(len(records), size * len(records), context):
            yield from DocumentBlock(size * (end - begin), partial(self._read, begin, end)).chunks(context)

    def _read(self, begin: int, end: int, context: ReadContext) -> Iterator[Document]:
        names = _find_features(self.spec, self.directory, context.text_field)
        for number, record in enumerate(self.read_records(begin, end), start=begin):
            text = record[names[0]] if len(names) == 1 else join_bytes([record[name] for name in names])
            yield validate_utf8(text or b"", context, where=f"{self.spec}: record {number}")

    def read_records(self, begin: int, end: int) -> list[dict[str, Any]]:
        """The records from `begin` to `end`, with all features as TFDS decodes them."""
        return self._records.__getitems__(range(begin, end))

    def count_records(self) -> int:
        """Records of the split."""
        return len(self._records)

    def count_bytes(self) -> int:
        """About the bytes of the split."""
        return self._mean_size * self.count_records()

    @property
    def _records(self) -> Any:
        return _open_split(self.spec, self.directory, self.split)

    @property
    def _mean_size(self) -> int:
        size = sum(path.stat().st_size for path in self.directory.iterdir())
        return size // max(1, _open_builder(self.spec, self.directory).info.splits.total_num_examples)

    def identity(self) -> dict[str, Any]:
        """Full name and split, with the names, sizes and modification times of all files of the set."""
        files = hash_names_sizes_times({path.name: path for path in sorted(self.directory.iterdir())})
        full_name = self.directory.relative_to(data_directory()).as_posix()
        return {"source": self.spec, "set": full_name, "names_sizes_times": files}

    @cached_property
    def directory(self) -> Path:
        """Where the version lies, by default the newest; raises `UserError` if it is not prepared."""
        infos = (data_directory() / self.set).glob(f"{self.version or '*.*.*'}/dataset_info.json")
        versions = {tuple(map(int, info.parent.name.split("."))): info.parent for info in infos}
        if not versions:
            raise UserError(
                f"source {self.spec}: is not prepared under {data_directory()} (see TFDS_DATA_DIR). "
                f"Prepare it once: python -m data_pipelines.fetch {PREFIX}{self.set}; most sets need the extra `tfds`."
            )
        return versions[max(versions)]


@lru_cache(maxsize=1)
def _open_builder(spec: str, directory: Path) -> Any:
    """Opened once in a process, for it takes seconds."""
    return _import_tfds(spec).builder_from_directory(directory)


@lru_cache(maxsize=1)
def _open_split(spec: str, directory: Path, split: str) -> Any:
    """The records of a split by their number."""
    try:
        return _open_builder(spec, directory).as_data_source(split=split)
    except (NotImplementedError, ValueError) as error:  # another format than ArrayRecord, or no such split
        raise UserError(f"source {spec}: split {split!r} in {directory}: {quote_error(error)}.") from None


def _find_features(spec: str, directory: Path, text_field: str) -> list[str]:
    """The features that hold the text. Raises `UserError` where there is none of such a name."""
    features = {name: type(kind).__name__ for name, kind in _open_builder(spec, directory).info.features.items()}
    texts = [name for name, kind in features.items() if kind == "Text"]
    names = texts if text_field == TEXT_FIELD and len(texts) == 1 else split_field(text_field, texts)
    if unknown := [name for name in names if name not in texts]:
        held = ", ".join(f"{name} ({kind})" for name, kind in sorted(features.items()))
        raise UserError(f"source {spec}: no text feature {unknown[0]!r}; it has {held} (--text-field chooses another).")
    return names


def open_tfds(spec: str) -> TfdsSet | None:
    """Open `tfds:NAME[/CONFIG][:VERSION][@SPLIT]`, reading nothing yet; None for another prefix."""
    if not spec.startswith(PREFIX):
        return None
    found = _SPEC.fullmatch(spec)
    if not found:
        raise UserError(f"source {spec!r}: wanted tfds:NAME, such as tfds:wiki40b/en or tfds:lm1b@train[:10%].")
    return TfdsSet(spec, found["set"], found["version"], found["split"] or "train")


def prepare_tfds(spec: str) -> Path:
    """Download and generate a set as ArrayRecord by its own builder; returns its directory."""
    source = open_tfds(spec)
    assert source is not None
    tfds = _import_tfds(spec)
    name = source.set if source.version is None else f"{source.set}:{source.version}"
    try:
        with needs_extra("tfds", what=f"preparing {spec}"):
            builder = tfds.builder(name, data_dir=data_directory(), file_format="array_record")
            builder.download_and_prepare()
    except (tfds.core.DatasetNotFoundError, OSError) as error:
        # Builders of the old style are not even listed where TensorFlow is missing.
        raise UserError(
            f"{spec}: could not be prepared: {quote_error(error)}. Many sets need the extra `tfds`."
        ) from None
    return Path(builder.data_dir)


def data_directory() -> Path:
    """Where prepared sets lie: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")


def _import_tfds(spec: str) -> Any:
    with needs_extra("data", what=f"source {spec}"):
        import tensorflow_datasets as tfds
    return tfds
