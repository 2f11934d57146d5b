"""How durable an append is before it returns, and what happens where nothing can be written.

`durability`
    ``call``      flushed before `append` returns. Threads of a process that wait for one another
                  share the next flush.
    ``group``     the same, but where several threads append, a flush waits a few milliseconds so
                  that more of them share it: for many threads on a disk that is slow to flush.
                  Each is durable before it returns; each is that much later.
    ``relaxed``   handed to the system, not flushed: a killed process loses nothing, a crash of the
                  machine the last appends, but never one of the middle.

`on_full`, where the disk is full, the log read-only, out of reach, or locked by another process
    ``fail``      `append` raises `LogUnwritable`; nothing was recorded, the guard releases nothing.
    ``wait``      it is tried again until `wait_seconds` are over, then as ``fail``.
    ``gap``       the call goes on unrecorded. What was lost is named in a record of kind ``gap``,
                  written with the next append that succeeds, when the log is closed, or when the
                  interpreter ends (see `isonomy.replay.gaps`).

Damage is none of these: a log that can't be trusted is never written to, and never passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeVar, get_args

import msgspec

from isonomy.sdk.errors import InputError

from .errors import LogUnwritable

T = TypeVar("T")

Durability = Literal["call", "group", "relaxed"]
OnFull = Literal["fail", "wait", "gap"]

GROUP_SECONDS: Final = 0.003
"""How long a flush of `group` waits for others to join it."""

RETRY_SECONDS: Final = (0.02, 0.5)
"""Shortest and longest pause between tries of `wait`; drawn at random, growing."""

SHORTEST_PAUSE: Final = 0.0002
LONGEST_PAUSE: Final = 0.005
"""Between looks at a lock that another process holds, in seconds; a flush holds it for some 0.2 ms
and longer."""

OPENING_SECONDS: Final = 30.0
"""How long opening a log waits for others who create, migrate or write it."""

PROBE_SECONDS: Final = 0.25
"""How long an append of `gap` waits for a lock once a gap is open: calls must go on."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a log is written.

    `wait_seconds` is how long an append waits for other writers, and with `on_full="wait"` for
    anything that may pass, before it gives up.
    """

    durability: Durability = "call"
    on_full: OnFull = "fail"
    wait_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("durability", self.durability, get_args(Durability)),
            ("on_full", self.on_full, get_args(OnFull)),
        ):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, not {value!r}.")
        # At most a day: SQLite counts milliseconds in 32 bits.
        if isinstance(self.wait_seconds, bool) or not (
            isinstance(self.wait_seconds, int | float) and 0 <= self.wait_seconds <= 86_400
        ):
            raise InputError(
                f"wait_seconds must be a number from 0 to 86400, not {self.wait_seconds!r}."
            )


def passes(error: BaseException) -> bool:
    """Return whether an append that failed so may succeed later without anybody's harm."""
    return isinstance(error, LogUnwritable) and error.passes


def retried(attempt: Callable[[], T], settings: Settings) -> T:
    """Return what `attempt` gives, tried again while its error may pass and time is left.

    Raises:
        LogError: the last attempt's.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    shortest, longest = RETRY_SECONDS
    retrying = Retrying(
        retry=retry_if_exception(passes),
        wait=wait_random_exponential(multiplier=shortest, min=shortest, max=longest),
        stop=stop_after_delay(settings.wait_seconds),
        reraise=True,
    )
    return retrying(attempt)
