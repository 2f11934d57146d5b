"""One pass over the recorded tokens, or token by token: the same verdict, at the same step.

Every alteration of a record, at the first, a middle and the last step, of answers that ended in
each of the five ways, is replayed in both modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from tests.backends.local.conftest import tiny_config, write_checkpoint, write_json
from tests.replay import calls

from isonomy.backends.local import Local
from isonomy.replay import StoredCall
from isonomy.replay.replaying import Replayed, replay_call
from isonomy.sdk import Guard, Message, Sampling, TokenTrace
from isonomy.sdk.canonical import canonical
from isonomy.sdk.generation import Generation, Request

STEPS = 12


class Recording(NamedTuple):
    """A call, and the guard that can replay it."""

    guard: Guard
    call: StoredCall
    trace: TokenTrace


class Watched:
    """A `Local` that notes what it was given to verify."""

    verifies = True

    def __init__(self, inner: Local) -> None:
        self._inner = inner
        self.given: list[Generation | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def generate(self, request: Request, *, recorded: Any = None, **options: Any) -> Generation:
        self.given.append(recorded)
        if recorded is not None and getattr(self._inner, "verifies", False):
            options["recorded"] = recorded
        return self._inner.generate(request, **options)


def answer(folder: Path, **sampling: Any) -> Generation:
    with Local(folder) as backend:
        return backend.generate(
            Request(
                messages=(Message.of("user", "hello there"),),
                sampling=Sampling(temperature=0.9, seed=11, **sampling),
            )
        )


def model(folder: Path, **changes: Any) -> Path:
    return write_checkpoint(folder, tiny_config(**changes))


@pytest.fixture(scope="module", params=["length", "stop string", "end token", "context", "grammar"])
def recording(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recording]:
    """An answer of some twelve steps, ended in one of the five ways."""
    folder = tmp_path_factory.mktemp("modes")
    path = model(folder / "model")
    plain = answer(path, max_tokens=STEPS)
    assert plain.tokens is not None
    assert plain.prompt_ids is not None
    assert len(plain.tokens.ids) == STEPS
    sampling: dict[str, Any] = {"max_tokens": 64}
    options: dict[str, Any] = {}
    if request.param == "length":
        sampling = {"max_tokens": STEPS}
    elif request.param == "stop string":
        sampling["stop"] = (plain.text[5:8],)
    elif request.param == "end token":
        write_json(path / "generation_config.json", {"eos_token_id": plain.tokens.ids[-1]})
    elif request.param == "context":
        options = {"context": len(plain.prompt_ids) + STEPS}
    backend = Watched(Local(path, **options))
    with Guard(backend, [], folder / "log") as guard:
        drawn = Sampling(temperature=0.9, seed=11, **sampling)
        form = {"type": "regex", "regex": "[a-z]{9,12}[.]"} if request.param == "grammar" else None
        reply, call = calls.chat(guard, sampling=drawn, response_format=form)
        expected = "length" if request.param in ("length", "context") else "stop"
        assert reply.finish_reason == expected
        (event,) = call.events
        trace = event.generation.tokens
        assert 3 <= len(trace.ids) <= STEPS + 8
        yield Recording(guard, call, trace)


def both(recording: Recording, call: StoredCall) -> Replayed:
    """Replay in both modes; they agree on everything but on how."""
    backend: Any = recording.guard.backend
    backend.given.clear()
    quick = replay_call(call, guard=recording.guard)
    assert [given.tokens for given in backend.given] == [
        event.generation.tokens for event in call.events
    ]
    slow = replay_call(call, guard=recording.guard, regenerate=True)
    assert [given.tokens for given in backend.given[1:]] == [None]
    assert (quick.mode, slow.mode) == ("in one pass", "token by token")
    assert msgspec.structs.replace(quick, mode=None) == msgspec.structs.replace(slow, mode=None)
    assert "re-executed in one pass" in quick.sentence()
    assert "re-executed token by token" in slow.sentence()
    return quick


def flipped(body: bytes, place: int) -> bytes:
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


def other_token(trace: TokenTrace, step: int) -> TokenTrace:
    ids = (*trace.ids[:step], trace.ids[step] ^ 1, *trace.ids[step + 1 :])
    return msgspec.structs.replace(trace, ids=ids)


def other_logprob(trace: TokenTrace, step: int) -> TokenTrace:
    return msgspec.structs.replace(trace, logprobs=flipped(trace.logprobs, 4 * step + 2))


def other_digest(trace: TokenTrace, step: int) -> TokenTrace:
    return msgspec.structs.replace(trace, digests=flipped(trace.digests, 32 * step + 31))


def other_text(trace: TokenTrace, step: int) -> TokenTrace:
    texts = (*trace.texts[:step], trace.texts[step] + "x", *trace.texts[step + 1 :])
    return msgspec.structs.replace(trace, texts=texts)


Change = Callable[[TokenTrace, int], TokenTrace]


def test_a_true_record(recording: Recording) -> None:
    result = both(recording, recording.call)
    assert result.status == "verified"
    assert (result.reexecuted, result.steps) == (1, len(recording.trace.ids))


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize(
    ("change", "where"),
    [
        (other_token, "token"),
        (other_logprob, "log-probability"),
        (other_digest, "logits digest"),
        (other_text, "text"),
    ],
    ids=["token", "logprob", "digest", "text"],
)
def test_an_altered_step(recording: Recording, change: Change, where: str, place: str) -> None:
    count = len(recording.trace.ids)
    step = {"first": 0, "middle": count // 2, "last": count - 1}[place]
    altered = calls.with_tokens(recording.call, lambda trace: change(trace, step))
    result = both(recording, altered)
    assert result.status == "diverged"
    assert result.difference is not None
    assert (result.difference.where, result.difference.step) == (where, step)


def test_an_altered_chain(recording: Recording) -> None:
    altered = calls.with_tokens(
        recording.call,
        lambda trace: msgspec.structs.replace(trace, chain=flipped(trace.chain, 0)),
    )
    result = both(recording, altered)
    assert result.difference is not None
    assert (result.difference.where, result.difference.step) == ("chain", None)


@pytest.mark.parametrize(
    "change",
    [{"seed": 12}, {"temperature": 0.0}, {"top_k": 1}, {"repetition_penalty": 3.0}],
    ids=str,
)
def test_altered_sampling(recording: Recording, change: dict[str, Any]) -> None:
    altered = calls.with_intent(
        recording.call,
        lambda intent: msgspec.structs.replace(
            intent, sampling=msgspec.structs.replace(intent.sampling, **change)
        ),
    )
    assert both(recording, altered).status == "diverged"


@pytest.mark.parametrize(
    "ids",
    [
        (),
        (0,),
        (-1,) * 12,
        (320,) * 12,
        (2**31,) * 12,
        (-(2**63), 2**63 - 1),
        tuple(range(5000)),
    ],
    ids=["none", "one", "negative", "beyond", "2^31", "2^63", "many"],
)
def test_tokens_that_nobody_could_have_drawn(recording: Recording, ids: tuple[int, ...]) -> None:
    """Whatever a log claims is only a guess: it neither breaks a replay nor leads it astray."""
    altered = calls.with_tokens(
        recording.call, lambda trace: msgspec.structs.replace(trace, ids=ids)
    )
    result = both(recording, altered)
    assert (result.status, result.reason) == ("diverged", None)
    assert result.difference is not None
    assert (result.difference.where, result.difference.step) == ("token", 0)
    longer = calls.with_tokens(
        recording.call, lambda trace: msgspec.structs.replace(trace, ids=(*trace.ids, *ids))
    )
    if ids:
        found = both(recording, longer).difference
        assert found is not None
        assert (found.where, found.step) == ("token", len(recording.trace.ids))


def test_a_record_that_ends_early(recording: Recording) -> None:
    for count in range(len(recording.trace.ids)):
        altered = calls.with_tokens(
            recording.call,
            lambda trace, count=count: msgspec.structs.replace(
                trace,
                ids=trace.ids[:count],
                texts=trace.texts[:count],
                logprobs=trace.logprobs[: 4 * count],
                digests=trace.digests[: 32 * count],
            ),
        )
        found = both(recording, altered).difference
        assert found is not None
        assert (found.step, found.recorded) == (count, None)


def test_an_answer_without_evidence(recording: Recording) -> None:
    altered = calls.with_tokens(recording.call, lambda trace: None)
    assert both(recording, altered).status == "diverged"


def test_a_replay_takes_nothing_from_the_prefix_cache(tmp_path: Path) -> None:
    """What a call left behind may be what went wrong in it."""
    request = Request(
        messages=(Message.of("user", "hello there " * 12),), sampling=Sampling(seed=1)
    )
    with Local(model(tmp_path / "model"), max_tokens=STEPS) as backend:
        first = backend.generate(request)
        assert backend.generate(request).runtime["cached"] > 0
        verified = backend.generate(request, recorded=first)
        plain = msgspec.structs.replace(first, tokens=None)
        regenerated = backend.generate(request, recorded=plain)
    assert (verified.runtime["cached"], regenerated.runtime["cached"]) == (0, 0)
    assert verified.runtime["accepted"] == len(first.tokens.ids) - 1 if first.tokens else False
    assert regenerated.runtime["guessed"] == 0
    assert first.tokens == verified.tokens == regenerated.tokens


def test_layer_digests_leave_other_records_as_they_are() -> None:
    plain = TokenTrace(ids=(1,), texts=("a",), logprobs=b"1234", digests=bytes(32), chain=bytes(32))
    zeros = b"A" * 43 + b"="
    written = b'{"chain":"%b","digests":"%b","ids":[1],"logprobs":"MTIzNA==","texts":["a"]}' % (
        zeros,
        zeros,
    )
    assert canonical(plain) == written
    assert msgspec.json.decode(written, type=TokenTrace) == plain
    traced = msgspec.structs.replace(plain, layers=b"x")
    assert canonical(traced) == written.replace(b',"logprobs"', b',"layers":"eA==","logprobs"')
    assert msgspec.json.decode(canonical(traced), type=TokenTrace) == traced
