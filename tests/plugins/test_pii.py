import hashlib
import hmac
import importlib.util
import random
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isonomy.plugins import Pii
from isonomy.plugins.pii.findings import KINDS, Finding, Kind, resolve
from isonomy.plugins.pii.fold import fold
from isonomy.sdk import Allow, Block, Candidate, Flag, Message, Replace
from isonomy.sdk.canonical import digest_of

# Test folders are no packages: the list is loaded by its path.
_spec = importlib.util.spec_from_file_location(
    "pii_examples", Path(__file__).with_name("pii_examples.py")
)
assert _spec is not None
assert _spec.loader is not None
_examples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_examples)
POSITIVES: dict[Kind, list[tuple[str, tuple[str, ...], list[str]]]] = _examples.POSITIVES
NEGATIVES: list[tuple[str, tuple[str, ...]]] = _examples.NEGATIVES

EVERYTHING = (
    "jo@example.org, +1 425 882 8080, 4111 1111 1111 1111, DE89370400440532013000, 192.0.2.17"
)


def found(text: str, **table: Any) -> list[tuple[str, str]]:
    return [(f.kind, text[f.start : f.end]) for f in Pii(**table).find(text)]


@pytest.mark.parametrize("kind", KINDS)
def test_recall(kind: Kind) -> None:
    """Every datum of the list is found, as this kind, at exactly its place, and nothing else."""
    wrong = [
        (text, got, wanted)
        for text, regions, wanted in POSITIVES[kind]
        if (got := found(text, regions=regions)) != [(kind, datum) for datum in wanted]
    ]
    assert wrong == []
    assert len(POSITIVES[kind]) >= 7


def test_precision() -> None:
    """Nothing is found in texts without personal data."""
    wrong = [(text, got) for text, regions in NEGATIVES if (got := found(text, regions=regions))]
    assert wrong == []
    assert len(NEGATIVES) >= 50


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_kinds_that_are_asked_for(kind: Kind) -> None:
    assert [k for k, _ in found(EVERYTHING, kinds=(kind,))] == [kind]
    other = tuple(k for k in KINDS if k != kind)
    assert kind not in [k for k, _ in found(EVERYTHING, kinds=other)]


def test_redact_mask_block_flag() -> None:
    redacted = Pii().judge(EVERYTHING)
    assert isinstance(redacted, Replace)
    assert redacted.content == "[EMAIL], [PHONE], [CARD], [IBAN], [IP]"
    assert redacted.reason == "found 1 email, 1 phone, 1 card, 1 iban, 1 ip"
    assert redacted.labels == KINDS
    masked = Pii(action="mask").judge(EVERYTHING)
    assert isinstance(masked, Replace)
    assert masked.content == (
        "j***@example.org, +* *** *** 8080, **** **** **** 1111, DE****************3000, 192.0.*.*"
    )
    block = Pii(action="block").judge(EVERYTHING)
    assert isinstance(block, Block)
    flag = Pii(action="flag").judge(EVERYTHING)
    assert isinstance(flag, Flag)
    for verdict in (redacted, block, flag):
        written = msgspec.json.encode(verdict)
        assert not any(datum in written for datum in (b"jo@", b"8080", b"1111", b"3000", b"192"))
    assert Pii().judge("nothing 4821 here @ all") == Allow(score=0.0)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("2001:db8::1", "2001:db8:*"),
        ("j@example.org", "j***@example.org"),
        ("jo＠example．org", "j***@example．org"),
        ("4111\u200b1111\u200b1111\u200b1111", "****\u200b****\u200b****\u200b1111"),
        ("+٤٩ ٣٠ ٩٠١٨٢٠", "+** ** **١٨٢٠"),
    ],
)
def test_masks(text: str, masked: str) -> None:
    verdict = Pii(action="mask").judge(text)
    assert isinstance(verdict, Replace)
    assert verdict.content == masked


def test_actions_of_single_kinds() -> None:
    check = Pii(action="flag", actions={"email": "redact", "ip": "mask"})
    verdict = check.judge(EVERYTHING)
    assert isinstance(verdict, Replace)
    assert verdict.content == (
        "[EMAIL], +1 425 882 8080, 4111 1111 1111 1111, DE89370400440532013000, 192.0.*.*"
    )
    assert verdict.labels == KINDS
    assert check.judge("+1 425 882 8080").name == "flag"
    assert Pii(actions={"card": "block"}).judge(EVERYTHING).name == "block"
    assert Pii(actions={"card": "block"}).judge("jo@example.org").name == "replace"


def test_hash_is_a_keyed_pseudonym_recorded_as_an_effect(effects: Any) -> None:
    check = Pii(action="hash", key="PII_KEY")
    ctx = effects({"PII_KEY": "one"})
    text = "JO@example.org or jo@example.org, +1 425 882 8080 or +1 (425) 882-8080, 192.0.2.17"
    verdict = check.judge(text, ctx)
    assert isinstance(verdict, Replace)
    content = str(verdict.content)
    first, second = content.split(", ")[0].split(" or ")
    assert first == second
    third, fourth = content.split(", ")[1].split(" or ")
    assert third == fourth
    assert [kind for kind, _, _ in ctx.asked] == ["secret", "effect"]
    tags = ctx.asked[1][2]
    assert content == "{} or {}, {} or {}, {}".format(*tags)
    # Another key gives other pseudonyms; the same key the same in another call.
    other = check.judge(text, effects({"PII_KEY": "two"}))
    assert isinstance(other, Replace)
    assert other.content != content
    assert check.judge(text, effects({"PII_KEY": "one"})) == verdict
    # A replay has no secrets, and gives the same from the record.
    assert check.judge(text, effects({}, recorded=[tags])) == verdict
    # Nothing found: the world is left alone.
    quiet = effects({})
    assert check.judge("order 4821", quiet) == Allow(score=0.0)
    assert quiet.asked == []
    with pytest.raises(TypeError, match="pass ctx"):
        check.judge(text)


def test_the_pseudonym_is_the_documented_one(effects: Any) -> None:
    digest = hmac.new(b"one", b"card\x004111111111111111", hashlib.sha256).hexdigest()[:12]
    letters = "".join("abcdefghijklmnop"[int(c, 16)] for c in digest)
    verdict = Pii(action="hash", key="K").judge("4111-1111-1111-1111", effects({"K": "one"}))
    assert isinstance(verdict, Replace)
    assert verdict.content == f"[CARD:{letters}]"


@pytest.mark.parametrize("action", ["redact", "mask", "hash"])
def test_what_was_treated_is_found_no_more(action: Any, effects: Any) -> None:
    key = "K" if action == "hash" else ""
    for kind in KINDS:
        for text, regions, _ in POSITIVES[kind]:
            check = Pii(action=action, key=key, regions=regions)
            verdict = check.judge(text, effects({"K": "secret"}))
            assert isinstance(verdict, Replace)
            assert check.find(str(verdict.content)) == [], (text, verdict.content)


def test_both_stages() -> None:
    messages = (Message.of("system", "jo@example.org"), Message.of("user", "I am jo@example.org"))
    verdict = Pii().pre_filter(messages=messages, ctx=None)  # type: ignore[arg-type]
    assert isinstance(verdict, Replace)
    assert verdict.content == (messages[0], Message.of("user", "I am [EMAIL]"))
    assert [s.label for s in verdict.spans] == ["message/1 email"]
    candidate = Candidate(index=0, content=messages[1].content, finish_reason="stop")
    verdict = Pii().post_validate(candidate=candidate, ctx=None)  # type: ignore[arg-type]
    assert isinstance(verdict, Replace)
    assert verdict.content == "I am [EMAIL]"


findings = st.lists(
    st.builds(
        lambda start, length, kind: Finding(start, start + length, kind, f"{start}+{length}"),
        st.integers(0, 30),
        st.integers(1, 10),
        st.sampled_from(KINDS),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(findings, st.randoms())
def test_overlaps_are_merged_whatever_the_order(reports: list[Finding], rng: Any) -> None:
    merged = resolve(reports)
    shuffled = list(reports)
    rng.shuffle(shuffled)
    assert resolve(shuffled) == merged
    assert all(a.end <= b.start for a, b in pairwise(merged))
    covered = {i for f in reports for i in range(f.start, f.end)}
    assert {i for f in merged for i in range(f.start, f.end)} == covered
    for finding in merged:
        if not finding.merged:
            assert finding in reports


def test_the_longest_names_what_overlaps() -> None:
    assert found("4111111111111111@example.org") == [("email", "4111111111111111@example.org")]
    assert found("DE89 3704 0044 0532 0130 00", regions=("DE",)) == [
        ("iban", "DE89 3704 0044 0532 0130 00")
    ]
    # Of a mask, nothing must show that belongs to another finding.
    partly = [Finding(0, 10, "card", "x"), Finding(8, 14, "phone", "y")]
    assert resolve(partly) == [Finding(0, 14, "card", "x", merged=True)]


@settings(deadline=None)
@given(st.text(alphabet="a1١１\u200b\u00ad\u2011 é", max_size=30))
def test_folding_keeps_places(text: str) -> None:
    folded = fold(text)
    for i, character in enumerate(folded.text):
        start, end = folded.place(i, i + 1)
        assert end == start + 1
        assert fold(text[start:end]).text == character
    assert not set(folded.text) & set("\u200b\u00ad\u2011١１")


@settings(deadline=None)  # the first number of a region loads its numbering plan
@given(st.text(alphabet="0123456789 -+().@:/aZ\u0663\u200bé\ud800\n", max_size=80))
def test_any_text_gets_a_verdict(text: str) -> None:
    check = Pii(action="mask", regions=("US", "DE"))
    verdict = check.judge(text)
    assert verdict.name in ("allow", "replace")
    for span in verdict.spans:
        assert 0 <= span.start < span.end <= len(text)
    assert check.judge(text) == verdict


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"kinds": ()}, "kinds is empty"),
        ({"kinds": ("mail",)}, "there is no kind 'mail'; the kinds are: email, phone"),
        ({"kinds": ("email",), "actions": {"card": "block"}}, "'card', which is not among kinds"),
        ({"action": "hash"}, "needs key: the name of a secret"),
        ({"actions": {"email": "hash"}}, "needs key"),
        ({"key": "K"}, "only used with action 'hash'"),
        ({"regions": ("de",)}, "there is no region 'de'.*capitals"),
        ({"regions": ("US",), "kinds": ("card",)}, "only used with the kind 'phone'"),
        ({"limit": 0}, "limit must be between"),
    ],
)
def test_wrong_settings(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pii(**table)


def test_settings_decode_and_have_a_digest() -> None:
    table = {"kinds": ["email", "card"], "actions": {"card": "block"}}
    check = msgspec.convert(table, Pii)
    check.judge("jo@example.org")
    assert digest_of(check) == digest_of(Pii(kinds=("email", "card"), actions={"card": "block"}))
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'mail'"):
        msgspec.convert({"kinds": ["mail"]}, Pii)


def test_more_candidates_than_the_limit_are_refused_not_skipped() -> None:
    numbers = ", ".join(f"+1 425 882 {8000 + i}" for i in range(20))
    assert Pii(limit=20).judge(numbers).name == "replace"
    verdict = Pii(limit=19).judge(numbers)
    assert isinstance(verdict, Block)
    assert "more than 19 places" in verdict.reason
    assert verdict.labels == ("too_many",)
    assert Pii(limit=19, action="flag").judge(numbers).name == "flag"


SIZE = 1_000_000


def _fill(piece: str) -> Callable[[], str]:
    return lambda: (piece * (SIZE // len(piece) + 1))[:SIZE]


def _any_of(alphabet: str) -> Callable[[], str]:
    return lambda: "".join(random.Random(1).choices(alphabet, k=SIZE))


HOSTILE = {
    "digits and hyphens": _any_of("0123456789-"),
    "all separators": _any_of("0123456789 -.()+/"),
    "cards": _fill("4111 1111 1111 1112 "),
    "groups": _fill("4444 "),
    "phones": _fill("212-555-0123 "),
    "quads": _fill("12.34.56.78.90 "),
    "iban heads": _fill("DE89 "),
    "address, then labels": lambda: "a@b.cc." + _fill("1.")(),
    "invisible": _fill("1\u200b"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_megabyte(name: str) -> None:
    text = HOSTILE[name]()
    check = Pii(regions=("US", "DE"))
    check.judge("warm 212-555-0123")  # numbering plans are loaded at first use
    started = time.process_time()
    check.judge(text)
    assert time.process_time() - started < 2
