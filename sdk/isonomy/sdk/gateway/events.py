"""An answer in pieces: server-sent events.

Their format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html.

The answer begins with its first piece, so that whatever goes wrong before has a status of its own,
or with the first sign of life when there is nothing to say for long. Every stream that is not cut
off ends with ``data: [DONE]``; one that failed says so in an event before.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec

from .errors import Refused
from .exchange import Send

_COMMENT = b": keep-alive\n\n"
_LAST_WORD_SECONDS = 1.0
"""For which a failed stream may wait to say so."""


class Events:
    """The events of one answer; a context manager that keeps the connection alive meanwhile.

    Args:
        send: of the request.
        headers: of the answer.
        alive_seconds: between signs of life where there is no event.
    """

    def __init__(self, send: Send, headers: dict[str, str], *, alive_seconds: float) -> None:
        self._send = send
        self._headers = headers
        self._alive_seconds = alive_seconds
        self._lock = asyncio.Lock()
        self._beat: asyncio.Task[None] | None = None
        self.started = False

    async def __aenter__(self) -> Events:
        self._beat = asyncio.create_task(self._stay_alive())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._beat is not None:
            self._beat.cancel()
            with suppress(asyncio.CancelledError):
                await self._beat

    async def data(self, value: Any) -> None:
        """Send an event that holds JSON data."""
        await self._write(b"data: " + msgspec.json.encode(value) + b"\n\n")

    async def done(self) -> None:
        """End the stream."""
        await self._write(b"data: [DONE]\n\n", last=True)

    async def fail(self, error: Refused) -> None:
        """Say what went wrong and end the stream, if the client still listens."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await self.data(error.shape)
                await self.done()

    async def _stay_alive(self) -> None:
        while True:
            await asyncio.sleep(self._alive_seconds)
            await self._write(_COMMENT)

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        async with self._lock:  # the begin precedes everything, and nothing stands inside an event
            if not self.started:
                self.started = True
                await self._send(
                    {
                        "type": "http.response.start",
                        "status": 200,
                        "headers": [
                            (b"content-type", b"text/event-stream; charset=utf-8"),
                            (b"x-accel-buffering", b"no"),
                            *(
                                (name.encode("latin-1"), value.encode("latin-1"))
                                for name, value in self._headers.items()
                            ),
                        ],
                    }
                )
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})
