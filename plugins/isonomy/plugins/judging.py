"""From a judge of one text to the verdict of a stage.

Every built-in check judges text, at the input and at the output alike; this module is the one place
that knows which texts those are and how several verdicts become one. Invariants:

- At the input, every message but system messages is judged: its text parts joined (so that nothing
  hides by being split over two parts), and each tool result, reasoning and piece of structured data
  by itself; of an answer likewise. Images and the arguments of tool calls are not text and are not
  judged here.
- The strongest verdict decides (`SEVERITY`); spans and labels of the others stay. The first `Block`
  ends the search.
- Spans count characters of the judged text. Where several messages are judged, a span's label says
  which one: ``message/2 email``, and ``message/2 result email`` in a tool result. Structured data
  is judged as canonical JSON; where what is put in makes it no JSON, it is blocked.
- There is no answer to try again at the input, so `Retry` becomes `Block` there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from isonomy.sdk.canonical import canonical
from isonomy.sdk.vocabulary import (
    SEVERITY,
    Allow,
    Block,
    Candidate,
    Json,
    Message,
    Part,
    Reasoning,
    Replace,
    Retry,
    Span,
    Text,
    ToolResult,
    Verdict,
)

Judge = Callable[[str], Verdict]
Put = Callable[[Message, str], Message]
ALLOW = Allow(score=0.0)
MAX_SPANS = 256
"""A verdict names at most this many places: evidence must not outgrow the text it is about."""


def judge_messages(judge: Judge, messages: tuple[Message, ...]) -> Verdict | None:
    """Judge all non-system messages and return one verdict.

    Args:
        judge: verdict of one text; its `Replace` holds the new text.
        messages: the messages as they stand.

    Returns:
        `None` where there is no text but the system's; otherwise the strongest verdict.
        `Replace` holds all messages.
    """
    found: list[Verdict] = []
    new = list(messages)
    asked = False
    for index, message in enumerate(messages):
        if message.role == "system":
            continue
        parts = message.content
        if len(parts) == 1 and isinstance(parts[0], Text):  # as most are
            asked = True
            verdict = judge(parts[0].text)
            if verdict is ALLOW:
                continue
            if isinstance(verdict, Replace):
                new[index] = message.with_text(str(verdict.content))
            found.append(_placed(verdict, f"message/{index}"))
            if isinstance(found[-1], Block):
                return found[-1]
            continue
        for place, text, put in _texts(message):
            asked = True
            verdict = judge(text)
            if verdict is ALLOW:
                continue
            if isinstance(verdict, Replace):
                changed = _put_in(put, new[index], str(verdict.content))
                if changed is None:
                    verdict = _unreplaceable(verdict)
                else:
                    new[index] = changed
            found.append(_placed(verdict, f"message/{index}{place}"))
            if isinstance(found[-1], Block):
                return found[-1]
    if not asked:
        return None
    if not found:
        return ALLOW
    return _strongest(found, tuple(new))


def judge_answer(judge: Judge, candidate: Candidate) -> Verdict | None:
    """Judge an answer: its text, and what else of it is text.

    Args:
        judge: verdict of one text; its `Replace` holds the new text.
        candidate: the answer as it stands.

    Returns:
        `None` where there is nothing to judge; otherwise the strongest verdict. `Replace` holds the
        new text where only the text changed, and else all parts.
    """
    parts = candidate.content
    if len(parts) == 1 and isinstance(parts[0], Text):
        return judge(parts[0].text)
    found: list[Verdict] = []
    new = Message("assistant", parts)
    other = False
    texts = list(_texts(new))
    if not texts:
        return None
    for place, text, put in texts:
        verdict = judge(text)
        if verdict is ALLOW:
            continue
        if isinstance(verdict, Replace):
            changed = _put_in(put, new, str(verdict.content))
            if changed is None:
                verdict = _unreplaceable(verdict)
            else:
                new, other = changed, other or bool(place)
        found.append(_named(verdict, place.strip()) if place else verdict)
        if isinstance(verdict, Block):
            return found[-1]
    if not found:
        return ALLOW
    return _strongest(found, new.content if other else new.text)


def _texts(message: Message) -> Iterator[tuple[str, str, Put]]:
    """Give the judged texts of a message: the place, the text, how to put in a new one."""
    parts = message.content
    # A message of an image or a tool call alone has no text, which is not the same as an empty one.
    if not parts or any(isinstance(part, Text) for part in parts):
        yield "", message.text, Message.with_text
    for part in parts:
        if isinstance(part, ToolResult):
            yield " result", part.content, _putting(part, partial(ToolResult, part.id))
        elif isinstance(part, Reasoning):
            yield " reasoning", part.text, _putting(part, Reasoning)
        elif isinstance(part, Json):
            text = canonical(part.value).decode()
            yield " data", text, _putting(part, lambda new: Json(msgspec.json.decode(new)))


def _putting(part: Part, make: Callable[[str], Part]) -> Put:
    def put(old: Message, text: str) -> Message:
        # Found by identity: replacing the text may have moved the other parts.
        new = make(text)
        return Message(old.role, tuple(new if other is part else other for other in old.content))

    return put


def _put_in(put: Put, message: Message, text: str) -> Message | None:
    try:
        return put(message, text)
    except msgspec.DecodeError:
        return None


def _unreplaceable(verdict: Replace) -> Block:
    reason = f"{verdict.reason or 'it was replaced'}, which leaves no JSON"
    return Block(reason, score=verdict.score, spans=verdict.spans, labels=verdict.labels)


def _named(verdict: Verdict, place: str) -> Verdict:
    """Return an answer's verdict with the place in its spans."""
    spans = tuple(Span(s.start, s.end, f"{place} {s.label}") for s in verdict.spans)
    return msgspec.structs.replace(verdict, spans=spans)


def _placed(verdict: Verdict, place: str) -> Verdict:
    spans = tuple(Span(s.start, s.end, f"{place} {s.label}") for s in verdict.spans)
    if isinstance(verdict, Retry):
        return Block(
            f"{place}: {verdict.feedback}", score=verdict.score, spans=spans, labels=verdict.labels
        )
    if isinstance(verdict, Allow):
        return msgspec.structs.replace(verdict, spans=spans)
    return msgspec.structs.replace(verdict, spans=spans, reason=f"{place}: {verdict.reason}")


def _strongest(found: list[Verdict], content: str | tuple[Message | Part, ...]) -> Verdict:
    strongest = max(found, key=lambda verdict: SEVERITY[verdict.name])  # the first of equals
    spans = tuple(span for verdict in found for span in verdict.spans)[:MAX_SPANS]
    labels = tuple(dict.fromkeys(label for verdict in found for label in verdict.labels))
    score = max((v.score for v in found if v.score is not None), default=None)
    changes = {"spans": spans, "labels": labels, "score": score}
    if isinstance(strongest, Replace):
        reasons = "; ".join(v.reason for v in found if isinstance(v, Replace) and v.reason)
        return Replace(content, reason=reasons, spans=spans, labels=labels, score=score)
    return msgspec.structs.replace(strongest, **changes)
