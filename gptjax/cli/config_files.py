"""Config files: Python modules that hold one frozen dataclass under the name `config`."""

import ast
import dataclasses
import difflib
import importlib
import os
import re
import shlex
import sys
import traceback
import types
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from gptjax.cli.flag_synonyms import FLAGS_BY_WORD
from gptjax.cli.flags import list_flags
from gptjax.core.errors import UserError
from gptjax.core.files import expand_path
from gptjax.core.serialization import Modules, check_types, class_name

T = TypeVar("T")

PACKAGES = Path(__file__).parents[2]
"""The directory that holds the package gptjax, and `configs` of the same install beside it."""

OTHER_SUFFIXES = (".yaml", ".yml", ".json", ".toml")
"""Endings of configs in other programs."""


def list_configs() -> dict[str, str]:
    """Installed configs by name, each with the first line of its docstring. None of them is run."""
    files = sorted(path for folder in _config_folders() for path in folder.glob("[!_]*.py"))
    return {path.stem: _first_line(path) for path in files}


def load_config_file(spec: str | Path, config_type: type[T]) -> tuple[T, types.ModuleType]:
    """Run the config file that `spec` names. Returns its `config`, which must be a `config_type`, and its module.

    A relative `spec` is looked up from the working directory, then among the installed configs. There `quickstart`,
    `quickstart.py` and `configs/quickstart.py` name the same file.

    Raises:
        UserError: there is no such file, or it has a fault. The message names the file and the line.
    """
    path = find_config(spec)
    if path.suffix in OTHER_SUFFIXES:
        raise UserError(f"{path}: a config is a Python file. Choose an installed one, and set its values by flags.")
    module = run_file(path)
    if not hasattr(module, "config"):
        raise UserError(f"{path} holds no `config`. End it with `config = {config_type.__name__}(...)`.")
    if not isinstance(module.config, config_type):
        raise UserError(f"{path}: `config` is {class_name(type(module.config))}; wanted {class_name(config_type)}.")
    check_types(module.config, where=str(path))
    return module.config, module


def find_config(spec: str | Path) -> Path:
    """The absolute path of the config file that `spec` names. `load_config_file` describes the search."""
    spec = expand_path(spec)
    folders = _config_folders()
    candidates = [spec, *(folder / spec for folder in folders), *(folder.parent / spec for folder in folders)]
    for candidate in candidates:
        for path in (candidate, candidate.with_name(candidate.name + ".py")):
            if path.is_file():
                return path.resolve()
    names = list(list_configs())
    close = difflib.get_close_matches(spec.stem, names, n=1)
    hint = "A config is a Python file. " if spec.suffix in OTHER_SUFFIXES else ""
    listed = f"Installed configs: {', '.join(names)}." if names else "No configs are installed."
    listed = f"Did you mean {close[0]}? --help lists all." if close else listed
    if (spec / "config.py").is_file():  # a run keeps the file that it began with, without its flags
        raise UserError(f"{spec} is a directory. Did you mean --config={shlex.quote(str(spec / 'config.py'))}?")
    raise UserError(f"There is no config file {spec} (looked from {Path.cwd()}). {hint}{listed}")


def import_modules(names: Iterable[str]) -> Modules:
    """Import modules with a user's own classes. Returns them by the name under which their classes are saved.

    A name is the path of a Python file, or a module in the environment or the working directory.
    """
    modules: dict[str, types.ModuleType] = {}
    for name in names:
        if not name:
            raise UserError("--import= is empty; wanted a file or a module. The variable that holds it may not be set.")
        path = expand_path(name)
        if path.suffix != ".py":
            modules[name] = _import_module(name)
        elif path.is_file():
            modules[path.stem] = run_file(path.resolve())
        else:
            raise UserError(f"--import={name} names no file (looked from {Path.cwd()}).")
    return modules


def _import_module(name: str) -> types.ModuleType:
    here = Path.cwd()
    # The end of the path: a file in the working directory must not replace a module of the environment.
    if str(here) not in sys.path:
        sys.path.append(str(here))
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise _explain(error, f"--import={name} cannot be imported", here) from error


def run_file(path: Path) -> types.ModuleType:
    """Run a Python file as a module of its own. Each call runs it afresh, so that an edit in a notebook counts."""
    # Without dots: what follows a dot would be looked up in a package, when an object of the file is unpickled.
    name = f"gptjax_user_file:{path}".replace(".", "_")
    module = types.ModuleType(name)
    module.__file__ = str(path)
    # Type hints and help texts of a class that the file defines are looked up in sys.modules.
    sys.modules[name] = module
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except Exception as error:
        raise _explain(error, str(path), path.parent) from error
    return module


def _explain(error: Exception, what: str, folder: Path) -> UserError:
    """The error of a user's file in one line, which begins with the place if it is known and with `what` otherwise."""
    place = _locate(error, folder) or what
    if (known := _find_wrong_keyword(error) or _find_wrong_value(error)) is not None:
        return UserError(f"{place}: {known}")
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    message = error.msg if isinstance(error, SyntaxError) else error
    return UserError(f"{place}: {kind}{message}{_find_import(error)}")


def _find_wrong_keyword(error: Exception) -> str | None:
    """A keyword that a dataclass of gptjax does not have, and what it has; None for other errors."""
    found = re.fullmatch(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'.*", str(error))
    if not isinstance(error, TypeError) or found is None:
        return None
    own = (module for name, module in list(sys.modules.items()) if name.startswith("gptjax"))
    classes = [cls for module in own if isinstance(cls := vars(module).get(found[1]), type)]
    if not classes or not dataclasses.is_dataclass(classes[0]):
        return None
    names = [field.name for field in dataclasses.fields(classes[0])]
    flags = FLAGS_BY_WORD.get(found[2].replace("_", "-"), [])  # what others call a flag, its field is called, too
    meant = [name for flag in flags if (name := flag.rpartition(".")[2].replace("-", "_")) in names]
    meant = meant or ([] if flags else difflib.get_close_matches(found[2], names, n=1))
    path = _find_path(flags)
    elsewhere = f" In a config it is {path}." if path else ""
    hint = f" Did you mean {meant[0]}?" if meant else f"{elsewhere} It has {', '.join(names)}."
    return f"{found[1]} has no field {found[2]!r}.{hint}"


def _find_path(flags: Iterable[str]) -> str | None:
    """The first of these flags that a run has, as a path of fields: `optimizer.learning_rate`; None for other flags."""
    if (train_config := getattr(sys.modules.get("gptjax.config"), "TrainConfig", None)) is None:
        return None
    fields = list_flags(train_config, train_config())
    return next((flag.replace("-", "_") for flag in flags if flag in fields), None)


def _find_wrong_value(error: Exception) -> str | None:
    """The field of a config whose value is of another type than its annotation, where Python failed because of it."""
    if not isinstance(error, TypeError | AttributeError):
        return None
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        owner = frame.f_locals.get("self")
        if dataclasses.is_dataclass(owner) and type(owner).__module__.startswith("gptjax"):
            try:
                check_types(owner, where=type(owner).__name__)
            except UserError as wrong:
                return str(wrong)
    return None


def _find_import(error: Exception) -> str:
    """Where a class is that a user's file imports from another module of gptjax; empty for other errors."""
    if not isinstance(error, ImportError) or not (error.name or "").startswith("gptjax"):
        return ""
    found = re.search(r"cannot import name '(\w+)'", str(error))
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        if found and re.search(rf"^class {found[1]}\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
            return f". It is in {module}"
    return ". docs/names.md has the names of earlier versions"


def _locate(error: Exception, folder: Path) -> str | None:
    """File and line to correct: the innermost frame in a file of this folder or in an installed config."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    folders = {folder, *_config_folders()}
    # Generated code, such as a dataclass's __init__, has a relative file name.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.path.isabs(frame.filename)]
    inside = [frame for frame in frames if Path(frame.filename).resolve().parent in folders]
    return f"{inside[-1].filename}, line {inside[-1].lineno}" if inside else None


def _config_folders() -> list[Path]:
    """The `configs` package beside this one. A lookup by name might find another folder of that name."""
    folder = (PACKAGES / "configs").resolve()
    return [folder] if folder.is_dir() else []


def _first_line(path: Path) -> str:
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except SyntaxError:
        return "(does not parse)"
    return text.partition("\n")[0]
