"""Asking a check about a text, at any of its stages, through a real guard.

A `Panel` holds a check and the guards around it. What comes of a question is plain data without
durations, so that two askings can be compared with ``==``.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from ..canonical import canonical
from ..checks import Check, check
from ..errors import PluginError
from ..events import Failed, Generated
from ..performing import Reply
from ..policy import Policy
from ..vocabulary import Document, Message, Stage, Text, ToolCall, ToolResult
from .guarding import FakeGuard
from .model import ScriptedModel

_CONSTITUTION: tuple[Stage, ...] = ("critique", "revise", "rank")
_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "lookup",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
        },
    },
)


class Question(NamedTuple):
    """A text, and the stage at which the check is asked about it."""

    stage: Stage
    text: str


class Told(NamedTuple):
    """What came of a question, apart from how long it took.

    `said` are the events as canonical bytes, `verdict` and `text` what the call came to.
    """

    said: tuple[bytes, ...]
    verdict: str
    text: str

    @property
    def short(self) -> str:
        """What the check said, in a few words."""
        words = []
        for body in self.said:
            event = msgspec.json.decode(body)
            if event["type"] == "judged":
                verdict = event["verdict"] or {"type": "nothing"}
                words.append(verdict["type"])
            elif event["type"] == "failed":
                words.append(f"{event['error']}: {event['message']}")
        return ", ".join(words) or f"{self.verdict} {self.text[:40]!r}"


class World(msgspec.Struct, frozen=True):
    """What the questions need besides the text: see `FakeGuard`."""

    judge: Any = None
    effects: dict[str, Any] = {}
    secrets: dict[str, str] = {}
    backends: dict[str, Any] = {}


class Subject:
    """A check whose conformance is examined: made anew as often as needed.

    Args:
        plugin: an instance, a callable, or a `Check` with its terms.

    Raises:
        PluginError: it is no check, or its settings are no data.
    """

    def __init__(self, plugin: Any) -> None:
        self.check = plugin if isinstance(plugin, Check) else check(plugin)
        self.plugin = self.check.plugin
        try:
            Policy([self.check])
        except TypeError as error:
            raise PluginError(
                f"the settings of {self.check.use} are no data: {error}. Use text, numbers, "
                "booleans, tuples, dictionaries with text as keys, and structs of these.",
                plugin=self.check.use,
            ) from None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Where questions are asked: those of a constitution are asked together."""
        stages: list[Stage] = []
        for stage in self.check.stages:
            asked: Stage = "critique" if stage in _CONSTITUTION else stage
            if asked not in stages:
                stages.append(asked)
        return tuple(stages)

    def fresh(self) -> Check:
        """Return the same check around a new instance, where one can be made."""
        return self.around(fresh_instance(self.plugin))

    def around(self, plugin: Any) -> Check:
        """Return the same check around another plugin."""
        given = self.check
        return Check(
            plugin,
            id=given.id,
            stages=given.stages or None,
            on_error=given.on_error,
            timeout=given.timeout,
            use=given.use if given.named else None,
            **given.given,
        )


def fresh_instance(plugin: Any) -> Any:
    """Return a new instance with the same settings; functions and modules are returned as is."""
    if isinstance(plugin, msgspec.Struct):
        settings = {name: getattr(plugin, name) for name in plugin.__struct_fields__}
        return type(plugin)(**copy.deepcopy(settings))
    try:
        return copy.deepcopy(plugin)
    except Exception:  # a lock, a client: what can't be copied
        return plugin


Around = Callable[[Callable[..., Any]], Callable[..., Any]]


def instrumented(given: Check, around: Around) -> Check:
    """Return the same check with its functions wrapped."""
    wrapped = copy.copy(given)
    if given.is_callable:
        wrapped.plugin = around(given.plugin)
    wrapped.hooks = {
        name: (around(function), names) for name, (function, names) in given.hooks.items()
    }
    return wrapped


class Panel:
    """A check with a guard for each of its stages, ready to be asked.

    Safe to use from several threads; `close` it.
    """

    def __init__(self, given: Check, world: World) -> None:
        self._check = given
        self._world = world
        self._answer = threading.local()
        self._guards: dict[tuple[Stage, int], FakeGuard] = {}

    def __enter__(self) -> Panel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its guards."""
        for guard in self._guards.values():
            guard.close()

    def guard(self, stage: Stage, piece: int = 4) -> FakeGuard:
        """Return the guard whose policy has the check at a stage alone."""
        found = self._guards.get((stage, piece))
        if found is None:
            at = copy.copy(self._check)
            wanted = _CONSTITUTION if stage == "critique" else (stage,)
            chosen: Any = tuple(each for each in wanted if each in at.stages)
            at.stages = chosen
            at.shadow = False
            ranks = "rank" in at.stages
            policy = Policy([at], candidates=2 if ranks else 1, max_rounds=1)
            found = FakeGuard(
                policy,
                ScriptedModel(self._answers, piece=piece),
                judge=self._world.judge,
                effects=self._world.effects,
                secrets=self._world.secrets,
                backends=self._world.backends,
            )
            self._guards[stage, piece] = found
        return found

    def _answers(self, messages: tuple[Message, ...]) -> Any:
        # The answer stands in the question, so that threads can't mix theirs up.
        asked = next((m for m in messages if m.role == "system"), None)
        if asked is None:
            return "I see."
        stage, _, text = asked.text.partition("\n")
        if stage == "tool_call":
            return (Text("I look it up."), ToolCall("call-1", "lookup", {"query": text}))
        return text

    def given(self, question: Question) -> tuple[tuple[Message, ...], dict[str, Any]]:
        """Return the messages and options of a question's call."""
        text, stage = question.text, question.stage
        options: dict[str, Any] = {"session": "conformance", "actor": "somebody"}
        if stage == "pre_filter":
            said = (Message.of("user", text),)
            # A call of nothing but empty messages is refused.
            return said if text.strip() else (*said, Message.of("assistant", "Yes?")), options
        if stage == "retrieved":
            options["documents"] = (Document("document-1", text, "a shelf"),)
            return (Message.of("user", "Hello"),), options
        if stage == "tool_result":
            asked = ToolCall("call-1", "lookup", {"query": "x"})
            return (
                Message.of("user", "Hello"),
                Message("assistant", (asked,)),
                Message("tool", (ToolResult("call-1", text),)),
            ), options
        if stage == "tool_call":
            options["tools"] = _TOOLS
        return (
            Message.of("system", f"{stage}\n{text}"),
            Message.of("user", "Hello"),
        ), options

    def ask(self, question: Question) -> Told:
        """Ask, synchronously."""
        messages, options = self.given(question)
        return told(self.guard(question.stage).chat(messages, **options))

    def reply(self, question: Question) -> Reply:
        """Ask, and return the whole reply."""
        messages, options = self.given(question)
        return self.guard(question.stage).chat(messages, **options)

    async def aask(self, question: Question) -> Told:
        """Ask in the running event loop."""
        messages, options = self.given(question)
        return told(await self.guard(question.stage).achat(messages, **options))


def told(reply: Reply) -> Told:
    """Return what can be compared of a reply."""
    said = []
    for event in reply.events:
        if isinstance(event, Generated) and event.purpose == "answer":
            continue
        plain = msgspec.to_builtins(event)
        plain.pop("duration_ns", None)
        if isinstance(event, Generated):
            plain["generation"] = {"text": event.generation.text}
        said.append(canonical(plain))
    return Told(tuple(said), reply.verdict, reply.text)


def failures(reply: Reply) -> list[Failed]:
    """Return the check's failures in a reply."""
    return [event for event in reply.events if isinstance(event, Failed)]
