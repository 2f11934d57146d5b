"""Whether the lookback that a check declares is enough, wherever an answer is cut.

For a text t cut at any n: what the check makes of ``t[:n]``, without the last `lookback`
characters, is a beginning of what it makes of every longer text. And what it let pass is not the
cause of a later objection: where it lets ``t[:n]`` pass and objects to ``t[:n + 1]``, it objects to
something within the last `lookback` characters. That is tried by putting other letters in the place
of what was released by then: an objection that disappears came too late.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from ..events import Effect, Generated
from ..performing import Reply
from .asking import Panel, Question, told
from .conformance import Case, Held, Outcome, shrunk

_LONGEST = 200
"""Longer texts are cut here: every cut of them is asked about."""
_FILLINGS = ("x", ".", "\u00e9")
_PIECES = (1, 3, 7, 1000)
_AWAITED = 3
"""The size of pieces in which async callers are tried, too."""


def streams(case: Case) -> Held:
    """Its declared lookback is enough; streams end as `chat` does."""
    check = case.subject.check
    if "post_validate" not in check.stages:
        return Outcome("streams", "skipped", "it does not judge answers.")
    texts = [text[:_LONGEST] for text in (*case.texts, *case.hostile.values()) if text]
    with Panel(case.subject.fresh(), case.world) as panel:
        lookback = check.lookback
        if isinstance(lookback, int):
            for text in texts:
                found = _cuts(panel, text, lookback)
                if found is not None:
                    small = shrunk(text, lambda t: _cuts(panel, t, lookback) is not None, tries=60)
                    said = _cuts(panel, small, lookback) or found
                    return Outcome("streams", "failed", said, small)
        for text in texts[:12]:
            for piece in _PIECES:
                found = _streamed(panel, text, piece)
                if found is not None:
                    return Outcome("streams", "failed", found, text)
    return None


def _cuts(panel: Panel, text: str, lookback: int) -> str | None:
    """Return what is wrong at some cut of a text."""
    whole = [_made(panel, text[:end]) for end in range(len(text) + 1)]
    reply = panel.reply(Question("post_validate", text))
    if any(isinstance(e, Effect | Generated) and e.check is not None for e in reply.events):
        return (
            f"it declares a lookback of {lookback} characters and uses its context. A check that "
            "acts in mid-stream is a function of the text alone."
        )
    for end, made in enumerate(whole):
        if made is None:
            continue
        sure = made[: max(len(made) - lookback, 0)]
        for later, other in enumerate(whole[end + 1 :], end + 1):
            if other is not None and not other.startswith(sure):
                return (
                    f"it declares a lookback of {lookback} characters, but of the first {end} "
                    f"characters it makes {made!r}, and of the first {later} {other!r}, which does "
                    f"not begin with {sure!r}: that was released already. Declare a greater "
                    'lookback, or "all".'
                )
        if end < len(text) and whole[end + 1] is None:
            found = _too_late(panel, text, end, lookback)
            if found is not None:
                return found
    return None


def _too_late(panel: Panel, text: str, end: int, lookback: int) -> str | None:
    """Return what is wrong if the objection to ``text[:end + 1]`` came too late."""
    released = max(end - lookback, 0)
    if not released:
        return None
    for filling in _FILLINGS:
        filled = "".join(letter if letter.isspace() else filling for letter in text[:released])
        if _made(panel, filled + text[released : end + 1]) is None:
            return None  # it objects to what was not released yet
    return (
        f"it declares a lookback of {lookback} characters, lets {text[:end]!r} pass and objects to "
        f"{text[: end + 1]!r} because of what stands in the first {released} characters, which "
        'were released by then. Declare a greater lookback, or "all".'
    )


def _made(panel: Panel, text: str) -> str | None:
    """Return what the check makes of an answer; `None` where it objects or fails."""
    reply = panel.reply(Question("post_validate", text))
    return None if reply.verdict in ("block", "retry", "ask_human") else reply.text


def _streamed(panel: Panel, text: str, piece: int) -> str | None:
    """Return what is wrong with a streamed answer: it ends as `chat` does, awaited too."""
    messages, options = panel.given(Question("post_validate", text))
    guard = panel.guard("post_validate", piece)
    chatted = guard.chat(messages, **options)

    async def read() -> tuple[str, Reply]:
        async with guard.astream(messages, **options) as stream:
            return "".join([piece async for piece in stream]), stream.reply

    with guard.stream(messages, **options) as stream:
        ways = [("stream", "".join(stream), stream.reply)]
    if piece == _AWAITED:
        with ThreadPoolExecutor(1) as pool:  # the test's own thread may have a running loop
            ways.append(("astream", *pool.submit(asyncio.run, read()).result()))
    for way, streamed, reply in ways:
        if streamed != chatted.text:
            return (
                f"by {way}, in pieces of {piece} characters, the answer is {streamed!r}, and from "
                f"chat it is {chatted.text!r}."
            )
        if told(reply) != told(chatted):
            return f"by {way}, in pieces of {piece} characters, the verdicts differ from chat's."
    return None
