"""The recorded world: hands back what a call took from outside, in the order in which it took it.

`Playback` is a `World` like `isonomy.sdk.trail.Live`, so that a replay runs the very pipeline of
the live call. Effects, secrets and the answers of remote models come from the record; a
deterministic backend, where one is given, answers anew. What is asked for in another order, or not
in the record at all, stops the replay with the check's name: it never goes live quietly.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from isonomy.sdk import Backend, BackendError, Generation, ReplayError, Request, errors
from isonomy.sdk.events import BackendFailed, Effect, Event, Failed, Generated, Judged


class Playback:
    """What a recorded call took from the world.

    Args:
        events: the call's recorded events, in sequence.
        backend: a deterministic backend that answers anew; `None` hands back recorded answers.
    """

    def __init__(self, events: Sequence[Event], backend: Backend | None = None) -> None:
        self._backend = backend
        self._effects = deque(event for event in events if isinstance(event, Effect))
        self._answers = deque(
            event for event in events if isinstance(event, Generated | BackendFailed)
        )
        self._asked: Counter[tuple[str, str, str, int]] = Counter()
        self._timeouts = _timeouts(events)
        self.stopped: ReplayError | None = None
        """The first thing asked for that the record does not have."""

    def _stop(self, message: str, check: str | None) -> ReplayError:
        error = ReplayError(message, check=check)
        self.stopped = self.stopped or error
        return error

    def take(self, event: Effect, produce: Callable[[], Any]) -> Effect:
        """Hand back the next recorded effect, which must be the one asked for."""
        if not self._effects:
            raise self._stop(
                f"check {event.check!r} asked for {event.kind} {event.name!r}, and the record "
                "holds no further effect. The check behaves otherwise than when it was recorded.",
                event.check,
            )
        recorded = self._effects[0]
        if _place(recorded) != _place(event):
            raise self._stop(
                f"check {event.check!r} asked for {event.kind} {event.name!r} where the record has "
                f"{recorded.kind} {recorded.name!r} of check {recorded.check!r}. The check behaves "
                "otherwise than when it was recorded.",
                event.check,
            )
        return self._effects.popleft()

    async def atake(self, event: Effect, produce: Callable[[], Awaitable[Any]]) -> Effect:
        """Hand back the next recorded effect."""
        return self.take(event, lambda: None)

    def secret(self, name: str) -> str:
        """Return a placeholder: secrets are never recorded, and what would use one is not run."""
        return f"[secret {name}]"

    def generate(self, request: Request) -> Generation:
        """Answer anew on a deterministic backend, else hand back the next recorded answer."""
        if self._backend is not None:
            return self._backend.generate(request)
        if not self._answers:
            raise self._stop("the model was asked more often than the record has answers.", None)
        recorded = self._answers.popleft()
        if isinstance(recorded, BackendFailed):
            raise _recorded_error(recorded)
        return recorded.generation

    async def agenerate(self, request: Request) -> Generation:
        """Like `generate`."""
        return self.generate(request)

    def foretold(
        self, *, stage: str, check: str, target: str, round: int
    ) -> tuple[Effect | Failed, ...]:
        """Return the recorded timeout of this question, after the effects taken until then."""
        key = (stage, check, target, round)
        self._asked[key] += 1
        events = self._timeouts.get((*key, self._asked[key]), ())
        for _ in range(len(events) - 1):
            self._effects.popleft()
        return events


def _place(effect: Effect) -> tuple[str, str, str, str | None]:
    return effect.kind, effect.name, effect.stage, effect.check


def _timeouts(
    events: Sequence[Event],
) -> dict[tuple[str, str, str, int, int], tuple[Effect | Failed, ...]]:
    """Return the recorded timeouts by question and how often it had been asked by then."""
    asked: Counter[tuple[str, str, str, int]] = Counter()
    found: dict[tuple[str, str, str, int, int], tuple[Effect | Failed, ...]] = {}
    taken: list[Effect] = []
    for event in events:
        if isinstance(event, Effect):
            taken.append(event)
        elif isinstance(event, Judged | Failed) and event.check is not None:
            key = (event.stage, event.check, event.target, event.round)
            asked[key] += 1
            if isinstance(event, Failed) and event.kind == "timeout":
                found[(*key, asked[key])] = (*taken, event)
            taken = []
        else:
            taken = []
    return found


def _recorded_error(event: BackendFailed) -> BackendError:
    """Return an error of the recorded type and message; its other attributes were not recorded."""
    kind = getattr(errors, event.error, BackendError)
    if not (isinstance(kind, type) and issubclass(kind, BackendError)):
        kind = BackendError
    error = kind.__new__(kind)
    Exception.__init__(error, event.message)
    return error


def without_evidence(event: Event) -> dict[str, Any]:
    """Return an event as plain data without what must not matter: durations, attempts, runtime."""
    plain: dict[str, Any] = msgspec.to_builtins(event)
    plain.pop("duration_ns", None)
    generation = plain.get("generation")
    if generation is not None:
        for name in ("attempts", "runtime", "timings", "raw"):
            generation.pop(name)
    return plain
