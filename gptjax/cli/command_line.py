"""Command lines of the entry points, parsed by tyro: every field of a config is a flag."""

import contextlib
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro
from tyro import _strings

from gptjax.cli.config_files import find_config, import_modules, list_configs, load_config_file
from gptjax.cli.flag_mistakes import explain_words
from gptjax.cli.flag_synonyms import COMMON_FLAGS, CONFIG_WORDS
from gptjax.cli.flags import Flag, Flags, drop_flags, list_flags, normalize_words
from gptjax.cli.refusals import list_refusals
from gptjax.core.errors import UserError, quote
from gptjax.core.provenance import print_versions
from gptjax.core.serialization import Modules

T = TypeVar("T")

_TYRO = (tyro.conf.AvoidSubcommands,)
"""The config file chooses the class of a field that a protocol or a union types. tyro would make it a sub-command."""

Imports = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="import")]
"""Modules or Python files that define a user's own classes."""


EXAMPLES = (
    "--config=quickstart",
    "--config=own_text_cpu --data.path=data/books --steps=500",
    "--config=gpt2_124m --mesh=fsdp --batch-size=240 --optimizer.learning-rate=3e-4",
)
IMPORT_HELP = "--import=MODULE or --import=FILE.py imports your own classes, for a saved run that uses them."


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
    explicit_fields: tuple[str, ...]
    """Paths of the fields that the command line sets, such as `model.context_length`, also to what they were."""


def parse_config(
    config_type: type[T], argv: Sequence[str], *, prog: str, description: str, options_type: type | None = None
) -> ConfigRequest[T]:
    """Read `--config=FILE` (or FILE as the first word), `--import=MODULE` and the flags that replace fields.

    `--help` explains every field of the given config, or lists the installed configs, and exits. An unknown flag or a
    value of the wrong type is an error that shows the right one. `options_type` has further flags of the command, which
    may be meant.

    Raises:
        UserError: no config is given, its file has a fault, a flag is wrong, or a config class refuses a value.
    """
    spec = require_config(argv, prog=prog, description=description)
    (_, imports), rest = _take_config(argv)
    modules = import_modules(imports)
    base, module = load_config_file(spec, config_type)
    path = Path(module.__file__ or "")
    prog = f"{prog} --config={spec}"
    if {"-h", "--help"} & set(rest):
        print(_format_common_flags(base, prog))
    config = _parse(config_type, rest, prog=prog, default=base, description=description, options_type=options_type)
    words = normalize_words(rest, list_flags(config_type, base))
    explicit_fields = tuple(_name_field(word) for word in words if word.startswith("--"))
    return ConfigRequest(config, base, path, {path.stem: module, **modules}, explicit_fields)


def list_resume_words(words: Sequence[str], request: ConfigRequest[Any]) -> list[str]:
    """The words of a command that goes on with a run which these words have begun.

    They begin with `--config=SPEC`. `--resume=never` is not among them, for the run exists from its first start on.
    """
    ((spec,), imports), rest = _take_config(words)
    if request.config.resume == "never":
        rest = [*drop_flags(rest, "resume"), *(["--resume=auto"] if request.base.resume == "never" else [])]
    return [f"--config={spec}", *(f"--import={name}" for name in imports), *rest]


def _name_field(word: str) -> str:
    """`model.context_length` for `--model.context-length=512`, and for a switch and its opposite."""
    *parents, name = word[2:].partition("=")[0].replace("-", "_").split(".")
    return ".".join([*parents, name.removeprefix("no_")])


def require_config(argv: Sequence[str], *, prog: str, description: str) -> str:
    """The one config file that the command line names; without one, `--help` lists the installed configs and exits.

    It needs no config class, so an entry point can call it before the imports that take long.

    Raises:
        UserError: no config is given, or several, or there is no such file.
    """
    print_versions_if_asked(argv)
    (specs, _), rest = _take_config(argv)
    if not specs:
        if {"-h", "--help"} & set(rest):
            print(_usage(prog, description))
            raise SystemExit(0)
        names = [name for word in rest if word.startswith("-") and (name := word.lstrip("-")) in list_configs()]
        if names:
            raise UserError(f"No config is given. Write --config={names[0]}.")
        typed = {word.partition("=")[0] for word in rest if word.startswith("--")}
        if alike := difflib.get_close_matches("--config", typed, n=1, cutoff=0.75):
            raise UserError(f"There is no flag {quote(alike[0])}. Write --config=NAME.")
        raise UserError(f"No config is given. Give --config=NAME, such as quickstart; {prog} --help lists the names.")
    if len(specs) > 1:
        raise UserError(f"--config is given {len(specs)} times ({', '.join(specs)}): a run has one config file.")
    if specs[0] in ("", "--help"):
        raise UserError("--config names no file. Give --config=NAME or --config=FILE.")
    find_config(specs[0])
    return specs[0]


def parse_options(options_type: type[T], argv: Sequence[str], *, prog: str, introduction: str = "") -> T:
    """Read the options of an entry point into a frozen dataclass, whose docstrings are the help texts.

    `introduction` begins the help: examples, and what files look like.

    Raises:
        UserError: a word is wrong; the message shows the right one.
    """
    if introduction and {"-h", "--help"} & set(argv):
        print(f"{introduction.strip()}\n")
    return _parse(options_type, argv, prog=prog)


def parse_known_options(
    options_type: type[T], argv: Sequence[str], *, prog: str, introduction: str = ""
) -> tuple[T, list[str]]:
    """Read an entry point's own options, and return the words that are not among them, for `parse_config`.

    With `--help` it prints these options, and `--help` is among the words that are left.
    """
    asks_help = {"-h", "--help"} & set(argv)
    if asks_help:
        print(f"{introduction.strip()}\n")
        with contextlib.suppress(SystemExit), _help_in_sentences():
            tyro.cli(options_type, prog=prog, args=["--help"], config=_TYRO)
    flags, printed = list_flags(options_type), io.StringIO()
    words = normalize_words([word for word in argv if word not in ("-h", "--help")], flags)
    try:
        with contextlib.redirect_stderr(printed):
            options, rest = tyro.cli(options_type, prog=prog, args=words, config=_TYRO, return_unknown_args=True)
    except SystemExit:
        raise UserError(explain_words(_take_known(words, flags), flags) or _join_lines(printed.getvalue())) from None
    switches = [
        word for word in _take_known(words, flags) if "=" in word and flags[word[2:].partition("=")[0]].is_switch
    ]
    if switches:  # tyro takes the switch and leaves its value
        raise UserError(explain_words(switches, flags) or f"{switches[0]} is a switch.")
    return options, [*rest, *asks_help]


def _take_known(words: Sequence[str], flags: Flags) -> list[str]:
    """The known flags among the words, each with its value behind `=`, if it has one."""
    found = []
    for word, after in zip(words, [*words[1:], "--"], strict=False):
        name, equals, _ = word[2:].partition("=")
        if name in flags:
            takes_next = not (equals or flags[name].is_switch or after.startswith("--"))
            found.append(f"{word}={after}" if takes_next else word)
    return found


def print_versions_if_asked(argv: Sequence[str]) -> None:
    """Print versions and devices, and exit, if the command line has `--version`."""
    if "--version" in argv:
        print_versions()
        raise SystemExit(0)


@contextlib.contextmanager
def _help_in_sentences() -> Iterator[None]:
    """Let tyro join the lines of a docstring, between which it else ends a line of the help where it likes.

    It has no option for this. If a later version has no such function, help is as that version makes it.
    """
    plain = getattr(_strings, "remove_single_line_breaks", None)
    if plain is not None:
        _strings.remove_single_line_breaks = _join_paragraphs
    try:
        yield
    finally:
        if plain is not None:
            _strings.remove_single_line_breaks = plain


def _join_paragraphs(text: str) -> str:
    """A text with a line for each paragraph."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text)).strip()


def _parse(
    kind: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    default: T | None = None,
    description: str | None = None,
    options_type: type | None = None,
) -> T:
    """What tyro reads. It may build the value twice; `__post_init__` only checks, so this does no harm."""
    print_versions_if_asked(argv)
    flags = list_flags(kind, default)
    words, printed = normalize_words(argv, flags), io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}

    def parse(words: list[str]) -> T:
        return tyro.cli(kind, prog=prog, description=description, args=words, config=_TYRO, **given)

    try:
        with contextlib.redirect_stderr(printed), _help_in_sentences():
            return parse(words)
    except UserError as error:
        with contextlib.redirect_stderr(printed):
            raise UserError(list_refusals(words, error, parse=parse)) from None
    except SystemExit as stopped:
        others = {} if options_type is None else list_flags(options_type)
        others |= {} if default is None else {"config": Flag(str, default="")}  # it was read before
        if stopped.code and (reason := explain_words(words, flags | others)):
            raise UserError(reason) from None
        if stopped.code and printed.getvalue():
            raise UserError(_join_lines(printed.getvalue())) from None
        raise


def _join_lines(box: str) -> str:
    """The sentences of tyro's message on one line, without the frame."""
    lines = [line.strip(" │╭╮╰╯─|-") for line in box.splitlines()]
    return ". ".join(line.rstrip(".") for line in lines if line) + "."


def _take_config(argv: Sequence[str]) -> tuple[tuple[list[str], ...], list[str]]:
    """The values of `--config` and of `--import`, and the other words. The first word may be a config without a flag.

    Raises `UserError` for the words by which other programs name a config.
    """
    (specs, imports), rest = _take_flags(argv, "--config", "--import")
    if rest and not specs and not rest[0].startswith("-") and "=" not in rest[0]:
        specs, rest = [rest[0]], rest[1:]
    for place, word in enumerate(rest):
        name, equals, value = word.lstrip("-").partition("=")
        if not specs and name == "config" and equals:
            raise UserError(f"{quote(word)} does not begin with two dashes. Write --config={quote(value)}.")
        if word.startswith("-") and name in CONFIG_WORDS:
            following = rest[place + 1 : place + 2]
            value = value if equals else "".join(word for word in following if not word.startswith("-"))
            if specs and value and value != specs[0]:
                raise UserError(f"Two configs are given, {quote(value)} and {quote(specs[0])}: a run has one.")
            shown = word.partition("=")[0].replace("_", "-")
            hint = f"The config is {quote(specs[0])}." if specs else f"Write --config={quote(value) or 'NAME'}."
            raise UserError(f"There is no flag {shown}. {hint}")
    if specs and rest and rest[0] in list_configs():
        raise UserError(f"Two configs are given, {quote(rest[0])} and {quote(specs[0])}: a run has one.")
    before = [None, *rest]
    for place, word in enumerate(rest):  # nanoGPT's order: flags, then the config
        is_value = place > 0 and before[place].startswith("--") and "=" not in before[place]
        if not specs and not is_value and not word.startswith("-") and (word.endswith(".py") or word in list_configs()):
            return ([word], imports), rest[:place] + rest[place + 1 :]
    return (specs, imports), rest


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


def _format_common_flags(config: Any, prog: str) -> str:
    """The flags that one often gives, as far as this config has them, with its values."""
    flags = list_flags(type(config), config)
    lines = [
        f"  --{f'{name}={flags[name].default}':<36} {text}" for name, text in COMMON_FLAGS.items() if name in flags
    ]
    example = f"  {prog} --{next((name for name in COMMON_FLAGS if name in flags), 'help')}=…"
    parts = [
        f"  --{field}.{number}  {type(part).__name__}"
        for field, value in vars(config).items()
        for number, part in enumerate(value if isinstance(value, tuple) else ())
        if is_dataclass(part)
    ]
    parts = ["", "numbered parts of this config:", *parts] if parts else []
    forms = ["--config=NAME or --config=FILE chooses the config.", IMPORT_HELP]
    return "\n".join(
        ["often given, with the values of this config:", *lines, "", "example:", example, *parts, "", *forms, ""]
    )


def _usage(prog: str, description: str) -> str:
    configs = list_configs()
    width = max((len(name) for name in configs), default=0)
    lines = [
        f"usage: {prog} --config=NAME [--field=value ...]",
        "",
        description,
        "",
        "examples:",
        *(f"  {prog} {words}" for words in EXAMPLES),
        "",
        "flags that one often gives:",
        *(f"  --{name:<24} {text}" for name, text in COMMON_FLAGS.items()),
        "",
        f"Every field of a config is a flag; {prog} --config=NAME --help shows them all.",
        IMPORT_HELP,
        "",
        "installed configs:" if configs else "No configs are installed.",
        *(f"  {name:<{width}}  {line}" for name, line in configs.items()),
    ]
    return "\n".join(lines)
