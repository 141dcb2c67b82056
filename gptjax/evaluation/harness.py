"""Runs tasks of lm-evaluation-harness, one after another. A failing one costs no other its scores."""

import contextlib
import importlib.util
import json
import logging
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.core.errors import UserError, count_of, quote
from gptjax.core.files import expand_path
from gptjax.evaluation.task_data import (
    OWN_TASKS,
    complete_rows,
    explain_unknown_task,
    find_task_files,
    lacks_data,
    read_rows,
)
from gptjax.evaluation.task_results import TaskResults, collect_results
from gptjax.process.console import print_once

if TYPE_CHECKING:
    from gptjax.evaluation.harness_model import HarnessModel

_PACKAGES = ("lm_eval", "datasets", "pyarrow")
"""What the extra `eval` installs and tasks import."""


@dataclass(frozen=True)
class TaskRequest:
    """Which tasks are run, and how."""

    tasks: tuple[str, ...]
    """Names of tasks, groups and tags, or YAML files."""
    include_path: tuple[str, ...] = ()
    """Directories with further tasks."""
    task_data: tuple[str, ...] = ()
    """Local files in place of a task's own data; see `task_data.find_task_files`."""
    limit: int | None = None
    """Items of each task, from the start. None: all."""
    num_fewshot: int | None = None
    """Examples in each prompt. None: as the task says."""
    apply_chat_template: bool = False
    """Ask as in a chat; examples become turns."""


def require_lm_eval() -> None:
    """Raise `UserError` unless the harness and what it reads data with are installed; call it before an import."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"tasks need lm-evaluation-harness, and not installed: {', '.join(missing)}. pip install 'gptjax[eval]'."
        )


@dataclass(frozen=True)
class PreparedTasks:
    """Tasks whose names and local files were checked."""

    request: TaskRequest
    manager: Any
    """The harness' `TaskManager`."""
    names: tuple[str, ...]

    def run(self, model: "HarnessModel", results: TaskResults | None = None) -> TaskResults:
        """Run the tasks. Nothing is sent anywhere; data sets come from the hub, its cache or local files.

        A task that fails is named in `failed`, and one whose data cannot be had in `not_run`. The others go on. In
        place of a group that fails its tasks are run one by one, except those that are run by themselves anyway.

        Args:
            results: what each task gives is added to it at once. After an interruption it has what was finished.

        Raises:
            UserError: no task can be opened.
        """
        results = TaskResults() if results is None else results
        local = list(find_task_files(self.request.task_data))
        with quiet_harness(), model.remember_answers():
            opened = open_tasks(self.manager, self.names, results, local=local)
            names = {task.name for task in opened}
            while opened:
                task = opened.pop(0)
                try:
                    results.add(self._run_one(model, task.whole))
                except Exception as error:  # of the task's own code, of a metric's package, of its data
                    results.failed[task.name] = _explain(error)
                    opened = [*(part for part in task.split() if part.name not in names), *opened]
        return results

    def _run_one(self, model: "HarnessModel", tasks: list[Any]) -> TaskResults:
        """The results of a task, or of a group and all groups in it."""
        request = self.request
        found = import_module("lm_eval").simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=self.manager,
            num_fewshot=request.num_fewshot,
            limit=request.limit,
            bootstrap_iters=0,
            apply_chat_template=request.apply_chat_template,
            fewshot_as_multiturn=request.apply_chat_template,
        )
        assert found is not None
        return collect_results(model, dict(found))


def _explain(error: Exception) -> str:
    """What failed, and where, in one line."""
    reason = quote(str(error).strip().partition("\n")[0].rstrip("."), limit=300)
    if isinstance(error, UserError):
        return reason
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {reason} ({Path(last.filename).name}, line {last.lineno})"


@contextlib.contextmanager
def prepare_tasks(request: TaskRequest) -> Iterator[PreparedTasks]:
    """The tasks, for any number of models. Local files are converted, and kept until the context ends.

    Raises:
        UserError: the harness is not installed, a task is unknown, or a file cannot be read.
    """
    require_lm_eval()
    with tempfile.TemporaryDirectory() as scratch:
        with quiet_harness():
            manager, names = load_tasks(request, Path(scratch))
        yield PreparedTasks(request, manager, tuple(names))


@dataclass(frozen=True)
class OpenTask:
    """A task or group with its data."""

    name: str
    whole: list[Any]
    """The harness' object of the task, or of the group and the groups in it."""
    tasks: dict[str, Any]
    """Those in it by name: itself, or the tasks of the group."""

    def split(self) -> "list[OpenTask]":
        """The tasks of a group; none of a task."""
        if self.whole == list(self.tasks.values()):
            return []
        return [OpenTask(name, [task], {name: task}) for name, task in self.tasks.items()]


def open_tasks(manager: Any, names: Sequence[str], results: TaskResults, *, local: Sequence[str]) -> list[OpenTask]:
    """The tasks with their data, each once.

    A group of which one cannot be opened is opened task by task, unless it changes its tasks (`_list_members`).

    Args:
        results: why each of the others is `not_run`, for want of its data, or `failed`.
        local: the tasks that have local files.

    Raises:
        UserError: none can be opened.
    """
    tasks: list[OpenTask] = []
    waiting, tried = list(names), set[str]()
    while waiting:
        name = waiting.pop(0)
        if name in tried:
            continue
        tried.add(name)
        task = Path(name).stem if Path(name).is_absolute() else name
        try:
            loaded = manager.load([name])
        except Exception as error:  # of any library that reads data, of the task's own code
            if lacks_data(error):
                results.not_run[task] = f"{type(error).__name__}: {quote(str(error).strip().partition(chr(10))[0])}"
            else:
                results.failed[task] = _explain(error)
            waiting = [*_list_members(manager, name), *waiting]
        else:
            whole = list((loaded["groups"] or loaded["tasks"]).values())
            tasks.append(OpenTask(task, whole, dict(loaded["tasks"])))
    if not tasks:
        unopened = results.not_run | results.failed
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unopened.items())
        without = [name for name in results.not_run if name not in local]
        advice = f" Without a network, give local files: --task-data={without[0]}=FILE." if without else ""
        raise UserError(f"no task can be run: {reasons}.{advice}")
    return tasks


def find_request_files(request: TaskRequest) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """The files of `task_data` by task and part, and the directories of tasks.

    Raises:
        UserError: the harness is not installed, or one of them is not there.
    """
    require_lm_eval()
    paths = [str(OWN_TASKS), *(str(expand_path(path).absolute()) for path in request.include_path)]
    for path in paths:
        if not Path(path).is_dir():
            raise UserError(f"--include-path={path} is no directory.")
    return find_task_files(request.task_data), paths


def load_tasks(request: TaskRequest, scratch: Path) -> tuple[Any, list[str]]:
    """The harness' task manager and the names to run. Its own thousands of files are read only if needed."""
    files, paths = find_request_files(request)
    task_manager: Any = import_module("lm_eval.tasks").TaskManager
    names = [str(path.absolute()) if (path := expand_path(name)).is_file() else name for name in request.tasks]
    manager = task_manager(include_path=paths, include_defaults=False)
    known = lambda: all(name in manager.task_index or Path(name).is_file() for name in names)
    wanted = {*files, *(leaf for name in names if name in manager.task_index for leaf in _list_leaves(manager, name))}
    if not known() or not wanted <= manager.task_index.keys():
        manager = task_manager(include_path=paths)
    if not known():
        unknown = next(name for name in names if name not in manager.task_index and not Path(name).is_file())
        raise UserError(f"--tasks: {explain_unknown_task(unknown, manager.task_index, directories=paths)}")
    local = {
        task: str(write_local_task(manager, task, parts=parts, directory=scratch))
        for task, parts in files.items()
        if task in manager.task_index and "test" in parts
    }
    names = list(dict.fromkeys(_expand_groups(manager, names, local=local)))
    for name in (name for name in names if name in local):
        _check_examples(name, manager.task_index[name].cfg or {}, files[name], shots=request.num_fewshot)
    return manager, [local.get(name, name) for name in names]


def _check_examples(task: str, config: Mapping[str, Any], parts: Mapping[str, Path], *, shots: int | None) -> None:
    """Raise `UserError` for a task that would take the examples of another split from the scored file."""
    shots = config.get("num_fewshot") or 0 if shots is None else shots
    split = config.get("fewshot_split") or config.get("training_split")
    if shots and "train" not in parts and split not in (None, _find_scored_split(config)):
        raise UserError(
            f"--task-data: {task} takes {count_of(shots, 'examples')} from the split {quote(str(split))}, which has no "
            f"file. Give --task-data={task}.train=FILE, or --num-fewshot=0."
        )


def _find_scored_split(config: Mapping[str, Any]) -> str:
    return config.get("test_split") or config.get("validation_split") or "test"


def is_own(manager: Any, name: str) -> bool:
    """Whether a task is one of ours."""
    path = manager.task_index[name].yaml_path if name in manager.task_index else None
    return path is not None and Path(path).parent == OWN_TASKS


def _expand_groups(manager: Any, names: Sequence[str], *, local: Mapping[str, str]) -> Iterator[str]:
    """The names with tags, and groups that hold tasks of ours or with local data, replaced by what is in them.

    Each of those tasks may lack data without the others. All other groups stay whole, with their aggregates.
    """
    for name in names:
        members = _list_members(manager, name)
        leaves = list(_list_leaves(manager, name)) if members else []
        is_tag = bool(members) and manager.task_index[name].kind.name == "TAG"
        if is_tag or any(leaf in local or is_own(manager, leaf) for leaf in leaves):
            if not is_tag and not is_own(manager, name):
                print_once(f"note: {name} has no sum of its tasks, as one is ours or has local data", to_stderr=True)
            yield from _expand_groups(manager, members, local=local)
        else:
            yield name


def _list_members(manager: Any, name: str) -> list[str]:
    """The names in a group or with a tag; empty for a task, and for a group that changes its tasks."""
    entry = manager.task_index.get(name)
    if entry is not None and entry.kind.name == "TAG":
        return sorted(entry.tags)
    members = (entry.cfg or {}).get("task") if entry is not None and entry.kind.name == "GROUP" else None
    return members if isinstance(members, list) and all(isinstance(member, str) for member in members) else []


def _list_leaves(manager: Any, name: str) -> Iterator[str]:
    """The tasks in a group, and in the groups and tags in it."""
    if members := _list_members(manager, name):
        for member in members:
            yield from _list_leaves(manager, member)
    else:
        yield name


def write_local_task(manager: Any, task: str, *, parts: dict[str, Path], directory: Path) -> Path:
    """A task of the same name that reads local files. They are converted, so that no row can surprise a reader."""
    dataset: Any = import_module("datasets").Dataset
    entry = manager.task_index[task]
    config = entry.cfg or {}
    scored = _find_scored_split(config)
    splits = {scored: "test"} | ({"train": "train"} if "train" in parts else {})
    files = {}
    for split, part in splits.items():
        file = directory / f"{task}.{split}.parquet"
        try:
            dataset.from_list(complete_rows(read_rows(task, parts[part]))).to_parquet(file)
        except (ValueError, TypeError) as error:  # pyarrow's
            reason = quote(str(error).strip().partition("\n")[0])
            raise UserError(
                f"--task-data: {parts[part]}: a column of its rows holds values of different types: {reason}."
            ) from None
        files[split] = str(file)
    own = {split: split if split in files else None for split in ("test", "validation", "train")}
    changes = {
        "include": str(entry.yaml_path),
        "task": task,
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "test_split": scored if config.get("test_split") else None,
        "validation_split": None if config.get("test_split") else scored,
        "training_split": own["train"],
        "fewshot_split": own["train"] if config.get("fewshot_split") or own["train"] else None,
    }
    path = directory / f"{task}.yaml"
    path.write_text(json.dumps(changes, indent=1), encoding="utf-8")  # JSON is YAML
    return path


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """The messages below errors of the harness and of what fetches data, and progress bars, are not shown."""
    names = ("lm_eval", "lm-eval", "datasets", "huggingface_hub")
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    # Asked outside a clone, git complains; nothing here reads the answer.
    stand_ins: list[tuple[str, str, Any]] = [("lm_eval.evaluator", "get_git_commit_hash", lambda: None)]
    stand_ins += [(name, "tqdm", lambda items, **_: items) for name in ("lm_eval.api.task", "lm_eval.api.model")]
    quiet = [(import_module(module), name, stand_in) for module, name, stand_in in stand_ins]
    own = [(module, name, getattr(module, name, None)) for module, name, _ in quiet]
    import_module("datasets.utils.logging").disable_progress_bar()
    for logger in levels:
        logger.setLevel(logging.ERROR)
    for changed in quiet:
        setattr(*changed)
    try:
        yield
    finally:
        for changed in own:
            setattr(*changed)
        import_module("datasets.utils.logging").enable_progress_bar()
        for logger, level in levels.items():
            logger.setLevel(level)
