"""Local files by a spec: one file, those of a kind in a directory, or a pattern."""

import functools
import glob
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.readers.foreign_files import MAKE_TEXT, MARKUP, suggest_conversion
from gptjax.core.errors import UserError, count_of, format_message, quote
from gptjax.core.files import expand_path, hash_json, suggest_neighbour

PACKED = {
    ".bz2": "bzip2 -dk",
    ".xz": "xz -dk",
    ".lz4": "lz4 -dk",
    ".zip": "unzip",
    ".7z": "7z x",
    ".tar": "tar xf",
    ".tgz": "tar xzf",
    ".tar.gz": "tar xzf",
    ".rar": "unrar x",
}
"""Endings of files to unpack first, and the command."""


TOKENS = {".bin", ".npy", ".idx", ".mds"}
"""Endings of token files."""
BESIDE_TOKENS = {"index.json", "manifest.json", "tokenizer.json", "readme.md"}
"""Files beside them that are no text."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""In the path of a file these could imitate a message of this program."""
_README = re.compile(r"(?i:readme|licen[cs]e|citation)(\..*)?|(README|LICEN[CS]E)[-_].*")
"""Names of texts that describe the data beside them: also README_zh.md, but not licensed_texts.txt."""
DEAD, EXPLAIN_DEAD = "links to nothing not read", "is a link to nothing. Remove it, or restore its file."
BESIDE = "files beside the data, such as a README, not read (a quoted pattern names them)"


class FoundFiles(NamedTuple):
    """Files that a spec names, and links to nothing among them."""

    paths: tuple[Path, ...]
    dead: tuple[Path, ...]


def find_files(spec: str, is_known: Callable[[str], object], *, known: str, otherwise: str = "") -> FoundFiles:
    """Return the files in the order of their names; in a directory, those at any depth whose name `is_known`.

    A file named by itself or by a pattern may have any name. Hidden files in directories are not read, and no file
    is read twice. Links to nothing are left out where there are files. Where names tell splits, only files of
    training are taken, and a line on stderr says so. `known` and `otherwise` complete the error messages.
    """
    path = expand_path(spec or "no name")
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError(f"source {spec}: Permission denied. Make the directory readable, or choose another.")
        below = list(list_files_below(path))
        found = [file for file in below if is_known(file.name)]
        others = sorted({file.suffix for file in below if file.suffix})
        if TOKENS & {*others} and all(file.name.lower() in BESIDE_TOKENS for file in found):
            held = f"the directory holds token files ({', '.join(others)}) and no text"
            raise UserError(
                f"source {spec}: {held}. For tokens there is python -m data_pipelines.index_shards {shlex.quote(spec)}"
            )
        if not found:
            advice = _suggest_others(path, below) if below else ""
            raise UserError(f"source {spec}: the directory holds no {known} files.{advice}")
    elif os.path.lexists(path):
        found = [path]
    else:
        # Links, or two `**`, may lead to one file several times: the shortest name is taken.
        names = sorted(glob.glob(str(path), recursive=True), key=lambda name: (len(name), name), reverse=True)
        found = list({os.path.realpath(name): Path(name) for name in names if not os.path.isdir(name)}.values())
        if not found:
            raise UserError(f"source {spec!r}: no such file, directory or pattern.{suggest_neighbour(path)}{otherwise}")
    for file in found:
        if _CONTROL.search(str(file)):
            raise UserError(f"{quote(str(file))}: its path has a line end or control characters. Rename that part.")
    there = [file for file in found if file.exists()]
    dead = sorted({*found} - {*there}) if there else []
    for file in there or found:
        if not file.is_file():
            raise UserError(f"{file}: is a link to nothing, a pipe or a device, wanted a regular file.")
        check_unpacked(file)
    return FoundFiles(tuple(map(Path, keep_training(spec, list(map(str, sorted(there)))))), tuple(dead))


def _suggest_others(directory: Path, files: Sequence[Path]) -> str:
    """What makes text of the files in a directory, none of which is of a known format."""
    foreign = [file for file in files if file.suffix.lower() in MAKE_TEXT and file.suffix.lower() not in MARKUP]
    if len(foreign) == len(files):
        return f" This makes text of the first: {suggest_conversion(foreign[0])}"
    ending = min((file.suffix for file in {*files} - {*foreign} if file.suffix), default="")
    return f" As text, a pattern reads others: {shlex.quote(f'{directory}/**/*{ending}')}"


def keep_data(
    spec: str, is_known: Callable[[str], object], *, is_text: Callable[[str], object] = lambda name: False
) -> tuple[Callable[[str], object], int, tuple[str, ...]]:
    """(`is_known` without what only stands beside data, how many files are not known at all, what stands beside data).

    A directory of data often has a settings.json and a README.md beside them. Of .json files alone, they are the data,
    and so are texts alone.
    """
    folder = expand_path(spec or "no name")
    names = [path.name for path in list_files_below(folder)] if folder.is_dir() else []
    is_json = lambda name: name.lower().endswith(".json")
    known = [name for name in names if is_known(name)]
    texts = [name for name in known if is_text(name)]
    has_records = any(not is_text(name) and not is_json(name) for name in known)
    of_json = not has_records and any(map(is_json, known)) and all(map(_README.fullmatch, texts))
    has_others = len(known) > sum(map(is_json, known))

    def keeps(name: str) -> object:
        if (has_records or of_json) and is_text(name) and _README.fullmatch(name):
            return False
        return is_known(name) and not (has_others and not of_json and is_json(name))

    return keeps, len(names) - len(known), tuple(name for name in known if not keeps(name))


def check_unpacked(file: Path) -> None:
    """Raise `UserError`, with the command that unpacks it, for a file in a compression that is not read here."""
    for ending, command in sorted(PACKED.items(), key=lambda item: -len(item[0])):
        if file.name.lower().endswith(ending):
            raise UserError(
                f"{file}: is packed in a way that is not read here. Unpack it first: {command} {shlex.quote(str(file))}"
            )


_READ = set[str]()
"""The files of all sources of this process: a note of files that are not read leaves out those of other sources."""


def keep_training(spec: str, names: Sequence[str], *, prefix: str = "") -> list[str]:
    """The names without those of validation and test, where others say `train`.

    Where no name says so, all are kept, and a line on stderr tells which other splits are among them. Folders that all
    have in common are not looked at. Messages write `prefix` before a name. A validation source is listed before the
    source of training, so that its files are not told as left out.
    """
    kept = _keep_training(spec, names, prefix)
    _READ.update(os.path.realpath(f"{prefix}{name}") for name in kept)
    return kept


def _keep_training(spec: str, names: Sequence[str], prefix: str) -> list[str]:
    top = os.path.commonpath([os.path.dirname(name) for name in names]) if names else ""
    splits = {name: find_split(os.path.relpath(name, top or ".")) for name in names}
    others = [name for name, split in splits.items() if split in ("validation", "test")]
    if not others or len(set(splits.values())) == 1:  # a pattern may be of one split
        return list(names)
    first = f"{prefix}{others[0]}"
    if "train" not in splits.values():
        named = f"{count_of(len(others), 'files')} that their names call validation or test, such as"
        tell_once(f"note: source {spec}: reads {named} {first}. A quoted pattern of names leaves them out.")
        return list(names)
    if unread := [name for name in others if os.path.realpath(f"{prefix}{name}") not in _READ]:
        flag = _join_names([name for name in unread if splits[name] == "validation"], prefix)
        hint = " For validation, give prepare --validation-source={} --overwrite instead of --split."
        count = count_of(len(unread), "files of other splits")
        told = f"note: source {spec}: not read: {count}, such as {prefix}{unread[0]}."
        tell_once(told + (hint.format(flag) if flag else ""))
    return [name for name in names if splits[name] not in ("validation", "test")]


def _join_names(names: list[str], prefix: str) -> str:
    """What names these files and no others that differ in more than numbers; empty if nothing simple does."""
    if len(names) == 1:
        return shlex.quote(prefix + names[0])
    patterns = {os.path.join(os.path.dirname(name), re.sub(r"\d+", "*", os.path.basename(name))) for name in names}
    return shlex.quote(f"{prefix}{patterns.pop()}") if len(patterns) == 1 else ""


@functools.cache
def tell_once(line: str) -> None:
    """Print a line once, though a source is listed several times."""
    print(format_message(line), file=sys.stderr)


SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "holdout", "heldout"), "validation"),
    "test": "test",
    "testing": "test",
}
"""Words in the names of files, and the split that they name."""


class NamedSplit(NamedTuple):
    """The split that a path names, the folders above the part that names it, and the word as it is spelled there."""

    split: str
    above: str
    word: str


def locate_split(name: str) -> NamedSplit | None:
    """The split that a path below a source names, `train`, `validation` or `test`; None if it names none, or several.

    The file's name decides, or else the folders above it.
    """
    parts = name.split("/")
    for number in reversed(range(len(parts))):
        words = re.findall(r"[A-Z]*[a-z]+|[A-Z]+", parts[number])  # corpusTrain is two words
        found = {SPLIT_WORDS[word.lower()]: word for word in words if word.lower() in SPLIT_WORDS}
        if found:
            split, word = next(iter(found.items()))
            above = "".join(f"{part}/" for part in parts[:number])
            return NamedSplit(split, above, word) if len(found) == 1 else None
    return None


def find_split(name: str) -> str | None:
    """The split of `locate_split`, or None."""
    return found.split if (found := locate_split(name)) else None


def list_files_below(directory: Path) -> Iterator[Path]:
    """All files at any depth, through links too, but nothing hidden and nothing twice."""
    seen = set[str]()
    for root, folders, names in os.walk(directory, followlinks=True):
        if (place := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            place = os.path.realpath(os.path.join(root, name))
            if place not in seen and not name.startswith("."):
                seen.add(place)
                yield Path(root, name)


def identify_files(spec: str, paths: Iterable[Path]) -> dict[str, Any]:
    """A JSON value that differs when these files differ, whatever path names them."""
    files = {os.path.abspath(path): path for path in paths}
    source = os.path.abspath(expand_path(spec))
    return {"source": source, "files": len(files), "names_sizes_times": hash_names_sizes_times(files)}


def hash_names_sizes_times(files: dict[str, Path]) -> str:
    """A hash of the names, sizes and modification times of files; their content is not read."""
    listed = [[name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in files.items()]
    return hash_json(listed)
