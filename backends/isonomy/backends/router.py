"""`Router`: several backends behind one, the next where one fails.

Backends are asked in order until one answers. Those with a weight share the calls among them in
proportion, and the others stand behind them, in order. Every attempt is recorded with the name of
the backend that was tried; the generation says who answered.

Invariants: text that was passed to `on_text` is not taken back, so after the first piece nobody
else is asked; what `on_text` raises goes through. A failure that the next backend would only hide
(a wrong key, an impossible request) ends the call, unless `fall_back_on` says otherwise.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from isonomy.sdk import (
    Backend,
    BackendError,
    ConfigError,
    ContextLength,
    IsonomyError,
    RemoteError,
)
from isonomy.sdk.config import open_backend
from isonomy.sdk.errors import Overloaded
from isonomy.sdk.generation import Attempt, Generation, Identity, Request, Sampling
from isonomy.sdk.registry import Registry, nearest

OnText = Callable[[str], None]
FALL_BACK_ON = (
    "timeout", "unreachable", "overloaded", "failed", "invalid", "cut", "open", "context",
)  # fmt: skip
"""Outcomes after which the next backend is asked: all but ``refused``, which is the request's or
the key's own fault."""
_OUTCOMES = frozenset({*FALL_BACK_ON, "refused"})
_OWN_KEYS = ("use", "name", "weight")


class Member(NamedTuple):
    """One of a router's backends."""

    name: str
    backend: Backend
    weight: float


class Router:
    """Backends with fallbacks.

    Args:
        backends: specs, `Backend`s, or tables as in `members`, in order; or specs in one string,
            with commas between them.
        members: tables with the key ``use`` (a spec), if need be ``name`` (in records; the spec
            unless given) and ``weight``, and keywords of that backend.
        fall_back_on: outcomes (``timeout``, ``unreachable``, ``overloaded``, ``failed``,
            ``invalid``, ``cut``, ``open``, ``context``, ``refused``) and HTTP statuses after which
            the next backend is asked; all outcomes but ``refused`` unless given.
        registry: where specs are looked up.
        rng: draws among backends with weights.
        clock_ns: a monotonic clock.

    Raises:
        ConfigError: no backend, a table that is not as it should be, or a backend refuses its
            options. None stays open.
    """

    def __init__(
        self,
        backends: str | Iterable[str | Mapping[str, Any] | Backend] = (),
        *,
        members: list[dict[str, str | int | float | bool | list[str] | dict[str, str]]]
        | None = None,
        fall_back_on: list[str | int] | None = None,
        registry: Registry | None = None,
        rng: random.Random | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        given: list[Any] = (
            [spec.strip() for spec in backends.split(",")]
            if isinstance(backends, str)
            else list(backends)
        )
        given += members or []
        if not given:
            raise ConfigError(
                'a router needs backends: members = [{use = "openai:..."}, {use = "local:demo"}].',
                key="members",
            )
        self._fall_back_on = _outcomes(FALL_BACK_ON if fall_back_on is None else fall_back_on)
        self._rng = rng if rng is not None else random.Random()
        self._clock_ns = clock_ns
        self._members: list[Member] = []
        self._identity: Identity | None = None
        registry = registry if registry is not None else Registry()
        try:
            for index, one in enumerate(given):
                self._members.append(self._opened(index, one, registry))
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Router({[member.name for member in self._members]})"

    def identity(self) -> Identity:
        """Return who may answer: `options` has the members' own identities."""
        if self._identity is None:
            known = [(member, member.backend.identity()) for member in self._members]
            self._identity = Identity(
                provider="router",
                model=", ".join(identity.model for _, identity in known),
                spec="router:" + ",".join(identity.spec for _, identity in known),
                options={
                    "members": [
                        {
                            "name": member.name,
                            "weight": member.weight,
                            "provider": identity.provider,
                            "model": identity.model,
                            "spec": identity.spec,
                            "options": identity.options,
                        }
                        for member, identity in known
                    ],
                    "fall_back_on": sorted(map(str, self._fall_back_on)),
                },
                artefacts={
                    f"{member.name}/{name}": digest
                    for member, identity in known
                    for name, digest in identity.artefacts.items()
                },
                runtime={member.name: identity.runtime for member, identity in known},
            )
        return self._identity

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` as it is: each backend fills in its own defaults when it is asked.

        Raises:
            InputError: one of them can't use it.
        """
        for member in self._members:
            member.backend.resolve(sampling)
        return sampling

    def generate(self, request: Request, *, on_text: OnText | None = None) -> Generation:
        """Have the first backend answer that can.

        Raises:
            InputError: the request can't be sent.
            RemoteError: none answered; every attempt is in `attempts`.
        """
        route = _Route(self._order(), self._fall_back_on, on_text, self._clock_ns)
        for member in route.members:
            asked = route.asking(member, request)
            try:
                return route.answered(member.backend.generate(asked, on_text=route.on_text))
            except Exception as error:
                route.failed(error)
        raise route.exhausted()

    async def agenerate(self, request: Request, *, on_text: OnText | None = None) -> Generation:
        """Like `generate`, without blocking the running loop."""
        route = _Route(self._order(), self._fall_back_on, on_text, self._clock_ns)
        for member in route.members:
            asked = route.asking(member, request)
            try:
                answer = await member.backend.agenerate(asked, on_text=route.on_text)
                return route.answered(answer)
            except Exception as error:
                route.failed(error)
        raise route.exhausted()

    def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
        """Have the first backend score labels that can; see `isonomy.sdk.generation.Scorer`.

        Raises:
            BackendError: none can.
        """
        problem = "none of the router's backends gives log-probabilities."
        for member in self._members:
            score = getattr(member.backend, "logprobs", None)
            if score is None:
                continue
            try:
                found: tuple[float, ...] = score(request, labels)
                return found
            except BackendError as error:
                problem = str(error)
        raise BackendError(problem, backend="router")

    def close(self) -> None:
        """Close all backends."""
        for member in self._members:
            member.backend.close()

    def _order(self) -> list[Member]:
        left = [member for member in self._members if member.weight > 0]
        order = []
        while left:
            drawn = self._rng.choices(left, [member.weight for member in left])[0]
            left.remove(drawn)
            order.append(drawn)
        return order + [member for member in self._members if member.weight == 0]

    def _opened(self, index: int, given: Any, registry: Registry) -> Member:
        key = f"members[{index}]"
        table = given if isinstance(given, Mapping) else {"use": given}
        use, weight = table.get("use"), table.get("weight", 0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e9:
            raise ConfigError(f"it must be a number from 0, not {weight!r}.", key=f"{key}.weight")
        if isinstance(use, str) and use:
            backend = _open(use, table, key, registry)
            name = str(table.get("name") or use)
        elif isinstance(use, Backend):
            backend = use
            name = str(table.get("name") or use.identity().spec)
        else:
            raise ConfigError('names no backend: write use = "openai:...".', key=f"{key}.use")
        taken = {member.name for member in self._members}
        if name in taken:
            name = next(f"{name}#{n}" for n in range(2, 1 << 30) if f"{name}#{n}" not in taken)
        return Member(name, backend, float(weight))


class _Route:
    """One request's way along the backends."""

    def __init__(
        self,
        members: list[Member],
        fall_back_on: frozenset[str | int],
        on_text: OnText | None,
        clock_ns: Callable[[], int],
    ) -> None:
        self.members = members
        self.on_text = self._tell if on_text is not None else None
        self._given = on_text
        self._fall_back_on = fall_back_on
        self._clock_ns = clock_ns
        self._told = False
        self._raised: BaseException | None = None
        self._attempts: list[Attempt] = []
        self._tried: list[str] = []
        self._problems: list[str] = []
        self._status: int | None = None
        self._started = 0
        self._sampling = Sampling()

    def _tell(self, piece: str) -> None:
        assert self._given is not None
        self._told = self._told or bool(piece)
        try:
            self._given(piece)
        except BaseException as error:
            self._raised = error
            raise

    def asking(self, member: Member, request: Request) -> Request:
        self._tried.append(member.name)
        self._started = self._clock_ns()
        self._sampling = member.backend.resolve(request.sampling)
        return msgspec.structs.replace(request, sampling=self._sampling)

    def answered(self, generation: Generation) -> Generation:
        self._note(generation.attempts, "ok", None)
        drawn = {
            name: value
            for name, value in msgspec.structs.asdict(self._sampling).items()
            if value not in (None, ())
        }
        runtime = {
            **generation.runtime,
            "backend": self._tried[-1],
            "route": list(self._tried),
            "sampling": msgspec.to_builtins(drawn),
        }
        return msgspec.structs.replace(generation, attempts=tuple(self._attempts), runtime=runtime)

    def failed(self, error: Exception) -> None:
        """Note a failure, and raise it unless the next backend may be asked."""
        if self._raised is not None:
            raise self._raised
        if isinstance(error, IsonomyError) and not isinstance(error, BackendError):
            raise error  # the request's own fault
        outcome, status = _outcome_of(error)
        said = str(error) if isinstance(error, BackendError) else f"{type(error).__name__}: {error}"
        self._note(getattr(error, "attempts", ()), outcome, said)
        self._problems.append(f"{self._tried[-1]}: {said}")
        self._status = status
        if self._told:
            raise self._ended(
                f"{said} A part of the answer was passed on, so no other backend was asked."
            ) from None
        if not {outcome, status} & self._fall_back_on:
            if len(self._tried) == 1 and not isinstance(error, RemoteError):
                raise error
            raise self._ended(said) from None

    def exhausted(self) -> RemoteError:
        """Return the error of a route at whose end nobody answered."""
        return self._ended(
            f"none of {len(self._tried)} backends answered. " + " ".join(self._problems)
        )

    def _ended(self, message: str) -> RemoteError:
        return RemoteError(
            message, backend="router", status=self._status, attempts=tuple(self._attempts)
        )

    def _note(self, attempts: Sequence[Attempt], outcome: str, error: str | None) -> None:
        name = self._tried[-1]
        if not attempts:
            took = self._clock_ns() - self._started
            attempts = (Attempt(number=1, outcome=outcome, error=error, duration_ns=took),)
        for attempt in attempts:
            inner = f"{name}/{attempt.backend}" if attempt.backend else name
            number = len(self._attempts) + 1
            self._attempts.append(msgspec.structs.replace(attempt, number=number, backend=inner))


def _outcome_of(error: Exception) -> tuple[str, int | None]:
    if isinstance(error, ContextLength):
        return "context", None
    if isinstance(error, Overloaded):
        return "overloaded", None
    if isinstance(error, RemoteError) and error.attempts:
        return error.attempts[-1].outcome, error.status
    return "failed", getattr(error, "status", None)


def _outcomes(given: Sequence[Any]) -> frozenset[str | int]:
    for one in given:
        if isinstance(one, int) and not isinstance(one, bool) and 100 <= one <= 599:
            continue
        if one not in _OUTCOMES:
            raise ConfigError(
                f"{one!r} is no outcome, nor a status.{nearest(str(one), _OUTCOMES)}",
                key="fall_back_on",
            )
    return frozenset(given)


def _open(spec: str, table: Mapping[str, Any], key: str, registry: Registry) -> Backend:
    options = {name: value for name, value in table.items() if name not in _OWN_KEYS}
    factory = registry.find("backend", spec.partition(":")[0])
    parameters = inspect.signature(factory).parameters.values()
    known = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for name in options:
        if name not in known:
            raise ConfigError(
                f"unknown key.{nearest(name, {*known, *_OWN_KEYS})}", key=f"{key}.{name}"
            )
    try:
        return open_backend(spec, registry, **options)
    except ConfigError as error:
        inner = f"{key}.{error.key}" if error.key else key
        raise ConfigError(error.problem, key=inner) from None
