"""Canonical bytes and digests: the one place where things are turned into what is hashed.

Canonical bytes are JSON as msgspec writes it with sorted keys: UTF-8, no white space, struct fields
and dictionary keys in code point order, `bytes` as base64, floats in their shortest form that reads
back to the same bits. They are stored as written and never re-encoded, so that a hash can always be
checked against the stored bytes.

Digests carry their algorithm: ``sha256:<64 hex digits>``, ``blake3:<64 hex digits>``.
"""

from __future__ import annotations

import hashlib
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID

import msgspec

from .errors import InputError

_ENCODER = msgspec.json.Encoder(order="sorted")
_WRITTEN_AS_TEXT = (bytes, bytearray, datetime, date, time, timedelta, UUID, Decimal)


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
def _decoder(type: type[msgspec.Struct]) -> msgspec.json.Decoder[msgspec.Struct]:
    return msgspec.json.Decoder(type)


def require_declared(value: msgspec.Struct) -> None:
    """Raise `InputError` unless a struct's fields are of their declared types, and can be recorded.

    Constructors do not check: `Message("user", "hello")` holds no part that a check would be shown.
    """
    body = canonical(value)
    try:
        if _decoder(type(value)).decode(body) == value:
            return
        # A list for a tuple is fine; bytes, which JSON writes as text, are no text.
        msgspec.convert(msgspec.to_builtins(value, builtin_types=_WRITTEN_AS_TEXT), type(value))
    except (msgspec.ValidationError, TypeError) as error:
        raise InputError(f"this {type(value).__name__} is malformed: {error}.") from None


def carriable(text: str) -> str:
    """Return text as UTF-8 can carry it: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes as ``sha256:hex``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value's canonical bytes."""
    return sha256(canonical(value))
