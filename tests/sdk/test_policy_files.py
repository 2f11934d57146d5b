"""Policies in files: inheritance, named policies, and values from the environment."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.sdk.world import Memory, Scripted, payloads

from isonomy.replay import ReplayLog, replay_separately
from isonomy.sdk import ConfigError, Guard, Policy
from isonomy.sdk.config import load
from isonomy.sdk.records import Intent

KEY = "a key that nobody else has"
BASE = """
[policy]
name = "house"
refusal = "No."
max_rounds = 1

[[policy.checks]]
use = "length"
max = 100

[[policy.checks]]
use = "patterns"
id = "no-keys"
deny = ["sk-"]

[[policy.checks]]
use = "length"
stages = ["pre_filter"]
max = 50

[policies.strict]
extends = "#policy"
refusal = "Never."
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "isonomy.toml", **others: str) -> Path:
        for other, body in others.items():
            file = tmp_path / f"{other}.toml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(body)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def written(file: Path, **options: Any) -> Any:
    return json.loads(load(file, **options).policy.written)


def ids(file: Path, **options: Any) -> list[str]:
    return [check.id for check in load(file, **options).policy.checks]


# Inheritance


def test_a_policy_begins_with_its_base(write: Any) -> None:
    file = write('[policy]\nextends = "base.toml"\nrefusal = "Sorry."\n', base=BASE)
    policy = load(file).policy
    assert (policy.name, policy.refusal, policy.max_rounds) == ("house", "Sorry.", 1)
    assert [check.id for check in policy.checks] == ["length", "no-keys", "length-2"]
    assert "extends" not in json.loads(policy.written)
    again = Policy.from_table(json.loads(policy.written))
    assert (again.digest, again.identities) == (policy.digest, policy.identities)


def test_checks_join_by_id(write: Any) -> None:
    file = write(
        """
[policy]
extends = "base.toml"
remove = ["length-2"]
[[policy.checks]]
use = "pii"
kinds = ["email"]
[[policy.checks]]
use = "length"
id = "length"
max = 7
[[policy.checks]]
use = "patterns"
deny = ["x"]
""",
        base=BASE,
    )
    rows = written(file)["checks"]
    assert ids(file) == ["length", "no-keys", "pii", "patterns"]
    assert rows[0] == {"use": "length", "id": "length", "max": 7}  # whole: stages are its own


def test_an_id_that_is_not_said_replaces_nothing(write: Any) -> None:
    file = write(
        '[policy]\nextends = "base.toml"\n[[policy.checks]]\nuse = "length"\nmax = 1\n', base=BASE
    )
    assert ids(file) == ["length", "no-keys", "length-2", "length-3"]


def test_what_is_removed_keeps_the_ids_of_the_others(write: Any) -> None:
    file = write('[policy]\nextends = "base.toml"\nremove = ["length"]\n', base=BASE)
    assert ids(file) == ["no-keys", "length-2"]


def test_a_removed_check_can_come_again_at_the_end(write: Any) -> None:
    file = write(
        '[policy]\nextends = "base.toml"\nremove = ["length"]\n'
        '[[policy.checks]]\nid = "length"\nuse = "length"\nmax = 9\n',
        base=BASE,
    )
    assert ids(file) == ["no-keys", "length-2", "length"]


def test_a_file_without_a_base_is_recorded_as_it_stands(write: Any) -> None:
    file = write(BASE)
    assert written(file)["checks"][0] == {"use": "length", "max": 100}
    assert written(file).keys() == {"name", "refusal", "max_rounds", "checks"}


def test_bases_are_relative_to_the_file_that_names_them(write: Any) -> None:
    write(BASE, "deeper/base.toml")
    write('[policy]\nextends = "base.toml"\nmax_rounds = 0\n', "deeper/middle.toml")
    file = write('[policy]\nextends = "deeper/middle.toml"\nname = "top"\n')
    policy = load(file).policy
    assert (policy.name, policy.refusal, policy.max_rounds) == ("top", "No.", 0)


def test_plugins_of_base_and_policy(write: Any, monkeypatch: Any, tmp_path: Path) -> None:
    for name in ("rules_one", "rules_two"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    base = '[policy]\nplugins = ["rules_one"]\n'
    file = write('[policy]\nextends = "base.toml"\nplugins = ["rules_two", "rules_one"]\n',
                 base=base)  # fmt: skip
    assert load(file).policy.registry.modules == ("rules_one", "rules_two")


# Named policies


def test_a_named_policy(write: Any) -> None:
    file = write(BASE)
    assert load(file).policy.refusal == "No."
    strict = load(file, policy="strict").policy
    assert (strict.name, strict.refusal) == ("strict", "Never.")
    assert len(strict.checks) == 3
    backend = Scripted()
    with Guard.from_file(file, policy="strict", backend=backend) as guard:
        assert guard.chat("sk-").text == "Never."


def test_a_named_policy_of_another_file(write: Any) -> None:
    file = write('[policy]\nextends = "base.toml#strict"\n', base=BASE)
    assert load(file).policy.refusal == "Never."


def test_a_file_of_named_policies_only(write: Any) -> None:
    file = write('[policies.one]\n[policies.two]\nrefusal = "2"\n')
    assert load(file, policy="two").policy.name == "two"
    with pytest.raises(ConfigError, match=r"no \[policy\], but named ones. Choose one: one, two"):
        load(file)


# What is refused, where it was written

REFUSED: list[tuple[str, str, str, str]] = [
    ('extends = "none.toml"', "isonomy.toml", "policy.extends", "none.toml' can't be read"),
    ('extends = "."', "isonomy.toml", "policy.extends", "can't be read: Is a directory"),
    ('extends = 5', "isonomy.toml", "policy.extends", "Expected `str | null`, got `int`"),
    ('extends = ""', "isonomy.toml", "policy.extends", "names no policy"),
    ('extends = "a\\u0000"', "isonomy.toml", "policy.extends", "NUL"),
    ('extends = "base.toml#strikt"', "isonomy.toml", "policy.extends", "Did you mean 'strict'?"),
    ('extends = "#policy"', "isonomy.toml", "policy.extends", "in a circle: isonomy.toml policy"),
    ('extend = "base.toml"', "isonomy.toml", "policy.extend", "Did you mean 'extends'?"),
    ('remove = ["x"]', "isonomy.toml", "policy.remove", "extends none"),
    ('extends = "base.toml"\nremove = ["no-kyes"]', "isonomy.toml", "policy.remove[0]",
     "Did you mean 'no-keys'?"),
    ('extends = "base.toml"\nremove = "x"', "isonomy.toml", "policy.remove", "Expected `array`"),
    ('extends = "bad.toml"', "bad.toml", "policy.checks[1].mx", "Did you mean 'max'?"),
    ('extends = "bad.toml"\nremove = ["length-2"]', "bad.toml", "policy.max_rounds", "0 and 100"),
    ('extends = "bad.toml"\nremove = ["length-2"]\nmax_rounds = 200', "isonomy.toml",
     "policy.max_rounds", "0 and 100"),
    ('extends = "worse.toml"', "worse.toml", "policy.refusl", "Did you mean 'refusal'?"),
    ('extends = "none-at-all.toml"', "isonomy.toml", "policy.extends", "has no [policy] to extend"),
    ('extends = "broken.toml"', "broken.toml", None, "is not valid TOML"),
    ('extends = "base.toml"\n[[policy.checks]]\nuse = "length"\nid = "no-keys"\nmx = 1',
     "isonomy.toml", "policy.checks[0].mx", "Did you mean 'max'?"),
    ('extends = "base.toml"\n[[policy.checks]]\nuse = "length"\nid = "a"\nmax = 1\n'
     '[[policy.checks]]\nuse = "length"\nid = "a"\nmax = 1',
     "isonomy.toml", "policy.checks", "two checks have the id 'a'"),
    ('extends = "base.toml"\n[[policy.checks]]\nuse = "length"\nid = ["a"]', "isonomy.toml",
     "policy.checks[0].id", "Expected `str | null`, got `array`"),
    ('stages = ["rank"]', "isonomy.toml", "policy.stages[0]", "no check decides there"),
    ('stages = ["rnk"]', "isonomy.toml", "policy.stages[0]", "Did you mean 'rank'?"),
    ('extends = "base.toml"\nremove = ["length", "no-keys"]\nstages = ["post_validate"]',
     "isonomy.toml", "policy.stages[0]", "no check decides there"),
]  # fmt: skip
BAD = """
[policy]
max_rounds = 101
[[policy.checks]]
use = "length"
max = 1
[[policy.checks]]
use = "length"
mx = 1
"""


@pytest.mark.parametrize(("text", "where", "key", "said"), REFUSED)
def test_errors_name_the_file_that_is_wrong(
    write: Any, tmp_path: Path, text: str, where: str, key: str, said: str
) -> None:
    others = {"none-at-all": "[log]\npath='x'\n", "broken": "= 5", "worse": '[policy]\nrefusl = ""'}
    file = write(f"[policy]\n{text}\n", base=BASE, bad=BAD, **others)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert said in str(caught.value)
    assert (caught.value.file, caught.value.key) == (str(tmp_path / where), key)


def test_circles_over_files_are_refused(write: Any) -> None:
    file = write('[policy]\nextends = "b.toml"\n', "a.toml", b='[policy]\nextends = "a.toml"\n')
    circle = r"in a circle: a.toml policy -> b.toml policy -> a.toml policy"
    with pytest.raises(ConfigError, match=circle) as caught:
        load(file)
    assert Path(caught.value.file or "").name == "b.toml"


def test_the_depth_is_bounded(write: Any, tmp_path: Path) -> None:
    for number in range(12):
        write(f'[policy]\nextends = "p{number + 1}.toml"\n', f"p{number}.toml")
    write("[policy]\n", "p12.toml")
    assert load(tmp_path / "p4.toml").policy.checks == ()
    with pytest.raises(ConfigError, match="more than 8 policies extend each other"):
        load(tmp_path / "p3.toml")


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("[policies]\npolicy = {}", "policies.policy", r"\[policy\] has this name already"),
        ("[policies]\nstrict = 5", "policies.strict", "must be a table, not 5"),
        ('[policies."a b"]', "policies", "can't name a policy"),
        ("[policies.strict]\nrefusl = ''", "policies.strict.refusl", "Did you mean 'refusal'"),
    ],
)
def test_wrong_named_policies(write: Any, text: str, key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(write(text), policy="strict")
    assert caught.value.key == key


def test_an_unknown_policy(write: Any) -> None:
    with pytest.raises(ConfigError, match=r"no policy named 'strikt'\. Did you mean 'strict'"):
        load(write(BASE), policy="strikt")


# Further backends


def test_further_backends(write: Any, monkeypatch: Any) -> None:
    text = '[backends.judge]\nuse = "openai:small"\nbase_url = "http://127.0.0.1:1/v1"\n'
    (judge,) = load(write(text)).backends.values()
    assert (judge.use, judge.options) == ("openai:small", {"base_url": "http://127.0.0.1:1/v1"})


JUDGED = """
from isonomy.sdk import Allow, Block, hookimpl
from isonomy.sdk.testing import ScriptedModel


class Judged:
    @hookimpl
    def post_validate(self, candidate, ctx):
        return Block("no") if ctx.generate("?", backend="judge").text == "no" else Allow()


@hookimpl
def isonomy_checks():
    return {"judged": Judged}


@hookimpl
def isonomy_backends():
    return {"said": ScriptedModel}
"""


def test_plugins_ask_the_backends_that_a_file_names(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judged_here.py").write_text(JUDGED)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = """
[backend]
use = "said:hello"
[backends.judge]
use = "said:${ANSWER}"
[environment]
allow = ["ANSWER"]
[policy]
plugins = ["judged_here"]
[[policy.checks]]
use = "judged"
"""
    for answer, text_of_reply in (("no", "I can't help with that."), ("yes", "hello")):
        monkeypatch.setenv("ANSWER", answer)
        with Guard.from_file(write(text)) as guard:
            assert guard.chat("hi").text == text_of_reply


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("[backends]\njudge = 'x'", "backends.judge", "must be a table"),
        ("[backends.judge]", "backends.judge.use", "names no backend"),
        ("[backends.judge]\nuse = 'locl:demo'", "backends.judge.use", "Did you mean 'local'"),
        (
            "[backends.judge]\nuse = 'openai:x'\nbase_ulr = ''",
            "backends.judge.base_ulr",
            "base_url",
        ),
        ("[backends.judge]\nuse = 'openai:x'\ntop_p = 1", "backends.judge.top_p", "sampling=..."),
    ],
)
def test_wrong_further_backends(write: Any, text: str, key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(write(text))
    assert caught.value.key == key


# The environment

TENANT = """
[environment]
allow = ["TENANT", "REGION"]
[log]
path = "audit-${TENANT}"
[policy]
refusal = "Ask ${TENANT}, not me; $${REGION} costs $5."
[[policy.checks]]
use = "patterns"
id = "no-ids"
stages = ["post_validate"]
deny = { "an id" = '${TENANT}-[0-9]+' }
[[policy.checks]]
use = "length"
max = 100
"""
ENVIRON = {"TENANT": "borealis", "ISONOMY_POLICY_KEY": KEY, "OTHER": "x"}


def test_values_come_from_the_environment(write: Any, tmp_path: Path) -> None:
    settings = load(write(TENANT), environ=ENVIRON)
    assert settings.log == str(tmp_path / "audit-borealis")
    assert settings.policy.refusal == "Ask borealis, not me; ${REGION} costs $5."
    assert settings.policy.checks[0].settings["deny"] == {"an id": "borealis-[0-9]+"}


def test_the_policy_is_recorded_as_written(write: Any) -> None:
    file, log = write(TENANT), Memory()
    policy = load(file, environ=ENVIRON).policy
    with Guard(Scripted(["borealis-17", "fine"]), policy, log) as guard:
        assert guard.chat("hi").blocked
        guard.chat("hi")
    body = payloads(log.entries[0])
    table = json.loads(body["policy"])
    assert table["checks"][0]["deny"] == {"an id": "${TENANT}-[0-9]+"}
    assert table["refusal"] == "Ask ${TENANT}, not me; $${REGION} costs $5."
    assert list(table["environment"]) == ["TENANT"]
    assert re.fullmatch("hmac-sha256:[0-9a-f]{64}", table["environment"]["TENANT"])
    assert KEY.encode() not in log.everything()
    intents = [msgspec.json.encode(e.record) for e in log.entries if isinstance(e.record, Intent)]
    assert b"borealis" not in b"".join(intents) + body["policy"]


def test_no_digest_in_a_record_gives_a_value_away(write: Any) -> None:
    """What a reader can compute for each value that he tries is not in the record."""
    same = dict.fromkeys(("refusal",), "No.")
    text = TENANT.replace('"Ask ${TENANT}, not me; $${REGION} costs $5."', '"No."')
    policy = load(write(text), environ=ENVIRON).policy
    guess = load(write(text.replace("${TENANT}", "borealis")), environ=ENVIRON).policy
    assert same["refusal"] == policy.refusal
    assert policy.identities[1] == guess.identities[1]
    assert policy.identities[0].settings != guess.identities[0].settings
    other_key = load(write(text), environ={**ENVIRON, "ISONOMY_POLICY_KEY": KEY[::-1]}).policy
    assert other_key.identities[0].settings != policy.identities[0].settings
    assert other_key.digest != policy.digest


def test_the_same_values_are_the_same_policy(write: Any) -> None:
    one, same = (load(write(TENANT), environ=ENVIRON).policy for _ in range(2))
    other = load(write(TENANT), environ={**ENVIRON, "TENANT": "aurora"}).policy
    assert (one.digest, one.identities) == (same.digest, same.identities)
    assert one.digest != other.digest
    assert one.identities[0] != other.identities[0]


def test_a_policy_is_built_again_where_the_values_are_the_same(write: Any) -> None:
    policy = load(write(TENANT), environ=ENVIRON).policy
    table = json.loads(policy.written)
    again = Policy.from_table(table, environ=ENVIRON)
    assert (again.refusal, again.digest) == (policy.refusal, policy.digest)
    assert again.identities == policy.identities
    differing: list[tuple[Mapping[str, str], str]] = [
        ({**ENVIRON, "TENANT": "aurora"}, "'TENANT' is not what it was"),
        ({**ENVIRON, "ISONOMY_POLICY_KEY": KEY + "!"}, "'TENANT' is not what it was"),
        ({"ISONOMY_POLICY_KEY": KEY}, "where it is not set"),
        ({"TENANT": "borealis"}, "ISONOMY_POLICY_KEY is not set"),
    ]
    for environ, said in differing:
        with pytest.raises(ConfigError, match=said) as caught:
            Policy.from_table(table, environ=environ)
        assert "aurora" not in str(caught.value)
        assert "borealis" not in str(caught.value)


def test_an_altered_record_can_not_ask_for_other_variables(write: Any) -> None:
    table = json.loads(load(write(TENANT), environ=ENVIRON).policy.written)
    table["refusal"] = "${OTHER}"
    with pytest.raises(ConfigError, match="'OTHER' is not what it was"):
        Policy.from_table(table, environ=ENVIRON)
    table["environment"]["OTHER"] = table["environment"]["TENANT"]
    with pytest.raises(ConfigError, match="'OTHER' is not what it was"):
        Policy.from_table(table, environ=ENVIRON)


def test_escapes_alone_need_no_key(write: Any) -> None:
    text = '[policy]\nrefusal = "$${TENANT} $$${X} $ {}"\n'.replace("$$${X}", "$$ $x")
    policy = load(write(text), environ={}).policy
    assert policy.refusal == "${TENANT} $$ $x $ {}"
    assert Policy.from_table(json.loads(policy.written), environ={}).refusal == policy.refusal


def test_policies_made_in_code_hold_what_they_hold() -> None:
    policy = Policy([], refusal="${TENANT} $${X}")
    again = Policy.from_table(json.loads(policy.written), environ=ENVIRON)
    assert again.refusal == policy.refusal == "${TENANT} $${X}"


CHECK = '[[policy.checks]]\nuse = "patterns"\n'


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ('[policy]\nrefusal = "${TENENT}"', "policy.refusal", "Did you mean 'TENANT'?"),
        ('[policy]\nrefusal = "${OTHER}"', "policy.refusal", "'OTHER' is not listed"),
        ('[policy]\nrefusal = "${REGION}"', "policy.refusal", "'REGION' is not set"),
        ('[policy]\nrefusal = "${"', "policy.refusal", r"Write \$\${ for"),
        ('[policy]\nrefusal = "${a-b}"', "policy.refusal", r"Write \$\${ for"),
        ('[policy]\nname = "${TENANT}"', "policy.name", "a name is recorded as it stands"),
        (CHECK + 'deny = ["a"]\nid = "${TENANT}"', "policy.checks[0].id", "a name is recorded"),
        (CHECK + 'deny = ["${REGION}"]', "policy.checks[0].deny[0]", "'REGION' is not set"),
        (CHECK + 'deny = {"a" = "${OTHER}"}', "policy.checks[0].deny.a", "'OTHER' is not listed"),
        (CHECK + 'deny = {"${TENANT}" = "a"}', "policy.checks[0].deny.${TENANT}", "a key is"),
        (CHECK + 'deny = ["a"]\naction = "${TENANT}"', "policy.checks[0].action", "Invalid enum"),
        (CHECK + 'deny = ["(${TENANT}"]', "policy.checks[0]", "pattern"),
        ('[log]\npath = "${OTHER}"', "log.path", "'OTHER' is not listed"),
        ('[backend]\nuse = "${TENANT}:x"', "backend.use", "there is no backend"),
        ('[backends.x]\nuse = "local:${REGION}"', "backends.x.use", "'REGION' is not set"),
        ('[environments]\nallow = ["A"]', "environments", "Did you mean 'environment'?"),
    ],
)
def test_what_can_not_be_taken(write: Any, text: str, key: str, said: str) -> None:
    head = '[environment]\nallow = ["TENANT", "REGION"]\n'
    with pytest.raises(ConfigError, match=said) as caught:
        load(write(head + text), environ=ENVIRON)
    assert caught.value.key == key
    assert "borealis" not in str(caught.value)


def test_without_a_key_the_policy_is_not_loaded(write: Any) -> None:
    for key, said in (("", "is not set"), ("short", "has fewer than 16 characters")):
        with pytest.raises(ConfigError, match=f"ISONOMY_POLICY_KEY {said}.*openssl") as caught:
            load(write(TENANT), environ={"TENANT": "borealis", "ISONOMY_POLICY_KEY": key})
        assert caught.value.key == "policy.refusal"


def test_the_list_of_a_file_holds_for_that_file(write: Any, tmp_path: Path) -> None:
    base = '[environment]\nallow = ["TENANT"]\n[policy]\nrefusal = "${TENANT}"\n'
    file = write('[policy]\nextends = "base.toml"\n', base=base)
    assert load(file, environ=ENVIRON).policy.refusal == "borealis"
    file = write('[policy]\nextends = "base.toml"\n' + CHECK + 'deny = ["${TENANT}"]', base=base)
    with pytest.raises(ConfigError, match="not listed in this file") as caught:
        load(file, environ=ENVIRON)
    assert caught.value.file == str(file)
    with pytest.raises(ConfigError, match="'TENANT' is not set") as caught:
        load(write('[policy]\nextends = "base.toml"\n'), environ={})
    assert (caught.value.file, caught.value.key) == (str(tmp_path / "base.toml"), "policy.refusal")


def test_a_call_is_replayed_where_its_values_are(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    file = write(TENANT + '[backend]\nuse = "local:demo"\nmax_tokens = 4\n')
    with Guard.from_file(file) as guard:
        call_id = guard.chat("Hello").call_id
    with ReplayLog(tmp_path / "audit-borealis") as log:
        stored = log.call(call_id)
    assert replay_separately(stored).status == "verified"
    monkeypatch.setenv("TENANT", "aurora")
    refused = replay_separately(stored)
    assert refused.status == "refused"
    assert "'TENANT' " in (refused.reason or "")
    monkeypatch.setenv("TENANT", "borealis")
    monkeypatch.delenv("ISONOMY_POLICY_KEY")
    assert "ISONOMY_POLICY_KEY is not set" in (replay_separately(stored).reason or "")
