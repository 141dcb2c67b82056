"""A split of a directory of shards: which files belong to it, and whether they fit the manifest."""

import re
import shlex
from pathlib import Path

import numpy as np

from gptjax.core.errors import UserError
from gptjax.core.files import AnyPath, hash_json, suggest_neighbour
from gptjax.data.manifest import MANIFEST_NAME, PREPARE_AGAIN, Counts, Manifest, read_manifest
from gptjax.data.shards import Format
from gptjax.data.token_stream import TokenStream

WITHOUT_VALIDATION = (
    "Prepare again with --split=hash:0.005, or do without: train with --no-require-validation, and evaluate with "
    "--text or --split=train."
)


class MissingSplit(UserError):
    """The directory has no files of the split."""


_OTHER_KINDS = "(chats: prepare_chat, pairs: prepare_preferences)"
_OTHER_WORDS = {"val": ("valid", "validation")}


def list_split_files(directory: AnyPath, split: str) -> list[Path]:
    """Every `.bin` file with the split's name as a word in its own, sorted.

    `fineweb_train_000001.bin`, `train_000000.bin` and nanoGPT's `train.bin` all belong to the split `train`. Files of
    `val` may also say `valid` or `validation`.
    """
    found = (path for path in sorted(Path(directory).glob("*.bin")) if is_of_split(path.name, split))
    return [path for path in found if path.is_file()]


def is_of_split(name: str, split: str) -> bool:
    """Whether the split's name, or another word for it, is a word in a file's name."""
    return not {split, *_OTHER_WORDS.get(split, ())}.isdisjoint(re.split(r"[^A-Za-z]+", name))


def find_split_files(directory: AnyPath, split: str) -> list[Path]:
    """The same as `list_split_files`; raises `MissingSplit` if there are none."""
    folder = Path(directory)
    if not folder.is_dir():
        command = f"python -m data_pipelines.prepare --source=TEXT --tokenizer=gpt2 --output=DIR {_OTHER_KINDS}."
        meant = suggest_neighbour(folder) or " If it was moved, name its place."
        absent = f"no such directory of shards.{meant} Text becomes shards by {command}"
        raise UserError(f"{folder}: {_advise_on_file(folder) if folder.is_file() else absent}")
    found = list_split_files(folder, split)
    if not found:
        others = ", ".join(path.name for path in sorted(folder.glob("*.bin"))[:5])
        advice = "" if others and not any(folder.glob("*.idx")) else f" {_suggest_command(folder)}"
        if split == "val" and not advice:
            advice = f" {WITHOUT_VALIDATION}"
        holds = f"{others or 'no .bin files at all'}.{advice}"
        raise MissingSplit(f"{folder}: no files of the split {split!r} (*{split}*.bin); it holds {holds}")
    return found


def _advise_on_file(path: Path) -> str:
    if path.suffix == ".bin":
        return "is a file; give the directory that holds it."
    return f"is a file, wanted a directory of shards. {_suggest_command(path)}"


def _suggest_command(path: Path) -> str:
    """Which command makes shards of a file, or of what a directory holds."""
    names = [path.name, *(sorted(file.name for file in path.iterdir()) if path.is_dir() else [])]
    if any(name.endswith((".npy", ".idx", ".mds", ".mds.zstd")) for name in names):
        folder = path if path.is_dir() else path.parent
        command = f"index_shards {shlex.quote(str(folder))} --tokenizer=… --output=DIR"
        return f"Token files of others become shards by python -m data_pipelines.{command}"
    commands = f"prepare --source={shlex.quote(str(path))} --tokenizer=gpt2 --output=DIR"
    return f"Text becomes shards by python -m data_pipelines.{commands} {_OTHER_KINDS}; then name DIR."


def open_split(directory: AnyPath, split: str, *, format: Format = "shards") -> TokenStream:
    """One split of a directory: the files that its manifest lists, else every `.bin` file with the split's name.

    Names, sizes and counts are compared with the manifest; raises `UserError` at the first difference.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    manifest = manifest if manifest is not None and format in ("shards", manifest.format) else None
    if manifest is not None:
        format = manifest.format
        _check_files(folder, manifest, split)
    paths = tuple(find_split_files(folder, split))
    sidecars = manifest.sidecars_of(split) if manifest is not None else {}
    stream = TokenStream(
        paths,
        name=f"{folder} ({split})",
        format=format,
        identity=_hash_entries(manifest, split) if manifest is not None else "",
        sidecars={file.kind: folder / name for name, file in sidecars.items()},
    )
    if manifest is not None:
        if stream.dtype != np.dtype(manifest.dtype):
            raise UserError(f"{paths[0]}: tokens are {stream.dtype}, {MANIFEST_NAME} says {manifest.dtype}.")
        _check_counts(manifest.splits[split], stream)
    return stream


def _hash_entries(manifest: Manifest, split: str) -> str:
    files = manifest.files_of(split) | manifest.sidecars_of(split)
    content = [(name, file.bytes, file.sha256) for name, file in files.items()]
    return hash_json(content)


def check_size(path: Path, wanted: int) -> None:
    """Raise unless the file exists and has the size that the manifest says."""
    if not path.is_file():
        raise UserError(f"{path}: missing, though {MANIFEST_NAME} names it. {PREPARE_AGAIN}")
    if (size := path.stat().st_size) != wanted:
        raise UserError(f"{path}: {size:,} bytes, but {MANIFEST_NAME} says {wanted:,}. {PREPARE_AGAIN}")


def _check_files(folder: Path, manifest: Manifest, split: str) -> None:
    """Raise unless exactly the listed files exist, with the listed sizes."""
    listed, sidecars = manifest.files_of(split), manifest.sidecars_of(split)
    found = {path.name for path in list_split_files(folder, split)}
    if found and split not in manifest.splits:
        raise UserError(f"{folder}: holds files of the split {split!r}, of which {MANIFEST_NAME} says nothing.")
    beside = {path.name for path in folder.glob(f"{split}.*") if path.suffix in (".documents", ".scored")}
    extra = sorted((found - listed.keys()) | (beside - sidecars.keys()))
    missing = sorted(listed.keys() - found)
    if missing or extra:
        raise UserError(
            f"{folder}: its files are not those of its {MANIFEST_NAME}: missing {', '.join(missing) or 'none'}; "
            f"not listed {', '.join(extra) or 'none'}. Prepare the data again, or remove what does not belong; "
            "if others made the shards, fetch them or index them (data_pipelines.index_shards) to the end."
        )
    for name, file in (listed | sidecars).items():
        check_size(folder / name, file.bytes)


def _check_counts(counts: Counts, stream: TokenStream) -> None:
    """Raise unless tokens, documents and loss mask are as many as the manifest says, and documents lie inside."""
    found = [("tokens", len(stream), counts.tokens)]
    if (starts := stream.document_starts) is not None:
        found.append(("documents", len(starts), counts.documents))
        if len(starts) and not (starts[0] == 0 and 0 <= starts[-1] < len(stream)):
            where = stream.sidecars["documents"]
            raise UserError(f"{where}: its documents do not begin inside the split. {PREPARE_AGAIN}")
    if stream.loss_mask is not None:
        found.append(("marks of scored tokens", len(stream.loss_mask), counts.tokens))
    for what, number, wanted in found:
        if number != wanted:
            raise UserError(f"{stream.name} has {number:,} {what}, {MANIFEST_NAME} says {wanted:,}. {PREPARE_AGAIN}")
