"""The hook specifications: every point at which a plugin can act, in one file.

A plugin is any object (or module) with methods (or functions) marked `hookimpl` and named like a
hook below. A method may take any subset of the hook's arguments, by name. Hooks are called in the
policy's order, one plugin at a time, so that what one replaced is what the next one sees;
neighbours that declare themselves `read_only` are called at the same time. Return `None` to
abstain. A hook may be `async def`, except those that only observe.

`ctx` is the plugin's only door to the outside world (see `isonomy.sdk.context.Context`): clock,
randomness, secrets, effects, nested generation. What comes through it is recorded and handed back
on replay. Plugins hold no state between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from .events import Event
from .vocabulary import (
    Call,
    Candidate,
    Critique,
    Document,
    Message,
    Ranking,
    ToolCall,
    ToolResult,
    Verdict,
)

if TYPE_CHECKING:
    from .context import Context
    from .generation import Identity
    from .performing import Reply

PROJECT = "isonomy"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
Hooks = Mapping[str, tuple[Callable[..., Any], tuple[str, ...]]]
"""A plugin's hooks: name to function, and the arguments that it takes."""
OBSERVING = ("call_begins", "observe", "call_ends")
"""Hooks that see a call and can't change it; none of them may be async."""


class Stages:
    """Hooks of a call's stages."""

    @hookspec
    def pre_filter(self, call: Call, messages: tuple[Message, ...], ctx: Context) -> Verdict | None:
        """Judge the messages before the model sees them.

        `Replace(content=messages)` gives new ones.
        """

    @hookspec
    def retrieved(
        self, call: Call, documents: tuple[Document, ...], ctx: Context
    ) -> Verdict | None:
        """Judge retrieved documents; `Replace(content=documents)` gives those that may be used."""

    @hookspec
    def critique(
        self, call: Call, candidate: Candidate, messages: tuple[Message, ...], ctx: Context
    ) -> Sequence[Critique] | None:
        """Say what principles hold against a candidate; `messages` are what the model was asked."""

    @hookspec
    def revise(
        self,
        call: Call,
        candidate: Candidate,
        critiques: tuple[Critique, ...],
        messages: tuple[Message, ...],
        ctx: Context,
    ) -> Candidate | None:
        """Return a better candidate; it is checked again."""

    @hookspec
    def rank(
        self,
        call: Call,
        candidates: tuple[Candidate, ...],
        critiques: tuple[tuple[Critique, ...], ...],
        messages: tuple[Message, ...],
        ctx: Context,
    ) -> Ranking | None:
        """Order the candidates, best first.

        `critiques` are those of each candidate as it stands, in the order of `candidates`; empty
        for one that was changed since.
        """

    @hookspec
    def post_validate(
        self,
        call: Call,
        candidate: Candidate,
        critiques: tuple[Critique, ...],
        messages: tuple[Message, ...],
        ctx: Context,
    ) -> Verdict | None:
        """Judge an answer before it is released.

        `Replace(content=text or parts)` gives a new one. `critiques` are those of the candidate as
        it stands; empty where it was changed since.
        """

    @hookspec
    def tool_call(self, call: Call, tool_call: ToolCall, ctx: Context) -> Verdict | None:
        """Judge a tool call that the model asks for; its arguments are a JSON object.

        `Replace(content=...)` gives other arguments, as JSON text, or one other `ToolCall`.
        """

    @hookspec
    def tool_result(
        self, call: Call, tool_call: ToolCall, result: ToolResult, ctx: Context
    ) -> Verdict | None:
        """Judge what a tool answered before the model sees it.

        `Replace(content=...)` gives other text, or one other `ToolResult`.
        """

    @hookspec
    def observe(self, call: Call, event: Event) -> None:
        """See every event as it happens.

        For exporters and metrics. Never runs on replay, can't change the call.
        """

    @hookspec
    def call_begins(
        self, call: Call, messages: tuple[Message, ...], identity: Identity | None
    ) -> None:
        """See a call before its first step, in the context of its caller; else as `observe`.

        `identity` is who is to answer.
        """

    @hookspec
    def call_ends(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        """See a call's end: its reply, or the error that it ended in; else as `observe`."""


class Registration:
    """Hooks by which a plugin module adds names: checks, backends, commands."""

    @hookspec
    def isonomy_checks(self) -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
        """Return check factories by name.

        Called with the settings of a policy file, they return a plugin.
        """

    @hookspec
    def isonomy_backends(self) -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
        """Return backend factories by name.

        Called with what follows ``name:`` in a spec, they return a backend.
        """

    @hookspec
    def isonomy_commands(self) -> Sequence[Any]:  # type: ignore[empty-body]
        """Return click commands to add to ``isonomy``."""
