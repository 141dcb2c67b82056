"""Command lines of the entry points, parsed by tyro: every field of a config is a flag."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import tyro

from gptjax.core.config_files import find_config, import_modules, list_configs, load_config_file
from gptjax.core.errors import UserError
from gptjax.core.serialization import Modules

T = TypeVar("T")

_TYRO = (tyro.conf.AvoidSubcommands,)
"""The config file chooses the class of a field that a protocol or a union types. tyro would make it a sub-command."""

Imports = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="import")]
"""Modules or Python files that define a user's own classes."""


@dataclass(frozen=True)
class ConfigRequest(Generic[T]):
    """A command line that names a config file."""

    config: T
    """The file's config with the flags applied."""
    base: T
    """The file's config."""
    path: Path
    modules: Modules
    """The config file and the modules of `--import`, by the name under which their classes are saved."""


def parse_config(config_type: type[T], argv: Sequence[str], *, prog: str, description: str) -> ConfigRequest[T]:
    """Read `--config=FILE`, `--import=MODULE` and the flags that replace fields of the config.

    `--help` explains every field of the given config, or lists the installed configs, and exits. An unknown flag or a
    value of the wrong type exits with code 2 and a suggestion.

    Raises:
        UserError: no config is given, its file has a fault, or a config class refuses a value.
    """
    spec = require_config(argv, prog=prog, description=description)
    (_, imports), rest = _take_flags(argv, "--config", "--import")
    modules = import_modules(imports)
    base, module = load_config_file(spec, config_type)
    path = Path(module.__file__ or "")
    prog = f"{prog} --config={spec}"
    # tyro documents that it may build the value twice. __post_init__ only checks, so this does no harm.
    config = tyro.cli(config_type, default=base, prog=prog, description=description, args=rest, config=_TYRO)
    return ConfigRequest(config, base, path, {path.stem: module, **modules})


def require_config(argv: Sequence[str], *, prog: str, description: str) -> str:
    """The one config file that the command line names; without one, `--help` lists the installed configs and exits.

    It needs no config class, so an entry point can call it before the imports that take long.

    Raises:
        UserError: no config is given, or several, or there is no such file.
    """
    (specs, _), rest = _take_flags(argv, "--config", "--import")
    if not specs:
        if {"-h", "--help"} & set(rest):
            print(_usage(prog, description))
            raise SystemExit(0)
        raise UserError(f"No config is given. Give --config=NAME or --config=FILE; {prog} --help lists the names.")
    if len(specs) > 1:
        raise UserError(f"--config is given {len(specs)} times ({', '.join(specs)}): a run has one config file.")
    if specs[0] in ("", "--help"):
        raise UserError("--config names no file. Give --config=NAME or --config=FILE.")
    find_config(specs[0])
    return specs[0]


def parse_options(options_type: type[T], argv: Sequence[str], *, prog: str) -> T:
    """Read the options of an entry point into a frozen dataclass, whose docstrings are the help texts."""
    return tyro.cli(options_type, prog=prog, args=list(argv), config=_TYRO)


def parse_known_options(options_type: type[T], argv: Sequence[str], *, prog: str) -> tuple[T, list[str]]:
    """Read an entry point's own options, and return the words that are not among them, for `parse_config`.

    With `--help` it prints these options, and `--help` is among the words that are left.
    """
    asks_help = {"-h", "--help"} & set(argv)
    if asks_help:
        with contextlib.suppress(SystemExit):
            tyro.cli(options_type, prog=prog, args=["--help"], config=_TYRO)
    known = [word for word in argv if word not in ("-h", "--help")]
    options, rest = tyro.cli(options_type, prog=prog, args=known, config=_TYRO, return_unknown_args=True)
    return options, [*rest, *asks_help]


def _take_flags(argv: Sequence[str], *flags: str) -> tuple[tuple[list[str], ...], list[str]]:
    """The values of each flag, in the order of `flags`, and the remaining words."""
    values: dict[str, list[str]] = {flag: [] for flag in flags}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in values:
            values[flag].append(value if equals else next(words, ""))
        else:
            rest.append(word)
    return tuple(values.values()), rest


def _usage(prog: str, description: str) -> str:
    configs = list_configs()
    width = max((len(name) for name in configs), default=0)
    lines = [
        f"usage: {prog} --config=FILE [--field=value ...]",
        "",
        description,
        "",
        f"Every field of a config is a flag; {prog} --config=FILE --help shows them all.",
        "--import=MODULE or --import=FILE.py imports your own classes, for a saved run that uses them.",
        "",
        "installed configs:" if configs else "No configs are installed.",
        *(f"  {name:<{width}}  {line}" for name, line in configs.items()),
    ]
    return "\n".join(lines)
