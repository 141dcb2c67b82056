"""Sets that TensorFlow Datasets has prepared, read through its data sources and ArrayRecord, without TensorFlow.

    tfds:lm1b                  the newest version, split train
    tfds:wiki40b/en:1.3.0@train[:10%]    config, version, split or part of one

They are found by their directories under `$TFDS_DATA_DIR` (`~/tensorflow_datasets`), so a set can also be read whose
builder needs TensorFlow. To prepare a set: `python -m data_pipelines.fetch tfds:lm1b`, which mostly needs TensorFlow.
"""

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.readers.array_records import split_records
from data_pipelines.readers.documents import TEXT_FIELD, Block, Chunk, Document, ReadContext, validate_utf8
from data_pipelines.readers.extras import install, needs_extra
from data_pipelines.readers.paths import hash_names_sizes_times
from gptjax.core.errors import UserError

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
        opened = _open_split(self.spec, self.directory, self.split, context.text_field)
        count = len(opened.records)
        for begin, end in split_records(count, opened.record_bytes * count, context):
            yield from Block(opened.record_bytes * (end - begin), partial(self._read, begin, end)).chunks(context)

    def _read(self, begin: int, end: int, context: ReadContext) -> Iterator[Document]:
        opened = _open_split(self.spec, self.directory, self.split, context.text_field)
        numbers = list(range(begin, end))
        for number, record in zip(numbers, opened.records.__getitems__(numbers), strict=True):
            content, where = record[opened.feature], f"{self.spec}: record {number}"
            if isinstance(content, bytes):
                yield validate_utf8(content, context, where=where)
            else:
                context.skip_record(f"{where}: {opened.feature!r} is {content!r}, wanted bytes.")

    def identity(self) -> dict[str, Any]:
        """Full name and split, with the names, sizes and modification times of all files of the set."""
        files = hash_names_sizes_times({path.name: path for path in sorted(self.directory.iterdir())})
        full_name = self.directory.relative_to(data_directory()).as_posix()
        return {"source": self.spec, "set": full_name, "names_sizes_times": files}

    @cached_property
    def directory(self) -> Path:
        """Where the version lies; raises `UserError` if it is not prepared."""
        versions = [info.parent for info in (data_directory() / self.set).glob("*/dataset_info.json")]
        numbers = {_parse_version(path.name): path for path in versions}
        chosen = max(filter(None, numbers), default=()) if self.version is None else _parse_version(self.version)
        if chosen not in numbers or not chosen:
            which = f" in version {self.version}" if self.version else ""
            raise UserError(
                f"source {self.spec}: {self.set} is not prepared{which} under {data_directory()} "
                "(TFDS_DATA_DIR names another directory). Prepare it once: python -m data_pipelines.fetch "
                f"{PREFIX}{self.set}, which for most sets needs TensorFlow: {install('tfds')}."
            )
        return numbers[chosen]


class _Split(NamedTuple):
    records: Any
    feature: str
    record_bytes: int
    """The mean size of a record."""


@lru_cache(maxsize=1)
def _open_split(spec: str, directory: Path, split: str, text_field: str) -> _Split:
    """Open the records, once in a process, for it takes seconds."""
    builder = _import_tfds(spec).builder_from_directory(directory)
    feature = _find_feature(spec, dict(builder.info.features), text_field)
    size = sum(path.stat().st_size for path in directory.iterdir())
    try:
        records = builder.as_data_source(split=split)
    except NotImplementedError:
        raise UserError(
            f"source {spec}: {directory} holds {builder.info.file_format.value} files, which only TensorFlow reads. "
            f"Remove the directory and prepare the set as array_record: python -m data_pipelines.fetch {spec}."
        ) from None
    except ValueError as error:
        raise UserError(f"source {spec}: split {split!r}: {error}") from None
    return _Split(records, feature, size // max(1, builder.info.splits.total_num_examples))


def _find_feature(spec: str, features: dict[str, Any], wanted: str) -> str:
    texts = [name for name, feature in features.items() if type(feature).__name__ == "Text"]
    if wanted in texts:
        return wanted
    if wanted == TEXT_FIELD and len(texts) == 1:
        return texts[0]
    others = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in sorted(features.items()))
    raise UserError(f"source {spec}: no feature {wanted!r} of text; it has {others} (--text-field chooses another).")


def open_tfds(spec: str) -> TfdsSet | None:
    """Open `tfds:NAME[/CONFIG][:VERSION][@SPLIT]`, reading nothing yet; None for another prefix."""
    if not spec.startswith(PREFIX):
        return None
    found = _SPEC.fullmatch(spec)
    if not found:
        raise UserError(
            f"source {spec!r}: wanted tfds:NAME, such as tfds:lm1b, tfds:wiki40b/en or tfds:lm1b@train[:10%]."
        )
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
    except tfds.core.DatasetNotFoundError:
        # Builders of the old style are not even listed where TensorFlow is missing.
        hint = "" if importlib.util.find_spec("tensorflow") else f" without TensorFlow; try {install('tfds')}"
        raise UserError(f"{spec}: TFDS knows no set {source.set!r}{hint}.") from None
    except OSError as error:
        raise UserError(f"{spec}: could not be prepared: {error}.") from None
    return Path(builder.data_dir)


def data_directory() -> Path:
    """Where prepared sets lie: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")


def _import_tfds(spec: str) -> Any:
    with needs_extra("data", what=f"source {spec}"):
        import tensorflow_datasets as tfds
    return tfds


def _parse_version(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", name) else ()
