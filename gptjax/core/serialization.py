"""Frozen dataclasses as JSON and back.

A class is written as `module:Class`. Reading finds classes in three places only: in gptjax, in the modules that the
caller passes (a user's config file or `--import`), and in the caller's own config. Reading imports nothing outside
gptjax and runs no file beside the JSON.
"""

import dataclasses
import importlib
import importlib.util
import itertools
import math
import re
import shlex
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptjax.core.errors import UserError

Modules = Mapping[str, types.ModuleType]
"""Modules that the user's command names, by the name under which their classes are saved."""


def class_name(cls: type) -> str:
    """`module:Class`; the module of a file that was run by path is the file's name without `.py`."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    run_by_path = cls.__module__ == "__main__" or not _is_dotted_name(cls.__module__)
    return f"{Path(file).stem if run_by_path and file else cls.__module__}:{cls.__qualname__}"


def to_json(value: Any) -> Any:
    """A config in JSON's own types. Raises `UserError` naming the field that JSON cannot hold."""
    return _to_json(value, type(value).__name__)


def _to_json(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return {"class": class_name(type(value))} | {k: _to_json(v, f"{path}.{k}") for k, v in fields.items()}
    if isinstance(value, Mapping) and "class" not in value and all(isinstance(key, str) for key in value):
        return {key: _to_json(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_to_json(item, f"{path}.{index}") for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    name = getattr(value, "__name__", type(value).__name__)
    if isinstance(value, type):
        raise UserError(f"{path} is the class {name}, which cannot be written to config.json. Write {name}(…).")
    if type(value).__repr__ is object.__repr__:
        problem = "which cannot be written to config.json: it is no dataclass"
        raise UserError(f"{path} is of the class {name}, {problem}. Write @dataclass(frozen=True) above the class.")
    raise UserError(
        f"{path} is {value!r} ({class_name(type(value))}), which cannot be written to config.json. "
        "Use dataclasses, tuples, strings and finite numbers."
    )


def from_json(
    content: Any, hint: Any, *, modules: Modules | None = None, trusted: Any = None, where: str = "config"
) -> Any:
    """The value that `to_json` wrote, checked against a type hint.

    An absent field takes its default, because the file may be older than the field.

    Args:
        hint: a dataclass, a protocol, a union, or a tuple, list or dict of such.
        modules: modules in which classes outside gptjax are looked up.
        trusted: a config of the caller. Its own classes may be built as well.
        where: begins the path of a field in error messages.

    Raises:
        UserError: a class or field is unknown, or a value does not fit.
    """
    classes = {class_name(type(value)): type(value) for value in _list_dataclasses(trusted)}
    return _Reader(dict(modules or {}), classes).read(content, hint, where)


def find_unimportable(config: Any) -> str | None:
    """A reason why a class of a config could not be found again by its saved name; None if all can be."""
    for cls in {type(value): None for value in _list_dataclasses(config)}:
        outer, _, name = cls.__qualname__.replace(".<locals>", "").rpartition(".")
        if outer:
            return f"{name} is defined inside {outer}. Define it at the top level of the config file or of a module."
    return None


def _list_dataclasses(value: Any) -> list[Any]:
    """A value and all values inside it, if they are instances of dataclasses."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [value, *(part for f in dataclasses.fields(value) for part in _list_dataclasses(getattr(value, f.name)))]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return [part for item in items for part in _list_dataclasses(item)]


@dataclasses.dataclass(frozen=True)
class _Reader:
    modules: dict[str, types.ModuleType]
    classes: dict[str, type]

    def read(self, content: Any, hint: Any, where: str) -> Any:
        value = self._convert(content, hint, where)
        if not fits(value, hint):
            raise UserError(f"{where} is {value!r}; wanted {describe_hint(hint)}.")
        return value

    def _convert(self, content: Any, hint: Any, where: str) -> Any:
        if isinstance(content, Mapping) and "class" in content:
            return self._build(self._find_class(str(content["class"]), hint, where), content, where)
        if isinstance(content, Mapping):
            of = _find_container(hint, dict)[1][1:] or (Any,)
            return {key: self.read(item, of[0], f"{where}.{key}") for key, item in content.items()}
        if isinstance(content, list):
            container, of = _find_container(hint, tuple, list)
            if container is list or of[1:] == (...,):
                of = of[:1] * len(content)
            if len(of) != len(content):
                of = (Any,) * len(content)
            items = enumerate(zip(content, of, strict=True))
            return container(self.read(item, hint_of_item, f"{where}.{index}") for index, (item, hint_of_item) in items)
        return content

    def _find_class(self, name: str, hint: Any, where: str) -> type:
        """The class of a saved name. It is checked against the hint before anything of it is called."""
        module, colon, attribute = name.partition(":")
        if not colon:
            raise UserError(
                f"{where} has the class {name!r}, which an earlier gptjax wrote. Wanted a name such as "
                "'gptjax.config:TrainConfig'. Train the run anew."
            )
        cls = self.classes.get(name) or self._look_up(module, attribute)
        if cls is None and module not in self.modules and module.partition(".")[0] != "gptjax":
            raise UserError(
                f"{where} has the class {name!r}, which is not part of gptjax. If you trust it, import its module "
                f"or its file: --import={shlex.quote(module)} or --import=FILE.py."
            )
        if cls is None:
            raise UserError(f"{where} has the class {name!r}; {module} defines no such dataclass.")
        if not _may_fit(cls, hint):
            raise UserError(f"{where} has the class {name!r}; wanted {describe_hint(hint)}.")
        return cls

    def _look_up(self, module: str, attribute: str) -> type | None:
        """A dataclass of a module of the user or of gptjax; the latter must define it itself."""
        # vars() instead of getattr(): a module's __getattr__ may import others.
        if module in self.modules:
            found = vars(self.modules[module]).get(attribute)
        else:
            found = vars(own).get(attribute) if (own := _import_own(module)) else None
            if getattr(found, "__module__", None) != module:
                return None
        return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None

    def _build(self, cls: type, content: Mapping[str, Any], where: str) -> Any:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        if unknown := sorted(content.keys() - names - {"class"}):
            raise UserError(f"{where}: {cls.__name__} has no field {unknown[0]!r}. Fields: {', '.join(sorted(names))}.")
        hints = typing.get_type_hints(cls)
        given = {key: self.read(content[key], hints[key], f"{where}.{key}") for key in content if key != "class"}
        try:
            return cls(**given)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} cannot be built: {error}.") from None


def _import_own(module: str) -> types.ModuleType | None:
    """A module of gptjax by its full name; None for any other name."""
    if module.partition(".")[0] != "gptjax" or not _is_dotted_name(module):
        return None
    # find_spec imports all packages above a name, so each name is checked before the one below it. A directory without
    # __init__.py has no origin: it is no part of gptjax, even if somebody keeps runs inside the package's directory.
    for name in itertools.accumulate(module.split("."), "{}.{}".format):
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # what is above is a module, not a package
            return None
        if spec is None or spec.origin is None:
            return None
    return importlib.import_module(module)


def _is_dotted_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def check_types(config: Any, *, where: str) -> None:
    """Raise `UserError` for a field, however deep, whose value does not fit its annotation."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{where}: {field.name}"
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, type):
                raise UserError(f"{name} is the class {part.__name__}; write {part.__name__}(…).")
        if not fits(value, hints[field.name]):
            problem = _describe_lack(value, hints[field.name])
            wanted = describe_hint(hints[field.name]) + _list_own_classes(hints[field.name])
            raise UserError(f"{name} {problem or f'is {value!r}; wanted {wanted}.'}")
        for part in value if isinstance(value, tuple | list) else (value,):
            if dataclasses.is_dataclass(part):
                check_types(part, where=name)


def _list_own_classes(hint: Any) -> str:
    """Classes that fit a protocol and stand beside it; empty for other hints."""
    if not getattr(hint, "_is_protocol", False):
        return ""
    beside = [cls for cls in vars(sys.modules[hint.__module__]).values() if isinstance(cls, type)]
    names = [cls.__name__ for cls in beside if dataclasses.is_dataclass(cls) and cls.__module__ == hint.__module__]
    return f", such as {' or '.join(f'{name}(…)' for name in names[:4])}" if names else ""


def _describe_lack(value: Any, hint: Any) -> str | None:
    """Which methods of a protocol an instance of another class lacks, in words; None if it is no such instance."""
    if typing.get_origin(hint) is tuple and isinstance(value, tuple):
        return next(filter(None, (_describe_lack(item, typing.get_args(hint)[0]) for item in value)), None)
    if not getattr(hint, "_is_protocol", False) or type(value).__module__ == "builtins":
        return None
    methods = [name for name, member in vars(hint).items() if callable(member)]
    lacking = [n for n in methods if not hasattr(value, n) and (n == "__call__" or not n.startswith("_"))]
    if not lacking:
        return None
    return f"is {type(value).__name__}, which has no method {' and no '.join(lacking)}; wanted {describe_hint(hint)}."


def describe_hint(hint: Any) -> str:
    """A type hint for a message, without the modules of its classes."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return re.sub(r"\b(\w+\.)+(?=\w)", "", str(hint))


def fits(value: Any, hint: Any) -> bool:
    """True if a value is an instance of a type hint. A hint that Python cannot check fits everything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _is_union(hint):
        return any(fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        hints = arguments[:1] * len(value) if arguments[1:] == (...,) and isinstance(value, tuple) else arguments
        same_length = isinstance(value, tuple) and len(value) == len(hints)
        return same_length and all(fits(item, of) for item, of in zip(value, hints, strict=True))
    if origin is list:
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, arguments[1]) for item in value.values())
    if hint is int or hint is float:
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    try:
        return isinstance(value, hint)
    except TypeError:  # Any, a protocol that is not runtime_checkable, a TypeVar
        return True


def _may_fit(cls: type, hint: Any) -> bool:
    """False if no instance of a class fits a hint; True also where only an instance can tell."""
    if _is_union(hint):
        return any(_may_fit(cls, option) for option in typing.get_args(hint))
    try:
        return hint is Any or issubclass(cls, typing.get_origin(hint) or hint)
    except TypeError:
        return True


def _find_container(hint: Any, *kinds: type) -> tuple[type, tuple[Any, ...]]:
    """The one container of these kinds among the options of a hint, and its arguments; the first kind if unclear."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    found = [(typing.get_origin(o) or o, typing.get_args(o)) for o in options if (typing.get_origin(o) or o) in kinds]
    return found[0] if len(found) == 1 else (kinds[0], ())


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
