"""Checks that break one rule each; they can be imported, so that another process can make them."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import threading
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from isonomy.sdk import (
    Allow,
    Block,
    Candidate,
    Flag,
    Message,
    Replace,
    Span,
    ToolResult,
    Verdict,
    hookimpl,
)

SETTINGS: dict[str, Any] = {"frozen": True, "kw_only": True, "eq": False}


class Output(msgspec.Struct, **SETTINGS):
    """What is asked about answers only."""

    @hookimpl
    def post_validate(self, candidate: Candidate, ctx: Any) -> Verdict | None:
        return self.judge(candidate.text, ctx)

    def judge(self, text: str, ctx: Any) -> Any:
        raise NotImplementedError


class Careful(Output, **SETTINGS):
    """Keeps every rule."""

    word: str = "bad"
    inline: ClassVar[bool] = True

    @hookimpl
    def pre_filter(self, messages: tuple[Message, ...], ctx: Any) -> Verdict:
        return self.judge("\n".join(m.text for m in messages if m.role == "user"), ctx)

    @hookimpl
    def tool_result(self, result: ToolResult, ctx: Any) -> Verdict:
        return self.judge(result.content, ctx)

    def judge(self, text: str, ctx: Any) -> Verdict:
        at = text.find(self.word)
        if at < 0:
            return Allow()
        return Block("a bad word", spans=(Span(at, at + len(self.word), "word"),))


class Nonsense(Output, **SETTINGS):
    def judge(self, text: str, ctx: Any) -> Any:
        return re.search("order", text) if "order" in text else Allow()


class Silent(Output, **SETTINGS):
    def judge(self, text: str, ctx: Any) -> Any:
        return Block(" ") if "order" in text else Allow()


class OutOfBounds(Output, **SETTINGS):
    def judge(self, text: str, ctx: Any) -> Any:
        return Flag("long", spans=(Span(0, len(text.encode()), "all"),))


class Fragile(Output, **SETTINGS):
    def judge(self, text: str, ctx: Any) -> Any:
        if "\x00" in text:
            raise ValueError("embedded null byte")
        return Allow()


class Dice(Output, **SETTINGS):
    def judge(self, text: str, ctx: Any) -> Any:
        return Allow(score=random.random())


class SeedOfHashes(Output, **SETTINGS):
    """The same in this process, always; another in the next."""

    def judge(self, text: str, ctx: Any) -> Any:
        return Allow(labels=tuple({f"label {n}" for n in range(9)}))


class Counting(Output, **SETTINGS):
    seen: ClassVar[dict[int, int]] = {}

    def judge(self, text: str, ctx: Any) -> Any:
        count = self.seen[id(self)] = self.seen.get(id(self), 0) + 1
        return Block("too many questions") if count > 20 else Allow()


class Shared(Output, **SETTINGS):
    """Right one after the other, wrong together."""

    desk: ClassVar[list[str]] = [""]
    wait: ClassVar[Any] = threading.Event()

    def judge(self, text: str, ctx: Any) -> Any:
        self.desk[0] = text
        self.wait.wait(0.002)
        return Allow(labels=(self.desk[0],))


class LoopDependent(Output, **SETTINGS):
    inline: ClassVar[bool] = True

    def judge(self, text: str, ctx: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return Allow()
        return Flag("in a loop")


class Restless(Output, **SETTINGS):
    def judge(self, text: str, ctx: Any) -> Any:
        return Replace(f"{text}!") if "order" in text else Allow()


class Catastrophe(Output, **SETTINGS):
    def judge(self, text: str, ctx: Any) -> Any:
        return Block("letters") if re.search(r"^(a+)+$", text) else Allow()


class Quadratic(Output, **SETTINGS):
    def judge(self, text: str, ctx: Any) -> Any:
        return Flag("spaces") if re.search(r"\s+$", text) else Allow()


class Slow(Output, **SETTINGS):
    def judge(self, text: str, ctx: Any) -> Any:
        if "order" in text:
            threading.Event().wait(0.4)
        return Allow()


class BlocksTheLoop(msgspec.Struct, **SETTINGS):
    @hookimpl
    async def post_validate(self, candidate: Candidate) -> Verdict:
        if "order" in candidate.text:
            threading.Event().wait(0.3)
        await asyncio.sleep(0)
        return Allow()


class Awaits(msgspec.Struct, **SETTINGS):
    """An async check that keeps every rule."""

    @hookimpl
    async def post_validate(self, candidate: Candidate, ctx: Any) -> Verdict:
        await asyncio.sleep(0)
        await ctx.aeffect("lookup", self.lookup)
        said = await ctx.agenerate("Is this all right?")
        await asyncio.sleep(0)
        return Allow() if said.text == "yes" else Block("the judge says no")

    async def lookup(self) -> str:
        await asyncio.sleep(0)
        return Path("/proc/self/comm").read_text()[:0]


class Ticking(Output, **SETTINGS):
    """Its effect comes to something else each time, which is not its fault."""

    count: ClassVar[list[int]] = []

    def judge(self, text: str, ctx: Any) -> Any:
        def tick() -> int:
            self.count.append(1)
            return len(self.count)

        return Allow(score=ctx.effect("tick", tick))


class ClosedOver(msgspec.Struct, frozen=True, kw_only=True):
    """Its setting is a term's name."""

    timeout: float = 1.0

    @hookimpl
    def post_validate(self, candidate: Candidate) -> Verdict:
        return Allow()


class NoData(Output, **SETTINGS):
    pattern: Any = re.compile("x")

    def judge(self, text: str, ctx: Any) -> Any:
        return Allow()


class Mutable(msgspec.Struct, kw_only=True, eq=False):
    word: str = "x"

    @hookimpl
    def post_validate(self, candidate: Candidate) -> Verdict:
        return Allow()


class Short(Output, **SETTINGS):
    """Blocks a word, and declares a lookback that is too short for it."""

    lookback: int = 2

    def judge(self, text: str, ctx: Any) -> Any:
        return Block("a secret") if "4821" in text else Allow()


class ShortRewriter(Output, **SETTINGS):
    lookback: int = 2

    def judge(self, text: str, ctx: Any) -> Any:
        return Replace(text.replace("4821", "[n]")) if "4821" in text else Allow()


class TalksInStreams(Output, **SETTINGS):
    lookback: int = 5

    def judge(self, text: str, ctx: Any) -> Any:
        ctx.now()
        return Allow()


REACHING: dict[str, tuple[Any, str]] = {
    "time": (lambda: time.time(), "read the clock (time.time)"),
    "now": (datetime.now, "read the clock (datetime.now)"),
    "random": (lambda: random.choice("ab"), "drew random numbers (random."),
    "urandom": (lambda: os.urandom(4), "drew random numbers (os.urandom)"),
    "uuid": (uuid.uuid4, "drew random numbers (uuid.uuid4)"),
    "environ": (lambda: os.environ.get("HOME"), "read the environment"),
    "read": (lambda: Path("/etc/passwd").read_text(), "read a file (/etc/passwd)"),
    "write": (lambda: Path(os.devnull).write_text(""), "wrote a file"),
    "process": (lambda: subprocess.run(["true"], check=True), "started a process"),
    "sleep": (lambda: time.sleep(0.001), "slept"),
}


class Reaching(Output, **SETTINGS):
    what: str

    def judge(self, text: str, ctx: Any) -> Any:
        if "order" in text:
            REACHING[self.what][0]()
        return Allow()


class Asking(Output, **SETTINGS):
    """Takes the same things through its context."""

    def judge(self, text: str, ctx: Any) -> Any:
        ctx.now()
        ctx.rng.random()
        ctx.secret("key")
        for name, (function, _) in REACHING.items() if "order" in text else ():
            ctx.effect(name, lambda function=function: str(function())[:0])
        ctx.generate("Is this all right?")
        return Allow()
