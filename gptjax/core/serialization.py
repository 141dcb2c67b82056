"""Frozen dataclasses as JSON and back.

A class is written as `module:Class`. Reading executes nothing that was saved: a class comes from gptjax itself, from a
module that the caller passes (the user's config file or `--import`), or from the values of the caller's own config.
"""

import dataclasses
import importlib
import importlib.util
import math
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from gptjax.core.errors import UserError

T = TypeVar("T")
Modules = Mapping[str, types.ModuleType]
"""Modules that the user's command names, by the name under which their classes are saved."""


def class_name(cls: type) -> str:
    """`module:Class`; a class of a file that was run by path is named after the file."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    run_by_path = cls.__module__ == "__main__" or not all(part.isidentifier() for part in cls.__module__.split("."))
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
    raise UserError(
        f"{path} is {value!r} ({class_name(type(value))}), which cannot be written to config.json. "
        "Use dataclasses, tuples, names and finite numbers."
    )


def from_json(content: Any, hint: Any, *, modules: Modules | None = None, trusted: Any = None, where: str = "") -> Any:
    """The value that `to_json` wrote, checked against a type hint.

    Args:
        hint: a dataclass, a protocol, a union, or a tuple, list or dict of such.
        modules: where classes outside gptjax are looked up.
        trusted: a config of the caller whose own classes may be built, too.
        where: begins each error message.

    An absent field takes its default, for the file may be older than the field. Raises `UserError` for an unknown class
    or field and for a value that does not fit.
    """
    classes = {class_name(type(value)): type(value) for value in _nested(trusted)}
    return _Reader(dict(modules or {}), classes).read(content, hint, where)


def _nested(value: Any) -> list[Any]:
    """All dataclass instances in a value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [value, *(one for f in dataclasses.fields(value) for one in _nested(getattr(value, f.name)))]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return [one for item in items for one in _nested(item)]


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
        options = typing.get_args(hint) if _is_union(hint) else (hint,)
        if isinstance(content, Mapping):
            plain = next((option for option in options if dataclasses.is_dataclass(option)), None)
            if "class" in content or plain is not None:
                cls = self._find(str(content["class"]), where) if "class" in content else plain
                return self._build(typing.cast(type, cls), content, where)
            inner = next((typing.get_args(o)[1] for o in options if typing.get_origin(o) is dict), Any)
            return {key: self.read(item, inner, f"{where}.{key}") for key, item in content.items()}
        if isinstance(content, list):
            container, of = next(
                ((typing.get_origin(o), typing.get_args(o)) for o in options if typing.get_origin(o) in (tuple, list)),
                (tuple, ()),
            )
            hints = of[:1] * len(content) if container is list or of[1:] == (...,) else of
            hints = hints if len(hints) == len(content) else (Any,) * len(content)
            items = enumerate(zip(content, hints, strict=True))
            return container(self.read(item, one, f"{where}.{index}") for index, (item, one) in items)
        return content

    def _find(self, name: str, where: str) -> type:
        """The class of a saved name. Only modules of gptjax are imported here."""
        module, _, qualname = name.partition(":")
        if not qualname:
            raise UserError(
                f"{where} has the class {name!r} in the words of an earlier gptjax, which no longer reads it."
            )
        if name in self.classes:
            return self.classes[name]
        found: Any = self.modules.get(module)
        own = found is None and module.partition(".")[0] == "gptjax"
        if own and _module_exists(module):
            found = importlib.import_module(module)
        elif found is None:
            raise UserError(
                f"{where} has the class {name!r}, which is not part of gptjax. If you trust it, name the module that "
                f"defines it: --import={module}."
            )
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if not (isinstance(found, type) and dataclasses.is_dataclass(found)) or (own and found.__module__ != module):
            raise UserError(f"{where} has the class {name!r}; {module} defines no such dataclass.")
        return found

    def _build(self, cls: type, content: Mapping[str, Any], where: str) -> Any:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        if unknown := sorted(content.keys() - names - {"class"}):
            raise UserError(f"{where}: {cls.__name__} has no field {unknown[0]!r}. Fields: {', '.join(sorted(names))}.")
        hints = typing.get_type_hints(cls)
        given = {key: self.read(content[key], hints[key], f"{where}.{key}") for key in content if key != "class"}
        try:
            return cls(**given)
        except TypeError as error:
            raise UserError(f"{where} cannot be built: {error}.") from None


def _module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def check_types(config: Any, *, where: str) -> None:
    """Raise `UserError` for a field, however deep, whose value does not fit its annotation."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{where}: {field.name}"
        if not fits(value, hints[field.name]):
            raise UserError(f"{name} is {value!r}; wanted {describe_hint(hints[field.name])}.")
        for part in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(part):
                check_types(part, where=name)


def describe_hint(hint: Any) -> str:
    """A type hint in a message."""
    return getattr(hint, "__name__", None) or str(hint).replace("gptjax.", "")


def fits(value: Any, hint: Any) -> bool:
    """True if a value is an instance of a type hint; hints that are not known here fit everything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _is_union(hint):
        return any(fits(value, option) for option in arguments)
    if origin is typing.Annotated:
        return fits(value, arguments[0])
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        hints = arguments[:1] * len(value) if arguments[1:] == (...,) and isinstance(value, tuple) else arguments
        same_length = isinstance(value, tuple) and len(value) == len(hints)
        return same_length and all(fits(item, of) for item, of in zip(value, hints, strict=True))
    if origin in (list, dict):
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def find_unimportable(config: Any) -> str | None:
    """A reason why a class of a config could not be found again by its saved name; None if all can be."""
    for cls in {type(value): None for value in _nested(config)}:
        if "<" in cls.__qualname__:
            return (
                f"{cls.__qualname__.rpartition('.')[2]} is defined inside a function. Define it at the top level of the "
                "config file or of a module."
            )
    return None
