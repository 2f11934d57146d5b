"""What a replay needs and does not find makes it refuse, and say what is missing."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.replay import calls

from isonomy.replay import StoredCall
from isonomy.replay.errors import NoSuchCall
from isonomy.replay.replaying import Replayed, replay_call
from isonomy.sdk import (
    Allow,
    Candidate,
    Flag,
    Guard,
    IsonomyError,
    Replace,
    Text,
    Verdict,
    check,
    hookimpl,
    on_output,
)
from isonomy.sdk.records import Intent

CHECKS = """
[[policy.checks]]
use = "patterns"
id = "no-keys"
stages = ["post_validate"]
deny = ["sk-[0-9]+"]
"""


def refused(result: Replayed, *words: str) -> None:
    assert (result.status, result.exit_status) == ("refused", 2), result.sentence()
    assert result.difference is None
    for word in words:
        assert word in result.sentence()
    assert "\n" not in result.sentence()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a configuration, and a log with one call in it."""
    folder = tmp_path_factory.mktemp("original")
    file = calls.policy_file(folder, calls.tiny_model(folder / "tiny"), CHECKS)
    with Guard.from_file(file) as guard:
        guard.chat("hello there")
    return folder


@pytest.fixture
def call(original: Path) -> StoredCall:
    stored = calls.newest(original / "log")
    assert stored.intent is not None
    return stored


@pytest.fixture
def own(original: Path, tmp_path: Path) -> tuple[Path, StoredCall]:
    """A model of one's own, and a call to it."""
    model = shutil.copytree(original / "tiny", tmp_path / "tiny")
    with Guard.from_file(calls.policy_file(tmp_path, model, CHECKS)) as guard:
        guard.chat("hello there")
    return model, calls.newest(tmp_path / "log")


def test_nothing_is_wrong_with_it(call: StoredCall) -> None:
    assert replay_call(call).status == "verified"


def test_an_unfinished_call(call: StoredCall) -> None:
    result = replay_call(msgspec.structs.replace(call, records=call.records[:-1]))
    refused(result, "no result record", "its process ended in the middle")
    refused(replay_call(msgspec.structs.replace(call, records=())), "no intent record")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE contents SET body = replace(body, 'hello', 'jello')",
        "UPDATE records SET leaf_hash = zeroblob(32) WHERE sequence = 2",
        "UPDATE records SET leaf = substr(leaf, 1, 100)",
        "DELETE FROM contents",
        "UPDATE records SET payloads = x'90' WHERE sequence = 1",
    ],
)
def test_a_damaged_record(original: Path, tmp_path: Path, damage: str) -> None:
    log = shutil.copytree(original / "log", tmp_path / "log")
    with sqlite3.connect(log / "journal.sqlite") as journal:
        journal.execute("PRAGMA foreign_keys = off")
        for (name,) in journal.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            journal.execute(f'DROP TRIGGER "{name}"')
        journal.execute(damage)
    journal.close()
    refused(replay_call(calls.newest(log)), "record")


def test_a_payload_that_is_gone(call: StoredCall) -> None:
    first, *rest = call.records
    kept = {name: body for name, body in first.payloads.items() if name != "policy"}
    first = msgspec.structs.replace(first, payloads=kept, missing=("policy",))
    result = replay_call(msgspec.structs.replace(call, records=(first, *rest)))
    refused(result, "'policy' of record 1 is gone")


@pytest.mark.parametrize("name", ["events", "request", "output", "message/0"])
def test_a_payload_of_a_later_version(call: StoredCall, name: str) -> None:
    records = tuple(
        msgspec.structs.replace(
            record,
            payloads={
                n: b'{"shape":"new"}' if n == name else b for n, b in record.payloads.items()
            },
        )
        for record in call.records
    )
    result = replay_call(msgspec.structs.replace(call, records=records))
    refused(result, "can't be read", "Use the version of Isonomy")


def test_a_model_that_is_gone(own: tuple[Path, StoredCall]) -> None:
    model, call = own
    shutil.rmtree(model)
    refused(replay_call(call), "can't be opened", str(model))


def test_one_byte_of_the_weights(own: tuple[Path, StoredCall]) -> None:
    model, call = own
    file = model / "model.safetensors"
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
    refused(replay_call(call), "the digest of its model is blake3:", "recorded blake3:")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json"])
def test_another_file_of_the_model(own: tuple[Path, StoredCall], name: str) -> None:
    model, call = own
    body = msgspec.json.decode((model / name).read_bytes()) if (model / name).exists() else {}
    changes = {
        "tokenizer_config.json": {"chat_template": "{{ messages[-1]['content'] }}"},
        "generation_config.json": {"temperature": 0.5},
        "config.json": {"rms_norm_eps": 1e-6},
    }
    (model / name).write_bytes(msgspec.json.encode({**body, **changes[name]}))
    refused(replay_call(call), "is not the recorded one: the digest of its")


def of_identity(call: StoredCall, **changes: Any) -> StoredCall:
    return calls.with_intent(
        call,
        lambda intent: msgspec.structs.replace(
            intent, identity=msgspec.structs.replace(intent.identity, **changes)
        ),
    )


def test_other_numerics(call: StoredCall) -> None:
    assert call.intent is not None
    numerics = {**call.intent.identity.numerics, "version": 2}
    result = replay_call(of_identity(call, numerics=numerics))
    refused(result, "the numerics differ: version is 1, recorded 2")


def test_another_grammar_matters_to_formed_answers_only(
    call: StoredCall, original: Path, tmp_path: Path
) -> None:
    def with_another_grammar(call: StoredCall) -> StoredCall:
        assert call.intent is not None
        numerics = {**call.intent.identity.numerics, "grammar": "another 1.0"}
        return of_identity(call, numerics=numerics)

    assert replay_call(with_another_grammar(call)).status == "verified"
    with Guard.from_file(calls.policy_file(tmp_path, original / "tiny", CHECKS)) as guard:
        guard.chat("hello there", response_format={"type": "regex", "regex": "[a-z]{3,9}"})
    formed = calls.newest(tmp_path / "log")
    assert replay_call(formed).status == "verified"
    result = replay_call(with_another_grammar(formed))
    refused(result, "the numerics differ: grammar is", "recorded 'another 1.0'")


def test_other_evidence_does_not_matter(call: StoredCall) -> None:
    runtime = {"isa": "another", "threads": 77, "library": "another"}
    assert replay_call(of_identity(call, runtime=runtime)).status == "verified"


@pytest.mark.parametrize("spec", ["openai:gpt-4o", "callable:os.system", "nothing:here", "local:"])
def test_a_log_does_not_choose_the_backend(
    call: StoredCall, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged record must not make a replay ask the network, or run something."""
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    artefacts: dict[str, str] = {}
    result = replay_call(of_identity(call, spec=spec, artefacts=artefacts, numerics={}))
    refused(result)


def of_check(call: StoredCall, **changes: Any) -> StoredCall:
    def changed(intent: Intent) -> Intent:
        (check,) = intent.checks
        return msgspec.structs.replace(intent, checks=(msgspec.structs.replace(check, **changes),))

    return calls.with_intent(call, changed)


@pytest.mark.parametrize(
    ("field", "value"), [("code", "sha256:00"), ("settings", "sha256:00"), ("use", "other")]
)
def test_another_check(call: StoredCall, field: str, value: str) -> None:
    result = replay_call(of_check(call, **{field: value}))
    refused(result, f"the check 'no-keys' is not the one that judged: its {field} differs")


def test_an_unknown_check(call: StoredCall) -> None:
    def renamed(body: bytes) -> bytes:
        return body.replace(b'"use":"patterns"', b'"use":"pattern"')

    records = tuple(
        msgspec.structs.replace(
            record, payloads={name: renamed(body) for name, body in record.payloads.items()}
        )
        for record in call.records
    )
    result = replay_call(msgspec.structs.replace(call, records=records))
    refused(result, "can't be built here", "Did you mean 'patterns'?")


def kept(text: str) -> bool:
    return True


def test_callables_replay_where_they_live(original: Path, tmp_path: Path) -> None:
    with Guard(f"local:{original / 'tiny'}", [kept], tmp_path / "log") as guard:
        reply, call = calls.chat(guard)
        refused(replay_call(call), "'kept' is code of the application", "guard.replay(call_id)")
        assert guard.replay(reply.call_id).status == "verified"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ([], ["judged by 1 checks, and this policy has 0"]),
        ([on_output(lambda text: True, id="kept")], ["its use differs"]),
        ([on_output(kept)], ["its stages differs"]),
    ],
    ids=["none", "other code", "other stages"],
)
def test_another_guard(original: Path, tmp_path: Path, policy: list[Any], words: list[str]) -> None:
    spec, log = f"local:{original / 'tiny'}", tmp_path / "log"
    with Guard(spec, [kept], log) as guard:
        call_id = guard.chat("hello", sampling=calls.SAMPLING).call_id
    with Guard(spec, policy, log) as guard:
        refused(guard.replay(call_id), *words)


def test_changed_code_of_a_callable(original: Path, tmp_path: Path) -> None:
    def made(limit: int) -> Callable[[str], bool]:
        def short(text: str) -> bool:
            return len(text) < limit

        return short

    spec, log = f"local:{original / 'tiny'}", tmp_path / "log"
    with Guard(spec, [made(1000)], log) as guard:
        call_id = guard.chat("hello", sampling=calls.SAMPLING).call_id
        assert guard.replay(call_id).status == "verified"
    with Guard(spec, [made(1001)], log) as guard:
        refused(guard.replay(call_id), "its code differs")
    with Guard(spec, [made(1000)], log) as guard:
        assert guard.replay(call_id).status == "verified"


def test_a_guard_with_another_model(original: Path, tmp_path: Path) -> None:
    other = calls.tiny_model(tmp_path / "other", seed=2)
    log = tmp_path / "log"
    with Guard(f"local:{original / 'tiny'}", [kept], log) as guard:
        call_id = guard.chat("hello", sampling=calls.SAMPLING).call_id
    with Guard(f"local:{other}", [kept], log) as guard:
        refused(guard.replay(call_id), "is not the recorded one")
    with Guard(lambda messages: "hello", [kept], log) as guard:
        refused(guard.replay(call_id), "was deterministic", "callable:")


class Greets:
    @hookimpl
    def pre_filter(self, ctx: Any) -> Flag:
        return Flag(f"the key has {len(ctx.secret('key'))} characters")

    @hookimpl
    def post_validate(self, ctx: Any) -> Flag:
        return self.pre_filter(ctx)


@pytest.mark.parametrize("stage", ["pre_filter", "post_validate"])
def test_a_secret_that_reached_the_model(original: Path, tmp_path: Path, stage: Any) -> None:
    """It is scrubbed from the record, which is why the record can't be replayed."""
    log = tmp_path / "log"
    policy = [check(Greets(), stages=(stage,))]
    secrets = {"key": "open sesame"}.get
    with Guard(f"local:{original / 'tiny'}", policy, log, secrets=secrets) as guard:
        call_id = guard.chat("I say: open sesame!", sampling=calls.SAMPLING).call_id
        refused(guard.replay(call_id), "[secret key]", "can't be restored")


class Tells:
    @hookimpl
    def post_validate(self, candidate: Candidate, ctx: Any) -> Verdict:
        told = candidate.text.startswith("The key")
        return Allow() if told else Replace(f"The key is {ctx.secret('key')}.")

    @hookimpl
    def revise(self, candidate: Candidate, ctx: Any) -> Candidate | None:
        told = candidate.text.startswith("The key")
        said = f"The key is {ctx.secret('key')}."
        return None if told else candidate.with_content((Text(said),))


@pytest.mark.parametrize("stage", ["revise", "post_validate"])
def test_a_secret_that_a_check_put_into_the_answer(tmp_path: Path, stage: Any) -> None:
    """A replay has no secret to make that answer of; that is no divergence."""
    policy = [check(Tells(), stages=(stage,))]
    with Guard(lambda _: "Well.", policy, tmp_path, secrets={"key": "open sesame"}.get) as guard:
        reply = guard.chat("Which key?")
        assert reply.text == "The key is open sesame."
        refused(guard.replay(reply.call_id), "[secret key]", "can't be restored")


def test_an_unknown_call(original: Path) -> None:
    missing = pytest.raises(NoSuchCall, match="no call 'nothing'")
    with Guard.from_file(original / "isonomy.toml") as guard, missing:
        guard.replay("nothing")
    with Guard(lambda messages: "fine") as guard, pytest.raises(IsonomyError, match="has no log"):
        guard.replay("nothing")
