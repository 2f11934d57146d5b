"""What the guard has to know of an API of OpenAI's to stand in it, and chat completions as one.

A `Wire` reads a request into our words, writes one with what checks replaced, reads the answers of
a response, and writes a response with what was released, or with a refusal. All of it is plain JSON
data; what did not change is left as it stands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ..errors import InputError
from ..generation import Sampling, Usage
from ..vocabulary import Candidate, Message, Reasoning, Text
from .openai_answers import BLOCKED, candidate_of, choice_of, completion_of, usage_of
from .openai_events import ChatReader, ChatTeller, Reader, Teller
from .openai_format import item_of, items_of, request_of
from .rewriting import rewritten

Body = Mapping[str, Any]
SEED_BITS = 63
"""The format's seeds are signed 64-bit integers."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request in our words. `items` are what `messages` were made of, one for one."""

    model: str
    items: tuple[dict[str, Any], ...]
    messages: tuple[Message, ...]
    sampling: Sampling
    tools: tuple[dict[str, Any], ...] = ()
    response_format: dict[str, Any] | None = None
    extra: dict[str, Any] = {}
    user: str | None = None
    n: int = 1
    stream: bool = False
    usage: bool = False
    """Whether a stream is to tell its usage."""


class InvalidResponse(Exception):
    """A response is none of its API's; the message says why."""


class Wire(Protocol):
    """One API of the provider."""

    teller: Teller

    def reader(self) -> Reader:
        """Return what reads a stream of this API."""
        ...

    def asked(self, body: Body, carry: Collection[str]) -> Asked:
        """Read the body of a request.

        Raises:
            InputError: it holds what can't be judged.
        """
        ...

    def asking(self, body: Body, asked: Asked, messages: Sequence[Message]) -> dict[str, Any]:
        """Return the body of a request that says `messages`."""
        ...

    def nested(self, body: Body, messages: Sequence[Message]) -> dict[str, Any]:
        """Return the body of another request to the same model."""
        ...

    def settings(self, sampling: Sampling) -> dict[str, Any]:
        """Return sampling settings as parameters.

        Raises:
            InputError: the API has no such setting.
        """
        ...

    def answers(self, response: Body) -> list[Candidate]:
        """Read a response.

        Raises:
            InvalidResponse: it is none.
        """
        ...

    def usage(self, response: Body) -> Usage:
        """Read a response's usage."""
        ...

    def released(
        self, response: Body, changed: Mapping[int, Candidate], stopped: Collection[int]
    ) -> dict[str, Any]:
        """Return a response with other answers.

        Args:
            response: the provider's.
            changed: what takes an answer's place, by its number; the others stay as they are.
            stopped: which of them are refusals.
        """
        ...

    def refused(
        self, body: Body, refusals: Sequence[str], *, id: str, created: int
    ) -> dict[str, Any]:
        """Return a response that was never asked for: a refusal in the place of each answer."""
        ...


def without_stale_reasoning(candidate: Candidate, given: Candidate) -> Candidate:
    """Return a candidate without the reasoning that led to a text which is not released."""
    if candidate.text == given.text:
        return candidate
    kept = tuple(part for part in candidate.content if not isinstance(part, Reasoning))
    return candidate.with_content(kept)


class Chat:
    """Chat completions."""

    path = "/chat/completions"
    teller: Teller = ChatTeller()

    def reader(self) -> Reader:
        """Return what reads a stream of chunks."""
        return ChatReader()

    def asked(self, body: Body, carry: Collection[str]) -> Asked:
        """Read the body of a request."""
        items = body.get("messages")
        if isinstance(items, list | tuple):
            items = tuple(items)
        request = request_of({**body, "messages": items}, carry=carry, strict=False)
        return Asked(
            model=request.model,
            items=items if isinstance(items, tuple) else (),
            messages=request.messages,
            sampling=request.sampling,
            tools=request.tools,
            response_format=request.response_format,
            extra=request.extra,
            user=request.user,
            n=request.n,
            stream=request.stream,
            usage=request.include_usage,
        )

    def asking(self, body: Body, asked: Asked, messages: Sequence[Message]) -> dict[str, Any]:
        """Return the body of a request that says `messages`."""
        return {**body, "messages": rewritten(asked.items, asked.messages, messages, item_of)}

    def nested(self, body: Body, messages: Sequence[Message]) -> dict[str, Any]:
        """Return the body of another request to the same model."""
        return {"model": body["model"], "messages": items_of(messages)}

    def settings(self, sampling: Sampling) -> dict[str, Any]:
        """Return sampling settings as parameters."""
        found: dict[str, Any] = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
            if (value := getattr(sampling, name)) is not None
        }
        if sampling.max_tokens is not None:
            found["max_completion_tokens"] = sampling.max_tokens
        if sampling.stop:
            found["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            found["seed"] = (sampling.seed + sampling.candidate) % (1 << SEED_BITS)
        return found

    def answers(self, response: Body) -> list[Candidate]:
        """Read a response."""
        choices = response.get("choices")
        if not isinstance(choices, list) or not choices:
            said = response.get("error")
            said = said.get("message") if isinstance(said, dict) else said
            raise InvalidResponse(f"it holds an error: {said}" if said else "it holds no choices")
        try:
            return [candidate_of(choice, index) for index, choice in enumerate(choices)]
        except (InputError, AttributeError, TypeError) as error:
            raise InvalidResponse(str(error)) from None

    def usage(self, response: Body) -> Usage:
        """Read a response's usage."""
        return usage_of(response.get("usage"))

    def released(
        self, response: Body, changed: Mapping[int, Candidate], stopped: Collection[int]
    ) -> dict[str, Any]:
        """Return a response with other answers."""
        known = ("id", "object", "created", "model", "usage", "system_fingerprint", "service_tier")
        choices = [
            choice_of(changed[index], None if index in stopped else choice, index=choice["index"])
            if index in changed
            else choice
            for index, choice in enumerate(response["choices"])
        ]
        return {**{name: response[name] for name in known if name in response}, "choices": choices}

    def refused(
        self, body: Body, refusals: Sequence[str], *, id: str, created: int
    ) -> dict[str, Any]:
        """Return a response that was never asked for."""
        return completion_of(
            id=f"chatcmpl-{id}",
            created=created,
            model=body["model"],
            choices=[
                choice_of(Candidate(index=index, content=(Text(text),), finish_reason=BLOCKED))
                for index, text in enumerate(refusals)
            ],
            usage=Usage(0, 0),
        )
