from __future__ import annotations

import hashlib
import json
import math
from datetime import date
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isonomy.sdk import Block, InputError, Message, Span, Text, TokenTrace, ToolCall
from isonomy.sdk.canonical import (
    canonical,
    carriable,
    digest_of,
    require_declared,
    require_finite,
    sha256,
)

GOLDEN: list[tuple[Any, bytes]] = [
    (None, b"null"),
    ('é\n"\\\x00', b'"\xc3\xa9\\n\\"\\\\\\u0000"'),
    ("/<>\u2028\x7f", b'"/<>\xe2\x80\xa8\x7f"'),
    (2**64 - 1, b"18446744073709551615"),
    ([1.0, -0.0, 0.1, 1e300, 5e-324, 1e16], b"[1.0,-0.0,0.1,1e300,5e-324,1e16]"),
    ({"b": [], "a": {}, "B": True}, b'{"B":true,"a":{},"b":[]}'),
    # Code points, not UTF-16 units: U+FF61 comes before U+10000.
    ({"\U00010000": 1, "\uff61": 2}, b'{"\xef\xbd\xa1":2,"\xf0\x90\x80\x80":1}'),
    (b"\x00\xff", b'"AP8="'),
    (
        Message("user", (Text("hi"), ToolCall("1", "f", {"z": 1, "a": None}))),
        b'{"content":[{"text":"hi","type":"text"},{"arguments":{"a":null,"z":1},"id":"1",'
        b'"name":"f","type":"tool_call"}],"role":"user","type":"message"}',
    ),
    (
        Block("no", score=0.5, spans=(Span(0, 2, "x"),)),
        b'{"labels":[],"reason":"no","score":0.5,"spans":[{"end":2,"label":"x","start":0}],'
        b'"type":"block"}',
    ),
]


@pytest.mark.parametrize(("value", "expected"), GOLDEN, ids=range(len(GOLDEN)))
def test_golden_bytes(value: Any, expected: bytes) -> None:
    assert canonical(value) == expected


def test_golden_digests() -> None:
    assert sha256(b"abc") == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    expected = hashlib.sha256(b'{"role":"user","text":"hi"}').hexdigest()
    assert digest_of({"text": "hi", "role": "user"}) == f"sha256:{expected}"


class Forward(msgspec.Struct):
    a: int
    b: str


class Backward(msgspec.Struct):
    b: str
    a: int


def test_the_order_in_which_fields_are_declared_does_not_show() -> None:
    assert canonical(Forward(1, "x")) == canonical(Backward("x", 1)) == b'{"a":1,"b":"x"}'


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_data_reads_back_bit_for_bit(value: Any) -> None:
    body = canonical(value)
    back = json.loads(body)
    assert canonical(back) == body
    assert repr(_sorted(back)) == repr(_sorted(value))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(0, 9), min_size=2))
def test_the_order_of_a_dictionary_does_not_show(value: dict[str, int]) -> None:
    assert canonical(dict(reversed(value.items()))) == canonical(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("ab\ud800", r"lone surrogate \(U\+D800\) at position 2.*errors='replace'"),
        ({"\udfff": 1}, r"lone surrogate \(U\+DFFF\) at position 0"),
        (Message.of("user", "\ud83d"), r"lone surrogate"),
        (object(), r"can't be recorded as JSON: .*object.* Pass plain data"),
        ({1: "a"}, r"can't be recorded as JSON: .*str keys"),
    ],
)
def test_what_json_cannot_carry_is_refused(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        canonical(value)


def test_endless_nesting_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InputError, match="can't be recorded"):
        canonical(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_name(value: float) -> None:
    with pytest.raises(InputError, match=r"^the score must be a finite number, not"):
        require_finite(value, "the score")


@pytest.mark.parametrize("value", [None, 0.0, -1.5, 3])
def test_finite_numbers_pass(value: float | None) -> None:
    require_finite(value, "the score")


@pytest.mark.parametrize(
    "value",
    [
        Message("user", "text instead of parts"),  # type: ignore[arg-type]
        Message("admin", (Text("hi"),)),  # type: ignore[arg-type]
        Message("user", (Text(5),)),  # type: ignore[arg-type]
        Message("user", ("hi",)),  # type: ignore[arg-type]
        Message("user", (Text(b"hi"),)),  # type: ignore[arg-type]
        Block(date(2026, 1, 1)),  # type: ignore[arg-type]
        ToolCall("1", "f", {"x": object()}),
        Span(True, 1, "x"),
        Block("\ud800"),
        Block("no", score="high"),  # type: ignore[arg-type]
    ],
)
def test_structs_with_other_contents_than_declared_are_refused(value: msgspec.Struct) -> None:
    with pytest.raises(InputError, match=r"malformed|surrogate|can't be recorded"):
        require_declared(value)


@pytest.mark.parametrize(
    "value",
    [
        Message("user", [Text("hi")]),  # type: ignore[arg-type]
        Message("user", ()),
        Block("no", score=1),
        Block("no", score=float("nan")),  # `require_finite` is for that
        TokenTrace(ids=(1,), texts=("a",), logprobs=b"\xff", digests=b"", chain=b"\x00"),
    ],
)
def test_structs_as_declared_pass(value: msgspec.Struct) -> None:
    require_declared(value)


def test_carriable_changes_lone_surrogates_only() -> None:
    assert carriable("a\ud800é😀") == "a?é😀"
