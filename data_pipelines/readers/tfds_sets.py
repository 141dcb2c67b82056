"""Sets that TensorFlow Datasets has prepared, read through its data sources and ArrayRecord, without TensorFlow.

    tfds:lm1b                  the newest version, split train
    tfds:wiki40b/en:1.3.0@train[:10%]    config, version, split or part of one

They are found by their directories under `$TFDS_DATA_DIR` (`~/tensorflow_datasets`), so that also sets can be read
whose builders would need TensorFlow. Preparing most sets does need it: `python -m data_pipelines.fetch tfds:lm1b`.
"""

import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.readers.array_records import ranges
from data_pipelines.readers.documents import TEXT_FIELD, Chunk, Document, ReadContext, validate_utf8
from data_pipelines.readers.extras import install, needs_extra
from data_pipelines.readers.paths import names_sizes_times
from gptjax.errors import UserError

PREFIX = "tfds:"
_SPEC = re.compile(r"tfds:(?P<set>\w+(?:/[\w.+-]+)?)(?::(?P<version>\d+\.\d+\.\d+))?(?:@(?P<split>.+))?")
_RECORDS_AT_ONCE = 32


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
        opened = self._opened
        opened.feature(context.text_field)
        size = sum(path.stat().st_size for path in self._directory.iterdir())
        each = size // max(1, opened.builder.info.splits.total_num_examples)
        for begin, end in ranges(len(opened.records), each * len(opened.records)):
            yield _Records(self.spec, self._directory, self.split, begin, end, each * (end - begin))

    def identity(self) -> dict[str, Any]:
        """Full name and split, with names, sizes and times of all files of the set."""
        files = names_sizes_times({path.name: path for path in sorted(self._directory.iterdir())})
        return {"source": self.spec, "set": self._opened.builder.info.full_name, "names_sizes_times": files}

    @functools.cached_property
    def _directory(self) -> Path:
        root = data_directory() / self.set
        versions = [path.parent for path in root.glob("*/dataset_info.json") if _version(path.parent.name)]
        if self.version is not None:
            versions = [path for path in versions if path.name == self.version]
        if not versions:
            which = f" in version {self.version}" if self.version else ""
            raise UserError(
                f"source {self.spec}: {self.set} is not prepared{which} under {data_directory()} "
                "(TFDS_DATA_DIR names another directory). Prepare it once: python -m data_pipelines.fetch "
                f"{PREFIX}{self.set}, which for most sets needs TensorFlow: {install('tfds')}."
            )
        return max(versions, key=lambda path: _version(path.name))

    @property
    def _opened(self) -> "_Opened":
        return _opened(self.spec, self._directory, self.split)


@dataclass(frozen=True)
class _Opened:
    """A split of a set as TFDS gives it."""

    spec: str
    builder: Any
    records: Any

    def feature(self, wanted: str) -> str:
        """The name of the feature that holds the text; a UserError where none does."""
        features = dict(self.builder.info.features)
        texts = [name for name, feature in features.items() if type(feature).__name__ == "Text"]
        if wanted in texts:
            return wanted
        if wanted == TEXT_FIELD and len(texts) == 1:
            return texts[0]
        others = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in sorted(features.items()))
        raise UserError(
            f"source {self.spec}: no feature {wanted!r} of text; it has {others} (--text-field chooses another)."
        )


@functools.lru_cache(maxsize=1)
def _opened(spec: str, directory: Path, split: str) -> _Opened:
    """Once for all records that a process reads, for it takes seconds."""
    builder = tensorflow_datasets(spec).builder_from_directory(directory)
    try:
        return _Opened(spec, builder, builder.as_data_source(split=split))
    except NotImplementedError:
        raise UserError(
            f"source {spec}: {directory} holds {builder.info.file_format.value} files, which only TensorFlow reads. "
            "Remove the directory and prepare the set as array_record: python -m data_pipelines.fetch "
            f"{PREFIX}{builder.info.full_name.rpartition('/')[0]}."
        ) from None
    except ValueError as error:
        raise UserError(f"source {spec}: split {split!r}: {error}") from None


@dataclass(frozen=True)
class _Records:
    """Records of a split, from `begin` up to `end`, counted from 0."""

    spec: str
    directory: Path
    split: str
    begin: int
    end: int
    size: int

    def documents(self, context: ReadContext) -> Iterator[Document]:
        opened = _opened(self.spec, self.directory, self.split)
        feature = opened.feature(context.text_field)
        for start in range(self.begin, self.end, _RECORDS_AT_ONCE):
            numbers = list(range(start, min(start + _RECORDS_AT_ONCE, self.end)))
            for number, record in zip(numbers, opened.records.__getitems__(numbers), strict=True):
                content, where = record[feature], f"{self.spec}: record {number}"
                if isinstance(content, bytes):
                    yield validate_utf8(content, context, where=where)
                else:
                    context.skip_record(f"{where}: {feature!r} is {content!r}.")


def open_tfds(spec: str) -> TfdsSet:
    """The source of a spec `tfds:NAME[/CONFIG][:VERSION][@SPLIT]`. Reads nothing yet."""
    found = _SPEC.fullmatch(spec)
    if not found:
        raise UserError(
            f"source {spec!r}: wanted tfds:NAME, such as tfds:lm1b, tfds:wiki40b/en or tfds:lm1b@train[:10%]."
        )
    return TfdsSet(spec, found["set"], found["version"], found["split"] or "train")


def prepare_tfds(spec: str) -> Path:
    """Download and generate a set as ArrayRecord, as its own builder does; returns its directory."""
    source = open_tfds(spec)
    tfds = tensorflow_datasets(spec)
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


def tensorflow_datasets(spec: str) -> Any:
    with needs_extra("data", what=f"source {spec}"):
        import tensorflow_datasets as tfds
    return tfds


def _version(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", name) else ()
