"""`@guard.protect`: any function from a prompt to an answer, guarded where it stands.

```python
@guard.protect
def answer(question: str, temperature: float = 0.0) -> str: ...
```

The prompt is the first argument that is text or a list of messages (``{"role": ..., "content":
...}``), or the one that ``argument="name"`` names. It passes the checks of input, the function gets
it as they left it, and its caller gets the answer as the checks of output left it. The function may
be async, or a generator (async too) that yields its answer in pieces: these are held back until
judged. It is called once for each answer that the policy wants: again in a further round, and for
each candidate. The protected function has the same kind, name and signature.

A blocked call returns the policy's refusal, or raises `isonomy.sdk.errors.Blocked` with
``on_block="raise"``. What the function itself raises, its caller gets.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InputError, IsonomyError
from ..generation import Backend, Request
from ..registry import Registry
from .prompts import Prompt, is_conversation
from .settings import Settings, WrapOptions

if TYPE_CHECKING:
    from ..guard import Guard


class ProtectOptions(WrapOptions, total=False):
    """The keywords of `Guard.protect`: those of `Guard.wrap`, and this.

    argument: the name of the argument that holds the prompt; unless given, the first that holds
        text or a list of messages.
    """

    argument: str


def protect(guard: Guard, function: Any, options: ProtectOptions) -> Any:
    """Return a guarded function like `function`, or a decorator where there is none yet.

    Raises:
        InputError: it is no function, or an option can't be used.
    """
    if function is None:
        return lambda decorated: protect(guard, decorated, options)
    if not callable(function) or inspect.isclass(function):
        raise InputError(
            f"guard.protect needs a function, not {function!r:.60}. Wrap clients with guard.wrap."
        )
    shared: Any = {name: value for name, value in options.items() if name != "argument"}
    protected = _Protected(guard, function, Settings.of(shared), options.get("argument"))
    for test, make in _KINDS:
        if test(protected.code):
            return functools.wraps(function)(make(protected))
    return functools.wraps(function)(_plain(protected))


class _Protected:
    """A function that is guarded, and how."""

    def __init__(
        self, guard: Guard, function: Callable[..., Any], settings: Settings, argument: str | None
    ) -> None:
        self.guard = guard
        self.function = function
        self.code = function if inspect.isroutine(function) else type(function).__call__
        """What tells whether it is async, or a generator."""
        self.settings = settings
        self.argument = argument
        self.signature = inspect.signature(function)
        named = function if hasattr(function, "__qualname__") else type(function)
        self.name = f"{named.__module__}.{named.__qualname__}"
        if argument is not None and argument not in self.signature.parameters:
            raise InputError(
                f"{self.name} has no argument {argument!r}. It has: "
                f"{', '.join(self.signature.parameters)}."
            )

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Called:
        """Return a call with these arguments, not yet made."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        names = bound.arguments if self.argument is None else (self.argument,)
        for name in names:
            value = bound.arguments[name]
            if isinstance(value, str) or is_conversation(value):
                return _Called(self, bound, name)
        what = f"the argument {self.argument!r}" if self.argument else "no argument"
        raise InputError(
            f"{what} of this call of {self.name} holds a prompt: text, or a list of messages with "
            "a role and content. Say where it is with guard.protect(argument=...)."
        )


class _Called:
    """One call of a protected function."""

    def __init__(self, protected: _Protected, bound: inspect.BoundArguments, name: str) -> None:
        self._protected = protected
        self._bound = bound
        self._name = name
        self._raised: BaseException | None = None
        self._prompt = Prompt(bound.arguments[name], carry=protected.settings.carry)
        self.messages = self._prompt.messages
        make = Registry().find("backend", "callable")
        self.backend: Backend = make(self._asked(), name=protected.name)
        self.options: Any = {**protected.settings.for_call(), "backend": self.backend}

    def _asked(self) -> Callable[..., Any]:
        """Return the function as a backend calls it."""
        kind = self._protected.code
        if inspect.iscoroutinefunction(kind):

            async def awaited(messages: Any, request: Request) -> Any:
                with self:
                    return await self._called(request)

            return awaited
        if inspect.isasyncgenfunction(kind):

            async def ayielded(messages: Any, request: Request) -> AsyncIterator[Any]:
                with self:
                    async for piece in self._called(request):
                        yield piece

            return ayielded
        if inspect.isgeneratorfunction(kind):

            def yielded(messages: Any, request: Request) -> Iterator[Any]:
                with self:
                    yield from self._called(request)

            return yielded

        def returned(messages: Any, request: Request) -> Any:
            with self:
                return self._called(request)

        return returned

    def _called(self, request: Request) -> Any:
        bound = self._bound
        arguments = {**bound.arguments, self._name: self._prompt.saying(request.messages)}
        changed = inspect.BoundArguments(bound.signature, arguments)
        return self._protected.function(*changed.args, **changed.kwargs)

    def __enter__(self) -> None:
        self._raised = None

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if not isinstance(error, GeneratorExit):
            self._raised = error

    def error_behind(self, error: IsonomyError) -> BaseException:
        """Return what the function raised, where that ended the call, else the guard's error."""
        return error if self._raised is None else self._raised


def _plain(protected: _Protected) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        call = protected.called(args, kwargs)
        try:
            reply = protected.guard.chat(call.messages, **call.options)
        except IsonomyError as error:
            failure = call.error_behind(error)
        else:
            protected.settings.stops(reply)
            return reply.text
        finally:
            call.backend.close()
        raise failure

    return guarded


def _async(protected: _Protected) -> Callable[..., Any]:
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        call = protected.called(args, kwargs)
        try:
            reply = await protected.guard.achat(call.messages, **call.options)
        except IsonomyError as error:
            failure = call.error_behind(error)
        else:
            protected.settings.stops(reply)
            return reply.text
        finally:
            call.backend.close()
        raise failure

    return guarded


def _generator(protected: _Protected) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Iterator[str]:
        call = protected.called(args, kwargs)
        late = ""  # the last piece may be the refusal, in whose place there may be an error
        try:
            with protected.guard.stream(call.messages, **call.options) as pieces:
                for piece in pieces:
                    if late:
                        yield late
                    late = piece
                    if not protected.settings.raises:
                        yield late
                        late = ""
                protected.settings.stops(pieces.reply)
                if late:
                    yield late
                return
        except IsonomyError as error:
            failure = call.error_behind(error)
        finally:
            call.backend.close()
        raise failure

    return guarded


def _async_generator(protected: _Protected) -> Callable[..., Any]:
    async def guarded(*args: Any, **kwargs: Any) -> AsyncIterator[str]:
        call = protected.called(args, kwargs)
        late = ""
        try:
            async with protected.guard.astream(call.messages, **call.options) as pieces:
                async for piece in pieces:
                    if late:
                        yield late
                    late = piece
                    if not protected.settings.raises:
                        yield late
                        late = ""
                protected.settings.stops(pieces.reply)
                if late:
                    yield late
                return
        except IsonomyError as error:
            failure = call.error_behind(error)
        finally:
            call.backend.close()
        raise failure

    return guarded


_KINDS: tuple[tuple[Callable[[Any], bool], Callable[[_Protected], Callable[..., Any]]], ...] = (
    (inspect.iscoroutinefunction, _async),
    (inspect.isasyncgenfunction, _async_generator),
    (inspect.isgeneratorfunction, _generator),
)
