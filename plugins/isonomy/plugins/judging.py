"""From a judge of one text to the verdict of a stage.

Every built-in check judges text, at the input and at the output alike; this module is the one place
that knows which texts those are and how several verdicts become one. Invariants:

- At the input, every message but system messages is judged: its text parts joined (so that nothing
  hides by being split over two parts), and each tool result by itself. Images and the arguments of
  tool calls are not text and are not judged here.
- The strongest verdict decides (`SEVERITY`); spans and labels of the others stay. The first `Block`
  ends the search.
- Spans count characters of the judged text. Where several messages are judged, a span's label says
  which one: ``message/2 email``, and ``message/2 result email`` in a tool result.
- There is no answer to try again at the input, so `Retry` becomes `Block` there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from isonomy.sdk.vocabulary import (
    SEVERITY,
    Allow,
    Block,
    Message,
    Part,
    Replace,
    Retry,
    Span,
    Text,
    ToolResult,
    Verdict,
)

Judge = Callable[[str], Verdict]
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
        for place, text, put in _texts(message):
            asked = True
            verdict = judge(text)
            if verdict is ALLOW:
                continue
            if isinstance(verdict, Replace):
                new[index] = put(new[index], str(verdict.content))
            found.append(_placed(verdict, f"message/{index}{place}"))
            if isinstance(found[-1], Block):
                return found[-1]
    if not asked:
        return None
    if not found:
        return ALLOW
    return _strongest(found, tuple(new))


def _texts(message: Message) -> Iterator[tuple[str, str, Callable[[Message, str], Message]]]:
    """Give the judged texts of a message: the place, the text, how to put in a new one."""
    results = [i for i, part in enumerate(message.content) if isinstance(part, ToolResult)]
    # A message of an image or a tool call alone has no text, which is not the same as an empty one.
    if not message.content or any(isinstance(part, Text) for part in message.content):
        yield "", message.text, Message.with_text
    for i in results:
        part = message.content[i]
        assert isinstance(part, ToolResult)

        def put(old: Message, text: str, part: ToolResult = part) -> Message:
            # Found by identity: replacing the text may have moved the other parts.
            content: tuple[Part, ...] = tuple(
                ToolResult(part.id, text) if other is part else other for other in old.content
            )
            return Message(old.role, content)

        yield " result", part.content, put


def _placed(verdict: Verdict, place: str) -> Verdict:
    spans = tuple(Span(s.start, s.end, f"{place} {s.label}") for s in verdict.spans)
    if isinstance(verdict, Retry):
        return Block(
            f"{place}: {verdict.feedback}", score=verdict.score, spans=spans, labels=verdict.labels
        )
    if isinstance(verdict, Allow):
        return msgspec.structs.replace(verdict, spans=spans)
    return msgspec.structs.replace(verdict, spans=spans, reason=f"{place}: {verdict.reason}")


def _strongest(found: list[Verdict], messages: tuple[Message, ...]) -> Verdict:
    strongest = max(found, key=lambda verdict: SEVERITY[verdict.name])  # the first of equals
    spans = tuple(span for verdict in found for span in verdict.spans)[:MAX_SPANS]
    labels = tuple(dict.fromkeys(label for verdict in found for label in verdict.labels))
    score = max((v.score for v in found if v.score is not None), default=None)
    changes = {"spans": spans, "labels": labels, "score": score}
    if isinstance(strongest, Replace):
        reasons = "; ".join(v.reason for v in found if isinstance(v, Replace) and v.reason)
        return Replace(messages, reason=reasons, spans=spans, labels=labels, score=score)
    return msgspec.structs.replace(strongest, **changes)
