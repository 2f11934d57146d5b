"""Configuration files: what they give, and that every error names file, key and what to do."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.world import Memory, Scripted, of_type

from isonomy.backends.local import defaults as local
from isonomy.sdk import ConfigError, Guard, LogError, PluginError, Policy, Sampling, Text
from isonomy.sdk.config import load, open_backend
from isonomy.sdk.registry import Registry

MODULE = '''
from typing import Any, Literal

import msgspec

from isonomy.sdk import Allow, Block, Generation, Identity, Text, hookimpl


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    low: int = 0
    high: int = 10


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Blocks answers that hold a word."""

    words: tuple[str, ...]
    action: Literal["block", "flag"] = "block"
    limits: Limits = Limits()

    def __post_init__(self):
        if not self.words:
            raise ValueError("words must not be empty")

    @hookimpl
    def post_validate(self, candidate: Any) -> Any:
        found = [word for word in self.words if word in candidate.text]
        return Block(f"says {found[0]}") if found else Allow()


def exact(text: str, strict: bool = False) -> Any:
    """A factory that is a plain function."""
    if text == "raise":
        raise ValueError("text must not be 'raise'")
    return lambda judged: judged != text


def nothing() -> Any:
    return 5


class Parrot:
    opened = []
    closed = 0

    def __init__(self, model: str, *, voice: str = "loud", fail: bool = False) -> None:
        if fail:
            raise TypeError("no such voice")
        self.model, self.voice = model, voice
        Parrot.opened.append(self)

    def identity(self):
        return Identity(provider="parrot", model=self.model, spec=f"parrot:{self.model}")

    def resolve(self, sampling):
        return sampling

    def generate(self, request, *, on_text=None):
        content = (Text(f"{self.voice} {request.messages[-1].text}"),)
        return Generation(content=content, finish_reason="stop", model=self.model)

    async def agenerate(self, request, *, on_text=None):
        return self.generate(request)

    def close(self):
        Parrot.closed += 1


@hookimpl
def isonomy_checks():
    return {"words": Words, "exact": exact, "nothing": nothing}


@hookimpl
def isonomy_backends():
    return {"parrot": Parrot}
'''


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an importable plugin module, a fresh one for each test."""
    name = f"rules_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def write(tmp_path: Path, rules: str) -> Any:
    def write(text: str) -> Path:
        file = tmp_path / "isonomy.toml"
        file.write_text(text.replace("RULES", rules), "utf-8")
        return file

    return write


GOOD = """
[backend]
use = "parrot:macaw"
voice = "soft"
temperature = 0.5
stop = ["\\n"]

[log]
path = "audit"

[policy]
name = "house rules"
refusal = "Sorry."
max_rounds = 1
plugins = ["RULES"]

[[policy.checks]]
use = "words"
words = ["acme"]
limits = { low = 1 }

[[policy.checks]]
use = "exact"
id = "no-hello"
stages = ["pre_filter"]
on_error = "flag"
timeout = 3
text = "hello"
"""


def test_a_file_becomes_a_guard(write: Any) -> None:
    file, log = write(GOOD), Memory()
    with Guard.from_file(file, log=log) as guard:
        assert (guard.policy.name, guard.policy.refusal, guard.policy.max_rounds) == (
            "house rules", "Sorry.", 1,
        )  # fmt: skip
        words, exact = guard.policy.checks
        assert (words.id, words.use, words.stages) == ("words", "words", ("post_validate",))
        assert (words.on_error, words.timeout) == ("block", 10.0)
        assert words.settings == {
            "words": ("acme",),
            "action": "block",
            "limits": {"low": 1, "high": 10},
        }
        assert (exact.id, exact.use, exact.stages, exact.on_error, exact.timeout) == (
            "no-hello", "exact", ("pre_filter",), "flag", 3.0,
        )  # fmt: skip
        assert guard.sampling == Sampling(temperature=0.5, stop=("\n",))
        assert guard.chat("hello").text == "Sorry."
        assert guard.chat("hi").text == "soft hi"
        assert guard.chat("acme").reason == "says acme"
    assert log.kinds == ["Intent", "Result"] * 3


def test_only_the_policy_table_is_the_policy(write: Any) -> None:
    one = load(write(GOOD)).policy
    other = load(write(GOOD.replace("macaw", "ara").replace("audit", "elsewhere"))).policy
    changed = load(write(GOOD.replace("acme", "bcme"))).policy
    assert one.written == other.written
    assert one.digest == other.digest != changed.digest


def test_a_policy_can_be_built_again_from_what_was_written(write: Any) -> None:
    import msgspec

    policy = load(write(GOOD)).policy
    again = Policy.from_table(msgspec.json.decode(policy.written))
    assert again.digest == policy.digest
    assert again.identities == policy.identities


def test_the_log_is_relative_to_the_file(write: Any, tmp_path: Path) -> None:
    file = write(GOOD)
    assert load(file).log == str(tmp_path / "audit")
    absolute = write(GOOD.replace('"audit"', '"/somewhere/else"'))
    assert load(absolute).log == "/somewhere/else"
    assert load(write("[policy]\n")).log is None


def test_arguments_win_over_the_file(write: Any) -> None:
    backend, log = Scripted(), Memory()
    with Guard.from_file(write(GOOD), backend=backend, log=log) as guard:
        assert guard.chat("hi").text == "You said: hi"
        assert guard.log is log
    assert len(log.entries) == 2


def test_options_of_the_file_s_backend_do_not_reach_another(write: Any) -> None:
    with Guard.from_file(write(GOOD), backend="parrot:ara", log=Memory()) as guard:
        assert guard.chat("hi").text == "loud hi"


# Errors. Each names the file, and the key where there is one.

POLICY = '[policy]\nplugins = ["RULES"]\n'
CHECK = POLICY + "[[policy.checks]]\n"
WORDS = CHECK + 'use = "words"\nwords = ["a"]\n'

ERRORS: list[tuple[str, str | None, str]] = [
    ("= 5", None, "is not valid TOML"),
    ('[polcy]\nname = "x"', "polcy", "unknown key. Did you mean 'policy'?"),
    ("policy = 5", "policy", "Expected `object`, got `int`"),
    ("[log]\npth = 'x'", "log.pth", "unknown key. Did you mean 'path'?"),
    ("[log]", "log", "missing required field `path`"),
    ("[log]\npath = 5", "log.path", "Expected `str`, got `int`"),
    ("[policy]\nrefusl = 'x'", "policy.refusl", "unknown key. Did you mean 'refusal'?"),
    ("[policy]\nzzz = 'x'", "policy.zzz", "unknown key. Known: candidates, checks, extends,"),
    ("[policy]\nmax_rounds = 'two'", "policy.max_rounds", "Expected `int`, got `str`"),
    ("[policy]\nmax_rounds = 101", "policy.max_rounds", "must be between 0 and 100"),
    ("[policy]\nplugins = 'x'", "policy.plugins", "Expected `array`, got `str`"),
    ("[policy]\nplugins = ['no_such_module']", "policy.plugins", "can't be imported"),
    ("[policy]\nchecks = ['pii']", "policy.checks[0]", "Expected `object`, got `str`"),
    (CHECK, "policy.checks[0]", "missing required field `use`"),
    (CHECK + 'use = "wrds"', "policy.checks[0].use", "Did you mean 'words'?"),
    (CHECK + 'use = "nothing"', "policy.checks[0].use", "is no check"),
    (CHECK + "use = 5", "policy.checks[0].use", "Expected `str`, got `int`"),
    (WORDS + "wrods = ['b']", "policy.checks[0].wrods", "Did you mean 'words'?"),
    (WORDS + "timeot = 1", "policy.checks[0].timeot", "Did you mean 'timeout'?"),
    (WORDS + "action = 'blok'", "policy.checks[0].action", "Invalid enum value 'blok'"),
    (WORDS + "limits = { hgh = 1 }", "policy.checks[0].limits.hgh", "Did you mean 'high'?"),
    (WORDS + "limits = { high = 'x' }", "policy.checks[0].limits.high", "Expected `int`"),
    (WORDS + "limits = 5", "policy.checks[0].limits", "Expected `object`, got `int`"),
    (WORDS.replace('["a"]', "[]"), "policy.checks[0]", "words must not be empty"),
    (WORDS.replace('["a"]', '["a", 5]'), "policy.checks[0].words[1]", "Expected `str`"),
    (CHECK + 'use = "words"', "policy.checks[0]", "missing required field `words`"),
    (WORDS + "stages = ['pre_filter']", "policy.checks[0].stages", "it acts at: post_validate"),
    (WORDS + "stages = ['post_validat']", "policy.checks[0].stages", "Did you mean"),
    (WORDS + "stages = []", "policy.checks[0].stages", "at least one stage"),
    (WORDS + "timeout = 0", "policy.checks[0].timeout", "between 0 and 86400"),
    (WORDS + "timeout = nan", "policy.checks[0].timeout", "between 0 and 86400"),
    (WORDS + "timeout = 'soon'", "policy.checks[0].timeout", "Expected `float | null`, got `str`"),
    (WORDS + "on_error = 'ignore'", "policy.checks[0].on_error", "block, allow or flag"),
    (WORDS + "id = 'a'\n" + WORDS.removeprefix(POLICY) + "id = 'a'", "policy.checks", "the id 'a'"),
    (CHECK + 'use = "exact"\ntext = "a"\nstrct = true', "policy.checks[0]", "strct"),
    (CHECK + 'use = "exact"\ntext = "raise"', "policy.checks[0]", "must not be 'raise'"),
    (POLICY + "[backend]", "backend.use", 'write use = "local:demo"'),
    (POLICY + "[backend]\nuse = 5", "backend.use", 'write use = "local:demo"'),
    (POLICY + "[backend]\nuse = 'parot:x'", "backend.use", "Did you mean 'parrot'?"),
    (POLICY + "[backend]\nuse = 'parrot'", "backend.use", "names no model"),
    (POLICY + "[backend]\nuse = 'parrot:'", "backend.use", "names no model"),
    (POLICY + "[backend]\nuse = 'parrot:x'\nvoic = 'a'", "backend.voic", "Did you mean 'voice'?"),
    (POLICY + "[backend]\nuse = 'parrot:x'\ntemprature = 1", "backend.temprature",
     "Did you mean 'temperature'?"),
    (POLICY + "[backend]\nuse = 'parrot:x'\ntemperature = 'hot'", "backend.temperature",
     "Expected `float"),
    (POLICY + "[backend]\nuse = 'parrot:x'\ntemperature = nan", "backend.temperature",
     "sampling.temperature must be a finite number"),
    (POLICY + "[backend]\nuse = 'parrot:x'\nseed = -1", "backend.seed",
     "sampling.seed must be from 0"),
    (POLICY + "[backend]\nuse = 'parrot:x'\nstop = ['']", "backend.stop",
     "sampling.stop must hold non-empty strings"),
    (POLICY + "[backend]\nuse = 'parrot:x'\n[log]\npath = \"a\\u0000b\"", "log.path",
     "a path can't hold a NUL character"),
    (POLICY + "[backend]\nuse = 'parrot:x'\ncandidate = 1", "backend.candidate", "unknown key"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "key", "said"),
    ERRORS,
    ids=[re.sub(r"\W+", "-", t)[-40:] + str(i) for i, (t, _, _) in enumerate(ERRORS)],
)
def test_errors_name_the_file_the_key_and_what_is_wrong(
    write: Any, text: str, key: str | None, said: str
) -> None:
    file = write(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    error = caught.value
    assert (error.file, error.key) == (str(file), key)
    assert said in str(error)
    assert str(error).startswith(f"{file}: {key}: " if key else f"{file}: ")
    assert str(error).count(str(file)) == 1


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be read: No such file.*Check the path") as caught:
        load(tmp_path / "none.toml")
    assert caught.value.file == str(tmp_path / "none.toml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is not a file but a pipe or a device"):
        load(tmp_path / "pipe")


@pytest.mark.parametrize("depth", [200, 5_000])
def test_what_is_nested_too_deeply_is_refused(tmp_path: Path, depth: int) -> None:
    file = tmp_path / "deep.toml"
    file.write_text(f"policy = {'[' * depth}{']' * depth}\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.file == str(file)


def test_a_nul_character_is_in_no_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="null"):
        load("a\0b")
    backend = Scripted()
    with pytest.raises(LogError, match="can't hold a NUL character"):
        Guard(backend, [], "a\0b")


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        ("max_tokens = 0", "backend.max_tokens", "1 to 2147483647"),
        ("max_tokens = 2147483648", "backend.max_tokens", "1 to 2147483647"),
        ("top_k = -1", "backend.top_k", "0 to 2147483647"),
        ("top_p = 1.5", "backend.top_p", "at most 1"),
    ],
)
def test_what_the_backend_can_not_use_is_named_with_its_key(
    tmp_path: Path, line: str, key: str, said: str
) -> None:
    class Strict(Scripted):
        def resolve(self, sampling: Sampling) -> Sampling:
            local.check(sampling)
            return sampling

    file = tmp_path / "isonomy.toml"
    file.write_text(f"[log]\npath = 'audit'\n[backend]\nuse = 'local:demo'\n{line}\n")
    backend = Strict()
    with pytest.raises(ConfigError, match=said) as caught:
        Guard.from_file(file, backend=backend)
    assert (caught.value.file, caught.value.key) == (str(file), key)
    assert backend.closed == 0
    assert not (tmp_path / "audit").exists()


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "latin.toml"
    file.write_bytes(b'[policy]\nname = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 20\)") as caught:
        load(file)
    assert caught.value.file == str(file)


def test_a_file_without_a_backend_needs_one_in_code(write: Any) -> None:
    file = write(POLICY)
    with pytest.raises(ConfigError, match=r"names no backend: add \[backend\]") as caught:
        Guard.from_file(file)
    assert (caught.value.file, caught.value.key) == (str(file), "backend")
    with Guard.from_file(file, backend=Scripted()) as guard:
        assert guard.chat("hi").text == "You said: hi"


def test_a_backend_that_refuses_an_option(rules: str) -> None:
    registry = Registry([rules])
    with pytest.raises(ConfigError, match=r"'parrot:x' can't be opened: .*wings"):
        open_backend("parrot:x", registry, wings=2)
    with pytest.raises(ConfigError, match="can't be opened: no such voice"):
        open_backend("parrot:x", registry, fail=True)
    with pytest.raises(PluginError, match="Did you mean 'parrot'"):
        open_backend("parrott:x", registry)
    opened: Any = open_backend("parrot:a:b/c", registry, voice="low")
    assert (opened.model, opened.voice) == ("a:b/c", "low")


def test_what_a_guard_opened_is_closed_when_it_cannot_be_made(rules: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a log")
    parrot: Any = Registry([rules]).find("backend", "parrot")
    with pytest.raises(LogError) as caught:
        Guard("parrot:x", [], file, plugins=[rules])
    assert str(file) in str(caught.value)
    assert parrot.closed == len(parrot.opened) == 1
    mine = Scripted()
    with pytest.raises(LogError):
        Guard(mine, [], file)
    assert mine.closed == 0


def test_the_answer_of_a_backend_from_a_file_is_judged(write: Any) -> None:
    with Guard.from_file(write(GOOD), log=Memory()) as guard:
        reply = guard.chat("hi there")
    assert reply.output.content == (Text("soft hi there"),)
    assert [event.check for event in of_type(reply, object) if event.type == "judged"] == [
        "no-hello", "words",
    ]  # fmt: skip
