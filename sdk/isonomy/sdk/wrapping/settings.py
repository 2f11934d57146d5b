"""How a wrapped client is to behave: the options of `Guard.wrap`."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal, cast

import msgspec

from ..calling import CallOptions
from ..errors import InputError
from ..registry import nearest

if TYPE_CHECKING:
    from ..performing import Reply

_OF_EVERY_CALL = ("session", "actor", "subject", "tags", "trace_id", "parent_id", "sampling")
"""Options of a call that can be set once for all calls of a client."""


class WrapOptions(CallOptions, total=False):
    """The keywords of `Guard.wrap`: those of a call that are the same for every call, and these.

    on_block: what a call that the policy stops gives its caller: ``"refuse"`` (default) the
        provider's own shape of a refusal, ``"raise"`` the error `isonomy.sdk.Blocked`.
    allow: methods of the client that may be used though they are not guarded, by the name of a
        resource (``"embeddings"``) or of a method (``"responses.retrieve"``).
    carry: types of content parts that no check is made for (``"file"``); they are passed on, and
        checks see them as `Json`. Any other part that is not known is refused.
    """

    on_block: Literal["refuse", "raise"]
    allow: Collection[str]
    carry: Collection[str]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `Guard.wrap`, read. `call` holds those of every call."""

    raises: bool = False
    allow: frozenset[str] = frozenset()
    carry: frozenset[str] = frozenset()
    call: CallOptions = msgspec.field(default_factory=lambda: CallOptions())

    @classmethod
    def of(cls, options: WrapOptions) -> Settings:
        """Read the options of `Guard.wrap`.

        Raises:
            InputError: one is unknown, has no meaning for every call, or can't be used.
        """
        names = (*_OF_EVERY_CALL, "on_block", "allow", "carry")
        for name in options:
            if name not in names:
                raise InputError(
                    f"a wrapped client has no option {name!r}.{nearest(name, names)} "
                    "What differs from call to call is passed to the client's own methods."
                )
        on_block = options.get("on_block", "refuse")
        if on_block not in ("refuse", "raise"):
            raise InputError(f"on_block must be 'refuse' or 'raise', not {on_block!r}.")
        call = {name: value for name, value in options.items() if name in _OF_EVERY_CALL}
        return cls(
            raises=on_block == "raise",
            allow=_names("allow", options.get("allow", ())),
            carry=_names("carry", options.get("carry", ())),
            call=cast(CallOptions, call),
        )

    def for_call(
        self, *, actor: str | None = None, tags: dict[str, str] | None = None
    ) -> CallOptions:
        """Return the options of one call; what was set for every call wins over `actor`."""
        options = self.call.copy()
        if actor is not None and not options.get("actor"):
            options["actor"] = actor
        if tags:
            options["tags"] = {**(options.get("tags") or {}), **tags}
        return options

    def stops(self, reply: Reply) -> bool:
        """Return whether the refusal stands in for an answer.

        Raises:
            Blocked: it does, and calls were to raise then.
        """
        from ..errors import Blocked

        if reply.blocked and self.raises:
            raise Blocked(reply)
        return reply.blocked


def _names(option: str, given: Collection[str]) -> frozenset[str]:
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{option} must be a list of names, such as ({given!r:.40},).")
    return frozenset(given)
