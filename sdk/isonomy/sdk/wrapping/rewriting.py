"""What to send where checks replaced messages: what they left alone stays as its caller wrote it.

A client's messages are converted one by one, each to one `Message`. What is to be sent is found by
laying the messages that a call goes on with beside those that it began with: an equal one stands
for the caller's own, one that took another's place is written over it, others are written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..canonical import canonical
from ..vocabulary import Message

Item = dict[str, Any]


def rewritten(
    items: Sequence[Item],
    old: Sequence[Message],
    new: Sequence[Message],
    write: Callable[[Message, Item | None], list[Item]],
) -> list[Item]:
    """Return the client's messages that say what `new` says.

    Args:
        items: the client's messages, as its caller wrote them.
        old: what they say, one for one.
        new: what is to be said.
        write: writes a message, over the one in whose place it stands, if there is one.
    """
    from difflib import SequenceMatcher

    before = [canonical(message) for message in old]
    after = [canonical(message) for message in new]
    result: list[Item] = []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for tag, first, last, start, end in matcher.get_opcodes():
        if tag == "equal":
            result += items[first:last]
            continue
        for offset, message in enumerate(new[start:end]):
            place = first + offset
            same = place < last and old[place].role == message.role
            result += write(message, items[place] if same else None)
    return result
