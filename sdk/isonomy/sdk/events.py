"""Events: the steps of a call, as recorded and as compared on replay.

`sequence` counts the events of a call from 0 without gaps; the trail assigns it. `stage` says
where, `check` which plugin instance (its unique id), `target` what was judged: ``message/2``,
``messages``, ``candidate/0``. `round` counts regenerations from 0. `*_ns` fields are durations;
they are evidence, and are not compared on replay.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from .generation import Attempt, Generation, Sampling
from .vocabulary import Critique, Ranking, Verdict


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    sequence: int = -1
    stage: str
    check: str | None = None
    round: int = 0

    @property
    def type(self) -> str:
        """The event's tag as it stands in records."""
        return str(self.__struct_config__.tag)


class Judged(_Event, frozen=True, tag="judged"):
    """A check was asked. `verdict` is `None` where it abstained.

    `before` is the digest of what it saw; `after` of what stood when it was done, if it changed
    that. `shadow` says that the check is on trial: its verdict was recorded and changed nothing.
    """

    target: str
    verdict: Verdict | None
    before: str
    after: str | None = None
    shadow: bool = False
    duration_ns: int = 0


class Failed(_Event, frozen=True, tag="failed"):
    """A check raised, hung, or returned nonsense, and what its `on_error` made of that."""

    target: str
    kind: Literal["error", "timeout", "invalid"]
    error: str
    message: str
    became: Literal["block", "allow", "flag"]
    before: str
    shadow: bool = False
    duration_ns: int = 0


class Unjudged(_Event, frozen=True, tag="unjudged"):
    """No check of a stage judged this target: each abstained, or failed and may.

    Counts as a flag.
    """

    target: str


class Decided(_Event, frozen=True, tag="decided"):
    """A person decided what checks had asked about, when the call was resumed.

    `by` is who, as the application named them; `before` the digest of what was pending, `after` of
    what the person put in its place.
    """

    target: str
    decision: Literal["approve", "edit", "reject"]
    before: str
    after: str | None = None
    by: str | None = None
    reason: str = ""


class Effect(_Event, frozen=True, tag="effect"):
    """Something a plugin took from the outside world through its context.

    `kind` is what was asked (now, rng, effect, secret); `name` the plugin's name for it; `value`
    the recorded JSON value (of a secret: always null), or `error` the type and message that the
    effect raised.
    """

    kind: Literal["now", "rng", "effect", "secret"]
    name: str
    value: Any = None
    error: tuple[str, str] | None = None
    duration_ns: int = 0


class Critiqued(_Event, frozen=True, tag="critiqued"):
    """A plugin's critiques of a candidate. `shadow` here and below is as in `Judged`."""

    target: str
    critiques: tuple[Critique, ...]
    shadow: bool = False
    duration_ns: int = 0


class Revised(_Event, frozen=True, tag="revised"):
    """A plugin gave a better candidate; it is checked again."""

    target: str
    before: str
    after: str
    text: str
    shadow: bool = False
    duration_ns: int = 0


class Ranked(_Event, frozen=True, tag="ranked"):
    """A plugin's order of the candidates."""

    ranking: Ranking
    shadow: bool = False
    duration_ns: int = 0


class Generated(_Event, frozen=True, tag="generated"):
    """The backend answered.

    `purpose` is ``answer``, or ``nested`` for a plugin's own `ctx.generate`. `messages` are what
    was sent, as numbers into the call's message table (payloads ``message/N``), `sampling` how.
    `response_format` is what form a nested answer was asked for (that of the call's own answers is
    in its request). `generation` is what came back. `backend` names which of the guard's further
    backends answered; `None` is the call's own.
    """

    purpose: Literal["answer", "nested"]
    candidate: int
    messages: tuple[int, ...]
    sampling: Sampling
    generation: Generation
    response_format: dict[str, Any] | None = None
    backend: str | None = None
    duration_ns: int = 0


class Scored(_Event, frozen=True, tag="scored"):
    """A plugin asked a backend how likely it finds each of some labels (`ctx.logprobs`).

    `messages` are numbers into the call's message table. `logprobs` are natural logarithms, in the
    order of `labels`; `None` where the backend can't tell. `backend` is as in `Generated`.
    """

    messages: tuple[int, ...]
    labels: tuple[str, ...]
    logprobs: tuple[float, ...] | None
    backend: str | None = None
    duration_ns: int = 0


class BackendFailed(_Event, frozen=True, tag="backend_failed"):
    """The backend could not answer; the call ends with this error.

    `attempts` are the tries at a remote endpoint, where there were any.
    """

    purpose: Literal["answer", "nested"]
    candidate: int
    error: str
    message: str
    attempts: tuple[Attempt, ...] = ()
    backend: str | None = None
    duration_ns: int = 0


Event = (
    Judged
    | Failed
    | Unjudged
    | Decided
    | Effect
    | Critiqued
    | Revised
    | Ranked
    | Generated
    | Scored
    | BackendFailed
)
