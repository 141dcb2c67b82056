"""Local files for tasks of lm-evaluation-harness, in the formats in which the sets are published.

A file becomes rows as the task's own data set has them, so the task itself stays as it is.
"""

import csv
import difflib
import json
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.evaluators.exact_match import read_questions

OWN_TASKS = Path(__file__).parent / "tasks"
"""The files of tasks of ours."""
Row = dict[str, Any]
PAGE = re.compile(r"^ = [^=\n].*[^=\n] = *$", re.MULTILINE)
"""A title in WikiText: one equals sign on either side."""
DATA_LIBRARIES = ("datasets", "huggingface_hub", "fsspec")
"""What raises `FileNotFoundError` for data that are not there."""
CACHE_MODULE = "datasets.packaged_modules.cache.cache"
"""What raises `ValueError` without a network, if its cache has only other parts of the data set."""
UNREACHABLE = {
    *("ConnectionError", "TimeoutError", "gaierror"),  # Python's, and requests' of that name
    *("HfHubHTTPError", "TransportError", "Timeout", "ClientConnectionError", "URLError"),  # of hub, httpx and others
}
"""Names of the errors which say that data cannot be fetched, and of their base classes."""


def find_task_files(specs: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Files by task and part (`test`, `train`) of `TASK=FILE`, or of directories with `TASK.SUFFIX`.

    `TASK.train.SUFFIX` holds the examples of few-shot prompts.

    Raises:
        UserError: there is no such file or directory.
    """
    found: dict[str, dict[str, Path]] = {}
    for spec in specs:
        task, equals, name = spec.partition("=")
        path = expand_path(name if equals else spec).absolute()
        if not equals:
            if not path.is_dir():
                raise UserError(f"--task-data={spec} is no directory. Give one with TASK.jsonl files, or TASK=FILE.")
            for file in sorted(path.iterdir()):
                if file.is_file():
                    own, part = _split_name(file)
                    found.setdefault(own, {}).setdefault(part, file)
        elif not path.is_file():
            raise UserError(f"--task-data={spec}: there is no file {path}.")
        else:
            own, part = (task.removesuffix(".train"), "train") if task.endswith(".train") else (task, "test")
            found.setdefault(own, {})[part] = path
    return found


def _split_name(file: Path) -> tuple[str, str]:
    name = file.name.split(".")
    return name[0], "train" if "train" in name[1:-1] else "test"


def explain_unknown_task(name: str, known: Iterable[str], *, directories: Iterable[str]) -> str:
    """What to say of a task that the harness does not know: its file cannot be read, or another is meant."""
    files = (file for directory in directories for file in sorted(Path(directory).rglob("*.y*ml")))
    if found := next((file for file in files if file.stem == name), None):
        return f"the harness cannot read {found} as a task. Correct its YAML; it needs task: {name}."
    close = difflib.get_close_matches(name, list(known), n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"{name!r} is unknown to the harness, and no file of that name exists.{hint}"


def read_rows(task: str, path: Path) -> list[Row]:
    """The rows of a file: JSON Lines, JSON, Parquet, TSV or CSV with a header, CBT's own text, or plain text.

    Raises:
        UserError: the file cannot be read as what its name says, or is empty; one of questions has a wrong line.
    """
    try:
        rows = list(_find_reader(task, path)(path))
    except OSError as error:
        raise UserError(f"--task-data: {path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, IndexError, RecursionError, csv.Error) as error:
        raise UserError(f"--task-data: {path} does not hold rows of {task}: {error}.") from None
    if not rows:
        raise UserError(f"--task-data: {path} has no rows.")
    return rows


def complete_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows with the same columns in each. What a row lacks is None."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


def _find_reader(task: str, path: Path) -> Callable[[Path], Iterator[Row]]:
    by_suffix = {".jsonl": _read_json_lines, ".ndjson": _read_json_lines, ".json": _read_json, ".tsv": _read_table}
    by_suffix |= {".csv": _read_table, ".parquet": _read_parquet}
    if task == "questions":
        return _read_questions
    if path.suffix in by_suffix:
        return by_suffix[path.suffix]
    if task.startswith("cbt"):
        return _read_cbt
    if task.startswith("wikitext"):
        return _read_wikitext
    return _read_lines if task in ("one_billion_words",) else _read_text


def _read_questions(path: Path) -> Iterator[Row]:
    for messages, answers in read_questions(path):
        yield {"messages": [message._asdict() for message in messages], "answers": answers}


def _read_json_lines(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            yield _as_row(json.loads(line))


def _read_json(path: Path) -> Iterator[Row]:
    content = json.loads(path.read_text(encoding="utf-8"))
    yield from map(_as_row, content if isinstance(content, list) else [content])


def _as_row(content: Any) -> Row:
    if not isinstance(content, dict):
        raise ValueError(f"a row is {str(content)[:40]!r}; wanted an object")
    return content


def _read_table(path: Path) -> Iterator[Row]:
    """Whole numbers, such as labels, become numbers."""
    with path.open(encoding="utf-8", newline="") as file:
        quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
        for row in csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", quoting=quoting):
            if None in row or None in row.values():
                raise ValueError(
                    f"the row {str(next(iter(row.values())))[:40]!r} has more or fewer cells than the header"
                )
            yield {
                name: int(value) if re.fullmatch(r"-?\d{1,9}", value or "") else value for name, value in row.items()
            }


def _read_parquet(path: Path) -> Iterator[Row]:
    from pyarrow import parquet  # of the extra `eval`

    yield from parquet.read_table(path).to_pylist()


def _read_text(path: Path) -> Iterator[Row]:
    text = path.read_bytes().decode("utf-8")
    yield {"text": text, "page": text}


def _read_lines(path: Path) -> Iterator[Row]:
    for line in path.read_bytes().decode("utf-8").split("\n"):
        if line.strip():
            yield {"text": f"{line}\n"}


def _read_wikitext(path: Path) -> Iterator[Row]:
    """A page for each title."""
    text = path.read_bytes().decode("utf-8")
    starts = [match.start() for match in PAGE.finditer(text)] or [0]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        yield {"page": text[start:end]}


def _read_cbt(path: Path) -> Iterator[Row]:
    """Twenty numbered sentences, then the question, the answer and ten options; a blank line ends an item."""
    sentences: list[str] = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        number, _, content = line.partition(" ")
        if number == "21":
            question, answer, *_, options = content.split("\t")
            yield {"sentences": sentences, "question": question, "answer": answer, "options": options.split("|")}
            sentences = []
        elif content:
            sentences.append(content)


def lacks_data(error: Exception) -> bool:
    """Whether a task could not be opened because its data are not there or cannot be fetched.

    Everything else has failed: a full disk, data that cannot be read, a file that the task's own code does not find.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not any(frame.f_code.co_name == "download" for frame in frames):
        return False
    module = frames[-1].f_globals.get("__name__", "")
    if isinstance(error, FileNotFoundError):
        return module.partition(".")[0] in DATA_LIBRARIES
    if module == CACHE_MODULE:
        return isinstance(error, ValueError)
    return not UNREACHABLE.isdisjoint(kind.__name__ for kind in type(error).__mro__)
