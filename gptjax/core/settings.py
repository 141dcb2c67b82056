"""From a file and a command line to a value, and from a value to JSON and back.

A config is a nested frozen dataclass; a config file is a Python module that holds one under the name `config`; the
command line replaces fields of it by their dotted path. This room knows no class of ours: every function is given
the type that it should deal in. Reading JSON executes nothing: only classes on the caller's list are built.
"""

import ast
import dataclasses
import difflib
import math
import os
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from gptjax.core.errors import UserError

T = TypeVar("T")

PACKAGES = Path(__file__).parents[1]
"""Where this package lies, and others of the same install beside it."""

_TYRO = (tyro.conf.AvoidSubcommands,)
"""A field typed as a union keeps the class that the config file chose, instead of becoming a sub-command."""


# ---------------------------------------------------------------------------------------------- config files


def available_configs() -> dict[str, str]:
    """The configs that are installed, by name, each with the first line of its docstring; none is executed."""
    files = sorted(path for folder in _config_folders() for path in folder.glob("[!_]*.py"))
    return {path.stem: _first_line(path) for path in files}


def load_config(spec: str | Path, config_type: type[T]) -> T:
    """Execute the config file that `spec` names and return its `config`, which must be a `config_type`.

    A relative `spec` is looked for from the working directory, then among the installed configs, where
    `quickstart`, `quickstart.py` and `configs/quickstart.py` all name the same file. Whatever is wrong with
    the file is a `UserError` that names the file and the line.
    """
    path = _find(Path(spec))
    module = _execute(path)
    if not hasattr(module, "config"):
        raise UserError(f"{path} holds no `config`. End it with `config = {config_type.__name__}(...)`.")
    if not isinstance(module.config, config_type):
        raise UserError(
            f"{path}: `config` is a {_full_name(type(module.config))}; a {_full_name(config_type)} is wanted."
        )
    check_types(module.config, where=str(path))
    return module.config


def check_types(config: Any, *, where: str) -> None:
    """Raise a UserError for a field, however deep, that holds something else than its annotation says."""
    hints = typing.get_type_hints(type(config), include_extras=False)
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{where}: {field.name}"
        if not _fits(value, hints[field.name]):
            wanted = str(hints[field.name]).replace("gptjax.", "")
            raise UserError(f"{name} is {value!r}; wanted {getattr(hints[field.name], '__name__', wanted)}.")
        for part in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(part):
                check_types(part, where=name)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a config is what a type hint says; hints that are not known here fit everything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        hints = arguments[:1] * len(value) if arguments[1:] == (...,) and isinstance(value, tuple) else arguments
        fits = isinstance(value, tuple) and len(value) == len(hints)
        return fits and all(_fits(item, of) for item, of in zip(value, hints, strict=True))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def config_source(spec: str | Path) -> str:
    """The text of the config file that `spec` names, found as `load_config` finds it."""
    return _find(Path(spec)).read_text(encoding="utf-8")


def _config_folders() -> list[Path]:
    """Where the `configs` package lies: beside this one. Asked by name, a folder of the same name might answer."""
    folder = PACKAGES / "configs"
    return [folder] if folder.is_dir() else []


def _first_line(path: Path) -> str:
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except SyntaxError:
        return "(does not parse)"
    return text.partition("\n")[0]


def _find(spec: Path) -> Path:
    spec = spec.expanduser()
    folders = _config_folders()
    candidates = [spec, *(folder / spec for folder in folders), *(folder.parent / spec for folder in folders)]
    for candidate in candidates:
        for path in (candidate, candidate.with_name(candidate.name + ".py")):
            if path.is_file():
                return path.resolve()
    names = list(available_configs())
    close = difflib.get_close_matches(spec.stem, names, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    listed = f"Installed configs: {', '.join(names)}." if names else "No configs are installed."
    raise UserError(f"There is no config file {spec} (looked from {Path.cwd()}). {hint}{listed}")


def _execute(path: Path) -> types.ModuleType:
    """Run the file as a module of its own, afresh each time: an edit in a notebook counts at once."""
    name = f"gptjax_config_file:{path}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    # A class that the file defines is looked up here by its type hints and its help texts.
    sys.modules[name] = module
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        message = error.msg if isinstance(error, SyntaxError) else error
        raise UserError(f"{_cause(error, path)}: {kind}{message}") from error
    return module


def _cause(error: Exception, path: Path) -> str:
    """The line to mend: the innermost frame in this file or in one that it derives from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    homes = {path.parent, *(folder.resolve() for folder in _config_folders())}
    frames = traceback.extract_tb(error.__traceback__)
    # Generated code, such as a dataclass's __init__, names no file and would pass for the working directory.
    real = [frame for frame in frames if os.path.isabs(frame.filename)]
    inside = [frame for frame in real if Path(frame.filename).resolve().parent in homes]
    return f"{inside[-1].filename}, line {inside[-1].lineno}" if inside else str(path)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# ---------------------------------------------------------------------------------------------- command line


def parse(config_type: type[T], argv: Sequence[str], *, prog: str, description: str) -> tuple[T, T, str]:
    """The config file named by `--config`, with the rest of `argv` applied to its fields.

    Returns the config to run, the one in the file (to compare it with) and what `--config` said. `--help`
    explains every field of the config that is given, or lists the installed ones, and exits. An unknown field or
    a value of the wrong type exits with code 2 and a suggestion; a field that its own class refuses is that
    class's `UserError`.
    """
    spec, rest = _take_config(argv)
    if spec is None:
        if {"-h", "--help"} & set(rest):
            print(_usage(prog, description))
            raise SystemExit(0)
        raise UserError(f"Which config? Say --config=NAME or --config=FILE; {prog} --help lists what is installed.")
    base = load_config(spec, config_type)
    prog = f"{prog} --config={spec}"
    return _apply(base, rest, prog=prog, description=description), base, spec


def parse_options(door_type: type[T], argv: Sequence[str], *, prog: str) -> T:
    """The arguments of a small door: a frozen dataclass whose docstrings are its help."""
    return tyro.cli(door_type, prog=prog, args=list(argv), config=_TYRO)


def _take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    specs: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config":
            specs.append(next(words, ""))
        elif word.startswith("--config="):
            specs.append(word.removeprefix("--config="))
        else:
            rest.append(word)
    if len(specs) > 1:
        raise UserError(f"--config is given {len(specs)} times ({', '.join(specs)}): a run has one config file.")
    if specs in ([""], ["--help"]):
        raise UserError("--config names no file. Say --config=NAME or --config=FILE.")
    return (specs[0] if specs else None), rest


def _apply(base: T, words: list[str], *, prog: str, description: str) -> T:
    # tyro documents that it may build the value twice; __post_init__ only checks, so this does no harm.
    return tyro.cli(type(base), default=base, prog=prog, description=description, args=words, config=_TYRO)


def _usage(prog: str, description: str) -> str:
    configs = available_configs()
    width = max((len(name) for name in configs), default=0)
    lines = [
        f"usage: {prog} --config=FILE [--field=value ...]",
        "",
        description,
        "",
        f"Every field of a config can be set here; {prog} --config=FILE --help shows them all.",
        "",
        "installed configs:" if configs else "No configs are installed.",
        *(f"  {name:<{width}}  {line}" for name, line in configs.items()),
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ compare and print


def diff_configs(base: Any, config: Any) -> list[tuple[str, Any, Any]]:
    """What changed, as (dotted field, old, new); a field that changed its class is one difference."""
    return list(_differences(base, config, ""))


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        for field in dataclasses.fields(old):
            name = f"{path}.{field.name}" if path else field.name
            yield from _differences(getattr(old, field.name), getattr(new, field.name), name)
    elif isinstance(old, tuple) and isinstance(new, tuple) and _comparable(old, new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from _differences(left, right, f"{path}.{index}")
    elif type(old) is not type(new) or old != new:
        yield path, old, new


def _comparable(old: tuple, new: tuple) -> bool:
    """Tuples of parts are compared part by part; tuples of plain values read better whole."""
    return len(old) == len(new) and any(dataclasses.is_dataclass(value) for value in (*old, *new))


# ------------------------------------------------------------------------------------------------------ JSON


def to_json(config: Any) -> dict[str, Any]:
    """The config in JSON's own types: a dataclass becomes an object with its class's name under "class"."""
    return _to_json(config, type(config).__name__)


def _to_json(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return {"class": type(value).__name__} | {k: _to_json(v, f"{path}.{k}") for k, v in fields.items()}
    if isinstance(value, Mapping) and "class" not in value and all(isinstance(key, str) for key in value):
        return {key: _to_json(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_to_json(item, f"{path}.{index}") for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise UserError(
        f"{path} is {value!r} ({_full_name(type(value))}), which cannot be written to config.json. "
        "Use dataclasses, tuples, names and finite numbers."
    )


def from_json(data: Mapping[str, Any], classes: Iterable[type]) -> Any:
    """The config that `to_json` wrote; only the given classes can be built, and nothing else is run.

    A field that is absent takes its default (the file may be older than the field); a class or a field that is
    unknown is a `UserError`.
    """
    known = {cls.__name__: cls for cls in classes}
    return _build(data, known, str(data.get("class", "config")))


def _build(data: Mapping[str, Any], known: Mapping[str, type], path: str) -> Any:
    name = str(data.get("class"))
    if name not in known:
        raise UserError(f"{path} has the class {name!r}; known here: {', '.join(sorted(known))}.")
    cls = known[name]
    names = {field.name for field in dataclasses.fields(cls) if field.init}
    if unknown := sorted(data.keys() - names - {"class"}):
        raise UserError(f"{path}: {name} has no field {unknown[0]!r}. Its fields: {', '.join(sorted(names))}.")
    hints = typing.get_type_hints(cls)
    given = {key: data[key] for key in data if key != "class"}
    values = {key: _restore(value, hints[key], known, f"{path}.{key}") for key, value in given.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise UserError(f"{path} cannot be built: {error}.") from None


def _restore(value: Any, hint: Any, known: Mapping[str, type], path: str) -> Any:
    if isinstance(value, Mapping):
        if "class" in value:
            return _build(value, known, path)
        return {key: _restore(item, Any, known, f"{path}.{key}") for key, item in value.items()}
    if not isinstance(value, list):
        return value
    container, of = _sequence(hint)
    hints = of[:1] * len(value) if container is list or of[1:] == (...,) else of
    hints = hints if len(hints) == len(value) else (Any,) * len(value)
    items = zip(value, hints, strict=True)
    return container(_restore(item, h, known, f"{path}.{index}") for index, (item, h) in enumerate(items))


def _sequence(hint: Any) -> tuple[type, tuple]:
    """Whether the hint (or a member of its union) asks for a list or a tuple, and of what; a tuple if neither."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for option in typing.get_args(hint) if union else (hint,):
        container = typing.get_origin(option) or option
        if container in (tuple, list):
            return container, typing.get_args(option)
    return tuple, ()
