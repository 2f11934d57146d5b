"""Terms of checks: where they may be said, which one wins, what stands in the policy as written."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from isonomy.plugins import Patterns, Pii
from isonomy.sdk import Allow, ConfigError, Policy, check, hookimpl

TERMS = ("lookback", "shadow", "beside", "read_only")


def of(made: Any) -> tuple[Any, ...]:
    return tuple(getattr(made, name) for name in TERMS)


class Declaring:
    """Says of itself how it is asked."""

    lookback = 12
    shadow = True
    read_only = True

    @property
    def beside(self) -> bool:
        return True

    @hookimpl
    def pre_filter(self) -> Allow:
        return Allow()


def test_what_a_plugin_says_holds_unless_the_policy_says_otherwise() -> None:
    assert of(check(lambda t: True)) == ("all", False, False, False)
    assert of(check(Declaring())) == (12, True, True, True)
    other = check(Declaring(), lookback="all", shadow=False, beside=False, read_only=False)
    assert of(other) == ("all", False, False, False)
    assert of(check(lambda t: True, lookback=0, shadow=True, beside=True, read_only=True)) == (
        0, True, True, True,
    )  # fmt: skip
    assert of(other.with_id("another")) == of(other)


def test_what_is_made_up_is_no_declaration() -> None:
    class Anything:
        def __call__(self, text: str) -> bool:
            return True

        def __getattr__(self, name: str) -> Any:
            return "anything"

    assert of(check(Anything()))[0] == "all"


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"lookback": -1}, "number of characters"),
        ({"lookback": True}, "number of characters"),
        ({"lookback": "some"}, "number of characters"),
        ({"lookback": 1.5}, "number of characters"),
        ({"shadow": 1}, "true or false"),
        ({"beside": "yes"}, "true or false"),
        ({"read_only": 0}, "true or false"),
        ({"beside": True, "stages": ("post_validate",)}, "beside is for checks of pre_filter"),
    ],
)
def test_wrong_terms_are_refused(terms: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check(lambda t: True, id="c", **terms)
    assert caught.value.key == f"c.{next(iter(terms))}"


def rows(policy: Policy) -> Any:
    return msgspec.json.decode(policy.written)


def test_only_what_differs_stands_in_a_policy_made_in_code() -> None:
    plain = Policy([Patterns(deny=("a",))])
    (row,) = rows(plain)["checks"]
    assert not {*TERMS} & {*row}
    assert "candidates" not in rows(plain)
    same = Policy([check(Patterns(deny=("a",)), shadow=False, lookback=2)], candidates=1)
    assert {*TERMS} & {*rows(same)["checks"][0]} == set()
    other = Policy([check(Patterns(deny=("a",)), shadow=True, lookback="all")], candidates=2)
    (row,) = rows(other)["checks"]
    assert (row["shadow"], row["lookback"]) == (True, "all")
    assert rows(other)["candidates"] == 2
    assert other.digest != plain.digest


def test_a_policy_file_has_them_as_keys() -> None:
    policy = Policy.from_table(
        {
            "candidates": 3,
            "max_rounds": 1,
            "checks": [
                {"use": "pii", "lookback": 99, "shadow": True},
                {"use": "patterns", "deny": ["a+"], "beside": True, "read_only": False},
            ],
        }
    )
    assert policy.candidates == 3
    pii, patterns = policy.checks
    assert of(pii) == (99, True, False, False)
    assert of(patterns) == ("all", False, True, False)
    assert policy.beside == (patterns,)
    assert [group[0].id for group in policy.groups("pre_filter")] == ["pii"]
    assert isinstance(pii.plugin, Pii)


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"lookback": -5}, "policy.checks[0].lookback"),
        ({"lookback": "some"}, "policy.checks[0].lookback"),
        ({"shadow": "yes"}, "policy.checks[0].shadow"),
        ({"beside": True, "stages": ["post_validate"]}, "policy.checks[0].beside"),
    ],
)
def test_a_wrong_term_of_a_file_is_named(row: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Policy.from_table({"checks": [{"use": "pii", **row}]}, file="p.toml")
    assert (caught.value.file, caught.value.key) == ("p.toml", key)


def test_wrong_candidates_of_a_file_are_named() -> None:
    with pytest.raises(ConfigError, match="between 1 and 64") as caught:
        Policy.from_table({"candidates": 0}, file="p.toml")
    assert caught.value.key == "policy.candidates"
