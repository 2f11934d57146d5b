"""Reading constitutions: what is wrong is refused with file, key and the nearest name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from isonomy.plugins import Constitution, Principle
from isonomy.plugins.constitution import laws
from isonomy.sdk import ConfigError, Policy, Sampling, check
from isonomy.sdk.canonical import canonical
from isonomy.sdk.config import load

GOOD = """
name = "house"

[[principles]]
id = "manners"
precedence = 1
text = "Be polite."

[[principles]]
id = "peace"
precedence = 0
text = "Never say boom."
critique_request = "Look for boom."
revision_request = "Take it out."
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "laws.toml") -> Path:
        file = tmp_path / name
        file.write_text(text, "utf-8")
        return file

    return write


def test_asimov() -> None:
    constitution = Constitution("asimov")
    assert constitution.name == "asimov"
    principles = constitution.principles
    assert [p.id for p in principles] == ["zeroth", "first", "second", "third"]
    assert [p.precedence for p in principles] == [0, 1, 2, 3]
    for p in principles:
        for text in (p.text, p.critique_request, p.revision_request):
            assert text == text.strip()
            assert "\n" not in text
            assert "  " not in text
    assert "humanity" in principles[0].text
    assert laws.shipped() == ["asimov"]


def test_a_file(write: Write) -> None:
    constitution = Constitution(file=str(write(GOOD)), threshold=0.8)
    assert constitution.name == "house"
    assert [p.id for p in constitution.principles] == ["peace", "manners"]
    assert constitution.principles[0].critique_request == "Look for boom."
    assert "breaches the law" in constitution.principles[1].critique_request
    assert constitution.called(constitution.principles[0]) == "house/peace"


def test_names_of_a_file(write: Write) -> None:
    nameless = str(write(GOOD.replace('name = "house"', "")))
    assert Constitution(file=nameless).name == "laws"
    assert Constitution("mine", file=nameless).name == "mine"


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("", "", "missing required field `principles`"),
        ("principles = []", "principles", "at least one principle"),
        ("x = 1\n" + GOOD, "x", "unknown key. Known: name, principles"),
        (GOOD.replace("name", "nam", 1), "nam", "unknown key. Did you mean 'name'?"),
        (
            GOOD.replace("revision_request", "revision"),
            "principles[1].revision",
            "Did you mean 'revision_request'?",
        ),
        (GOOD.replace("critique_r", "critique_R"), "principles[1].critique_Request", "mean 'crit"),
        (GOOD.replace("precedence = 1", ""), "principles[0]", "field `precedence`"),
        (
            GOOD.replace("precedence = 1", 'precedence = "high"'),
            "principles[0].precedence",
            "Expected `int`, got `str`",
        ),
        (
            GOOD.replace("precedence = 1", "precedence = -1"),
            "principles[0]",
            "precedence of 'manners' must be from 0 (first) to 1000, not -1",
        ),
        (GOOD.replace('"Be polite."', '" "'), "principles[0]", "text of 'manners' is empty"),
        (GOOD.replace('"Take it out."', '""'), "principles[1]", "revision_request of 'peace' is"),
        (GOOD.replace('"manners"', '"good manners"'), "principles[0]", "id must be letters"),
        (GOOD.replace('"manners"', '"peace"'), "principles", "two principles have the id 'peace'"),
        ("principles = 5", "principles", "Expected `array`"),
        ("principles = [5]", "principles[0]", "must be a table, not 5"),
        (
            "".join(f"[[principles]]\nid='p{i}'\nprecedence=0\ntext='t'\n" for i in range(65)),
            "principles",
            "64 principles, not 65",
        ),
        ("name = ", "", "not valid TOML"),
    ],
)
def test_a_wrong_file(write: Write, text: str, key: str, said: str) -> None:
    file = str(write(text))
    with pytest.raises(ConfigError) as caught:
        Constitution(file=file)
    assert (caught.value.file, caught.value.key or "") == (file, key)
    assert said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: can't be read: No such file"):
        Constitution(file=str(tmp_path / "nowhere.toml"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"name one that is shipped \(asimov\)"),
        ({"name": "asimof"}, r"no constitution 'asimof'. Did you mean 'asimov'\?"),
        ({"name": "../asimov"}, "no constitution '../asimov'"),
        ({"name": "asimov", "threshold": 0.0}, "threshold must be above 0"),
        ({"name": "asimov", "threshold": 1.5}, "at most 1, not 1.5"),
        ({"name": "asimov", "threshold": float("nan")}, "threshold must be above 0"),
        ({"name": "asimov", "on_breach": "warn"}, "on_breach must be one of block"),
        ({"name": "asimov", "judging": "magic"}, "judging must be one of auto"),
        ({"name": "asimov", "retries": 11}, "retries must be from 0 to 10"),
        ({"name": "asimov", "tokens": 0}, "tokens must be at least 1"),
        ({"name": "asimov", "seconds": 0.0}, "seconds must be between 0 and"),
        ({"name": "asimov", "seconds": float("inf")}, "seconds must be between 0 and"),
        ({"file": "x", "principles": Constitution("asimov").principles}, "not both"),
        ({"principles": Constitution("asimov").principles[:1] * 2}, "two principles have the id"),
    ],
)
def test_settings_that_can_not_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Constitution(**settings)


POLICY = """
[backend]
use = "local:demo"

[policy]
candidates = 2

[[policy.checks]]
use = "constitution"
{}
"""


def test_in_a_policy_file(write: Write) -> None:
    laws = str(write(GOOD))
    text = POLICY.format(f"file = '{laws}'\nthreshold = 0.7\nsampling = {{ max_tokens = 50 }}")
    (one,) = load(write(text, "isonomy.toml")).policy.checks
    assert isinstance(one.plugin, Constitution)
    assert one.plugin.threshold == 0.7
    assert one.plugin.sampling == Sampling(max_tokens=50)
    assert one.stages == ("critique", "revise", "rank", "post_validate")
    assert one.timeout == 60.0
    text = POLICY.format('name = "asimov"\ntimeout = 5.0')
    (one,) = load(write(text, "isonomy.toml")).policy.checks
    assert (one.plugin.name, one.timeout) == ("asimov", 5.0)


@pytest.mark.parametrize(
    ("settings", "key", "said"),
    [
        ('name = "asimow"', "policy.checks[0]", "Did you mean 'asimov'?"),
        ('name = "asimov"\nthreshhold = 0.5', "policy.checks[0].threshhold", "mean 'threshold'?"),
        (
            'name = "asimov"\non_breach = "blok"',
            "policy.checks[0].on_breach",
            "Did you mean 'block",
        ),
        (
            '[[policy.checks.principles]]\nid = "a"\ntxt = "b"\nprecedence = 0',
            "policy.checks[0].principles[0].txt",
            "Did you mean 'text'?",
        ),
        (
            '[[policy.checks.principles]]\nid = "a b"\ntext = "b"\nprecedence = 0',
            "policy.checks[0].principles[0]",
            "id must be letters",
        ),
        (
            'name = "asimov"\nsampling = { temprature = 1.0 }',
            "policy.checks[0].sampling.temprature",
            "Did you mean 'temperature'?",
        ),
    ],
)
def test_errors_in_a_policy_file(write: Write, settings: str, key: str, said: str) -> None:
    file = write(POLICY.format(settings), "isonomy.toml")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert (caught.value.file, caught.value.key) == (str(file), key)
    assert said in str(caught.value)


def test_principles_in_a_policy_file(write: Write) -> None:
    text = POLICY.format(
        'name = "mine"\n[[policy.checks.principles]]\nid = "a"\ntext = "b"\nprecedence = 3'
    )
    (one,) = load(write(text, "isonomy.toml")).policy.checks
    assert one.plugin.name == "mine"
    assert one.plugin.principles == (Principle(id="a", text="b", precedence=3),)


def test_the_record_holds_the_laws(write: Write) -> None:
    """Settings say what the laws were, and the same check can be built from them alone."""
    file = write(GOOD)
    for constitution in (Constitution("asimov"), Constitution(file=str(file), retries=3)):
        settings = check(constitution).settings
        again = msgspec.convert(msgspec.json.decode(canonical(settings)), Constitution)
        assert canonical(check(again).settings) == canonical(settings)
        assert again.principles == constitution.principles
        policy = Policy([constitution])
        assert constitution.principles[0].text.encode()[:40] in policy.written
    before = Policy([Constitution(file=str(file))])
    file.write_text(GOOD.replace("Never say boom.", "Never say bang."), "utf-8")
    after = Policy([Constitution(file=str(file))])
    assert before.digest != after.digest
    assert before.identities[0].settings != after.identities[0].settings


@pytest.mark.parametrize("settings", ['name = "asimov"', 'file = "laws.toml"\nthreshold = 0.7'])
def test_a_replay_needs_no_file(
    write: Write, settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is found beside the policy; the recorded policy has the laws in its place."""
    laws = write(GOOD)
    monkeypatch.chdir("/")
    recorded = load(write(POLICY.format(settings), "isonomy.toml")).policy
    laws.unlink()
    again = Policy.from_table(msgspec.json.decode(recorded.written))
    assert again.digest == recorded.digest
    assert again.identities == recorded.identities
    assert str(tmp_path).encode() not in recorded.written
    (check,) = again.checks
    assert len(check.plugin.principles) == (4 if "asimov" in settings else 2)
    assert check.plugin.principles[0].text.encode()[:40] in recorded.written


def test_an_error_in_a_file_that_a_policy_names(write: Write, tmp_path: Path) -> None:
    write(GOOD.replace("critique_request", "critique"))
    with pytest.raises(ConfigError) as caught:
        load(write(POLICY.format('file = "laws.toml"'), "isonomy.toml"))
    assert caught.value.file == str(tmp_path / "laws.toml")
    assert caught.value.key == "principles[1].critique"
    assert "Did you mean 'critique_request'?" in str(caught.value)


def test_laws_and_values_from_the_environment(write: Write) -> None:
    write(GOOD)
    text = POLICY.format('file = "laws.toml"\nbackend = "${JUDGE}"')
    file = write('[environment]\nallow = ["JUDGE"]\n' + text, "isonomy.toml")
    environ = {"JUDGE": "judge-17", "ISONOMY_POLICY_KEY": "0123456789abcdef" * 4}
    recorded = load(file, environ=environ).policy
    assert b"Never say boom." in recorded.written
    assert b"judge-17" not in recorded.written
    again = Policy.from_table(msgspec.json.decode(recorded.written), environ=environ)
    assert again.identities == recorded.identities
    assert again.checks[0].plugin.backend == "judge-17"


def test_the_readme_has_working_files(write: Write) -> None:
    readme = Path(__file__).parents[2].joinpath("plugins", "README.md").read_text("utf-8")
    section = readme.split("\n## constitution\n")[1].split("\n## ")[0]
    policy, clinic = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    constitution = Constitution(file=str(write(clinic)))
    assert [p.id for p in constitution.principles] == ["no-diagnosis", "plain-words"]
    (one,) = load(write(policy, "isonomy.toml")).policy.checks
    assert (one.plugin.name, one.plugin.on_breach, one.timeout) == ("asimov", "ask_human", 120)
