"""Wrapped transformers pipelines: ``pipeline("text-generation")``.

`wrap` returns a pipeline of a subclass of the pipeline's own class. It is called with what the
pipeline is called with (a text, a conversation, a list or a generator of them, and the model's own
parameters) and returns what the pipeline returns: every answer is one guarded call, several answers
to one prompt (``num_return_sequences``) one each. Several prompts go to the model one by one, in
their order, whatever ``batch_size`` says; where they are sampled, they draw other random numbers
than in one batch. What the model wrote is judged, without the prompt that the pipeline puts before
it.
Token ids and streamers are refused: nothing could be judged there.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from ..canonical import carriable
from ..errors import BackendError, InputError, IsonomyError, RemoteError
from ..generation import Generation, Identity, Request, Sampling
from ..vocabulary import Message, Part, Text
from ..world import said_by
from .openai_format import item_of, message_of
from .prompts import Prompt, is_conversation
from .settings import Settings

if TYPE_CHECKING:
    from ..guard import Guard
    from ..performing import Reply

_NESTED = 1 << 16
"""Plugins' own generations are numbered from here on."""
_REFUSED = ("return_tensors", "streamer", "prefix", "documents")
"""Parameters that would let something in or out that no check sees."""
_UNGUARDED = ("forward", "run_single", "run_multi", "iterate", "get_iterator")
_SETTINGS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_tokens": "max_new_tokens",
}
"""Our names of sampling settings, and the model's."""


def wrap(guard: Guard, client: Any, settings: Settings) -> Any:
    """Return a guarded pipeline like `client`.

    Raises:
        InputError: it is no text generation pipeline.
    """
    kind: Any = type(client)
    if not any(base.__name__ == "TextGenerationPipeline" for base in kind.__mro__):
        raise InputError(
            f"a {kind.__name__} can't be wrapped: only pipelines for text-generation can. Guard "
            "the function that calls it with guard.protect."
        )
    # A pipeline of the same state, whose own methods nobody refuses: it does the work.
    working = object.__new__(kind)
    working.__dict__.update(client.__dict__)
    guarded = object.__new__(_guarded(kind, settings.allow))
    guarded.__dict__ = working.__dict__
    guarded._isonomy = _Guarding(guard, working, settings)
    return guarded


@cache
def _guarded(kind: Any, allow: frozenset[str]) -> Any:
    def call(self: Any, text_inputs: Any, **parameters: Any) -> Any:
        return self._isonomy.answer(text_inputs, parameters)

    members: dict[str, Any] = {
        name: _refused(name) for name in _UNGUARDED if name not in allow and hasattr(kind, name)
    }
    for name in ("__module__", "__qualname__", "__doc__"):
        members[name] = getattr(kind, name)
    return type(kind.__name__, (kind,), {**members, "__call__": call})


def _refused(name: str) -> Callable[..., Any]:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            f"{name} is not guarded: what goes in and out there would pass no check. Call the "
            f"pipeline, or allow it: guard.wrap(pipeline, allow=({name!r},))."
        )

    return refuse


class _Guarding:
    """What a guarded pipeline holds: the guard, how to behave, and the pipeline that works."""

    def __init__(self, guard: Guard, pipeline: Any, settings: Settings) -> None:
        self.guard = guard
        self.pipeline = pipeline
        self.settings = settings

    def answer(self, inputs: Any, parameters: dict[str, Any]) -> Any:
        """Return what the pipeline returns for its inputs."""
        for name in _REFUSED:
            if parameters.get(name) and name not in self.settings.allow:
                raise InputError(
                    f"the parameter {name!r} would pass no check. Leave it out, or allow it: "
                    f"guard.wrap(pipeline, allow=({name!r},))."
                )
        if isinstance(inputs, types.GeneratorType):
            inputs = _conversation_or_items(inputs)
        inputs = getattr(inputs, "messages", inputs)  # the pipeline's own class of conversations
        if isinstance(inputs, str) or is_conversation(inputs):
            return self._one(inputs, parameters)
        if isinstance(inputs, list | tuple):
            return [self._one(prompt, parameters) for prompt in inputs]
        return (self._one(prompt, parameters) for prompt in _items(inputs))

    def _one(self, value: Any, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        value = getattr(value, "messages", value)
        prompt = Prompt(value, carry=self.settings.carry)
        exchange = _Exchange(self.pipeline, prompt, parameters)
        replies = [self._chat(exchange)]
        while len(replies) < exchange.wanted:
            exchange.choice = len(replies)
            replies.append(self._chat(exchange))
        for reply in replies:
            self.settings.stops(reply)
        return exchange.released(replies)

    def _chat(self, exchange: _Exchange) -> Reply:
        options: Any = {**self.settings.for_call(), "sampling": exchange.sampling}
        try:
            return self.guard.chat(
                exchange.prompt.messages, backend=exchange, extra=exchange.extra, **options
            )
        except IsonomyError as error:
            failure = exchange.error_behind(error)
        raise failure


def _conversation_or_items(given: Iterator[Any]) -> Any:
    """Return a generator's items, as a list if they are the messages of one conversation."""
    first = next(given, None)
    if first is None:
        return []
    if isinstance(first, Mapping) and "role" in first:
        return [first, *given]

    def items() -> Iterator[Any]:
        yield first
        yield from given

    return items()


def _items(inputs: Any) -> Iterable[Any]:
    if isinstance(inputs, Iterable):
        return inputs
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):  # a data set
        return (inputs[index] for index in range(len(inputs)))
    raise InputError(
        f"a pipeline is called with a text, a conversation, or a list of them, not "
        f"{type(inputs).__name__}."
    )


class _Record(msgspec.Struct, frozen=True):
    """An answer as the pipeline returned it, and what the model wrote of it."""

    returned: dict[str, Any]
    content: tuple[Part, ...]


class _Run(msgspec.Struct, frozen=True):
    """What came of calling the pipeline once."""

    messages: tuple[Message, ...]
    returned: list[dict[str, Any]]
    records: tuple[_Record, ...]


class _Exchange:
    """The backend of the calls that one prompt makes: it asks the pipeline."""

    def __init__(self, pipeline: Any, prompt: Prompt, parameters: dict[str, Any]) -> None:
        self.pipeline = pipeline
        self.prompt = prompt
        self.choice = 0
        """Which of the prompt's answers the call that is under way is about."""
        self.sampling = Sampling(**_sampling(parameters))
        self.extra = {name: value for name, value in parameters.items() if _is_plain(value)}
        self._parameters = parameters
        self._runs: list[_Run] = []
        self._added: dict[str, Any] = {}
        self._raised: dict[int, tuple[IsonomyError, BaseException]] = {}

    @property
    def wanted(self) -> int:
        """How many answers the prompt is to have."""
        if self._runs:
            return len(self._runs[0].records)
        return int(self._parameters.get("num_return_sequences") or 1)

    def identity(self) -> Identity:
        """Return the pipeline's model."""
        model = self.pipeline.model
        name = getattr(model, "name_or_path", "") or type(model).__name__
        return Identity(provider="transformers", model=name, spec=f"transformers:{name}")

    def resolve(self, sampling: Sampling) -> Sampling:
        """Note which settings are the guard's own: they are passed beside the caller's."""
        self._added = {
            theirs: getattr(sampling, ours)
            for ours, theirs in _SETTINGS.items()
            if getattr(sampling, ours) is not None and theirs not in self._parameters
        }
        return sampling

    def close(self) -> None:
        """Do nothing: the pipeline is its owner's."""

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Call the pipeline, unless it has given another answer to the same already."""
        nested = request.sampling.candidate >= _NESTED
        run = None if nested or request.sampling.candidate else self._at_hand(request)
        if run is not None:
            record = run.records[self.choice]
        else:
            try:
                run = self._called(request, nested)
            except Exception as error:
                raise self._failed(error) from error
            if not nested:
                self._runs.append(run)
            record = run.records[0]
        return Generation(
            content=record.content, finish_reason="unknown", model=self.identity().model
        )

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Call the pipeline on a thread."""
        import asyncio

        return await asyncio.to_thread(self.generate, request, on_text=on_text)

    def _at_hand(self, request: Request) -> _Run | None:
        if not self._runs or not self.choice or self._runs[0].messages != request.messages:
            return None
        return self._runs[0]

    def _called(self, request: Request, nested: bool) -> _Run:
        if nested:
            sent: Any = Prompt([]).saying(request.messages)
            if isinstance(self.prompt.value, str):
                sent = Prompt("").saying(request.messages)
            settings = {
                theirs: value
                for ours, theirs in _SETTINGS.items()
                if (value := getattr(request.sampling, ours)) is not None
            }
            parameters = {**settings, "return_full_text": False}
        else:
            sent = self.prompt.saying(request.messages)
            parameters = {**self._parameters, **self._added}
            if self._runs and parameters.get("num_return_sequences"):
                parameters["num_return_sequences"] = 1
        returned = self.pipeline(sent, **parameters)
        full = _is_full(self.pipeline, parameters)
        records = tuple(_Record(each, _written(each, sent, full, parameters)) for each in returned)
        return _Run(request.messages, returned, records)

    def _failed(self, error: Exception) -> IsonomyError:
        """Return the error to record for one of the pipeline's, and keep that for its caller."""
        if isinstance(error, IsonomyError):
            return error
        said = carriable(f"{type(error).__name__}: {said_by(error)}")
        failure = RemoteError(f"the pipeline raised {said}", backend=self.identity().spec)
        self._raised[id(failure)] = (failure, error)
        return failure

    def error_behind(self, error: IsonomyError) -> BaseException:
        """Return the pipeline's own error that an error of the guard stands for, else that."""
        kept = self._raised.get(id(error))
        return error if kept is None else kept[1]

    def released(self, replies: list[Reply]) -> list[dict[str, Any]]:
        """Return what the pipeline returns, saying what was released."""
        full = _is_full(self.pipeline, self._parameters)
        made = []
        for index, reply in enumerate(replies):
            record = self._record(index, reply)
            if record is None:
                made.append(self._shaped(reply.output.content, full))
            elif full and self._runs[0].messages != self.prompt.messages:
                # The prompt before the answer is the caller's own, not what was made of it.
                made.append({**record.returned, **self._shaped(record.content, full)})
            else:
                made.append(record.returned)
        if len(self._runs) == 1 and made == self._runs[0].returned:
            return self._runs[0].returned
        return made

    def _record(self, index: int, reply: Reply) -> _Record | None:
        """Return the pipeline's own record of an answer that was released as it came."""
        if reply.blocked:
            return None
        first = self._runs[0].records[index : index + 1] if self._runs else ()
        others = [record for run in self._runs for record in run.records]
        for record in (*first, *others):
            if record.content == reply.output.content:
                return record
        return None

    def _shaped(self, content: tuple[Part, ...], full: bool) -> dict[str, Any]:
        value: Any = self.prompt.value
        message = item_of(Message("assistant", content))[0]
        if not full:
            return {"generated_text": message["content"] or ""}
        if isinstance(value, str):
            return {"generated_text": value + (message["content"] or "")}
        if _continues(value, self._parameters):
            last = {**value[-1], "content": value[-1]["content"] + (message["content"] or "")}
            return {"generated_text": [*value[:-1], last]}
        return {"generated_text": [*value, message]}


def _sampling(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that we have a word for, as records hold them."""
    found = {ours: parameters.get(theirs) for ours, theirs in _SETTINGS.items()}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int if name in ("top_k", "max_tokens") else int | float)
        and not isinstance(value, bool)
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) or (
        isinstance(value, list) and all(isinstance(item, str | int) for item in value)
    )


def _is_full(pipeline: Any, parameters: Mapping[str, Any]) -> bool:
    """Return whether the pipeline puts the prompt before the answer."""
    wanted = parameters.get("return_full_text")
    if wanted is not None:
        return bool(wanted)
    kind = parameters.get("return_type")
    if kind is None:
        kind = getattr(pipeline, "_postprocess_params", {}).get("return_type")
    name = getattr(kind, "name", "FULL_TEXT" if kind is None else str(kind))
    if name not in ("FULL_TEXT", "NEW_TEXT"):
        raise InputError("a pipeline that returns token ids can't be guarded. Have it return text.")
    return name == "FULL_TEXT"


def _continues(conversation: Any, parameters: Mapping[str, Any]) -> bool:
    """Return whether the answer continues the conversation's last message."""
    wanted = parameters.get("continue_final_message")
    return conversation[-1]["role"] == "assistant" if wanted is None else bool(wanted)


def _written(record: Any, sent: Any, full: bool, parameters: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return what the model wrote, of a record that may hold the prompt too."""
    if not isinstance(record, Mapping) or "generated_text" not in record:
        raise BackendError(
            "the pipeline returned no text to judge. Have it return text.", backend="transformers"
        )
    said = record["generated_text"]
    if isinstance(said, str):
        return (Text(said[len(sent) :] if full and isinstance(sent, str) else said),)
    last = said[-1]
    if _continues(sent, parameters):
        return (Text(last["content"][len(sent[-1]["content"]) :]),)
    return message_of(last, where="the answer").content or (Text(""),)
