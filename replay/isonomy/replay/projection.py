"""From a record's hashed bytes to the rows that SQL sees.

`project` is the only way from bytes to rows: ingestion stores what it gives, a query adds what it
gives for the journal's tail, and verification compares what is stored with what it gives. It is a
pure function, and total: content of a shape it doesn't know leaves columns NULL, never fails.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from blake3 import blake3

from isonomy.sdk.canonical import canonical
from isonomy.sdk.events import (
    BackendFailed,
    Decided,
    Effect,
    Event,
    Failed,
    Generated,
    Judged,
    Scored,
    Unjudged,
)
from isonomy.sdk.generation import Attempt, Generation, TokenTrace
from isonomy.sdk.records import (
    EventHeader,
    Gap,
    Intent,
    Opening,
    Output,
    RequestContent,
    Result,
    Segment,
    Tombstone,
)
from isonomy.sdk.vocabulary import Message

from .checking import Examined

Row = tuple[Any, ...]
_T = TypeVar("_T")

TABLES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "records": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("kind", "VARCHAR"),
        ("leaf", "VARCHAR"),
        ("leaf_hash", "VARCHAR"),
    ),
    "payloads": (
        ("record", "BIGINT"),
        ("position", "INTEGER"),
        ("name", "VARCHAR"),
        ("commitment", "VARCHAR"),
        ("content", "BIGINT"),
        ("erased", "BOOLEAN"),
    ),
    "openings": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("wall_ns", "BIGINT"),
        ("session", "VARCHAR"),
        ("subject", "VARCHAR"),
        ("host", "VARCHAR"),
        ("process", "BIGINT"),
        ("check_id", "VARCHAR"),
        ("effect", "VARCHAR"),
    ),
    "intents": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("wall_ns", "BIGINT"),
        ("session", "VARCHAR"),
        ("subject", "VARCHAR"),
        ("actor", "VARCHAR"),
        ("operation", "VARCHAR"),
        ("resumes", "VARCHAR"),
        ("trace_id", "VARCHAR"),
        ("parent_id", "VARCHAR"),
        ("tags", "VARCHAR"),
        ("host", "VARCHAR"),
        ("process", "BIGINT"),
        ("provider", "VARCHAR"),
        ("model", "VARCHAR"),
        ("spec", "VARCHAR"),
        ("deterministic", "BOOLEAN"),
        ("artefacts", "VARCHAR"),
        ("numerics", "VARCHAR"),
        ("runtime", "VARCHAR"),
        ("model_digest", "VARCHAR"),
        ("numerics_version", "VARCHAR"),
        ("policy_name", "VARCHAR"),
        ("policy_digest", "VARCHAR"),
        ("backends", "VARCHAR"),
        ("versions", "VARCHAR"),
        ("input", "VARCHAR"),
    ),
    "checks": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("position", "INTEGER"),
        ("check_id", "VARCHAR"),
        ("plugin", "VARCHAR"),
        ("stages", "VARCHAR[]"),
        ("package", "VARCHAR"),
        ("version", "VARCHAR"),
        ("settings", "VARCHAR"),
        ("code", "VARCHAR"),
        ("code_partial", "BOOLEAN"),
        ("kind", "VARCHAR"),
    ),
    "results": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("wall_ns", "BIGINT"),
        ("verdict", "VARCHAR"),
        ("finish_reason", "VARCHAR"),
        ("input_tokens", "BIGINT"),
        ("output_tokens", "BIGINT"),
        ("rounds", "BIGINT"),
        ("duration_ns", "BIGINT"),
        ("first_released_ns", "BIGINT"),
        ("stalled", "VARCHAR"),
        ("token", "VARCHAR"),
        ("error", "VARCHAR"),
        ("error_message", "VARCHAR"),
        ("output", "VARCHAR"),
        ("refusal", "BOOLEAN"),
        ("decided_by", "VARCHAR"),
        ("reason", "VARCHAR"),
    ),
    "segments": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("wall_ns", "BIGINT"),
        ("number", "BIGINT"),
        ("start", "BIGINT"),
        ("text", "VARCHAR"),
    ),
    "events": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("sequence", "BIGINT"),
        ("type", "VARCHAR"),
        ("stage", "VARCHAR"),
        ("check_id", "VARCHAR"),
        ("target", "VARCHAR"),
        ("round", "BIGINT"),
        ("verdict", "VARCHAR"),
        ("shadow", "BOOLEAN"),
        ("reason", "VARCHAR"),
        ("score", "DOUBLE"),
        ("labels", "VARCHAR[]"),
        ("before", "VARCHAR"),
        ("after", "VARCHAR"),
        ("name", "VARCHAR"),
        ("decision", "VARCHAR"),
        ("decided_by", "VARCHAR"),
        ("backend", "VARCHAR"),
        ("failure", "VARCHAR"),
        ("error", "VARCHAR"),
        ("error_message", "VARCHAR"),
        ("duration_ns", "BIGINT"),
        ("content", "VARCHAR"),
    ),
    "generations": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("sequence", "BIGINT"),
        ("purpose", "VARCHAR"),
        ("candidate", "BIGINT"),
        ("round", "BIGINT"),
        ("backend", "VARCHAR"),
        ("model", "VARCHAR"),
        ("response_format", "VARCHAR"),
        ("temperature", "DOUBLE"),
        ("top_p", "DOUBLE"),
        ("top_k", "BIGINT"),
        ("min_p", "DOUBLE"),
        ("repetition_penalty", "DOUBLE"),
        ("max_tokens", "BIGINT"),
        ("stop", "VARCHAR[]"),
        ("seed", "UBIGINT"),
        ("text", "VARCHAR"),
        ("finish_reason", "VARCHAR"),
        ("input_tokens", "BIGINT"),
        ("output_tokens", "BIGINT"),
        ("prompt", "VARCHAR"),
        ("prompt_ids", "BIGINT[]"),
        ("raw", "VARCHAR"),
        ("attempts", "INTEGER"),
        ("duration_ns", "BIGINT"),
        ("chain", "BLOB"),
        ("token_ids", "BIGINT[]"),
        ("token_texts", "VARCHAR[]"),
        ("token_logprobs", "FLOAT[]"),
        ("token_digests", "BLOB"),
        ("token_chains", "BLOB"),
    ),
    "attempts": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("sequence", "BIGINT"),
        ("position", "INTEGER"),
        ("number", "BIGINT"),
        ("backend", "VARCHAR"),
        ("outcome", "VARCHAR"),
        ("status", "BIGINT"),
        ("error", "VARCHAR"),
        ("duration_ns", "BIGINT"),
        ("wait_ns", "BIGINT"),
    ),
    "gaps": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("since_ns", "BIGINT"),
        ("until_ns", "BIGINT"),
        ("entries", "BIGINT"),
        ("calls", "BIGINT"),
        ("lost", "VARCHAR"),
        ("unnamed", "BIGINT"),
        ("reason", "VARCHAR"),
        ("host", "VARCHAR"),
        ("process", "BIGINT"),
    ),
    "masked": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("position", "INTEGER"),
        ("payload", "VARCHAR"),
        ("pointer", "VARCHAR"),
    ),
    "tombstones": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("wall_ns", "BIGINT"),
        ("what", "VARCHAR"),
        ("target", "VARCHAR"),
        ("erased_by", "VARCHAR"),
        ("reason", "VARCHAR"),
        ("done", "BOOLEAN"),
        ("erased", "VARCHAR"),
        ("kept", "VARCHAR"),
    ),
    "damaged": (
        ("record", "BIGINT"),
        ("call_id", "VARCHAR"),
        ("problem", "VARCHAR"),
    ),
}
"""Base tables of the DuckDB log (schema `stored`) that hold a record's rows: columns and types."""

CONTENTS: Final = (("content", "BIGINT"), ("body", "BLOB"))
"""The base table `contents`: every distinct body once, as hashed, under its row in the journal."""

Projection = dict[str, list[Row]]


def empty() -> Projection:
    """Return a projection without rows."""
    return {name: [] for name in TABLES}


def project(examined: Examined, rows: Projection) -> None:
    """Append the rows of a record to `rows`. A damaged record gives one row in `damaged` only."""
    number = examined.raw.sequence
    record = examined.record
    if examined.problems or record is None:
        rows["damaged"].append((number, examined.call_id, "; ".join(examined.problems)))
        return
    call = record.call_id
    rows["records"].append(
        (number, call, examined.raw.kind, examined.raw.leaf.decode(), examined.raw.leaf_hash.hex())
    )
    rows["payloads"].extend(
        (
            number,
            position,
            name,
            commitment,
            examined.contents.get(name),
            name in examined.erased,
        )
        for position, (name, commitment) in enumerate(examined.commitments)
    )
    match record:
        case Opening():
            rows["openings"].append(
                (
                    number,
                    call,
                    _big(record.wall_ns),
                    record.session,
                    record.subject,
                    record.host,
                    _big(record.process),
                    record.check,
                    record.effect,
                )
            )
        case Intent():
            _intent(number, record, examined.payloads, rows)
        case Segment():
            rows["segments"].append(
                (
                    number,
                    call,
                    _big(record.wall_ns),
                    _big(record.number),
                    _big(record.start),
                    _decode(examined.payloads.get("text"), str),
                )
            )
        case Result():
            _result(number, record, examined.payloads, rows)
        case Tombstone():
            rows["tombstones"].append(
                (
                    number,
                    call,
                    _big(record.wall_ns),
                    record.what,
                    record.target,
                    record.by,
                    record.reason,
                    record.done,
                    _json(record.erased),
                    _json(record.kept),
                )
            )
        case Gap():
            rows["gaps"].append(
                (
                    number,
                    call,
                    _big(record.since_ns),
                    _big(record.until_ns),
                    _big(record.entries),
                    _big(record.calls),
                    _json(record.lost),
                    _big(record.unnamed),
                    record.reason,
                    record.host,
                    _big(record.process),
                )
            )
    rows["masked"].extend(
        (number, call, place, each.payload, each.pointer)
        for place, each in enumerate(record.masked or ())
    )
    if "events" in examined.erased and isinstance(record, Intent | Result):
        rows["events"].extend(_header(number, call, header) for header in record.events)
    body = examined.payloads.get("events")
    exact = _decode(body, list[msgspec.Raw]) or ()
    for event, text in zip(_decode(body, tuple[Event, ...]) or (), exact, strict=False):
        rows["events"].append(_event(number, call, event, bytes(text).decode()))
        if isinstance(event, Generated):
            rows["generations"].append(_generation(number, call, event))
            _attempts(number, call, event, event.generation.attempts, rows)
        elif isinstance(event, BackendFailed):
            _attempts(number, call, event, event.attempts, rows)


def chain_of(digests: bytes) -> list[bytes]:
    """Return the running chain after each step: BLAKE3(previous || digest), from 32 zero bytes."""
    chain = bytes(32)
    chains = []
    for at in range(0, len(digests) - 31, 32):
        chain = blake3(chain + digests[at : at + 32]).digest()
        chains.append(chain)
    return chains


def _intent(number: int, record: Intent, payloads: dict[str, bytes], rows: Projection) -> None:
    identity = record.identity
    version = identity.numerics.get("version", identity.numerics.get("numerics_version"))
    rows["intents"].append(
        (
            number,
            record.call_id,
            _big(record.wall_ns),
            record.session,
            record.subject,
            record.actor,
            record.operation,
            record.resumes,
            record.trace_id,
            record.parent_id,
            _json(record.tags),
            record.host,
            _big(record.process),
            identity.provider,
            identity.model,
            identity.spec,
            identity.deterministic,
            _json(identity.artefacts),
            _json(identity.numerics),
            _json(identity.runtime),
            identity.artefacts.get("model"),
            None if version is None else str(version),
            record.policy_name,
            record.policy_digest,
            _json(record.backends),
            _json(record.versions),
            _input(payloads),
        )
    )
    rows["checks"].extend(
        (
            number,
            record.call_id,
            check.order,
            check.id,
            check.use,
            list(check.stages),
            check.package,
            check.version,
            check.settings,
            check.code,
            check.code_partial,
            check.kind,
        )
        for check in record.checks
    )


def _input(payloads: dict[str, bytes]) -> str | None:
    """Return the text of the last user message as the caller passed it."""
    request = _decode(payloads.get("request"), RequestContent)
    for message_number in reversed(request.messages if request else ()):
        message = _decode(payloads.get(f"message/{message_number}"), Message)
        if message is not None and message.role == "user":
            return message.text
    return None


def _result(number: int, record: Result, payloads: dict[str, bytes], rows: Projection) -> None:
    output = _decode(payloads.get("output"), Output) or Output(text=None)
    rows["results"].append(
        (
            number,
            record.call_id,
            _big(record.wall_ns),
            record.verdict,
            record.finish_reason,
            _big(record.usage.input_tokens),
            _big(record.usage.output_tokens),
            _big(record.rounds),
            _big(record.duration_ns),
            _big(record.first_released_ns),
            _json(record.stalled) if record.stalled else None,
            record.token,
            record.error,
            output.error,
            output.text,
            output.refusal,
            output.check,
            output.reason,
        )
    )


def _event(number: int, call: str, event: Event, text: str) -> Row:
    verdict = reason = score = failure = error = message = None
    decision = by = None
    labels: list[str] | None = None
    match event:
        case Judged() if event.verdict is not None:
            verdict = event.verdict.name
            score = event.verdict.score
            labels = list(event.verdict.labels)
            reason = getattr(event.verdict, "reason", getattr(event.verdict, "feedback", None))
        case Failed():
            verdict, failure = event.became, event.kind
            error, message = event.error, event.message
        case Unjudged():
            verdict = "flag"
        case Effect() if event.error is not None:
            error, message = event.error
        case BackendFailed():
            error, message = event.error, event.message
        case Decided():
            decision, by, reason = event.decision, event.by, event.reason
        case Scored():
            labels = list(event.labels)
    return (
        number,
        call,
        _big(event.sequence),
        event.type,
        event.stage,
        event.check,
        getattr(event, "target", None),
        _big(event.round),
        verdict,
        getattr(event, "shadow", None),
        reason,
        score,
        labels,
        getattr(event, "before", None),
        getattr(event, "after", None),
        event.name if isinstance(event, Effect) else None,
        decision,
        by,
        getattr(event, "backend", None),
        failure,
        error,
        message,
        _big(getattr(event, "duration_ns", None)),
        None if isinstance(event, Generated) else text,
    )


def _header(number: int, call: str, header: EventHeader) -> Row:
    """Return the row of an event whose content was erased."""
    told = {
        "record": number,
        "call_id": call,
        "sequence": _big(header.sequence),
        "type": header.type,
        "stage": header.stage,
        "check_id": header.check,
        "round": _big(header.round),
        "verdict": header.verdict,
        "duration_ns": _big(header.duration_ns),
    }
    return tuple(told.get(name) for name, _ in TABLES["events"])


def _generation(number: int, call: str, event: Generated) -> Row:
    sampling, generation = event.sampling, event.generation
    return (
        number,
        call,
        _big(event.sequence),
        event.purpose,
        _big(event.candidate),
        _big(event.round),
        event.backend,
        generation.model,
        None if event.response_format is None else _json(event.response_format),
        sampling.temperature,
        sampling.top_p,
        _big(sampling.top_k),
        sampling.min_p,
        sampling.repetition_penalty,
        _big(sampling.max_tokens),
        list(sampling.stop),
        sampling.seed if sampling.seed is not None and 0 <= sampling.seed < 1 << 64 else None,
        generation.text,
        generation.finish_reason,
        _big(generation.usage.input_tokens),
        _big(generation.usage.output_tokens),
        generation.prompt,
        None if generation.prompt_ids is None else [_big(each) for each in generation.prompt_ids],
        generation.raw,
        len(generation.attempts),
        _big(event.duration_ns),
        *_tokens(generation),
    )


def _attempts(
    number: int, call: str, event: Event, attempts: tuple[Attempt, ...], rows: Projection
) -> None:
    rows["attempts"].extend(
        (
            number,
            call,
            _big(event.sequence),
            position,
            _big(attempt.number),
            attempt.backend,
            attempt.outcome,
            _big(attempt.status),
            attempt.error,
            _big(attempt.duration_ns),
            _big(attempt.wait_ns),
        )
        for position, attempt in enumerate(attempts)
    )


def _tokens(generation: Generation) -> Row:
    trace: TokenTrace | None = generation.tokens
    if trace is None:
        return (None,) * 6
    count = len(trace.ids)
    logprobs = trace.logprobs[: len(trace.logprobs) // 4 * 4]
    return (
        trace.chain,
        [_big(each) for each in trace.ids],
        _fitted(list(trace.texts), count),
        _fitted(list(struct.unpack(f"<{len(logprobs) // 4}f", logprobs)), count),
        trace.digests,
        b"".join(chain_of(trace.digests)),
    )


def _fitted(values: list[Any], count: int) -> list[Any]:
    """Return `values` cut or filled with `None` to `count` entries."""
    return (values + [None] * count)[:count]


def _big(number: int | None) -> int | None:
    """Return `number` if a BIGINT holds it."""
    return number if number is not None and -(1 << 63) <= number < 1 << 63 else None


def _json(value: Any) -> str:
    return canonical(value).decode()


def _decode(body: bytes | None, type: type[_T]) -> _T | None:
    if body is None:
        return None
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
