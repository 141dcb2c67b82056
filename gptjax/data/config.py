"""The data sources of a config: a directory of token shards, and a mixture of several sources."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.data.checksums import check_unchanged
from gptjax.data.manifest import read_manifest
from gptjax.data.mixture import MixtureSchedule
from gptjax.data.packing import Packing
from gptjax.data.preferences import check_kind
from gptjax.data.row_readers import MixtureReader, SequenceReader, check_stream
from gptjax.data.sequences import Sequences, open_sequences
from gptjax.data.shards import Format, load_shard_tokenizer
from gptjax.data.source import DataSource, Mismatch, ReadSpec, RowSet
from gptjax.data.splits import find_split_files, open_split
from gptjax.data.token_stream import TokenStream
from gptjax.tokenization.difference import explain_difference
from gptjax.tokenization.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class TokenShards(DataSource):
    """A directory of token shards, as `data_pipelines.prepare` writes it and as FineWeb's are published."""

    path: str | None = None
    """Directory with `*train*.bin` and `*val*.bin`."""
    format: Format = "shards"
    """`shards`: 1,024-byte header (llm.c, modded-nanogpt); `raw-uint16`: nanoGPT's headerless files;
    `raw-uint32`: the same of 32 bits."""
    tokenizer: str | None = None
    """For shards without a tokenizer.json beside them: `gpt2`, `gpt2:DIR`, `bytes` or a tokenizer.json elsewhere."""
    packing: Packing = "concat"
    """How documents become rows: `concat` (as GPT-2's), `bos_aligned` (each row begins with a document), `best_fit`
    (whole documents, padded), `best_fit_truncate` (the same, those longer than a row cut) or `bos_best_fit` (whole
    documents, the last of a row cropped); see packing.py."""
    prefetch: int = 2
    """Batches read ahead by a thread."""

    unread_with_path: ClassVar[tuple[str, ...]] = ()
    """Fields without effect if `path` is given."""

    def resolve(self) -> "TokenShards":
        if self.path is None:
            raise UserError("data.path is not given. Point it at a directory of shards: --data.path=DIR.")
        return replace(self, path=str(expand_path(self.path).absolute()))

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that made the shards; None for foreign shards without `tokenizer`."""
        manifest = read_manifest(self._directory)
        if manifest is None:
            find_split_files(self._directory, "train")
        beside = Path(self._directory) / "tokenizer.json"
        if manifest is None and not beside.is_file():
            return None if self.tokenizer is None else load_shard_tokenizer(self.tokenizer)
        is_text = manifest is None or "kind" not in manifest.request
        tokenizer = load_shard_tokenizer(beside) if is_text else load_tokenizer(beside)
        if manifest is not None and tokenizer.fingerprint != manifest.fingerprint:
            raise UserError(
                f"{beside} is not the tokenizer that made the shards (fingerprint {tokenizer.fingerprint[:12]}, "
                f"manifest.json says {manifest.fingerprint[:12]}). Prepare them again, with --overwrite."
            )
        if self.tokenizer is not None and load_tokenizer(self.tokenizer).fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"data.tokenizer is {self.tokenizer!r}, but the shards were made with {tokenizer.name} ({beside}). "
                "Leave it out, or give other shards."
            )
        return tokenizer

    @property
    def reads_whole_documents(self) -> bool:
        """Whether rows hold whole documents, so that only those longer than a row are cut."""
        return self.packing in ("best_fit", "best_fit_truncate")

    def open(self, spec: ReadSpec) -> SequenceReader:
        return SequenceReader(self.open_rows("train", spec), spec, packing=self.packing, prefetch=self.prefetch)

    def open_rows(self, split: str, spec: ReadSpec) -> Sequences:
        if spec.row_kind == "pairs":
            raise UserError("data is TokenShards, but this objective reads pairs. Use data=PreferenceShards(path=...).")
        check_kind(self._directory, pairs=False)
        if spec.row_kind == "answers" and not self.reads_whole_documents:
            raise UserError(
                f"data.packing is {self.packing!r}, which cuts conversations anywhere. "
                "Use --data.packing=best_fit_truncate."
            )
        stream = self.open_stream(split)
        check_stream(stream, spec)
        return open_sequences(stream, spec.context_length, self.packing, end_of_text=spec.end_of_text)

    def open_stream(self, split: str) -> TokenStream:
        """A split, once all files of the directory are known to be as the manifest says."""
        check_kind(self._directory, pairs=False)
        stream = open_split(self._directory, split, format=self.format)
        check_unchanged(self._directory)
        return stream

    def check(self) -> None:
        check_unchanged(self._directory, while_read=True)

    @property
    def _directory(self) -> str:
        path = self.resolve().path
        assert path is not None
        return path


@dataclass(frozen=True)
class MixtureComponent:
    """One data source of a mixture."""

    data: DataSource
    weight: float = 1.0
    """Its share of the rows, relative to the weights of all components."""
    weight_schedule: tuple[tuple[int, float], ...] = ()
    """(step, weight) pairs: from that step on this weight. A coming change may be added to a run that resumes."""

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.weight_schedule]
        if steps != sorted(set(steps)) or min(steps, default=1) < 1:
            raise UserError(
                f"data.components: weight_schedule has the steps {steps}; wanted ascending ones, from 1 on."
            )

    def weight_at(self, step: int) -> float:
        return next((weight for begin, weight in reversed(self.weight_schedule) if begin <= step), self.weight)


@dataclass(frozen=True)
class Mixture(DataSource):
    """Several data sources in one run, each with its own order and epochs. Their weights may change at a step."""

    components: tuple[MixtureComponent, ...] = ()
    validation: int = 0
    """The component whose validation split is evaluated, counted from 0."""
    prefetch: int = 2
    """Batches read ahead by a thread."""

    def __post_init__(self) -> None:
        if not self.components or not 0 <= self.validation < len(self.components):
            raise UserError(
                f"data: a mixture of {len(self.components)} components with validation = {self.validation}; wanted at "
                "least one component, and the number of one of them, counted from 0."
            )

    def check(self) -> None:
        for component in self.components:
            component.data.check()

    def resolve(self) -> "Mixture":
        return replace(
            self, components=tuple(replace(component, data=component.data.resolve()) for component in self.components)
        )

    def foresee_mismatch(self, tokenizer: Tokenizer) -> Mismatch | None:
        for number, component in enumerate(self.components):
            if (found := component.data.foresee_mismatch(tokenizer)) is not None:
                return found._replace(field=f"components.{number}.data.{found.field}")
        return None

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of all components; raises `UserError` if they have different ones."""
        found = [
            tokenizer for component in self.components if (tokenizer := component.data.load_tokenizer()) is not None
        ]
        for tokenizer in found[1:]:
            if tokenizer.fingerprint != found[0].fingerprint:
                raise UserError(
                    f"data.components: one was made with {found[0].name}, another with {tokenizer.name}: "
                    f"{explain_difference(found[0], tokenizer)}. Prepare all of a mixture with the same tokenizer."
                )
        return found[0] if found else None

    def open(self, spec: ReadSpec) -> MixtureReader:
        changes = self._list_weights()
        if len(changes) > 1 and not spec.batch_schedule:
            raise UserError(
                "data.components: a mixture inside a mixture has no weight_schedule. Give it to the outer one."
            )
        schedule = MixtureSchedule([(spec.first_row(step), weights) for step, weights in changes])
        readers = [
            component.data.open(replace(self._spec_of(i, spec), seed=(spec.seed + 7919 * i) % 2**32, row_offsets=()))
            for i, component in enumerate(self.components)
        ]
        return MixtureReader(readers, schedule, prefetch=self.prefetch)

    def open_stream(self, split: str) -> TokenStream | None:
        return self.components[self.validation].data.open_stream(split) if split == "val" else None

    def open_rows(self, split: str, spec: ReadSpec) -> RowSet | None:
        source = self.components[self.validation].data
        return source.open_rows(split, self._spec_of(self.validation, spec)) if split == "val" else None

    def _spec_of(self, component: int, spec: ReadSpec) -> ReadSpec:
        reference = None if spec.reference is None else spec.reference / str(component)
        return replace(spec, batch_schedule=(), reference=reference)

    def history_until(self, step: int) -> str:
        own = [f"weights {weights} from step {s}" for s, weights in self._list_weights() if s < step or s == 0]
        return "; ".join(filter(None, [*own, *(component.data.history_until(step) for component in self.components)]))

    def _list_weights(self) -> list[tuple[int, tuple[float, ...]]]:
        """(step, weights of all components from it on), ascending from step 0."""
        steps = sorted({0, *(step for component in self.components for step, _ in component.weight_schedule)})
        return [(step, tuple(component.weight_at(step) for component in self.components)) for step in steps]


def list_directories(data: DataSource) -> list[str]:
    """The directories that a data source names, those of a mixture in the order of its components."""
    if isinstance(data, Mixture):
        return [path for component in data.components for path in list_directories(component.data)]
    path = getattr(data, "path", None)
    return [path] if isinstance(path, str) else []
