"""What runs is ended when nobody waits for it, and is over when that is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from isonomy.sdk.errors import Cancelled
from isonomy.sdk.gateway.errors import Disconnected, Refused
from isonomy.sdk.gateway.running import Running


async def stays() -> Any:
    """A client that stays."""
    await asyncio.sleep(60)


async def leaves() -> Any:
    """A client that leaves soon."""
    await asyncio.sleep(0.02)
    return {"type": "http.disconnect"}


class Work:
    """Something that takes long, and a while to end."""

    def __init__(self) -> None:
        self.over = False

    async def run(self) -> str:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            self.over = True
        return "done"


async def quick() -> str:
    return "done"


def test_what_is_done_is_returned() -> None:
    assert asyncio.run(Running(1).supervise(quick(), stays, seconds=5)) == "done"


@pytest.mark.parametrize(("receive", "seconds", "raised"), [(leaves, 5, 0), (stays, 0.02, 504)])
def test_who_leaves_or_takes_too_long(receive: Any, seconds: float, raised: int) -> None:
    work = Work()
    with pytest.raises((Disconnected, Refused)) as caught:
        asyncio.run(Running(1).supervise(work.run(), receive, seconds=seconds))
    assert work.over
    assert getattr(caught.value, "status", 0) == raised


def test_draining() -> None:
    async def tried() -> None:
        running, work = Running(1), Work()

        async def admitted() -> str:
            with running:
                return await running.supervise(work.run(), stays, seconds=60)

        task = asyncio.create_task(admitted())
        await asyncio.sleep(0.02)
        with pytest.raises(Refused, match="at a time"), running:
            pass
        await running.drain(0.05)
        with pytest.raises(Refused, match="stopping") as caught:
            await task
        assert caught.value.code == "draining"
        assert work.over
        await running.idle()
        with pytest.raises(Refused, match="stopping"), running:
            pass

    asyncio.run(tried())


def test_a_server_that_cancels_waits_for_the_record() -> None:
    async def tried() -> None:
        work = Work()
        task = asyncio.create_task(Running(1).supervise(work.run(), stays, seconds=60))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()  # once more does not hurry it
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.over

    asyncio.run(tried())


def test_work_that_is_cancelled_from_inside_is_an_error() -> None:
    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(Cancelled):
        asyncio.run(Running(1).supervise(cancels_itself(), stays, seconds=5))
