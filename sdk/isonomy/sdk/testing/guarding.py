"""`FakeGuard`: a real guard around a scripted model, with assertions that say what happened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

from ..calling import CallOptions, Messages
from ..events import Effect, Event, Failed, Judged
from ..generation import Backend, Sampling
from ..guard import Guard
from ..log import Log
from ..performing import Reply
from ..policy import Policy
from ..vocabulary import VerdictName
from .model import Answers, ScriptedModel
from .world import Script, ScriptedWorld

if TYPE_CHECKING:
    from ..streams import AsyncStream, Stream


class FakeGuard(Guard):
    """A guard for tests: everything is real but the model, the clock and chance.

    Args:
        policy: as for `Guard`.
        answers: what the model answers (see `ScriptedModel`), or a model.
        judge: what a check is answered that asks the guard's own backend (`ctx.generate`); the
            model answers that too, unless given.
        now: what `ctx.now()` returns, until `tick`; the first of January 2026, unless given.
        effects: what `ctx.effect` comes to, by name: a value, an exception to raise, or a function
            to call; other effects are really done.
        secrets: what `ctx.secret` returns, by name.
        log: as for `Guard`; none, unless given.
        backends: the guard's further backends: models, or their answers.

    Attributes:
        model: the scripted model; `model.requests` is what it was asked.
        replies: what calls came to, in order.
    """

    model: ScriptedModel

    def __init__(
        self,
        policy: Policy | Iterable[Any] = (),
        answers: Answers | ScriptedModel = "I see.",
        *,
        judge: Answers | ScriptedModel | None = None,
        now: datetime | None = None,
        effects: Mapping[str, Any] | None = None,
        secrets: Mapping[str, str] | Callable[[str], str | None] | None = None,
        log: str | os.PathLike[str] | Log | None = None,
        backends: Mapping[str, Answers | ScriptedModel | Backend] | None = None,
        plugins: Iterable[str] = (),
    ) -> None:
        self.model = _model(answers)
        self.script = Script(
            now=now, effects=effects, judge=None if judge is None else _model(judge)
        )
        self._looks: list[Callable[[], Reply]] = []
        self._live = partial(ScriptedWorld, script=self.script)
        further: dict[str, Any] = {
            name: each if isinstance(each, Backend) else _model(each)
            for name, each in (backends or {}).items()
        }
        super().__init__(
            self.model,
            policy,
            log,
            backends=further,
            sampling=Sampling(seed=0),
            secrets=secrets.get if isinstance(secrets, Mapping) else secrets,
            plugins=plugins,
        )

    def __enter__(self) -> Self:
        return self

    def tick(self, seconds: float) -> None:
        """Move the clock of `ctx.now()` on."""
        self.script.tick(seconds)

    # Calls, remembered

    def chat(self, messages: Messages, **options: Unpack[CallOptions]) -> Reply:
        """As `Guard.chat`; the reply is remembered."""
        return self._remembered(super().chat(messages, **options))

    async def achat(self, messages: Messages, **options: Unpack[CallOptions]) -> Reply:
        """As `Guard.achat`; the reply is remembered."""
        return self._remembered(await super().achat(messages, **options))

    def stream(self, messages: Messages, **options: Unpack[CallOptions]) -> Stream:
        """As `Guard.stream`; the reply is remembered once the stream has ended."""
        stream = super().stream(messages, **options)
        self._looks.append(lambda: stream.reply)
        return stream

    def astream(self, messages: Messages, **options: Unpack[CallOptions]) -> AsyncStream:
        """As `Guard.astream`; the reply is remembered once the stream has ended."""
        stream = super().astream(messages, **options)
        self._looks.append(lambda: stream.reply)
        return stream

    def resume(self, *given: Any, **more: Any) -> Reply:
        """As `Guard.resume`; the reply is remembered."""
        return self._remembered(super().resume(*given, **more))

    async def aresume(self, *given: Any, **more: Any) -> Reply:
        """As `Guard.aresume`; the reply is remembered."""
        return self._remembered(await super().aresume(*given, **more))

    def _remembered(self, reply: Reply) -> Reply:
        self._looks.append(lambda: reply)
        return reply

    @property
    def replies(self) -> tuple[Reply, ...]:
        """What calls came to, in order."""
        return tuple(look() for look in self._looks)

    @property
    def reply(self) -> Reply:
        """What the last call came to.

        Raises:
            AssertionError: there was none.
        """
        assert self._looks, "there was no call yet"
        return self._looks[-1]()

    def events(
        self,
        kind: type[Any] | tuple[type[Any], ...] = object,
        *,
        check: str | None = None,
        stage: str | None = None,
        reply: Reply | None = None,
    ) -> list[Any]:
        """Return events of the last call, or of `reply`: those of a kind, a check, a stage."""
        return [
            event
            for event in (reply or self.reply).events
            if isinstance(event, kind)
            if check in (None, event.check) and stage in (None, event.stage)
        ]

    # Assertions

    def assert_verdict(
        self,
        verdict: VerdictName | None,
        *,
        check: str | None = None,
        stage: str | None = None,
        reason: str | None = None,
        reply: Reply | None = None,
    ) -> None:
        """Assert what the last call came to, or what a check said in it.

        Args:
            verdict: its name; `None` where a check abstains.
            check: the id of the check that gave it.
            stage: where it was given. With neither check nor stage, the call's own verdict is
                meant.
            reason: a part of its reason or feedback.
            reply: the call; the last one, unless given.

        Raises:
            AssertionError: it is not so; tells what every check said.
        """
        reply = reply or self.reply
        if check is None and stage is None:
            same = reply.verdict == verdict
            assert same and (reason or "") in (reply.reason or ""), self._told(  # noqa: PT018
                f"the call came to {reply.verdict} ({reply.reason}), not {verdict}"
                + (f" with {reason!r} in its reason" if reason else ""),
                reply,
            )
            return
        judged = self.events(Judged, check=check, stage=stage, reply=reply)
        matching = [
            event
            for event in judged
            if (event.verdict.name if event.verdict is not None else None) == verdict
            if (reason or "") in _reason(event)
        ]
        wanted = f"{verdict} by {check or 'any check'} at {stage or 'any stage'}"
        wanted += f" with {reason!r} in its reason" if reason else ""
        assert matching, self._told(f"there is no verdict {wanted}", reply)

    def assert_asked(self, times: int = 1) -> None:
        """Assert how often the model was asked, by all calls together, not counting the judge."""
        asked = len(self.model.requests)
        assert asked == times, f"the model was asked {asked} times, not {times}"

    def assert_not_asked(self) -> None:
        """Assert that nothing reached the model."""
        self.assert_asked(0)

    def assert_no_failures(self, reply: Reply | None = None) -> None:
        """Assert that no check raised, missed its time, or returned nonsense."""
        failed = self.events(Failed, reply=reply)
        assert not failed, self._told(f"{len(failed)} checks failed", reply or self.reply)

    def assert_effects(self, *names: str, reply: Reply | None = None) -> None:
        """Assert which effects were taken through the context, in order."""
        taken = tuple(event.name for event in self.events(Effect, reply=reply))
        assert taken == names, f"the checks took {list(taken)}, not {list(names)}"

    def _told(self, problem: str, reply: Reply) -> str:
        lines = [f"  {_line(event)}" for event in reply.events]
        return "\n".join((f"{problem}. What happened:", *(lines or ["  nothing"])))


def _model(answers: Any) -> ScriptedModel:
    return answers if isinstance(answers, ScriptedModel) else ScriptedModel(answers)


def _reason(event: Judged) -> str:
    verdict: Any = event.verdict
    return str(getattr(verdict, "reason", "") or getattr(verdict, "feedback", ""))


def _line(event: Event) -> str:
    place = f"{event.stage} {event.check or 'the call'}: {event.type}"
    if isinstance(event, Judged):
        said = event.verdict.name if event.verdict is not None else "abstained"
        return f"{place} {event.target}: {said} {_reason(event)}".rstrip()
    if isinstance(event, Failed):
        return f"{place} {event.target}: {event.kind}, {event.error}: {event.message}"
    return f"{place} {getattr(event, 'target', '')}".rstrip()
