"""uvicorn's HTTP/1.1, for clients that stall: they lose the connection, and cost no more."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """One connection.

    Args:
        header_seconds: within which headers must be here, from the connection's begin or from their
            own first byte.
        write_seconds: for which a client may leave unread what is written for it.
        given: what uvicorn passes.
    """

    def __init__(self, *, header_seconds: float, write_seconds: float, **given: Any) -> None:
        super().__init__(**given)
        self._header_seconds = header_seconds
        self._write_seconds = write_seconds
        self._headers_due: asyncio.TimerHandle | None = None
        self._reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Take in data; headers that have begun must come to an end."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_headers()
        elif self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _wait_for_headers(self) -> None:
        if self._headers_due is None:
            self._headers_due = self.loop.call_later(self._header_seconds, self.transport.abort)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        if self._reading_due is None:
            self._reading_due = self.loop.call_later(self._write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        super().resume_writing()
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        for timer in (self._headers_due, self._reading_due):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
