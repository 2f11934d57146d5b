"""Every built-in check keeps the rules that authors of checks are held to."""

from __future__ import annotations

from typing import Any

import pytest
from tests.plugins.judges import reply

from isonomy.plugins import Constitution, Length, Patterns, Pii
from isonomy.sdk import check
from isonomy.sdk.testing import assert_conforms

KEYS = ["my key is sk-abcd1234, keep it", "sk-", "sk-abcdefgh sk-ijklmnop", "SK-ABCDEFGH"]
PEOPLE = [
    "Write to jo@example.org or call +49 30 901820.",
    "4111 1111 1111 1111 and DE89370400440532013000 from 192.0.2.17",
    "jo@example",
    "+49 30 9018",
]
LONG = ["exactly 20 characters", "x" * 19, "x" * 21, "e\u0301" * 12, "one\ntwo\nthree\nfour"]

CHECKS: list[tuple[Any, list[str]]] = [
    (Patterns(deny={"key": "sk-[a-z0-9]{4,12}"}), KEYS),
    (Patterns(deny=("sk-[a-z0-9]{4,12}", "[0-9]{4}"), action="redact", ignore_case=True), KEYS),
    (Patterns(deny=("sk-.*",), action="retry"), KEYS),
    (Patterns(words=("acme corp", "sk"), action="redact", replacement="[X]"), [*KEYS, "Acme corp"]),
    (Patterns(require=("sk",), action="flag"), KEYS),
    (Pii(), PEOPLE),
    (Pii(action="mask", regions=("US", "DE"), actions={"card": "block"}), PEOPLE),
    (Pii(action="hash", key="pseudonyms"), PEOPLE),
    (Length(max=20), LONG),
    (Length(max=20, min=3, action="truncate", ending=" [...]"), LONG),
    (Length(max=2, unit="lines", action="truncate"), LONG),
    (Length(max=24, unit="bytes", action="flag"), LONG),
]
FIRST = [plugin for plugin, _ in (CHECKS[1], CHECKS[6], CHECKS[9])]
"""Whose time is measured: the others go through the same code."""


@pytest.mark.parametrize(
    ("plugin", "texts"), CHECKS, ids=[f"{type(c).__name__}{n}" for n, (c, _) in enumerate(CHECKS)]
)
def test_a_built_in_check_conforms(plugin: Any, texts: list[str]) -> None:
    skip = () if plugin in FIRST else ("linear",)
    report = assert_conforms(plugin, texts=texts, secrets={"pseudonyms": "k" * 32}, skip=skip)
    skipped = [outcome.property for outcome in report.outcomes if outcome.status == "skipped"]
    assert skipped == [*skip]


def test_a_constitution_conforms() -> None:
    assert_conforms(Constitution("asimov"), judge=reply(90), skip=["linear"])


def test_built_in_checks_let_streams_flow() -> None:
    """Where they declare a lookback, the kit has tried it at every cut."""
    declared = [check(plugin).lookback for plugin, _ in CHECKS]
    assert sum(lookback != "all" for lookback in declared) >= 5
