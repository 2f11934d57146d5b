"""``isonomy explain``: the whole story of a call, as a timeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .output import json_option, log_directory, log_option, some, write_json

if TYPE_CHECKING:
    from isonomy.replay import StoredCall
    from isonomy.replay.stored import StoredRecord
    from isonomy.sdk.events import Event
    from isonomy.sdk.vocabulary import Ranking

_T = TypeVar("_T")


@click.command("explain")
@click.argument("call", callback=some)
@log_option
@json_option
def explain_command(call: str, log: str | None, as_json: bool) -> None:
    """Tell what happened in CALL (an id, or a unique beginning of one), step by step."""
    from isonomy.replay import ReplayLog, printable

    with ReplayLog(log_directory(log)) as replay_log:
        stored = replay_log.call(call)
    if as_json:
        write_json(as_data(stored))
        return
    for line in timeline(stored):
        click.echo(printable(line))


class Contents:
    """What of a call's payloads can be read, and what can't."""

    def __init__(self, stored: StoredCall) -> None:
        from isonomy.sdk.events import Event
        from isonomy.sdk.records import Output, RequestContent, Segment
        from isonomy.sdk.vocabulary import Message

        self.damage = list(stored.damage)
        self.messages: dict[int, Message] = {}
        events: list[Event] = []
        for record in stored.records:
            for name in record.payloads:
                number = name.removeprefix("message/")
                if number != name and number.isdecimal():
                    message = self._read(record, name, Message)
                    if message is not None:
                        self.messages[int(number)] = message
            events += self._read(record, "events", tuple[Event, ...]) or ()
        self.events = tuple(events)
        intent, result = stored.intent_record, stored.result_record
        self.request = self._read(intent, "request", RequestContent)
        self.output = self._read(result, "output", Output)
        self.pieces = [
            self._read(record, "text", str)
            for record in stored.records
            if isinstance(record.record, Segment)
        ]
        """What left as a stream; `None` where it can't be read."""

    def _read(self, record: StoredRecord | None, name: str, type_: type[_T]) -> _T | None:
        import msgspec

        if record is None:
            return None
        try:
            return record.decode(name, type_)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            problem = f"record {record.sequence}: payload {name} can't be read ({error})"
            if problem not in self.damage:
                self.damage.append(problem)
            return None


def as_data(stored: StoredCall) -> dict[str, Any]:
    """Return the call as plain data; what can't be read is left out, and stands in `damage`."""
    import msgspec

    contents = Contents(stored)
    return {
        "call_id": stored.call_id,
        "status": stored.status,
        "damage": contents.damage,
        "records": [
            {
                "sequence": record.sequence,
                "leaf_hash": record.leaf_hash,
                "erased": list(record.erased),
                "record": msgspec.to_builtins(record.record),
            }
            for record in stored.records
        ],
        "messages": {
            str(number): msgspec.to_builtins(message)
            for number, message in sorted(contents.messages.items())
        },
        "events": [msgspec.to_builtins(event) for event in contents.events],
        "segments": contents.pieces,
        "output": msgspec.to_builtins(contents.output) if contents.output else None,
    }


def timeline(stored: StoredCall) -> Iterator[str]:
    """Yield the lines of a call's story. They hold text of the log: escape them before printing."""
    contents = Contents(stored)
    intent, result, output = stored.intent, stored.result, contents.output
    yield f"call {stored.call_id} ({stored.status})"
    for problem in contents.damage:
        yield f"  DAMAGED  {problem}"
    for record in stored.records:
        if record.erased:
            yield f"  erased   record {record.sequence}: {', '.join(record.erased)}"
        for place in (record.record.masked or ()) if record.record is not None else ():
            yield f"  masked   record {record.sequence}: {place.payload} {place.pointer}"
    if intent is not None:
        where = f"on {intent.host}, process {intent.process}"
        yield f"  when     {_when(intent.wall_ns)} {where}"
        yield f"  session  {intent.session}" + (f", actor {intent.actor}" if intent.actor else "")
        yield f"  model    {intent.identity.spec} ({intent.identity.provider})"
        if "model" in intent.identity.artefacts:
            yield f"           {intent.identity.artefacts['model']}"
        yield f"  policy   {intent.policy_name} {intent.policy_digest}, {len(intent.checks)} checks"
        yield f"  sampling {_sampling(intent.sampling)}"
    yield "timeline"
    request = contents.request
    if request is not None:
        for number in request.messages:
            yield f"  in   {_message(contents, number)}"
        if request.admitted is not None and request.admitted != request.messages:
            for number in request.admitted:
                yield f"  to model  {_message(contents, number)}"
    for event in contents.events:
        yield f"  {event.sequence:>3}  {_tell(event)}"
        for line in _more(event):
            yield f"{'':<37}{line}"
    if contents.pieces:
        count = len(contents.pieces)
        first = result.first_released_ns if result is not None else None
        when = f", the first after {first / 1e6:.2f} ms" if first is not None else ""
        yield f"  left in {count} piece{'s' if count > 1 else ''}{when}"
        if output is None or output.error:
            yield f"  left {_clip(''.join(piece or '' for piece in contents.pieces))}"
    if output is not None:
        if output.error:
            yield f"  error  {output.error}"
        else:
            yield f"  out  {'refusal: ' if output.refusal else ''}{_clip(output.text or '')}"
    if result is not None:
        by = f" by {output.check}" if output and output.check else ""
        why = f": {output.reason}" if output and output.reason else ""
        yield f"verdict {result.verdict}{by}{why}"
    elif intent is not None:
        yield "no result: the process ended before the whole answer was released"


def _when(wall_ns: int) -> str:
    from datetime import UTC, datetime

    try:
        return f"{datetime.fromtimestamp(wall_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{wall_ns} ns, which is no time"


def _message(contents: Contents, number: int) -> str:
    message = contents.messages.get(number)
    if message is None:
        return f"message {number} can't be read"
    return f"{message.role}: {_clip(message.text)}"


def _sampling(sampling: Any) -> str:
    import msgspec

    chosen = msgspec.to_builtins(sampling)
    return ", ".join(f"{k}={v}" for k, v in chosen.items() if v not in (None, [], ()))


def _clip(text: str, width: int = 400) -> str:
    return text if len(text) <= width else f"{text[:width]}… ({len(text)} characters)"


def _tell(event: Event) -> str:
    from isonomy.sdk import events

    shadow = "  [in shadow: changed nothing]" if getattr(event, "shadow", False) else ""
    place = f"{event.stage:<13} {event.check or '':<16}"
    took = f"  [{getattr(event, 'duration_ns', 0) / 1e6:.2f} ms]{shadow}"
    match event:
        case events.Judged(verdict=None):
            return f"{place} abstained on {event.target}{took}"
        case events.Judged(verdict=verdict) if verdict is not None:
            why = getattr(verdict, "reason", "") or getattr(verdict, "feedback", "")
            return f"{place} {verdict.name} {event.target}{f': {why}' if why else ''}{took}"
        case events.Failed():
            what = f"{event.kind}, counts as {event.became}"
            return f"{place} {what}: {event.error}: {event.message}{took}"
        case events.Unjudged():
            return f"{place} no check judged {event.target}: flagged"
        case events.Decided():
            who = f" by {event.by}" if event.by else ""
            why = f": {event.reason}" if event.reason else ""
            return f"{place} a person decided{who}: {event.decision} {event.target}{why}"
        case events.Effect():
            came = (
                f"raised {event.error[0]}: {event.error[1]}" if event.error else f"{event.value!r}"
            )
            return f"{place} took {event.kind} {event.name!r}: {_clip(came, 120)}{took}"
        case events.Critiqued():
            count = f"{len(event.critiques)} critique{'' if len(event.critiques) == 1 else 's'}"
            return f"{place} {count} of {event.target}{took}"
        case events.Revised():
            return f"{place} revised {event.target}{took}"
        case events.Ranked():
            return f"{place} ranked {_order(event.ranking)}{took}"
        case events.Generated():
            g = event.generation
            tries = f", {len(g.attempts)} attempts" if len(g.attempts) > 1 else ""
            steps = f", {len(g.tokens.ids)} token steps" if g.tokens else ""
            which = f" {event.candidate}" if event.purpose == "answer" and event.candidate else ""
            return (
                f"{place} {event.purpose}{which} of {_who(event.backend, g.model)} "
                f"({g.finish_reason}{steps}{tries}): {_clip(g.text)}{took}"
            )
        case events.Scored(logprobs=None):
            return f"{place} {_who(event.backend)} can't tell how likely labels are{took}"
        case events.Scored(logprobs=logprobs) if logprobs is not None:
            pairs = zip(event.labels, logprobs, strict=False)
            told = ", ".join(f"{label!r} {value:.4g}" for label, value in pairs)
            return f"{place} log-probabilities of {_who(event.backend)}: {told}{took}"
        case events.BackendFailed():
            who = _who(event.backend)
            return f"{place} {who} failed: {event.error}: {event.message}{took}"
    return f"{place} {event.type}"


def _more(event: Event) -> Iterator[str]:
    """Yield what stands below the line of an event."""
    from isonomy.sdk import events

    match event:
        case events.Critiqued():
            width = max((len(critique.principle) for critique in event.critiques), default=0)
            for critique in event.critiques:
                why = f"  {_clip(critique.reason)}" if critique.reason else ""
                yield f"{critique.score:.2f}  {critique.principle:<{width}}{why}".rstrip()
        case events.Revised():
            yield f"now: {_clip(event.text)}"


def _who(backend: str | None, model: str = "") -> str:
    if backend is None:
        return model or "the model"
    return f"{backend} ({model})" if model else backend


def _order(ranking: Ranking) -> str:
    scores = [f" ({score:.4g})" for score in ranking.scores] or [""] * len(ranking.order)
    places = zip(ranking.order, scores, strict=False)
    return ", then ".join(f"candidate/{index}{score}" for index, score in places)
