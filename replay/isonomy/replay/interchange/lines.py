"""Files of JSON Lines: one line at a time, and JSON that leaves nothing to guess.

A line has at most `LONGEST` bytes, so that a file without line breaks can't fill the memory.
`data_of` refuses what JSON parsers disagree about: an object with the same key twice, NaN, lone
surrogates, bytes that are no UTF-8.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from .errors import UnusableFile

LONGEST = 1 << 29
"""Bytes of a line; a payload of a log is at most 1 GB, and a line more than any call needs."""


class Line(NamedTuple):
    """A line of a file, without white space around it; where it stands, and its bytes there."""

    number: int
    body: bytes
    offset: int
    size: int

    @property
    def place(self) -> str:
        """What errors call it."""
        return f"line {self.number}"


@contextmanager
def opened(file: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to be read.

    Raises:
        UnusableFile: it can't be read.
    """
    name = os.fspath(file)
    try:
        with open(name, "rb") as stream:  # noqa: PTH123 (a name as it was given)
            yield stream
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "null" not in str(error):
            raise
        problem = getattr(error, "strerror", None) or str(error)
        raise UnusableFile(f"it can't be read: {problem}. Check the path.", file=name) from None


def lines_of(
    stream: BinaryIO, file: str, *, longest: int | None = None
) -> Iterator[Line | UnusableFile]:
    """Yield the lines that are not empty; in place of one that is too long, what to say of it."""
    limit = LONGEST if longest is None else longest
    number = offset = 0
    while body := stream.readline(limit + 1):
        number, start = number + 1, offset
        offset += len(body)
        if len(body) > limit:
            while body and not body.endswith(b"\n"):
                body = stream.readline(1 << 20)
                offset += len(body)
            yield UnusableFile(
                f"it is longer than {limit} bytes. Split the file at its line breaks.",
                file=file,
                place=f"line {number}",
            )
        elif bare := _bare(body):
            yield Line(number, bare, start, len(body))


def line_at(file: str, offset: int, size: int) -> bytes:
    """Return a line's body once more, from its `offset` and `size`."""
    with opened(file) as stream:
        stream.seek(offset)
        return _bare(stream.read(size))


def _bare(body: bytes) -> bytes:
    """Return a line without white space around it, nor a mark of byte order."""
    return body.strip().removeprefix(b"\xef\xbb\xbf").strip()


def data_of(body: bytes, *, constants: bool = False) -> Any:
    """Return the data that JSON text stands for.

    Args:
        body: the text.
        constants: read NaN and infinities, which some tools write, as nothing (`None`).

    Raises:
        ValueError: it is no JSON, or JSON that could be read in more than one way; says why.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text (byte {error.start + 1})") from None
    try:
        data = json.loads(
            text, object_pairs_hook=_object, parse_constant=_nothing if constants else _refused
        )
        if "\\u" in text:
            _require_carriable(data)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg} (character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise ValueError(f"an object in it has the key {twice!r:.60} twice")
    return made


def _nothing(_: str) -> None:
    return None


def _refused(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no JSON")


def _require_carriable(data: Any) -> None:
    """Refuse text that UTF-8 can't carry; iteratively, for what is nested deeply."""
    left = [data]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left.extend(value)
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                number = ord(value[error.start])
                raise ValueError(
                    f"text in it holds a lone surrogate (U+{number:04X}), which UTF-8 can't carry"
                ) from None
