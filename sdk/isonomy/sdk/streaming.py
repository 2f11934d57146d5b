"""What of an answer may leave before the whole of it is judged.

A stream holds text back until it is judged. At boundaries (`boundaries`: 32 characters, then wider
and wider) the checks that may act in mid-stream are asked about the beginning of the answer up to
there, in the policy's order; what their declared lookback leaves of it may leave the guard. Nothing
here does I/O, keeps time or records: what may leave is a function of the answer's text and of the
policy, however the text was cut into pieces. So a call that is not streamed can compute it
afterwards, and does where a stream would have given a part of the answer before a refusal.

Invariants: `Prefix.text` only ever grows; a check that gives anything but its consent or a
replacement at a boundary, or fails there, ends its growth; of what a check was asked about, the
last `lookback` characters do not leave before it is asked again with more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Literal, Protocol

from .policy import Policy
from .vocabulary import Stage

STEP = 32
"""Characters from one boundary to the next, at least, and before the first."""
_WIDENING = 16
"""A boundary is followed after a 16th of its distance from the beginning: the checks read each
character some 16 times at most, however long the answer is, once it is past 512."""
_JUDGING: tuple[Stage, ...] = ("critique", "revise", "rank", "post_validate")


class Reader(Protocol):
    """What `Prefix` needs to know of a check; its `lookback` is a number."""

    @property
    def id(self) -> str:
        """Its unique name."""
        ...

    @property
    def lookback(self) -> int | Literal["all"]:
        """How many characters at the end of its output may still change."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether it never replaces."""
        ...


Ask = Callable[[Reader, str], Awaitable[str | None]]
"""Asks a check about the beginning of an answer; gives what the check makes of it (the same text,
where it lets it pass), or `None` where it objects or fails."""


def boundaries() -> Iterator[int]:
    """Give the places in an answer's text, in characters, at which checks are asked."""
    at = STEP
    while True:
        yield at
        at += max(STEP, at // _WIDENING)


def readers(policy: Policy, *, tools: bool) -> tuple[Reader, ...] | None:
    """Return the checks that are asked in mid-stream, or `None` where the policy holds all back.

    It does where there are several candidates, or where a check that has a say about the answer
    wants all of it (`lookback="all"`). Checks on trial (`shadow`) have no say.

    Args:
        policy: the call's.
        tools: whether the model was offered tools, so that the checks of tool calls have a say.
    """
    if policy.candidates > 1:
        return None
    stages: tuple[Stage, ...] = (*_JUDGING, "tool_call") if tools else _JUDGING
    for stage in stages:
        for check in policy.at(stage):
            if not check.shadow and check.lookback == "all":
                return None
    return tuple(check for check in policy.at("post_validate") if not check.shadow)


class Prefix:
    """The beginning of one answer that may leave, as the answer's text comes.

    Args:
        checks: asked in this order; none, where nothing judges an answer.
        ask: see `Ask`.
        passes: how often a check may be asked at one boundary, since a later one replaced what it
            had judged; a text that is not settled then does not leave.
        until: no check is asked about more characters than that, and nothing more leaves.
    """

    def __init__(
        self, checks: Sequence[Reader], ask: Ask, *, passes: int, until: int | None = None
    ) -> None:
        self.text = ""
        self.held = False
        """Whether nothing more leaves before the whole is judged."""
        self._checks = checks
        self._ask = ask
        self._passes = passes
        self._pieces: list[str] = []
        self._length = 0
        self._boundaries = boundaries()
        self._next = next(self._boundaries)
        self._until = until

    @property
    def asked_at(self) -> int:
        """How many characters of the answer checks are being asked about."""
        return self._next

    async def feed(self, piece: str) -> None:
        """Take the next piece of the answer; `text` is then what may leave."""
        self._pieces.append(piece)
        self._length += len(piece)
        if self.held or self._length < self._next:
            return
        answer = "".join(self._pieces)
        self._pieces = [answer]
        while self._next <= self._length and not self.held:
            if self._until is not None and self._next > self._until:
                self.held = True
                return
            await self._grow(answer[: self._next])
            self._next = next(self._boundaries)

    @property
    def taken(self) -> str:
        """The answer so far."""
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]

    async def _grow(self, beginning: str) -> None:
        stable = await self._stable(beginning) if _carriable(beginning) else None
        if stable is None:
            self.held = True
        elif stable.startswith(self.text):
            self.text = stable
        elif not self.text.startswith(stable):  # a check went back on what it had let go
            self.held = True

    async def _stable(self, content: str) -> str | None:
        """Return what of a beginning stays as it is, whatever comes after it; `None`: nothing."""
        settled: dict[str, str] = {}
        for _ in range(self._passes):
            bound = len(content)
            for check in self._checks:
                if settled.get(check.id, "").startswith(content) and check.id in settled:
                    continue
                if not check.read_only:
                    # It may change the length: count on from what is certain until here.
                    content = content[:bound]
                made = await self._ask(check, content)
                if made is None or (check.read_only and made != content):
                    return None
                end = max(len(made) - _counted(check), 0)
                settled[check.id] = made[:end]
                if check.read_only:
                    bound = min(bound, end)
                else:
                    content, bound = made[:end], end
            content = content[:bound]
            if all(settled[check.id].startswith(content) for check in self._checks):
                return content
        return None


def _counted(check: Reader) -> int:
    if check.lookback == "all":
        raise ValueError(f"{check.id} wants all of an answer, and can't be asked about a part")
    return check.lookback


def joined(left: str, refusal: str) -> str:
    """Return what has left, followed by a refusal in a paragraph of its own."""
    if not left:
        return refusal
    breaks = len(left) - len(left.rstrip("\n"))
    return left + "\n" * max(2 - breaks, 0) + refusal


def _carriable(text: str) -> bool:
    """Return whether UTF-8 can carry a text; it holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
