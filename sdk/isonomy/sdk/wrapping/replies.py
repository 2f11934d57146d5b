"""The guard's reply to what a wrapped client returned.

A wrapped client returns the provider's own objects, so the reply (call id, verdict, token) is kept
beside them: by identity, for as long as the object lives, and no longer. Nothing of it is in the
object itself, which serialises, compares and copies as ever; a copy has no reply.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..performing import Reply

_lock = threading.Lock()
_kept: dict[int, tuple[weakref.ref[Any], tuple[Reply, ...]]] = {}


def remember(released: Any, replies: Sequence[Reply]) -> None:
    """Keep the replies to the call that returned `released`, one for each of its answers."""
    key = id(released)

    def forget(dead: weakref.ref[Any]) -> None:
        # Without the lock: this may run inside of it, at any allocation. The entry may be another
        # object's by now, which has taken the place of the dead one.
        kept = _kept.get(key)
        if kept is not None and kept[0] is dead:
            _kept.pop(key, None)

    try:
        reference = weakref.ref(released, forget)
    except TypeError:  # text, a dictionary: nothing to hold on to
        return
    with _lock:
        _kept[key] = (reference, tuple(replies))


def replies_of(released: Any) -> tuple[Reply, ...]:
    """Return the replies of the calls that something came from; none where it came from none."""
    kept = _kept.get(id(released))
    if kept is not None and kept[0]() is released:
        return kept[1]
    # A provider's helper around a guarded stream (`client.chat.completions.stream`).
    inner = getattr(released, "_raw_stream", None)
    return () if inner is None or inner is released else replies_of(inner)


def reply_of(released: Any, index: int = 0) -> Reply | None:
    """Return the guard's reply to the call that a wrapped client's object came from.

    Args:
        released: what the client's method returned (an answer, a stream that is exhausted, an
            error that the provider's package raised because an answer was refused).
        index: which of several answers (``n`` above 1).

    Returns:
        The reply, with `call_id`, `verdict` and `token`; `None` where the object is not from a
        wrapped client, is a copy, or is a stream that has not come to its end.
    """
    replies = replies_of(released)
    return replies[index] if -len(replies) <= index < len(replies) else None
