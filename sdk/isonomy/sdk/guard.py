"""The guard: the one object an application talks to.

A call goes: input is validated -> pre-filters -> intent record (durable) -> model -> critique,
revise, rank -> post-validators -> result record (durable) -> the reply is released. If the log
can't be written, nothing is released.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack
from weakref import WeakSet

from . import config
from .asking import Blocking, OnLoop, Waiting, drive
from .calling import CallOptions, Messages, NoBackend, performance
from .errors import ConfigError, InputError, LogError
from .generation import Backend, Sampling
from .log import Log, Mask
from .performing import Performance, Reply, perform
from .policy import Policy
from .registry import Registry, nearest
from .requests import checked
from .scribe import Scribe
from .vocabulary import Call, Document, Message, Part
from .workers import Workers
from .world import Live, World

if TYPE_CHECKING:
    from isonomy.replay import Replayed

    from .masking import Masks
    from .releasing import Streaming
    from .resuming import Left, Memory
    from .streams import AsyncStream, Driver, Stream
    from .wrapping.function import ProtectOptions
    from .wrapping.settings import WrapOptions

C = TypeVar("C")


class Guard:
    """Stands between an application and a model.

    Args:
        backend: a spec (``"local:demo"``, ``"openai:gpt-..."``), a `Backend`, or a callable that
            takes a list of ``{"role": ..., "content": ...}`` and returns text. `None` where every
            call brings its own (wrapped clients do).
        policy: checks, plugin instances and plain callables in the order in which they are asked;
            or a `Policy`.
        log: a directory, an open `Log`, or `None` for no log (nothing can be replayed then).
        backends: further backends by name, which plugins ask with ``ctx.generate(backend=...)``.
        sampling: defaults for every call.
        secrets: where `ctx.secret(name)` looks; values are never recorded.
        plugins: modules to load explicitly.
        options: keywords for the backend that a spec names.
        mask: what the log must not hold; see `isonomy.sdk.masking`.

    Raises:
        ConfigError, PluginError, BackendError, LogError: what was passed can't be used; nothing
            stays open.

    Safe to use from several threads and event loops. Use it as a context manager, or `close` it.
    """

    _live: Callable[..., World] = Live

    def __init__(
        self,
        backend: str | Backend | Callable[..., Any] | None = None,
        policy: Policy | Iterable[Any] = (),
        log: str | os.PathLike[str] | Log | None = None,
        *,
        backends: Mapping[str, str | Backend | Callable[..., Any]] | None = None,
        sampling: Sampling | None = None,
        secrets: Callable[[str], str | None] | None = None,
        plugins: Iterable[str] = (),
        options: dict[str, Any] | None = None,
        mask: Iterable[Mask | Mapping[str, Any]] = (),
    ) -> None:
        if secrets is not None and not callable(secrets):
            raise InputError(
                f"secrets must be a function from names to secrets, not {type(secrets).__name__}."
            )
        registry = Registry(plugins)
        self.policy = policy if isinstance(policy, Policy) else Policy(policy, registry=registry)
        self._masks = _masks(mask, self.policy)
        self.sampling = checked(Sampling() if sampling is None else sampling)
        self.backend: Backend = (
            NoBackend()
            if backend is None
            else _open_backend(backend, self.policy.registry, options or {})
        )
        self.backends: dict[str, Backend] = {}
        self._secrets = secrets
        self._workers = Workers()
        self._streams: WeakSet[Driver] = WeakSet()
        self._closed = False
        self.log: Log | None = None
        self._waiting: Memory | None = None
        try:
            for name, further in (backends or {}).items():
                self.backends[name] = _open_backend(further, self.policy.registry, {})
            if log is not None:
                self.log = log if isinstance(log, Log) else _open_log(log)
        except BaseException:
            given = [backend, *(backends or {}).values()]
            for each in (self.backend, *self.backends.values()):
                if not any(each is other for other in given):  # opened here
                    each.close()
            raise

    @classmethod
    def from_file(
        cls,
        file: str | os.PathLike[str],
        *,
        policy: str | None = None,
        backend: str | Backend | Callable[..., Any] | None = None,
        log: str | os.PathLike[str] | Log | None = None,
        secrets: Callable[[str], str | None] | None = None,
    ) -> Guard:
        """Build a guard from a TOML file (see `isonomy.sdk.config`); arguments win over the file.

        Args:
            file: its path.
            policy: which of the file's ``[policies.NAME]``; ``[policy]``, unless given.
            backend: instead of the file's.
            log: instead of the file's.
            secrets: as for `Guard`.

        Raises:
            ConfigError: naming file, key and the nearest valid name.
        """
        return cls.from_configuration(
            config.load(Path(file), policy=policy), backend=backend, log=log, secrets=secrets
        )

    @classmethod
    def from_configuration(
        cls,
        settings: config.Configuration,
        *,
        backend: str | Backend | Callable[..., Any] | None = None,
        log: str | os.PathLike[str] | Log | None = None,
        secrets: Callable[[str], str | None] | None = None,
    ) -> Guard:
        """Build a guard from a configuration that was loaded before; arguments win over it.

        Raises:
            ConfigError: neither the file nor `backend` names a backend, or the backend can't use a
                value of the file's.
        """
        chosen = backend if backend is not None else settings.backend
        if chosen is None:
            raise ConfigError(
                'names no backend: add [backend] with use = "local:demo".',
                file=settings.file,
                key="backend",
            )
        options = settings.options if chosen == settings.backend else {}
        registry = settings.policy.registry
        opened = _open_backend(chosen, registry, options)
        further: dict[str, Backend] = {}
        record = log if log is not None else settings.log
        try:
            _require_drawable(settings, opened)
            for name, table in settings.backends.items():
                further[name] = config.open_backend(table.use, registry, **table.options)
            if record is not None and not isinstance(record, Log):
                record = _open_log(record, **settings.log_options)
            return cls(
                opened,
                settings.policy,
                record,
                backends=further,
                sampling=settings.sampling,
                secrets=secrets,
                mask=settings.mask,
            )
        except BaseException:
            for each in (opened, *further.values()):
                if each is not backend:
                    each.close()
            if isinstance(record, Log) and record is not log:
                record.close()
            raise

    def chat(self, messages: Messages, **options: Unpack[CallOptions]) -> Reply:
        """Answer one request, guarded and recorded.

        Args:
            messages: a string (one user message), `Message`s, or dictionaries with the keys
                ``role`` and ``content``.
            options: see `isonomy.sdk.calling.CallOptions`.

        Raises:
            InputError: the messages can't be used; nothing was recorded.
            BackendError: the model did not answer; recorded.
            LogError: the log can't be written; no answer is released.
        """
        return drive(self._chat(Blocking(), messages, options))

    async def achat(self, messages: Messages, **options: Unpack[CallOptions]) -> Reply:
        """Like `chat`, without blocking the running event loop."""
        return await self._chat(OnLoop(), messages, options)

    def stream(self, messages: Messages, **options: Unpack[CallOptions]) -> Stream:
        """Answer one request piece by piece; what leaves is judged and recorded before it does.

        Nothing happens before the first piece is asked for. Works inside a running event loop too,
        which it blocks.

        Args:
            messages: as for `chat`.
            options: as for `chat`.

        Returns:
            An iterator of text, to be used as a context manager where it may not be read to its
            end. It raises what `chat` raises.

        Raises:
            InputError: the messages can't be used; nothing was recorded.
        """
        from .streams import Stream

        return Stream(self._driver(Blocking(), messages, options))

    def astream(self, messages: Messages, **options: Unpack[CallOptions]) -> AsyncStream:
        """Like `stream`, without blocking the running event loop: an async iterator of text."""
        from .streams import AsyncStream

        return AsyncStream(self._driver(OnLoop(), messages, options))

    def _driver(
        self, waiting: Blocking | OnLoop, messages: Messages, options: CallOptions
    ) -> Driver:
        from .releasing import Outlet, Streaming
        from .streams import Driver

        streaming = Streaming(waiting, Outlet())
        performed, backend = self._performance(messages, options)

        def begin() -> Coroutine[Any, Any, Reply]:
            return self._perform(performed, backend, streaming, streaming)

        driver = Driver(performed.call.id, streaming.outlet, begin)
        self._streams.add(driver)
        return driver

    def _chat(
        self, waiting: Waiting, messages: Messages, options: CallOptions
    ) -> Coroutine[Any, Any, Reply]:
        return self._perform(*self._performance(messages, options), waiting)

    def _performance(self, messages: Messages, options: CallOptions) -> tuple[Performance, Backend]:
        backend = self._answering(options)
        performed = performance(
            messages,
            options,
            backend=backend,
            sampling=self.sampling,
            secrets=self._secrets,
            live=self._live,
            backends=self.backends,
        )
        return performed, backend

    def _perform(
        self,
        performed: Performance,
        backend: Backend,
        waiting: Waiting,
        streaming: Streaming | None = None,
    ) -> Coroutine[Any, Any, Reply]:
        return perform(
            performed,
            policy=self.policy,
            waiting=waiting,
            workers=self._workers,
            scribe=self._scribe(performed.call, backend),
            observers=self.policy.observers,
            streaming=streaming,
            keep=None if hasattr(self.log, "claim") else self._wait,
        )

    def _wait(self, left: Left) -> None:
        """Keep what a call leaves that waits for a person: the log does not."""
        from .resuming import Memory

        if self._waiting is None:
            self._waiting = Memory()
        self._waiting.keep(left)

    def resume(
        self,
        token: str,
        decision: Literal["approve", "edit", "reject"],
        *,
        edited: str | Sequence[Part | Message | Document] | None = None,
        by: str | None = None,
        reason: str = "",
        backend: Backend | None = None,
    ) -> Reply:
        """Go on with a call that waits for a person: once, after a restart too if it was logged.

        A call of its own, recorded and replayed like any other. The stage that asked is judged once
        more, without waiting again; what is edited is judged like anything else.

        Args:
            token: `Reply.token` of the call that waits.
            decision: ``approve`` goes on with it as it stands, ``edit`` with what is put in its
                place, ``reject`` ends it with the refusal.
            edited: what `Replace` could hold at the stage that asked.
            by: who decided; recorded with the content.
            reason: why; recorded with the content.
            backend: answers, where the call goes to the model, instead of the guard's own.

        Raises:
            InputError: no call waits for this token, or the decision can't be used; nothing was
                recorded, and the token is as good as it was.
            BackendError, LogError: as for `chat`; the token is used up.
        """
        from .resuming import as_decision, begin

        decided = as_decision(token, decision, edited, by, reason)
        self._answering({"backend": backend})
        performed, answers = begin(self, decided, backend)
        return drive(self._perform(performed, answers, Blocking()))

    async def aresume(
        self,
        token: str,
        decision: Literal["approve", "edit", "reject"],
        *,
        edited: str | Sequence[Part | Message | Document] | None = None,
        by: str | None = None,
        reason: str = "",
        backend: Backend | None = None,
    ) -> Reply:
        """Like `resume`, without blocking the running event loop."""
        from .resuming import abegin, as_decision

        decided = as_decision(token, decision, edited, by, reason)
        self._answering({"backend": backend})
        performed, answers = await abegin(self, decided, backend)
        return await self._perform(performed, answers, OnLoop())

    def _answering(self, options: CallOptions) -> Backend:
        """Return what answers a call.

        Raises:
            InputError: the guard is closed, or an option is unknown or can't be used.
        """
        if self._closed:
            raise InputError("this guard is closed. Make a new one.")
        for name in options:
            if name not in CallOptions.__annotations__:
                raise InputError(
                    f"a call has no option {name!r}.{nearest(name, CallOptions.__annotations__)}"
                )
        backend = options.get("backend")
        if backend is None:
            return self.backend
        if not hasattr(backend, "resolve"):
            raise InputError(
                f"the backend of a call must be a Backend, not {type(backend).__name__}. Make one "
                "(isonomy.backends), or give what you have to Guard(backend=...)."
            )
        return backend

    def _scribe(self, call: Call, backend: Backend) -> Scribe | None:
        if self.log is None:
            return None
        return Scribe(
            self.log,
            call,
            policy=self.policy,
            identity=backend.identity(),
            backends={name: each.identity() for name, each in self.backends.items()},
            masks=self._masks,
        )

    def wrap(self, client: C, **options: Unpack[WrapOptions]) -> C:
        """Return a client like `client` whose calls pass this guard.

        An OpenAI client (chat completions, responses), an Anthropic client (messages), sync or
        async, or a transformers pipeline. See `isonomy.sdk.wrapping`.

        Args:
            client: left as it is.
            options: for every call through the wrapped client: session, actor, tags, ..., and how
                it is to behave; see `isonomy.sdk.wrapping.settings.WrapOptions`.

        Raises:
            InputError: `client` is nothing that can be wrapped.
        """
        from .wrapping import wrap

        wrapped: C = wrap(self, client, options)
        return wrapped

    def protect(self, function: Any = None, **options: Unpack[ProtectOptions]) -> Any:
        """Guard a function that takes a prompt and returns an answer; a decorator.

        Args:
            function: from text or a list of messages to text; async or a generator, if it is one.
            options: for every call of it, and how it is to behave; see
                `isonomy.sdk.wrapping.function`.

        Raises:
            InputError: it is no function, or an option can't be used.
        """
        from .wrapping import protect

        return protect(self, function, options)

    def replay(self, call_id: str, *, regenerate: bool = False, deep: bool = False) -> Replayed:
        """Replay a logged call in this process, with this guard's own checks, callables included.

        Args:
            call_id: its id, or the beginning of one.
            regenerate: have the model answer token by token, instead of computing all tokens of the
                recorded answer in one pass; the same result, later.
            deep: name the first layer and operation that differ.

        Raises:
            LogError: there is no such call in this guard's log.
        """
        from isonomy.replay import replay_with_guard

        return replay_with_guard(self, call_id, regenerate=regenerate, deep=deep)

    def close(self) -> None:
        """Close open streams, the log and the backends; calling it twice is harmless."""
        if self._closed:
            return
        for stream in list(self._streams):
            stream.close()
        self._closed = True
        self._workers.close()
        for backend in (self.backend, *self.backends.values()):
            backend.close()
        if self.log is not None:
            self.log.close()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_backend(
    backend: str | Backend | Callable[..., Any], registry: Registry, options: dict[str, Any]
) -> Backend:
    if isinstance(backend, str):
        return config.open_backend(backend, registry, **options)
    if isinstance(backend, Backend):
        return backend
    if callable(backend):
        wrap = registry.find("backend", "callable")
        wrapped: Backend = wrap(backend)
        return wrapped
    raise InputError(
        f"backend must be a spec such as 'local:demo', a Backend, or a callable, not "
        f"{type(backend).__name__}."
    )


def _require_drawable(settings: config.Configuration, backend: Backend) -> None:
    """Raise `ConfigError` naming the key of a value that the backend can't draw tokens by."""
    try:
        backend.resolve(settings.sampling)
    except InputError as error:
        key = config.refused_key(settings.sampling, backend.resolve)
        raise ConfigError(str(error), file=settings.file, key=key) from None


def _masks(mask: Iterable[Mask | Mapping[str, Any]], policy: Policy) -> Masks | None:
    """Return what masks a log's records; `None` where nothing is to be masked."""
    if not mask:
        return None
    from .masking import Masks

    return Masks(mask, policy)


def _open_log(log: str | os.PathLike[str], **options: Any) -> Log:
    path = os.fspath(log)
    if "\0" in path:
        raise LogError(f"a path can't hold a NUL character: {path!r}.", path=path)
    opened: Log = Registry().find("log", "directory")(path, **options)
    return opened
