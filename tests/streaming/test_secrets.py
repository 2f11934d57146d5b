"""Checks that take a secret only about some answers: what left until then left of a call too."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from isonomy.sdk import Allow, Block, Candidate, Guard, Verdict, hookimpl

ANSWER = "a" * 200 + "KEY" + "b" * 50


class Rarely:
    lookback = 5

    @hookimpl
    def post_validate(self, candidate: Candidate, ctx: Any) -> Verdict:
        if "KEY" not in candidate.text:
            return Allow()
        return Block(f"a key of {len(ctx.secret('key'))} characters")


def test_a_secret_taken_about_the_whole_answer(tmp_path: Path) -> None:
    with Guard(lambda _: ANSWER, [Rarely()], tmp_path, secrets=lambda _: "hunter2") as guard:
        with guard.stream("hello") as stream:
            streamed = "".join(stream)
        assert streamed.startswith("a" * 100)
        assert "KEY" not in streamed
        replies = [stream.reply, guard.chat("hello"), asyncio.run(guard.achat("hello"))]
        assert {(reply.verdict, reply.text) for reply in replies} == {("block", streamed)}
