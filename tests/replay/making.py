"""Records made by hand: whole calls as the pipeline would write them, with every kind of event."""

from __future__ import annotations

import struct

import blake3

from isonomy.sdk import events as ev
from isonomy.sdk.canonical import canonical, digest_of
from isonomy.sdk.generation import Attempt, Generation, Identity, Sampling, TokenTrace, Usage
from isonomy.sdk.records import (
    CheckIdentity,
    Entry,
    Erased,
    Gap,
    Intent,
    Opening,
    Output,
    Payload,
    RequestContent,
    Result,
    Segment,
    Tombstone,
    header_of,
)
from isonomy.sdk.vocabulary import (
    Allow,
    Block,
    Critique,
    Flag,
    Message,
    Ranking,
    Replace,
    Span,
    Text,
)

START = 1_700_000_000_000_000_000
POLICY = b'{"name":"house rules"}'

CHECKS = tuple(
    CheckIdentity(
        id=name,
        use=use,
        stages=("pre_filter", "post_validate"),
        package="isonomy",
        version="0.1.0",
        order=order,
        settings="sha256:" + "11" * 32,
        code="sha256:" + "22" * 32,
        code_partial=False,
        kind="plugin",
    )
    for order, (name, use) in enumerate([("secrets", "patterns"), ("privacy", "pii")])
)

IDENTITY = Identity(
    provider="local",
    model="demo",
    spec="local:demo",
    deterministic=True,
    artefacts={"model": "sha256:" + "33" * 32, "weights": "blake3:" + "44" * 32},
    numerics={"version": 1, "weights": "bf16"},
    runtime={"isa": "avx2", "threads": 2},
)


def trace(texts: list[str], start: int = 0) -> TokenTrace:
    digests = [blake3.blake3(f"{start} {text}".encode()).digest() for text in texts]
    chain = bytes(32)
    for digest in digests:
        chain = blake3.blake3(chain + digest).digest()
    return TokenTrace(
        ids=tuple(range(100 + start, 100 + start + len(texts))),
        texts=tuple(texts),
        logprobs=b"".join(struct.pack("<f", -0.1 * (at + 1)) for at in range(len(texts))),
        digests=b"".join(digests),
        chain=chain,
    )


def intent(
    call_id: str,
    text: str,
    *,
    at: int = 0,
    session: str = "session-1",
    identity: Identity = IDENTITY,
    events: tuple[ev.Event, ...] | None = None,
    operation: str = "chat",
    resumes: str | None = None,
) -> Entry:
    message = Message.of("user", text)
    if events is None:
        events = (
            ev.Judged(
                sequence=0,
                stage="pre_filter",
                check="secrets",
                target="message/0",
                verdict=Allow(),
                before=digest_of(message),
                duration_ns=1500,
            ),
        )
    return Entry(
        Intent(
            call_id=call_id,
            session=session,
            subject=session,
            wall_ns=START + at * 1_000_000_000,
            monotonic_ns=at * 1_000_000_000,
            host="host-a",
            process=4711,
            operation=operation,
            resumes=resumes,
            actor="ada",
            trace_id="0af7651916cd43dd8448eb211c80319c",
            parent_id=None,
            tags={"team": "support"},
            identity=identity,
            sampling=Sampling(
                temperature=0.7, top_p=0.9, seed=2**64 - 1, max_tokens=32, stop=("\n\n",)
            ),
            policy_name="house rules",
            policy_digest=digest_of({"name": "house rules"}),
            checks=CHECKS,
            versions={"isonomy": "0.1.0", "python": "3.11.7"},
            events=tuple(header_of(event) for event in events),
        ),
        (
            Payload("policy", POLICY, shared=True),
            Payload("message/0", canonical(message)),
            Payload("request", canonical(RequestContent(messages=(0,), admitted=(0,)))),
            Payload("events", canonical(events)),
        ),
    )


def generated(
    texts: list[str], *, sequence: int = 1, candidate: int = 0, start: int = 0, remote: bool = False
) -> ev.Generated:
    return ev.Generated(
        sequence=sequence,
        stage="generate",
        purpose="answer",
        candidate=candidate,
        messages=(0,),
        sampling=Sampling(
            temperature=0.7,
            top_p=0.9,
            seed=2**64 - 1,
            max_tokens=32,
            stop=("\n\n",),
            candidate=candidate,
        ),
        generation=Generation(
            content=(Text("".join(texts)),),
            finish_reason="stop",
            model="demo",
            usage=Usage(12, len(texts)),
            prompt="<user>hi",
            prompt_ids=(1, 2, 3),
            tokens=None if remote else trace(texts, start),
            raw='{"id": "chatcmpl-1"}' if remote else None,
            attempts=(Attempt(number=1, outcome="ok", status=200, duration_ns=5),)
            if remote
            else (),
        ),
        duration_ns=2_000_000,
    )


def result(
    call_id: str,
    texts: list[str],
    *,
    at: int = 1,
    session: str = "session-1",
    blocked: bool = False,
    remote: bool = False,
    first_released_ns: int | None = None,
    token: str | None = None,
) -> Entry:
    text = "".join(texts)
    answer = generated(texts, remote=remote)
    judged = ev.Judged(
        sequence=2,
        stage="post_validate",
        check="privacy",
        target="candidate/0",
        verdict=Block(
            reason="an e-mail address", score=0.75, spans=(Span(0, 3, "email"),), labels=("pii",)
        )
        if blocked
        else Replace(content="[email]", reason="redacted"),
        before=digest_of(text),
        after=None if blocked else digest_of("[email]"),
        duration_ns=900,
    )
    events = (answer, judged)
    return Entry(
        Result(
            call_id=call_id,
            session=session,
            subject=session,
            wall_ns=START + at * 1_000_000_000,
            monotonic_ns=at * 1_000_000_000,
            host="host-a",
            process=4711,
            verdict="block" if blocked else "replace",
            finish_reason=None if blocked else "stop",
            usage=Usage(12, len(texts)),
            rounds=1,
            duration_ns=123_456_789,
            first_released_ns=first_released_ns,
            token=token,
            events=tuple(header_of(event) for event in events),
        ),
        (
            Payload("events", canonical(events)),
            Payload(
                "output",
                canonical(
                    Output(text="I can't say that.", refusal=True)
                    if blocked
                    else Output(text="[email]", content=(Text("[email]"),))
                ),
            ),
        ),
    )


def segments(call_id: str, pieces: list[str], *, session: str = "session-1") -> list[Entry]:
    """The records of pieces that leave as a stream."""
    return [
        Entry(
            Segment(
                call_id=call_id,
                session=session,
                subject=session,
                wall_ns=START + number,
                monotonic_ns=number,
                host="host-a",
                process=4711,
                number=number,
                start=len("".join(pieces[:number])),
            ),
            (Payload("text", canonical(piece)),),
        )
        for number, piece in enumerate(pieces)
    ]


def opening(call_id: str, *, at: int = 0, session: str = "session-1") -> Entry:
    return Entry(
        Opening(
            call_id=call_id,
            session=session,
            subject=session,
            wall_ns=START + at * 1_000_000_000,
            monotonic_ns=at,
            host="host-a",
            process=4711,
            check="secrets",
            effect="lookup",
        )
    )


def tombstone(*, done: bool = False) -> Entry:
    """Content was erased: of records that no log has."""
    return Entry(
        Tombstone(
            call_id="tombstone-1",
            session="tombstone-1",
            subject="tombstone-1",
            wall_ns=START,
            monotonic_ns=0,
            host="host-a",
            process=4711,
            what="subject",
            target="session-9",
            by="office-1",
            reason="request 17",
            done=done,
            erased=(Erased(1 << 40, ("request", "events")),),
            kept=(Erased(1 << 41, ("message/0",)),),
        )
    )


def gap(*, at: int = 0, lost: dict[str, dict[str, int]] | None = None, unnamed: int = 1) -> Entry:
    """Records that were lost in a minute: unless said otherwise two of a call, one of another."""
    since = START + at * 1_000_000_000
    lost = {"lost": {"intent": 1, "result": 1}} if lost is None else lost
    return Entry(
        Gap(
            call_id="gap-1",
            session="",
            subject="",
            wall_ns=since + 60_000_000_000,
            monotonic_ns=at,
            host="host-a",
            process=4711,
            since_ns=since,
            until_ns=since + 60_000_000_000,
            entries=sum(count for kinds in lost.values() for count in kinds.values()) + unnamed,
            calls=len(lost),
            lost=lost,
            unnamed=unnamed,
            reason="the disk is full",
        )
    )


def every_event() -> tuple[ev.Event, ...]:
    """One event of every kind, numbered from 0."""
    digest = digest_of("x")
    return (
        ev.Judged(
            sequence=0,
            stage="pre_filter",
            check="secrets",
            target="message/0",
            verdict=Flag(reason="odd", score=0.5),
            before=digest,
        ),
        ev.Judged(
            sequence=1,
            stage="pre_filter",
            check="privacy",
            target="message/0",
            verdict=None,
            before=digest,
        ),
        ev.Failed(
            sequence=2,
            stage="pre_filter",
            check="privacy",
            target="message/0",
            kind="timeout",
            error="TimeoutError",
            message="no answer in 10 s",
            became="flag",
            before=digest,
            duration_ns=10_000_000_000,
        ),
        ev.Unjudged(sequence=3, stage="post_validate", target="candidate/0"),
        ev.Effect(
            sequence=4,
            stage="pre_filter",
            check="secrets",
            kind="effect",
            name="lookup",
            value={"a": [1, None, "é"]},
        ),
        ev.Critiqued(
            sequence=5,
            stage="critique",
            check="asimov",
            target="candidate/0",
            critiques=(Critique("first law", 0.25, "harm"),),
        ),
        ev.Revised(
            sequence=6,
            stage="revise",
            check="asimov",
            target="candidate/0",
            before=digest,
            after=digest,
            text="better",
        ),
        ev.Ranked(sequence=7, stage="rank", check="asimov", ranking=Ranking((1, 0), (0.5, 0.25))),
        generated(["a", "b"], sequence=8, candidate=1, start=7),
        ev.BackendFailed(
            sequence=9,
            stage="generate",
            purpose="answer",
            candidate=0,
            error="RemoteError",
            message="503",
            attempts=(
                Attempt(
                    number=1,
                    outcome="overloaded",
                    status=429,
                    error="busy",
                    duration_ns=7,
                    wait_ns=9,
                ),
                Attempt(number=1, outcome="failed", status=503, error="é", backend="second"),
            ),
            backend="judge",
        ),
        ev.Decided(
            sequence=10,
            stage="post_validate",
            target="candidate/0",
            decision="edit",
            before=digest,
            after=digest,
            by="grace",
            reason="better so",
        ),
        ev.Scored(
            sequence=11,
            stage="critique",
            check="asimov",
            messages=(0,),
            labels=("yes", "no"),
            logprobs=(-0.25, -1.5),
            backend="judge",
        ),
        ev.Judged(
            sequence=12,
            stage="post_validate",
            check="privacy",
            target="candidate/0",
            verdict=Block(reason="on trial"),
            before=digest,
            shadow=True,
        ),
    )


def call(call_id: str, text: str, texts: list[str], **options: bool | str | int) -> list[Entry]:
    """Both records of a call."""
    session = str(options.get("session", "session-1"))
    at = int(options.get("at", 0))
    return [
        intent(call_id, text, at=at, session=session),
        result(
            call_id,
            texts,
            at=at + 1,
            session=session,
            blocked=bool(options.get("blocked", False)),
            remote=bool(options.get("remote", False)),
        ),
    ]
