"""Canonical bytes and digests: the one place where things are turned into what is hashed.

Canonical bytes are JSON as msgspec writes it with sorted keys: UTF-8, no white space, struct fields
and dictionary keys in code point order, `bytes` as base64, floats in their shortest form that reads
back to the same bits. They are stored as written and never re-encoded, so that a hash can always be
checked against the stored bytes.

Digests carry their algorithm: ``sha256:<64 hex digits>``, ``blake3:<64 hex digits>``.
"""

from __future__ import annotations

import copy
import hashlib
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from .errors import InputError

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")
_ENCODER = msgspec.json.Encoder(order="sorted")
_WRITTEN_AS_TEXT = (bytes, bytearray, datetime, date, time, timedelta, UUID, Decimal)
_UNCHANGEABLE = frozenset((str, int, float, bool, bytes, type(None)))


def canonical(value: Any) -> bytes:
    """Return the canonical bytes of a struct or of plain JSON data.

    Raises:
        InputError: the value holds what JSON can't carry exactly (a lone surrogate, or a type that
            is not data). A non-finite float anywhere is refused by `require_finite` at the places
            where users can pass one.
    """
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError as error:
        raise InputError(
            f"text holds a lone surrogate (U+{ord(error.object[error.start]):04X}) at position "
            f"{error.start}, which UTF-8 can't carry. Decode the input with errors='replace'."
        ) from None
    except (TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"this value can't be recorded as JSON: {error}. Pass plain data."
        ) from None


def require_finite(value: float | None, what: str) -> None:
    """Raise `InputError` naming `what` unless `value` is `None` or a finite number."""
    if value is not None and not math.isfinite(value):
        raise InputError(f"{what} must be a finite number, not {value!r}.")


@cache
def _decoder(type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type)


def require_declared(value: S, kind: Any = None) -> S:
    """Return a struct as a record would give it back: a copy that nobody else holds.

    Args:
        value: a struct.
        kind: the struct type (or union of struct types) to read it as; its own unless given.

    Raises:
        InputError: a field is not of its declared type, or can't be recorded. Constructors do not
            check: `Message("user", "hello")` holds no part that a check would be shown.
    """
    kind = kind or type(value)
    body = canonical(value)
    try:
        read_back: S = _decoder(kind).decode(body)
        if read_back != value:
            # A list for a tuple is fine; bytes, which JSON writes as text, are no text.
            msgspec.convert(msgspec.to_builtins(value, builtin_types=_WRITTEN_AS_TEXT), kind)
    except (msgspec.MsgspecError, TypeError, RecursionError) as error:
        name = type(value).__name__
        raise InputError(f"this {name} is malformed: {error}.") from None
    return read_back


def own(value: T) -> T:
    """Return a copy of structs and plain data that shares nothing which can be changed.

    A frozen struct may hold a dictionary (the arguments of a tool call), and even its fields can be
    set by force, so whoever must not change a value is given a copy of it.
    """
    kind: Any = type(value)
    if kind in _UNCHANGEABLE:
        return value
    copied: Any
    if isinstance(value, msgspec.Struct):
        copied = copy.copy(value)
        for name in kind.__struct_fields__:
            held = getattr(value, name)
            if type(held) not in _UNCHANGEABLE:
                msgspec.structs.force_setattr(copied, name, own(held))  # nobody has seen it yet
    elif isinstance(value, tuple | list):
        copied = kind([own(item) for item in value])
    elif isinstance(value, dict):
        copied = {key: own(item) for key, item in value.items()}
    else:
        copied = copy.deepcopy(value)
    return copied  # type: ignore[no-any-return]


def carriable(text: str) -> str:
    """Return text as UTF-8 can carry it: a lone surrogate becomes a question mark."""
    # str's own method: the text may be of a class that overrides it.
    return str.encode(text, "utf-8", "replace").decode("utf-8")


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes as ``sha256:hex``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value's canonical bytes."""
    return sha256(canonical(value))
