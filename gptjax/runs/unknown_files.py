"""Files in a directory of a run, an export or prepared data, of which nothing says what they held when written.

Other programs write them (`wandb/`), their owner has added them, or they are what is left of damaged checkpoints.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from gptjax.checkpoints.integrity import list_steps, read_log_sums
from gptjax.checkpoints.rotation import list_marks, list_set_aside
from gptjax.core.directory_identity import LOCK
from gptjax.core.errors import UserError, count_of
from gptjax.core.file_sums import SUM_SUFFIX, SUMS_FILE, DamagedFileError, list_files, read_sums
from gptjax.data.checksums import VERIFIED_FILE
from gptjax.data.manifest import MANIFEST_NAME, read_manifest
from gptjax.runs.run_dir import CHECKPOINTS, TOKENIZER_FILE, list_references
from gptjax.runs.run_sums import list_logs
from gptjax.runs.written_places import leads_into
from gptjax.sharding import start_place

_MARKS = (LOCK, VERIFIED_FILE)
"""Files by which commands know of each other, besides the markers of starts. They have no sums, and no result depends
on them."""


def list_unknown(directory: Path, *, besides: Collection[Path] = ()) -> list[str]:
    """Paths inside the directory, sorted; one for a directory in which nothing is known.

    What is in the directories `besides` is left out. Returns [] where the list of what is known is damaged itself.
    """
    try:
        known = set(_list_known(directory))
    except (DamagedFileError, UserError):
        return []
    inner = {path for path in besides if path != directory}
    return list(_group(directory, directory, known, inner, {above for path in inner for above in path.parents}))


def _list_known(directory: Path) -> Iterator[Path]:
    for own in directory.glob(f"*{SUM_SUFFIX}"):
        yield from (own, own.with_name(own.name.removesuffix(SUM_SUFFIX)))
    if (manifest := read_manifest(directory)) is not None:
        # An older manifest knows tokenizer.json by its fingerprint alone.
        names = (MANIFEST_NAME, TOKENIZER_FILE, *manifest.files, *manifest.sidecars, *manifest.tokenizer_files)
        yield from (directory / name for name in names)
    checkpoints = directory / CHECKPOINTS
    places = [*(checkpoints / str(step) for step in list_steps(checkpoints)), *list_set_aside(checkpoints)]
    yield from list_marks(checkpoints)
    for place in (directory, *places):
        found = read_sums(place)
        # `verify` says of a checkpoint without sums that it has none.
        names = list_files(place) if found is None and place != directory else found[0] if found else ()
        yield from (place / name for name in (SUMS_FILE, *names))
    yield from (directory / name for name in read_log_sums(directory))
    yield from list_logs(directory)
    for reference in list_references(directory):
        yield from (reference, *reference.parent.glob("*.npy"))


def _group(folder: Path, root: Path, known: set[Path], besides: set[Path], above: set[Path]) -> Iterator[str]:
    """What is not known in a folder of `root`, without `besides`. `above` are the directories above these."""
    for path in sorted(folder.iterdir()):
        if path in besides or (path.is_dir() and leads_into(root, path)):
            continue
        if not path.is_dir():
            if path not in known and path.name not in _MARKS:
                yield str(path.relative_to(root))
            continue
        files = [file for file in path.rglob("*") if file.is_file() and not file.parent.match(start_place.DIRECTORIES)]
        if path not in above and known.isdisjoint(files) and files:
            yield f"{path.relative_to(root)}/ ({count_of(len(files), 'files')})"
        elif files or path in above:
            yield from _group(path, root, known, besides, above)
