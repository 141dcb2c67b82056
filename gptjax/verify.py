"""Read every byte of runs and of prepared data, and name what is damaged: `python -m gptjax.verify --help`.

    python -m gptjax.verify runs/quickstart
    python -m gptjax.verify runs/quickstart data/books quickstart.gguf
    python -m gptjax.verify .

For a run, each checkpoint, the files beside the checkpoints, a stored reference and the logs are compared with the
sizes and sums that were written with them. So are exports of `to-hf`, `to-peft` and `to-gguf`, and tokenizers. For
prepared data, every file is compared with its manifest. In any other directory, all of these are found that are in or
below it. Files of which nothing is known are listed. Exits with 2 if anything differs. Reports, pictures and logs for
people may be deleted, and the card of an export may be edited: a note tells of it.
"""

import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import tyro

from gptjax.checkpoints.integrity import find_checkpoint_damage, has_sums_by_metadata, list_passed_over, list_steps
from gptjax.checkpoints.rotation import list_set_aside
from gptjax.cli.command_line import parse_options
from gptjax.core.errors import UserError, count_of, exit_on_user_error
from gptjax.core.file_sums import (
    SUM_SUFFIX,
    SUMS_FILE,
    DamagedFileError,
    FileSum,
    describe_unchanged,
    find_damage,
    find_damage_beside,
    holds_other_sums,
    read_sums,
    sum_file,
)
from gptjax.core.files import expand_path, suggest_neighbour
from gptjax.data.manifest import MANIFEST_NAME
from gptjax.data.verification import verify_prepared
from gptjax.runs.run_dir import CHECKPOINTS, CONFIG_FILE, METRICS, list_references
from gptjax.runs.run_sums import DISPOSABLE, describe_lost_steps, report_logs
from gptjax.runs.unknown_files import list_unknown
from gptjax.runs.written_places import find_places

_SHOWN_NAMES = 20
"""Files and directories that a line names."""
_CARD = "README.md"
"""The card of an export, which its owner may edit. `model_card` names it, too, and imports flax."""


@dataclass(frozen=True)
class Verify:
    """Read every byte of runs and of prepared data, and name what differs from what was written."""

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs, of exports, of tokenizers, and of prepared data, with a manifest.json; directories that hold
    such; or GGUF files."""


def main(argv: list[str] | None = None) -> None:
    with exit_on_user_error():
        words = sys.argv[1:] if argv is None else argv
        options = parse_options(Verify, words, prog="python -m gptjax.verify", introduction=__doc__ or "")
        if not options.directories:
            raise UserError("No directory is given. Give the directory of a run or of prepared data.")
        found = [result for path in options.directories for result in _verify_below(path)]
        unread = [reason for reason in found if isinstance(reason, UserError)]
        each = (problem for one in found if not isinstance(one, UserError) for problem in one)
        problems = list(dict.fromkeys(each))  # a directory may be given twice, by itself and by one above it
        if problems:
            problems = [f"{len(problems)} differ from what was written:", *problems]
        if problems or unread:
            raise UserError("\n  ".join([*problems, *map(str, unread)]))


def _verify_below(path: Path) -> list[list[str] | UserError]:
    """What differs at a path and in each place below it. Of several places, the sum is printed, and what is left."""
    try:
        root = expand_path(path)
    except UserError as error:
        return [error]
    failed: list[OSError] = []
    places = list(find_places(root, on_error=failed.append)) if root.is_dir() else []
    if [place.path for place in places] in ([], [root]):
        return [*map(_describe_failure, failed), _verify_or_explain(root)]
    paths = {place.path for place in places}
    found = [_verify_or_explain(place.path, besides=paths) for place in places]
    counts = ", ".join(count_of(count, kind) for kind, count in Counter(place.kind for place in places).items())
    changed = sum(result != [] for result in found)
    print(f"{root}: {counts}: {f'{changed} of {len(places)} differ or cannot be read' if changed else 'as written'}")
    if root not in paths:
        _print_unknown(root, list_unknown(root, besides=paths))
    return [*map(_describe_failure, failed), *found]


def _verify_or_explain(directory: Path, *, besides: Collection[Path] = ()) -> list[str] | UserError:
    """What differs in a directory, or why it was not read: the others are read all the same."""
    try:
        return verify(directory, besides=besides)
    except UserError as error:
        return error
    except OSError as error:
        if error.filename is None:  # what is printed cannot be written
            raise
        return _describe_failure(error)


def _describe_failure(error: OSError) -> UserError:
    return UserError(f"{error.filename} cannot be read: {error.strerror}.")


def verify(directory: Path, *, besides: Collection[Path] = ()) -> list[str]:
    """Print a line for each part that is unchanged, and return a line for each that is not.

    Directories `besides` are compared by themselves.

    Raises:
        UserError: the directory is neither a run nor prepared data.
    """
    if not directory.exists():
        raise UserError(f"{directory} does not exist.{suggest_neighbour(directory)}")
    problems = _verify_files(files := _list_summed_files(directory))
    if (directory / MANIFEST_NAME).is_file():
        problems += _verify_data(directory)
    elif (directory / CHECKPOINTS).is_dir() or (directory / SUMS_FILE).is_file():
        problems += (of_files := _verify_run_files(directory))
        damaged = "\n".join(of_files)
        references = [file for file in list_references(directory) if str(file) not in damaged]
        problems += [*_verify_references(references), *_verify_checkpoints(directory), *report_logs(directory)]
    elif not files:
        kinds = f"a run ({CHECKPOINTS}/) nor an export ({SUMS_FILE}) nor prepared data ({MANIFEST_NAME})"
        missing = f", and there is no {directory.name}{SUM_SUFFIX} beside it" if directory.is_file() else ""
        below = ", and nothing below it is" if directory.is_dir() else ""
        raise UserError(f"{directory} is neither {kinds}{missing or below}.")
    if directory.is_dir():
        _print_unknown(directory, list_unknown(directory, besides=besides))
    return problems


def _print_unknown(directory: Path, names: list[str]) -> None:
    """Name what is not compared, in one line."""
    more = [f"and {len(names) - _SHOWN_NAMES:,} more"] if len(names) > _SHOWN_NAMES else []
    if names:
        listed = ", ".join(names[:_SHOWN_NAMES] + more)
        print(f"{directory}: not compared, for nothing is known of it: {listed}")


def _list_summed_files(path: Path) -> list[Path]:
    """The file itself, or those of a directory, that have a sum beside them."""
    sums = [path, path.with_name(path.name + SUM_SUFFIX)] if path.is_file() else sorted(path.glob(f"*{SUM_SUFFIX}"))
    found = []
    for own in sums:
        if own.suffix != SUM_SUFFIX or not own.exists():
            continue
        if holds_other_sums(own.with_suffix("")):
            print(f"note: {own} has sums of other files. Compare them with sha256sum --check")
        else:
            found.append(own.with_suffix(""))
    return found


def _verify_files(files: Iterable[Path]) -> list[str]:
    """Compare files with the sums beside them."""
    problems = []
    for path in files:
        if problem := find_damage_beside(path):
            problems.append(problem)
        else:
            print(f"{path} is unchanged")
    return problems


def _verify_data(directory: Path) -> list[str]:
    try:
        manifest = verify_prepared(directory)
    except UserError as error:
        return str(error).split("\n")
    print(f"{directory}: {count_of(len(manifest.files), 'shards')} of {manifest.tokenizer} unchanged")
    return []


def _verify_run_files(directory: Path) -> list[str]:
    try:
        found = read_sums(directory)
    except DamagedFileError as error:
        return [str(error)]
    if found is None:
        if _has_saved_nothing(directory):
            print(f"{directory}: this run has saved nothing, so there is nothing to compare")
            return []
        if not (directory / CONFIG_FILE).is_file():
            return [f"{directory / 'config.json'} is missing"]
        checkpoints = directory / CHECKPOINTS
        if any(has_sums_by_metadata(checkpoints / str(step)) for step in list_steps(checkpoints)):
            why = "it was deleted, or a start was killed while it wrote it. The next start writes it"
            return [f"{directory / SUMS_FILE} is missing: {why}"]
        print(f"{directory}: no sums of config and tokenizer (of an earlier gptjax, or killed while it began)")
        return []
    sums = {name: file_sum for name, file_sum in found[0].items() if not _note_own_change(directory / name, file_sum)}
    if not (problems := find_damage(directory, sums)) and sums:
        print(f"{directory}: {describe_unchanged(sums)}")
    return problems


def _has_saved_nothing(directory: Path) -> bool:
    """Whether a run has neither a record nor a directory of a checkpoint, whole or not, and no config."""
    is_begun = any((directory / name).is_file() for name in (CONFIG_FILE, METRICS))
    return not is_begun and not any((directory / CHECKPOINTS).iterdir())


def _note_own_change(path: Path, written: FileSum) -> bool:
    """Whether a file was deleted, or the card edited, by its owner, who may do so; prints a note of it."""
    if not any(fnmatch(path.name, pattern) for pattern in (*DISPOSABLE, _CARD)):
        return False
    if not path.is_file():
        print(f"note: {path} was deleted")
        return True
    if path.name != _CARD or sum_file(path) == written:
        return False
    print(f"note: {path} was edited since it was written")
    return True


def _verify_references(files: Iterable[Path]) -> list[str]:
    """Compare the stored log-probabilities of a reference with the sums in each reference.json."""
    problems = []
    for file in files:
        try:
            sums = {
                file.with_name(f"{split}.npy"): sha for split, sha in json.loads(file.read_bytes())["sha256"].items()
            }
        except (ValueError, KeyError, AttributeError):
            problems.append(f"{file} is not as it was written")
            continue
        damage = [problem for path, sha256 in sums.items() if (problem := _describe_reference(path, sha256))]
        if not damage and sums:
            print(f"{file.parent}: {describe_unchanged([path.name for path in sums])}")
        problems += [f"{problem}. The next start of the run computes it again" for problem in damage]
    return problems


def _describe_reference(path: Path, sha256: str) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    is_same = sum_file(path).sha256 == sha256
    return None if is_same else f"{path} has changed since it was written: its SHA-256 differs"


def _verify_checkpoints(directory: Path) -> list[str]:
    problems: list[str] = []
    checkpoints = directory / CHECKPOINTS
    existing = list_steps(checkpoints)
    for step, line in describe_lost_steps(directory).items():
        if step > max(existing, default=-1):
            problems.append(line)
        else:  # to save space
            print(f"note: {line}")
    if not existing and (passed_over := list_passed_over(checkpoints)):
        names = ", ".join(path.name for path in passed_over)
        problems.append(f"{checkpoints} has no whole checkpoint left, only what was passed over: {names}")
    elif (directory / CONFIG_FILE).is_file() and checkpoints.is_dir() and not existing:
        print(f"{directory}: has no checkpoint: none was saved, or none is left")
    for path in (*(checkpoints / str(step) for step in existing), *list_set_aside(checkpoints)):
        damage = find_checkpoint_damage(path)
        if damage and not path.is_dir():
            print(f"{path}: deleted meanwhile, by a run that keeps newer checkpoints")
            continue
        if not damage:
            has_sums = (path / "checksums.json").is_file()
            print(f"{path}: {'unchanged' if has_sums else 'complete; written without sums, so changes do not show'}")
        problems += damage
    return problems


if __name__ == "__main__":
    main()
