"""`isonomy policy`: all that is wrong with a file at once, what is of no use, what it comes to."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import run_apart

from isonomy.sdk import ConfigError
from isonomy.sdk.config import load
from isonomy.sdk.policycheck import examine

WRONG = """
[backend]
use = "loca:demo"
[backends.x]
use = "local:demo"
voice = 1
[log]
pth = "x"
[environment]
allow = ["A"]
[policy]
refusl = "x"
max_rounds = 200
[[policy.checks]]
use = "length"
mx = 5
min = "a"
[[policy.checks]]
use = "lenth"
[[policy.checks]]
use = "patterns"
deny = "abc"
actoin = "block"
[[policy.checks]]
id = "no-use"
[[policy.checks]]
use = "pii"
kinds = ["emial"]
stages = ["rnk"]
[[policy.checks]]
use = "length"
max = 5
timeout = -1
on_error = "explode"
[policies.strict]
extends = "#polic"
refusal = "${B}"
[policies.other]
extends = "base.toml"
remove = ["a", "b"]
[tools]
"""
BASE = """
[[policy.checks]]
use = "length"
id = "a"
max = 0
[[policy.checks]]
use = "length"
max = 1
mni = 1
"""

EXPECTED = """\
log.pth: unknown key. Did you mean 'path'?
tools: unknown key. Known: backend, backends, environment, log, policies, policy, serve.
policy.refusl: unknown key. Did you mean 'refusal'?
policy.checks[0].mx: unknown key. Did you mean 'max'?
policy.checks[0].min: Expected `int`, got `str`.
policy.checks[1].use: there is no check named 'lenth'. Did you mean 'length'?
policy.checks[2].actoin: unknown key. Did you mean 'action'?
policy.checks[2].deny: Expected `object | array`, got `str`.
policy.checks[3]: Object missing required field `use`.
policy.checks[4].kinds[0]: Invalid enum value 'emial'. Did you mean 'email'?
policy.checks[4].stages: there is no stage 'rnk'. Did you mean 'rank'?
policy.checks[5].on_error: on_error must be block, allow or flag, not 'explode'.
policy.checks[5].timeout: timeout must be seconds between 0 and 86400, not -1.0.
policy.max_rounds: max_rounds must be between 0 and 100.
policies.strict.refusal: the environment variable 'B' is not listed in this file. Known: A. Add
policies.strict.extends: there is no policy named 'polic'. Did you mean 'policy'?
policies.other.remove[1]: the policy that this one extends has no check 'b'. Known: a, length.
base.toml policy.checks[0]: max must be at least 1 and at least min: 0.
base.toml policy.checks[1].mni: unknown key. Did you mean 'min'?
backend.use: there is no backend named 'loca'. Did you mean 'local'?
backends.x.voice: unknown key."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "base.toml").write_text(BASE)
    return tmp_path / "isonomy.toml"


def told(file: Path) -> list[str]:
    return [
        f"{'' if p.file == str(file) else Path(p.file).name + ' '}{p.key}: {p.message}"
        for p in examine(str(file), environ={}).problems
    ]


def test_every_error_of_a_file_is_told(file: Path) -> None:
    file.write_text(WRONG)
    lines = told(file)
    expected = EXPECTED.splitlines()
    assert [line[: len(other)] for line, other in zip(lines, expected, strict=False)] == expected
    assert len(lines) == len(expected)
    assert file.read_text() == WRONG


def test_each_is_one_that_loading_refuses(file: Path) -> None:
    file.write_text(WRONG)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert f"{caught.value.key}: {caught.value.problem}" == told(file)[0]


USELESS: list[tuple[str, str]] = [
    ("[policy]\n", "policy: the policy has no check: nothing is judged."),
    ("LENGTHstages = ['pre_filter']", "policy: no check is asked at post_validate: what comes out"),
    ("LENGTHstages = ['post_validate']", "policy: no check is asked at pre_filter: what goes in"),
    ("LENGTHshadow = true", "policy: every check at pre_filter is a shadow: nothing decides"),
    ("LENGTHLENGTHid = 'b'", "policy.checks[1]: 'length' judges the same before it"),
    ("LENGTHtimeout = 3", "policy.checks[0].timeout: it runs inline, where no timeout can stop it"),
    ("LENGTHaction = 'retry'\nstages = ['pre_filter']",
     "policy.checks[0]: there is no answer to try again at pre_filter, so it blocks."),
    ("[policy]\nmax_rounds = 0\nLENGTHaction = 'retry'",
     "policy.checks[0]: the policy allows no further round (max_rounds = 0), so it blocks."),
    ("LENGTHaction = 'truncate'\nread_only = true",
     "policy.checks[0].read_only: it is read_only, so it can't replace anything."),
    ("LENGTHshadow = true\non_error = 'flag'",
     "policy.checks[0].on_error: it is a shadow: its failure counts as nothing."),
    ("[policy]\ncandidates = 3\nLENGTH",
     "policy: 3 candidates are generated, and no check ranks them."),
    ("[environment]\nallow = ['A']\nLENGTH",
     "environment.allow[0]: the file takes no 'A' from the environment."),
]  # fmt: skip
LENGTH = '[[policy.checks]]\nuse = "length"\nmax = 5\n'


@pytest.mark.parametrize(("text", "warning"), USELESS)
def test_what_is_of_no_use_is_told(file: Path, text: str, warning: str) -> None:
    file.write_text(text.replace("LENGTH", LENGTH))
    examined = examine(str(file))
    assert examined.count("error") == 0
    assert any(line.startswith(warning) for line in told(file)), told(file)


def test_stages_of_a_constitution(file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "stage_checks.py").write_text("""
from isonomy.sdk import hookimpl
class Critic:
    @hookimpl
    def critique(self, candidate): ...
class Reviser:
    @hookimpl
    def revise(self, candidate): ...
class Ranker:
    @hookimpl
    def rank(self, candidates): ...
@hookimpl
def isonomy_checks():
    return {"critic": Critic, "reviser": Reviser, "ranker": Ranker}
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    head = f'[policy]\nplugins = ["stage_checks"]\n{LENGTH}'
    for name, said in (
        ("critic", "nobody reads its critiques"),
        ("reviser", "it is shown no critiques"),
        ("ranker", "it can't matter: there is one candidate"),
    ):
        file.write_text(f'{head}[[policy.checks]]\nuse = "{name}"\n')
        assert [said in line for line in told(file)] == [True]
    both = '[[policy.checks]]\nuse = "critic"\n[[policy.checks]]\nuse = "reviser"\n'
    file.write_text(head + both)
    assert told(file) == []


def test_a_good_file_has_nothing_to_tell(file: Path) -> None:
    file.write_text(LENGTH)
    assert told(file) == []


def test_the_command_and_its_status(file: Path) -> None:
    file.write_text(WRONG)
    said = run_apart("policy", "check", file)
    assert (said.status, said.err) == (1, "")
    assert f"error: {file}: policy.checks[0].mx: unknown key. Did you mean 'max'?\n" in said.out
    assert said.out.endswith(f"{file}: 21 errors, 0 warnings\n")
    as_json = run_apart("policy", "check", file, "--json").json
    assert len(as_json) == 21
    assert as_json[0] == {
        "level": "error", "file": str(file), "key": "log.pth",
        "message": "unknown key. Did you mean 'path'?",
    }  # fmt: skip
    file.write_text(LENGTH + "timeout = 3\n")
    said = run_apart("policy", "check", file)
    assert said.status == 0
    assert said.out.endswith("0 errors, 1 warning in 1 policy with 1 check\n")
    assert run_apart("policy", "check", file, "--strict").status == 1
    file.write_text("= 5")
    assert (run_apart("policy", "check", file).status, run_apart("policy").status) == (2, 2)
    assert run_apart("policy", "check", "none.toml").err.count("\n") == 1


def test_show_prints_the_policy_as_it_is_recorded(file: Path) -> None:
    (file.parent / "base.toml").write_text(f'[policy]\nname = "house"\n{LENGTH}')
    file.write_text(
        '[environment]\nallow = ["A"]\n[policy]\nextends = "base.toml"\nrefusal = "${A}"\n'
        "[[policy.checks]]\nuse = 'patterns'\ndeny = { a = '\\d+' }\n[policies.strict]\n"
    )
    there = {"A": "shown to nobody", "ISONOMY_POLICY_KEY": "k" * 16, "PATH": ""}
    said = run_apart("policy", "show", file, env=there)
    assert (said.status, said.err) == (0, "")
    table = tomllib.loads(said.out)["policy"]
    written = json.loads(load(file, environ=there).policy.written)
    assert table == {key: value for key, value in written.items() if key != "environment"}
    assert (
        f"# length, asked at: pre_filter, post_validate; from {file.parent}/base.toml" in said.out
    )
    assert "shown to nobody" not in said.out
    assert "streams are held back until the answer is complete, because of: " in said.out
    as_json = run_apart("policy", "show", file, "--json", env=there).json
    assert as_json == {"digest": load(file, environ=there).policy.digest, "policy": written}
    assert 'name = "strict"' in run_apart("policy", "show", file, "--policy", "strict").out
    wrong = run_apart("policy", "show", file, "--policy", "strikt")
    assert wrong.status == 2
    assert "Did you mean 'strict'?" in wrong.err


def test_chat_takes_a_named_policy(file: Path) -> None:
    file.write_text(
        '[backend]\nuse = "local:demo"\nmax_tokens = 4\n[log]\npath = "log"\n[policies.strict]\n'
        '[[policies.strict.checks]]\nuse = "length"\nmax = 3\n'
    )
    said = run_apart("chat", "Hello", "--config", file, "--policy", "strict", "--json")
    assert said.json["verdict"] == "block"
    assert run_apart("chat", "Hello", "--config", file).status == 2
    assert "pass --config" in run_apart("chat", "Hello", "--policy", "strict").err
