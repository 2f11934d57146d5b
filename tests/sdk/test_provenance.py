"""Digests of the code that judges: equal for equal code, other for other code."""

from __future__ import annotations

import functools
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isonomy.plugins import Length
from isonomy.sdk import Allow, Guard, Policy, check, hookimpl, provenance
from isonomy.sdk.provenance import of_function, of_plugin, of_state, version_of


def compiled(source: str, **names: Any) -> Callable[..., Any]:
    """The function `f` of a source, compiled anew."""
    namespace: dict[str, Any] = {"__name__": "app", **names}
    exec(compile(source, "<test>", "exec"), namespace)  # the only way to the same code twice
    function: Callable[..., Any] = namespace["f"]
    return function


def code(source: str, **names: Any) -> str:
    return of_function(compiled(source, **names)).code


BASE = "def f(text, limit=3):\n    return 'a' in text and len(text) < limit\n"


def test_equal_functions_have_equal_digests() -> None:
    assert code(BASE) == code(BASE)
    assert code(BASE).startswith("sha256:")


@pytest.mark.parametrize(
    "other",
    [
        BASE.replace("'a'", "'b'"),
        BASE.replace("<", "<="),
        BASE.replace("limit=3", "limit=4"),
        BASE.replace("limit=3", "limit=3.0"),
        BASE.replace("limit=3", "*, limit=3"),
        BASE.replace("len", "sum"),
        BASE.replace("in text", "not in text"),
    ],
)
def test_another_body_or_default_has_another_digest(other: str) -> None:
    assert code(other) != code(BASE)


def test_another_keyword_default_has_another_digest() -> None:
    keyword = BASE.replace("limit=3", "*, limit=3")
    assert code(keyword) != code(keyword.replace("limit=3", "limit=4"))


def test_where_a_function_stands_does_not_show() -> None:
    assert code("\n\n\n" + BASE) == code(BASE)


NESTED = "def f(text):\n    return [word for word in text.split() if (lambda w: w == 'a')(word)]\n"


def test_nested_functions_count() -> None:
    assert code(NESTED) == code(NESTED)
    assert code(NESTED.replace("== 'a'", "== 'b'")) != code(NESTED)
    assert code(NESTED.replace("== 'a'", "!= 'a'")) != code(NESTED)


def closing_over(value: Any) -> Callable[[str], bool]:
    def inner(text: str) -> bool:
        return value is None or text == value

    return inner


VALUES: list[tuple[Any, Any]] = [
    ("a", "b"),
    (1, 1.0),
    (1, True),
    (0.0, -0.0),
    (1j, 2j),
    (b"a", "a"),
    ((1, 2), (1, 3)),
    ((1, 2), [1, 2]),
    ([[1], 2], [[1, 2]]),
    ({1, 2}, {1, 3}),
    ({1, 2}, frozenset({1, 2})),
    ({"a": 1, "b": 2}, {"a": 1, "b": 3}),
    ({"a": 1, "b": 2}, {"a": 1, "c": 2}),
    ({"a": {"b": 1}}, {"a": {"b": 2}}),
    ({"a": 1}, {}),
    (len, max),
    (closing_over(1), closing_over(2)),
    (functools.partial(closing_over, 1), functools.partial(closing_over, 2)),
    ("\ud800", "\ud801"),
]


@pytest.mark.parametrize(("one", "other"), VALUES, ids=range(len(VALUES)))
def test_what_a_function_closes_over_counts(one: Any, other: Any) -> None:
    assert of_function(closing_over(one)).code != of_function(closing_over(other)).code
    assert of_function(closing_over(one)).code == of_function(closing_over(one)).code


def test_the_order_of_sets_and_dictionaries_does_not_show() -> None:
    def digest(value: Any) -> str:
        return of_function(closing_over(value)).code

    words = [f"word-{number}" for number in range(50)]
    assert digest(set(words)) == digest({*words[::-1]})
    forward = dict.fromkeys(words, 1)
    assert digest(forward) == digest(dict(reversed(forward.items())))


def test_whether_equal_values_are_one_object_does_not_show() -> None:
    shared = [1, 2]
    one, two = (
        of_function(closing_over([shared, shared])),
        of_function(closing_over([[1, 2], [1, 2]])),
    )
    assert one.code == two.code


def test_a_value_that_holds_itself_is_digested() -> None:
    cycle: list[Any] = [1]
    cycle.append(cycle)
    other: list[Any] = [2]
    other.append(other)
    assert of_function(closing_over(cycle)).code != of_function(closing_over(other)).code

    def recursive(text: str) -> bool:
        return not text or recursive(text[1:])

    assert of_function(recursive).code.startswith("sha256:")


class Thing:
    def __call__(self, text: str) -> bool:
        return "a" in text

    def method(self, text: str) -> bool:
        return "b" in text


GLOBAL = 5


def uses_a_global(text: str) -> bool:
    return len(text) < GLOBAL


def uses_one_inside(text: str) -> bool:
    return any(len(word) < GLOBAL for word in text.split())


def uses_a_module(text: str) -> bool:
    return sys.intern(text) == "a"


@pytest.mark.parametrize(
    ("function", "partial"),
    [
        (closing_over({"a": [1, (2.0, None, ...)]}), False),
        (uses_a_module, False),
        (functools.partial(closing_over(1)), False),
        (uses_a_global, True),
        (uses_one_inside, True),
        (closing_over(object()), True),
        (Thing(), True),
        (Thing().method, True),
        (str.isascii, True),
        (len, True),
        (functools.partial(len), True),
    ],
)
def test_what_cannot_be_digested_whole_is_marked(
    function: Callable[..., Any], partial: bool
) -> None:
    assert of_function(function).partial is partial


def test_instances_methods_and_builtins_differ_by_their_code() -> None:
    digests = [
        of_function(f).code for f in (Thing(), Thing().method, len, max, str.isascii, str.isalpha)
    ]
    assert len(set(digests)) == len(digests)
    assert of_function(Thing()).code == of_function(Thing()).code


def test_a_built_in_plugin_is_identified_by_its_package() -> None:
    one, other = of_plugin(Length(max=5)), of_plugin(Length(max=6))
    assert one == other
    assert (one.package, one.partial) == ("isonomy", False)
    assert one.version == version_of("isonomy") is not None


def test_a_plugin_of_the_application_is_identified_by_its_methods() -> None:
    def plugin(answer: str) -> Any:
        return compiled(f"class f:\n    def pre_filter(self):\n        return {answer}\n")()

    one, other = of_plugin(plugin("'a'")), of_plugin(plugin("'b'"))
    assert one.code == of_plugin(plugin("'a'")).code != other.code
    assert one.partial
    assert one.package is None


def test_a_module_of_the_application_is_identified_by_its_functions() -> None:
    def module(source: str) -> types.ModuleType:
        made = types.ModuleType("app")
        exec(source, made.__dict__)
        return made

    assert of_plugin(module(BASE)).code == of_plugin(module(BASE)).code
    assert of_plugin(module(BASE)).code != of_plugin(module(BASE.replace("'a'", "'b'"))).code


def test_an_unknown_distribution_has_no_version() -> None:
    assert version_of("no-such-distribution") is None


def test_a_policy_identifies_its_checks() -> None:
    length = Length(max=5)
    policy = Policy([length, check(uses_a_global, id="g", stages=["pre_filter"])])
    first, second = policy.identities
    assert (first.id, first.use, first.kind, first.order) == ("length", "length", "plugin", 0)
    assert (first.code, first.code_partial) == (of_plugin(length).code, False)
    assert (second.id, second.kind, second.order) == ("g", "callable", 1)
    assert second.use.endswith(":uses_a_global")
    assert second.stages == ("pre_filter",)
    assert (second.code, second.code_partial) == (of_function(uses_a_global).code, True)
    other = Policy([Length(max=6)]).identities[0]
    assert other.settings != first.settings
    assert other.code == first.code


def test_settings_and_order_show_in_the_policy_s_digest() -> None:
    five, six = Length(max=5), Length(max=6)
    digests = [Policy(checks).digest for checks in ([five], [six], [five, six], [six, five], [])]
    assert len(set(digests)) == len(digests)
    assert Policy([Length(max=5)]).digest == digests[0]
    assert Policy([five], refusal="No.").digest != digests[0]
    assert Policy([five], max_rounds=0).digest != digests[0]


def test_a_package_s_digest_covers_every_file_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "checks.py").write_text("class Theirs:\n    pass\n")
    (package / "deep.py").write_text("LIMIT = 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(provenance, "_distribution_of", lambda module: "isonomy")
    import importlib

    plugin = importlib.import_module("theirs.checks").Theirs()
    try:
        provenance._package_digest.cache_clear()
        first = of_plugin(plugin).code
        (package / "deep.py").write_text("LIMIT = 6\n")
        provenance._package_digest.cache_clear()
        assert of_plugin(plugin).code != first
    finally:
        provenance._package_digest.cache_clear()
        for name in ("theirs", "theirs.checks"):
            sys.modules.pop(name, None)


# What an instance was given.


class Limit:
    def __init__(self, most: Any) -> None:
        self.most = most

    def __call__(self, text: str) -> bool:
        return len(text) <= 5

    def method(self, text: str) -> bool:
        return len(text) <= 5


class Slotted:
    __slots__ = ("__hidden", "most", "unset")

    def __init__(self, most: Any) -> None:
        self.most = 1
        self.__hidden = most

    @hookimpl
    def post_validate(self) -> Any:
        return Allow()


class Hooked(Limit):
    @hookimpl
    def post_validate(self) -> Any:
        return Allow()


class Heir(Limit):
    pass


@pytest.mark.parametrize("kind", [Limit, Slotted, Hooked, Heir])
@pytest.mark.parametrize(
    ("one", "other"),
    [(50, 100), ("a", "b"), ([1, {"a": 2}], [1, {"a": 3}]), (re.compile("a"), re.compile("b"))],
)
def test_what_an_instance_was_given_counts_among_its_settings(
    kind: Any, one: Any, other: Any
) -> None:
    first, second = (Policy([kind(given)]).identities[0] for given in (one, other))
    assert first.settings != second.settings
    assert first == Policy([kind(one)]).identities[0]


def test_the_instance_of_a_bound_method_counts() -> None:
    one, other = (Policy([Limit(most).method]).identities[0] for most in (50, 100))
    assert one.code != other.code


def test_a_setting_that_cannot_be_digested_marks_the_code_as_partial() -> None:
    identity = Policy([Length(max=5)]).identities[0]
    assert not identity.code_partial
    assert of_state(Limit(object())) == (of_state(Limit(object()))[0], True)  # type: ignore[index]
    assert of_state(Limit(1))[1] is False  # type: ignore[index]
    assert of_state(len) is of_state(Limit) is of_state(Limit(1).method) is None


def test_constants_of_a_class_count() -> None:
    def plugin(most: int) -> Any:
        return compiled(f"class f:\n    most = {most}\n    def pre_filter(self): pass\n")()

    assert of_plugin(plugin(1)).code == of_plugin(plugin(1)).code != of_plugin(plugin(2)).code


def test_a_replay_with_another_limit_is_refused(tmp_path: Path) -> None:
    with Guard(lambda _: "fine", [Hooked(100)], tmp_path) as guard:
        call = guard.chat("hello").call_id
    with Guard(lambda _: "fine", [Hooked(100)], tmp_path) as guard:
        assert guard.replay(call).status == "verified"
    with Guard(lambda _: "fine", [Hooked(50)], tmp_path) as guard:
        replayed = guard.replay(call)
    assert replayed.status == "refused"
    assert "its settings differs" in str(replayed.reason)


def test_packages_of_extras_count_only_where_a_plugin_names_them() -> None:
    plain = provenance._dependencies("isonomy", frozenset())
    named = provenance._dependencies("isonomy", frozenset(("phonenumbers",)))
    assert any(line.startswith("msgspec==") for line in plain)
    assert not any(line.startswith(("torch==", "phonenumbers==")) for line in plain)
    assert [line.partition("==")[0] for line in named if line not in plain] == ["phonenumbers"]

    class Telephones:
        packages = ("phonenumbers",)

    class Plain:
        pass

    for plugin in (Telephones, Plain):
        plugin.__module__ = "isonomy.sdk.guard"  # stands for a plugin of the distribution
    assert provenance.of_plugin(Telephones()).code != provenance.of_plugin(Plain()).code
