"""Nothing from a log moves the cursor, hides, or styles itself."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from isonomy.replay import printable, safe_text

ANY_TEXT = st.text(st.characters(codec=None))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 100 %", "plain text, 100 %"),
        ("zażółć 日本語 עברית 👍🏽", "zażółć 日本語 עברית 👍🏽"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202ecba\u2069", "a\\u202ecba\\u2069"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("line\nfeed\rreturn\ttab", "line\\x0afeed\\x0dreturn\\x09tab"),
        ("lone \ud800", "lone \\ud800"),
        ("line\u2028paragraph\u2029", "line\\u2028paragraph\\u2029"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_newlines_are_kept_on_request_only() -> None:
    assert printable("a\n\tb\r\n", newlines=True) == "a\n\tb\\x0d\n"


@given(ANY_TEXT)
def test_no_invisible_character_survives(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(character) for character in shown} & {
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Cn",
        "Zl",
        "Zp",
    }
    shown.encode()


@given(
    st.text(st.sampled_from("[]/\\ab=#@!(){}.: 1"), max_size=40)
    | st.sampled_from(
        ["[bold]x[/bold]", "[link=http://x]y[/link]", "\\[red]", "x\\", ":smile: [/]"]
    )
)
def test_rich_finds_no_markup_in_it(text: str) -> None:
    for before, behind in (
        ("", "[bold]|[/bold]"),
        ("[bold]", "[/bold]|"),
        ("(", "]|"),
    ):
        output = io.StringIO()
        console = Console(file=output, width=400, highlight=False, emoji=False)
        console.print(before + safe_text(text) + behind, end="")
        bare = {"": "", "[bold]": "", "(": "("}[before]
        end = "]|" if behind == "]|" else "|"
        assert without_backslashes(output.getvalue()) == without_backslashes(
            bare + printable(text) + end
        )


@given(st.text(st.sampled_from("[]/ab=#@!(){}.: 1"), max_size=40))
def test_rich_prints_it_as_it_is(text: str) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=400, highlight=False, emoji=False)
    console.print(safe_text(text) + "[bold]|[/bold]", end="")
    assert output.getvalue() == text + "\x1b[1m|\x1b[0m"


def without_backslashes(text: str) -> str:
    return text.replace("\\", "")
