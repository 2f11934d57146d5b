"""Whole characters only, never past a stop string, and the same text for every cut into pieces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isonomy.backends.local.text import Detokenizer, StopStrings


def decode_bytes(ids: Sequence[int]) -> str:
    """Tokens 0..255 are bytes, 256 is a special token without text."""
    return bytes(id_ for id_ in ids if id_ < 256).decode(errors="replace")


def pieces_of(ids: Sequence[int]) -> list[str]:
    machine = Detokenizer(decode_bytes)
    return [*(machine.push(id_) for id_ in ids), machine.finish()]


@settings(deadline=None)
@given(st.text(max_size=40))
def test_characters_come_whole(text: str) -> None:
    pieces = pieces_of(text.encode())
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert all(len(piece) <= 1 for piece in pieces)
        assert [p for p in pieces if p] == list(text)


@settings(deadline=None)
@given(st.lists(st.integers(0, 256), max_size=60))
def test_broken_bytes_decode_as_a_whole(ids: list[int]) -> None:
    assert "".join(pieces_of(ids)) == decode_bytes(ids)


def test_a_character_cut_by_special_tokens_and_by_the_end() -> None:
    first, *rest = "你".encode()
    assert pieces_of([first, 256, *rest, 65]) == ["", "", "", "你", "A", ""]
    assert pieces_of([65, first]) == ["A", "", "\ufffd"]
    assert pieces_of([256, 256]) == ["", "", ""]


def test_endless_broken_bytes_are_passed_on() -> None:
    pieces = pieces_of([0x80] * 1000)
    assert "".join(pieces) == "\ufffd" * 1000
    assert max(map(len, pieces)) <= 64


def test_with_a_real_tokenizer(build: SimpleNamespace) -> None:
    tokenizer = build.tokenizer()
    text = "Hello, 你好 👍🏽 naïve <|im_end|> Ω"
    ids = tokenizer.encode(text).ids
    machine = Detokenizer(lambda some: tokenizer.decode(list(some)))
    pieces = [machine.push(id_) for id_ in ids] + [machine.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def stopped(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, bool, list[str]]:
    machine = StopStrings(stops)
    given_out = [machine.push(piece) for piece in pieces]
    given_out.append("" if machine.stopped else machine.finish())
    return "".join(given_out), machine.stopped, given_out


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abc", [], ("abc", False)),
        ("abcd", ["c"], ("ab", True)),
        ("ab\n\nUser: x", ["\n\nUser:"], ("ab", True)),
        ("ab\n\nUse", ["\n\nUser:"], ("ab\n\nUse", False)),
        ("xaabay", ["aab", "ab"], ("x", True)),  # both end together: the one that began first
        ("xabcd", ["bcd", "ab"], ("x", True)),  # the one that ends first
        ("aaab", ["aab"], ("a", True)),
        ("stop", ["stop"], ("", True)),
        ("abc", [""], ("abc", False)),
    ],
)
def test_stop_strings(text: str, stops: list[str], expected: tuple[str, bool]) -> None:
    assert stopped([text], stops)[:2] == expected
    assert stopped(list(text), stops)[:2] == expected


@settings(deadline=None)
@given(
    st.text(alphabet="ab", max_size=30),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_every_cut_gives_the_same(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    edges = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    result, hit, _ = stopped(pieces, stops)
    assert (result, hit) == stopped(list(text), stops)[:2]
    assert text.startswith(result)
    assert not any(stop in result for stop in stops)
    assert hit == any(stop in text for stop in stops)


def test_no_more_than_needed_is_held_back() -> None:
    machine = StopStrings(["\nUser:"])
    assert machine.push("Hello\n") == "Hello"
    assert machine.push("Us") == ""
    assert machine.push("ing") == "\nUsing"
    assert machine.push("\nUser:") == ""
    assert machine.stopped
    assert machine.push("more") == ""
