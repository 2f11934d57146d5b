"""Which response formats can be honoured: every key is known or refused by name.

The grammar library ignores keywords that it does not know, as JSON Schema allows; a typing mistake
(``"requierd"``) would then silently admit anything. Here each subschema is walked first, and what
comes out is one text a meaning: keys in a fixed order, numbers in one form, so that a schema read
back from a record gives the same grammar, bit for bit.

Properties stand in answers in the order of ``required``, then the others by name: lists keep their
order in every JSON document, objects need not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import msgspec

from .errors import UnusableFormat

KINDS = ("text", "json_object", "json_schema", "regex")
"""Values of a response format's ``type``."""

MOST_BYTES = 1 << 18
"""Longest schema or regex; grammars grow with them."""

MOST_DEPTH = 64
"""Deepest nesting of a schema: of its subschemas and of the values in it."""

MOST_MULTIPLE = 10_000
"""Largest ``multipleOf``, and least common multiple of all in a schema, in units of the last digit:
remainders are states of an automaton."""

EXACT = 1 << 53
"""Whole numbers beyond it are not exact in the binary64 that the library computes with."""

ANNOTATIONS = frozenset(
    (
        "$schema",
        "$id",
        "$anchor",
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
    )
)
"""Keywords that say nothing about which values are valid."""

SCHEMA = frozenset(("items", "additionalProperties"))
"""Keywords whose value is a schema."""

SCHEMAS = frozenset(("anyOf", "allOf", "oneOf", "prefixItems"))
"""Keywords whose value is a list of schemas."""

NAMED_SCHEMAS = frozenset(("$defs", "definitions", "properties", "patternProperties"))
"""Keywords whose value is an object of schemas."""

ASSERTIONS = frozenset(
    (
        "$ref",
        "type",
        "enum",
        "const",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minItems",
        "maxItems",
        "required",
        "minProperties",
        "maxProperties",
    )
)
"""The other keywords that the library honours; it refuses by name what it can't combine."""


class Format(msgspec.Struct, frozen=True):
    """A response format that was understood: its kind, and the schema's text or the regex."""

    kind: str
    source: str = ""


def read(response_format: Mapping[str, Any]) -> Format:
    """Understand a response format.

    Args:
        response_format: ``{"type": "text"}``, ``{"type": "json_object"}``, ``{"type":
            "json_schema", "json_schema": {"schema": {...}}}`` (beside the schema ``name``,
            ``description`` and ``strict`` may stand, which change nothing here: the answer always
            conforms), or ``{"type": "regex", "regex": "..."}``.

    Raises:
        UnusableFormat: naming the key or keyword that can't be honoured.
    """
    if not isinstance(response_format, Mapping):
        raise UnusableFormat(
            "", "", f"must be a dictionary with a type, not {type(response_format).__name__}"
        )
    kind = response_format.get("type")
    if kind not in KINDS:
        raise UnusableFormat(
            str(kind), "type", f"the type {kind!r} is unknown; there are {', '.join(KINDS)}"
        )
    own = {"json_schema": "json_schema", "regex": "regex"}.get(kind)
    _only(kind, response_format, {"type", own} - {None}, "")
    if kind == "text":
        return Format(kind)
    if kind == "json_object":
        return Format(kind, '{"type":"object"}')
    assert own is not None
    if own not in response_format:
        raise UnusableFormat(kind, own, f"the key {own!r} is missing")
    value = response_format[own]
    if kind == "regex":
        if not isinstance(value, str):
            raise UnusableFormat(kind, "regex", "the regex must be a string")
        return Format(kind, _short(kind, value, "the regex"))
    if not isinstance(value, Mapping):
        raise UnusableFormat(kind, own, "json_schema must be a dictionary with a schema")
    _only(kind, value, {"name", "description", "strict", "schema"}, "json_schema.")
    for key, wanted, words in (
        ("name", str, "a string"),
        ("description", str, "a string"),
        ("strict", bool, "true or false"),
    ):
        if value.get(key) is not None and not isinstance(value[key], wanted):
            raise UnusableFormat(kind, key, f"json_schema.{key} must be {words}")
    if "schema" not in value:
        raise UnusableFormat(kind, "schema", "the key json_schema.schema is missing")
    schema = _subschema(value["schema"], "schema", 0)
    if schema is False:
        raise UnusableFormat(kind, "schema", "the schema false admits nothing")
    schema = {} if schema is True else schema
    _require_few_common_remainders(schema)
    return Format(kind, _short(kind, json.dumps(schema, ensure_ascii=False), "the schema"))


def _only(kind: str, given: Mapping[str, Any], known: set[str | None], where: str) -> None:
    for key in given:
        if key not in known:
            raise UnusableFormat(kind, str(key), f"the key {where}{key} can't be honoured")


def _short(kind: str, text: str, what: str) -> str:
    """Return the text; refuse one that is too long, or none that UTF-8 can carry."""
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise UnusableFormat(kind, "", f"{what} holds a lone surrogate") from None
    if length > MOST_BYTES:
        raise UnusableFormat(kind, "", f"{what} has {length} bytes, and the most are {MOST_BYTES}")
    return text


def _refuse(where: str, feature: str, problem: str) -> UnusableFormat:
    return UnusableFormat("json_schema", feature, f"at {where}: {problem}")


def _subschema(schema: Any, where: str, depth: int) -> Any:
    """Return a schema in its one form; refuse what is not honoured."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise _refuse(where, "", f"a schema is an object or a boolean, not {type(schema).__name__}")
    if depth > MOST_DEPTH:
        raise _refuse(where[:80] + "...", "", f"nested deeper than {MOST_DEPTH} levels")
    own: dict[str, Any] = {}
    for key in sorted(schema, key=_text_key(where)):
        value, at = schema[key], f"{where}.{key}"
        if key in ANNOTATIONS and key not in ("$id", "$schema", "$anchor"):
            continue
        if key in SCHEMAS:
            if not isinstance(value, list | tuple):
                raise _refuse(at, key, "must be a list of schemas")
            own[key] = [_subschema(part, f"{at}[{i}]", depth + 1) for i, part in enumerate(value)]
        elif key in NAMED_SCHEMAS:
            own[key] = _named(value, at, key, schema, depth)
        elif key in SCHEMA:
            own[key] = _subschema(value, at, depth + 1)
        elif key in ASSERTIONS or key in ANNOTATIONS:
            own[key] = _value(value, at, depth + 1)
            if key == "multipleOf":
                _require_few_remainders(own[key], at)
            if key == "minProperties" and isinstance(own[key], int) and own[key] > 1:
                raise _refuse(
                    at, key, "above 1 can't be honoured, for a key written twice counts once"
                )
        else:
            raise _refuse(where, key, f"the keyword {key!r} can't be honoured")
    return own


def _named(value: Any, at: str, key: str, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _refuse(at, key, "must be an object of schemas")
    names = sorted(value, key=_text_key(at))
    required = schema.get("required") if key == "properties" else None
    if isinstance(required, list | tuple):
        first = dict.fromkeys(name for name in required if isinstance(name, str))
        names = [*(n for n in first if n in value), *(n for n in names if n not in first)]
    return {name: _subschema(value[name], f"{at}.{name}", depth + 1) for name in names}


def _text_key(where: str) -> Callable[[Any], str]:
    """Return a sort key that refuses what is no key of a JSON object."""

    def key(name: Any) -> str:
        if not isinstance(name, str):
            raise _refuse(where, "", f"keys are strings, not {name!r}")
        return name

    return key


def _value(value: Any, at: str, depth: int) -> Any:
    """Return a JSON value in its one form: whole numbers as such, keys in order."""
    if depth > MOST_DEPTH:
        raise _refuse(at[:80] + "...", "", f"nested deeper than {MOST_DEPTH} levels")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            raise _refuse(at, "", f"{value} is no JSON number")
        if value != int(value):
            return value
        if abs(value) > EXACT:
            raise _refuse(at, "", f"{value!r:.40} is beyond 2**53, where whole numbers get lost")
        return int(value)
    if isinstance(value, Mapping):
        names = sorted(value, key=_text_key(at))
        return {name: _value(value[name], f"{at}.{name}", depth + 1) for name in names}
    if isinstance(value, list | tuple):
        return [_value(part, f"{at}[{i}]", depth + 1) for i, part in enumerate(value)]
    raise _refuse(at, "", f"{type(value).__name__} is no JSON value")


def _require_few_remainders(multiple: Any, at: str) -> None:
    if isinstance(multiple, bool) or not isinstance(multiple, int | float) or multiple <= 0:
        raise _refuse(at, "multipleOf", "must be a number above 0")
    digits = repr(multiple)
    if "e" in digits or int(digits.replace(".", "")) > MOST_MULTIPLE:
        raise _refuse(
            at, "multipleOf", f"{multiple!r} has too many digits: at most {MOST_MULTIPLE} units"
        )


def _require_few_common_remainders(schema: Mapping[str, Any]) -> None:
    """Bound what the library may have to combine: it would multiply the remainders."""
    multiples = {Fraction(repr(multiple)) for multiple in _multiples(schema)}
    unit = math.lcm(*(multiple.denominator for multiple in multiples))
    if math.lcm(*(int(multiple * unit) for multiple in multiples)) > MOST_MULTIPLE:
        raise _refuse(
            "schema",
            "multipleOf",
            f"the least common multiple of all multipleOf is above {MOST_MULTIPLE} units",
        )


def _multiples(schema: Any) -> Iterator[int | float]:
    """Yield every ``multipleOf`` of a schema that `_subschema` made."""
    if isinstance(schema, bool):
        return
    for key, value in schema.items():
        if key == "multipleOf":
            yield value
        elif key in SCHEMAS or key in NAMED_SCHEMAS:
            for part in value if key in SCHEMAS else value.values():
                yield from _multiples(part)
        elif key in SCHEMA:
            yield from _multiples(value)
