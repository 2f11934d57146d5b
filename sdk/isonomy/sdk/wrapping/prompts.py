"""What a function or a pipeline is asked, as messages and back: a text, or a list of messages.

Messages have the chat-completions format (openai_format.py), or are `Message`s. What no check
changed is given back as the very object that it was.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..vocabulary import Message
from .openai_format import item_of, message_of
from .rewriting import rewritten


def is_conversation(value: Any) -> bool:
    """Return whether a value is a list of messages, each with a role."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(m, Message) or (isinstance(m, Mapping) and "role" in m) for m in value)


class Prompt:
    """One prompt.

    Args:
        value: text, or a list of messages.
        carry: types of content parts that are passed on as `Json`.

    Raises:
        InputError: a message holds what can't be judged.
    """

    def __init__(self, value: str | Sequence[Any], *, carry: Collection[str] = ()) -> None:
        self.value = value
        self.messages: tuple[Message, ...]
        if isinstance(value, str):
            self.messages = (Message.of("user", value),)
        else:
            self.messages = tuple(
                item
                if isinstance(item, Message)
                else message_of(item, where=f"messages[{index}]", carry=carry)
                for index, item in enumerate(value)
            )

    def saying(self, messages: tuple[Message, ...]) -> Any:
        """Return what says `messages` in the shape of this prompt.

        A text says all that is no answer of the model's, in paragraphs: what was asked, and in a
        further round what was wrong with the answer.
        """
        if messages == self.messages:
            return self.value
        if isinstance(self.value, str):
            return "\n\n".join(m.text for m in messages if m.role != "assistant" and m.text)
        items: list[Any] = list(self.value)
        own = bool(items) and all(isinstance(item, Message) for item in items)

        def write(message: Message, item: Any) -> list[Any]:
            if own or isinstance(item, Message):
                return [message]
            return item_of(message, item)

        return rewritten(items, self.messages, messages, write)
