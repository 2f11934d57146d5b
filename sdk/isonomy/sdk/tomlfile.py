"""Reading TOML files with errors that say what to do, and writing plain data as TOML.

What is written reads back as it was: `tomllib.loads(written(table)) == table` for every table of
text, integers, finite floats, booleans, lists and tables with text as keys. TOML has no null: a key
whose value is `None` is left out.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_WIDTH = 100
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def read(file: str) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ConfigError: it can't be read, or is not TOML.
    """
    try:
        path = Path(file)
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise ConfigError("is not a file but a pipe or a device. Pass a file.", file=file)
        return tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _unreadable(error, file) from None
    except RecursionError:
        raise ConfigError(
            "is nested too deeply. Flatten its lists and tables.", file=file
        ) from None
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}. Check the path.", file=file) from None


def _unreadable(error: ValueError, file: str) -> ConfigError:
    """Return what is wrong with a file: its text, its TOML, or (a NUL character) its name."""
    if isinstance(error, UnicodeDecodeError):
        return ConfigError(f"is not UTF-8 text (byte {error.start}).", file=file)
    if isinstance(error, tomllib.TOMLDecodeError):
        return ConfigError(f"is not valid TOML: {error}.", file=file)
    return ConfigError(f"can't be read: {error}. Check the path.", file=repr(file))


def written(table: Mapping[str, Any], prefix: str = "") -> str:
    """Return a table as TOML: values first, then tables, then lists of tables.

    Args:
        table: plain data.
        prefix: where the table stands in the file; ``""`` for the whole file.
    """
    lines, after = [], []
    for key, value in table.items():
        full = f"{prefix}.{_key(key)}" if prefix else _key(key)
        if value is None:
            continue
        if isinstance(value, Mapping) and not _small(value):
            after.append(f"\n[{full}]\n{written(value, full)}")
        elif _is_tables(value):
            after += [f"\n[[{full}]]\n{flat(row)}" for row in value]
        else:
            lines.append(f"{_key(key)} = {_value(value)}\n")
    return "".join((*lines, *after))


def flat(table: Mapping[str, Any]) -> str:
    """Return a table's keys a line each, tables in it in one line: it stays in one piece."""
    return "".join(f"{_key(k)} = {_value(v)}\n" for k, v in table.items() if v is not None)


def _small(table: Mapping[str, Any]) -> bool:
    simple = all(not isinstance(each, Mapping | Sequence) or isinstance(each, str)
               for each in table.values())  # fmt: skip
    return simple and len(_value(table)) < _WIDTH // 2


def _is_tables(value: Any) -> bool:
    listed = isinstance(value, list | tuple) and len(value) > 0
    return listed and all(isinstance(each, Mapping) for each in value)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inner} }}" if inner else "{}"
    pieces = [_value(each) for each in value if each is not None]
    line = f"[{', '.join(pieces)}]"
    if len(line) <= _WIDTH:
        return line
    return "[\n" + "".join(f"    {piece},\n" for piece in pieces) + "]"


def _text(text: str) -> str:
    if "\\" in text and "'" not in text and text.isprintable():
        return f"'{text}'"  # a pattern reads better without doubled backslashes
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if letter.isprintable():
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
