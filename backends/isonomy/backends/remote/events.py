"""Server-sent events from bytes, whatever way they are cut.

The format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html. One field more
is understood: ``error``, in which llama.cpp's server has told of errors.
"""

from __future__ import annotations

from typing import NamedTuple


class Sent(NamedTuple):
    """One event: its name (empty where it has none) and its data."""

    name: str
    data: bytes


class EventReader:
    """Turns bytes into events. An event that is cut off by the end of the bytes is dropped."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._name = ""
        self._data: list[bytes] = []
        self._first = True

    def feed(self, data: bytes) -> list[Sent]:
        """Take bytes and return the events that are complete now."""
        self._buffer += data
        # A carriage return at the very end may be half of a line break.
        end = max(self._buffer.rfind(b"\n", self._searched), -1)
        carriage = self._buffer.rfind(b"\r", self._searched, len(self._buffer) - 1)
        end = max(end, carriage)
        if end < 0:
            self._searched = max(0, len(self._buffer) - 1)
            return []
        complete, self._buffer = bytes(self._buffer[: end + 1]), self._buffer[end + 1 :]
        self._searched = 0
        return self._lines(complete)

    def finish(self) -> list[Sent]:
        """Return the last event, where its lines are whole and only the empty one is missing."""
        ended = self._buffer.endswith(b"\r")
        lines = bytes(self._buffer) if ended else b""
        self._buffer.clear()
        return [*self._lines(lines), *self._lines(b"\n")]

    def _lines(self, complete: bytes) -> list[Sent]:
        found = []
        if self._first and complete:
            complete = complete.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        for line in complete.splitlines():
            if not line:
                if self._data:
                    found.append(Sent(self._name, b"\n".join(self._data)))
                self._name, self._data = "", []
                continue
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                self._data.append(value)
            elif field == b"event":
                self._name = value.decode("utf-8", "replace")
            elif field == b"error":
                self._name = "error"
                self._data.append(value)
        return found
