"""Decoding tables of a configuration file into structs, with errors a person can act on.

Every error names the file, the full key and, for an unknown key, the nearest valid one.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from .errors import ConfigError
from .registry import nearest

T = TypeVar("T", bound=msgspec.Struct)


def decode(table: Any, type: type[T], *, file: str | None, key: str, also: Iterable[str] = ()) -> T:
    """Return `table` as a `type`.

    Args:
        table: a decoded TOML table.
        type: a struct whose fields are the valid keys.
        file: shown in errors.
        key: where the table stands in the file; ``""`` for the whole file.
        also: further keys to propose when a key is unknown.

    Raises:
        ConfigError: unknown or missing key, wrong type, or a value that the struct itself refuses.
    """
    _refuse_unknown(table, type, file=file, key=key, also=tuple(also))
    try:
        return msgspec.convert(table, type)
    except RecursionError:
        raise ConfigError(
            "is nested too deeply. Flatten its lists and tables.", file=file, key=key or None
        ) from None
    except msgspec.ValidationError as error:
        message, where = _place(str(error))
        wrong = re.fullmatch(r"Invalid enum value '(.*)'", message)
        if wrong is not None:
            message += "." + nearest(wrong[1], _choices(type, where))
        sentence = message if message.endswith((".", "?")) else f"{message}."
        raise ConfigError(sentence, file=file, key=f"{key}{where}".lstrip(".")) from None


def _refuse_unknown(
    table: Any, type: Any, *, file: str | None, key: str, also: tuple[str, ...] = ()
) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"this must be a table, not {table!r}.", file=file, key=key or None)
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(type)}
    for name, value in table.items():
        full = f"{key}.{name}".lstrip(".")
        if name not in fields:
            raise ConfigError(f"unknown key.{nearest(name, (*fields, *also))}", file=file, key=full)
        inner = _struct_in(fields[name])
        if inner is not None and isinstance(value, dict):
            _refuse_unknown(value, inner, file=file, key=full)
        item = _listed_struct_in(fields[name])
        if item is not None and isinstance(value, list):
            for index, row in enumerate(value):
                _refuse_unknown(row, item, file=file, key=f"{full}[{index}]")


def _struct_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            if (found := _struct_in(member)) is not None:
                return found
    return None


def _listed_struct_in(annotation: Any) -> Any:
    """Return the struct of which a field holds a list or tuple, if it does."""
    if typing.get_origin(annotation) in (tuple, list):
        return next(filter(None, map(_struct_in, typing.get_args(annotation))), None)
    return None


def _choices(type: Any, where: str) -> list[str]:
    """Return the texts that the field at the head of a path admits."""
    name = re.match(r"\.(\w+)", where)
    hints = {field.encode_name: field.type for field in msgspec.structs.fields(type)}
    return _literals(hints.get(name[1])) if name else []


def _literals(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return [value for value in typing.get_args(annotation) if isinstance(value, str)]
    return [text for member in typing.get_args(annotation) for text in _literals(member)]


def _place(message: str) -> tuple[str, str]:
    """Split msgspec's ``... - at `$.a[0].b` `` into the sentence and ``.a[0].b``."""
    match = re.fullmatch(r"(?s)(.*?)(?: - at `\$?(.*?)`)?", message)
    if match is None:
        return message, ""
    return match.group(1), match.group(2) or ""
