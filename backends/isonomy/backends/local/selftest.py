"""The self-test: does what the numerics promise hold for this checkpoint, on this machine?

Every row of the matrix computes one sequence in many ways and compares all logits of all its rows,
as bits. Rows run one after the other within a budget of time: cases beyond it are left out, and
counted. A row that fails says what differed first. Nothing is ever repeated until it holds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from isonomy.sdk.errors import BackendError, ContextLength, InputError
from isonomy.sdk.generation import Generation, Request, Sampling
from isonomy.sdk.vocabulary import Message

from . import forcing, knowns, packages
from .invariance import NEIGHBOUR, Evidence, Subject, Way

if TYPE_CHECKING:
    from .backend import Local
    from .checkpoint import Checkpoint

QUICK, FULL = 30.0, 600.0
"""Seconds that a quick and a full self-test may take, where nobody says otherwise."""
SHORTEST = 16
"""Tokens of context that the self-test needs."""
NEIGHBOURS_BYTES = 1 << 30
"""Memory for the caches of neighbours; batches that need more are left out."""

Case = tuple[str, Callable[[], str | None] | None]
"""What is tried, and the trial: it returns what differed, `None` if nothing did.

Without a trial there is no memory for it.
"""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the matrix.

    `cases` were tried of `planned`; `difference` is what the first of them that failed found.
    """

    name: str
    about: str
    cases: int
    planned: int
    seconds: float
    difference: str | None = None

    @property
    def held(self) -> bool:
        """Whether every case that was tried held."""
        return self.difference is None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What will be done: with which model and kernels, over how many tokens, in which time."""

    model: str
    digest: str
    numerics_version: int
    library: str
    isas: tuple[str, ...]
    isa: str
    threads: int
    prompt: int
    answer: int
    rows: tuple[str, ...]
    seconds: float


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """What held."""

    plan: Plan
    rows: tuple[Row, ...]
    seconds: float

    @property
    def held(self) -> bool:
        """Whether all rows held."""
        return all(row.held for row in self.rows)

    @property
    def left_out(self) -> int:
        """Cases that there was no time or memory for."""
        return sum(row.planned - row.cases for row in self.rows if row.held)


def selftest(
    backend: Local,
    loaded: Checkpoint,
    *,
    quick: bool = False,
    seconds: float | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> SelfTest:
    """Run the matrix.

    Args:
        backend: The model, as its users ask it.
        loaded: The same, as it was loaded.
        quick: A shorter sequence, and fewer cases a row.
        seconds: What it may take, about; `None`: `QUICK` or `FULL`. Every row tries one case at
            least.
        on_plan: Receives what will be done, before it is.
        on_row: Receives each row when it is through.
        clock: Seconds.

    Raises:
        InputError: `seconds` is no time, or the model's context is too short.
        BackendError: the model leaves the finite numbers, or memory ran out, before anything was
            compared.
    """
    budget = (QUICK if quick else FULL) if seconds is None else seconds
    if not budget > 0:
        raise InputError(f"the self-test needs a time above 0 s, not {budget!r}.")
    if loaded.context < SHORTEST:
        raise InputError(
            f"the self-test needs a context of {SHORTEST} tokens, and this model's is "
            f"{loaded.context}. Give it a longer context."
        )
    info = packages.load("isonomy.kernels").info()
    prompt, answer = _lengths(loaded.context, quick)
    identity = backend.identity()
    matrix = _Matrix(backend, loaded, quick)
    plan = Plan(
        model=identity.model,
        digest=identity.artefacts["model"],
        numerics_version=info.numerics_version,
        library=info.library_digest,
        isas=info.isas,
        isa=info.isa,
        threads=info.threads,
        prompt=prompt,
        answer=answer,
        rows=tuple(name for name, _, _ in matrix.rows()),
        seconds=budget,
    )
    if on_plan is not None:
        on_plan(plan)
    began = clock()
    with forcing.explained():
        matrix.subject = Subject(loaded.decoder, prompt, answer)
    rows: list[Row] = []
    todo = matrix.rows()
    for number, (name, about, cases) in enumerate(todo):
        now = clock()
        share = (began + budget - now) / (len(todo) - number)
        row = _run(name, about, cases(), now + share, clock)
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return SelfTest(plan=plan, rows=tuple(rows), seconds=clock() - began)


def _run(
    name: str, about: str, cases: list[Case], deadline: float, clock: Callable[[], float]
) -> Row:
    began = clock()
    tried, difference = 0, None
    for what, trial in cases:
        if trial is None:
            continue
        if tried and clock() >= deadline:
            break
        tried += 1
        try:
            difference = trial()
        except ContextLength:
            tried -= 1  # a model with so short a context that its template leaves no room
        except BackendError as error:
            difference = str(error)
        if difference is not None:
            difference = f"{what}: {difference}"
            break
    return Row(
        name=name,
        about=about,
        cases=tried,
        planned=len(cases),
        seconds=clock() - began,
        difference=difference,
    )


def _lengths(context: int, quick: bool) -> tuple[int, int]:
    """Return how many tokens prompt and answer have.

    The full sequence goes beyond a block of 256 positions.
    """
    prompt, answer = (60, 8) if quick else (290, 24)
    answer = min(answer, max(1, context // 4))
    return min(prompt, context - answer), answer


class _Matrix:
    """The rows, and what their cases compute with."""

    subject: Subject

    def __init__(self, backend: Local, loaded: Checkpoint, quick: bool) -> None:
        self._backend, self._loaded, self._quick = backend, loaded, quick
        self._kernels: Any = packages.load("isonomy.kernels")

    def rows(self) -> list[tuple[str, str, Callable[[], list[Case]]]]:
        """Return the rows: name, what it is about, and what makes its cases."""
        known = self._kernels.NUMERICS_VERSION == knowns.VERSION
        functions = ("functions", "operations have their known results", self._functions)
        checksums = ("checksums", "no checksum of an int8 linear failed above", self._checksums)
        return [
            *([functions] if known else []),
            ("again", "the same pass once more", self._again),
            ("decode", "token by token = in one piece, drawing included", self._decode),
            ("prompt pieces", "any size of pieces = in one piece", self._pieces),
            ("guesses", "verification of guesses = plain decoding", self._guesses),
            ("prefix cache", "warm = cold, and forgetting leaves nothing", self._warm),
            ("batches", "among random neighbours = alone", self._batches),
            ("threads", "any number of threads", self._threads),
            ("instruction sets", "every one that this machine has", self._isas),
            ("calls", "calls at the same time, again, and verified", self._calls),
            *([checksums] if self._loaded.decoder.config.checksums else []),
        ]

    def _way(self, name: str, way: Way) -> Case:
        return name, lambda: self.subject.difference(way)

    def _functions(self) -> list[Case]:
        return [
            (f"{name} on {isa}", lambda name=name, isa=isa: self._known(name, isa))  # type: ignore[misc]
            for isa in self._kernels.info().isas
            for name in knowns.OPERATIONS
        ]

    def _known(self, name: str, isa: str) -> str | None:
        with self._kernels.using_isa(isa):
            found = knowns.digest(name)
        if found == knowns.DIGESTS[name]:
            return None
        return f"the digest of its results is {found}, not {knowns.DIGESTS[name]}"

    def _again(self) -> list[Case]:
        way = self.subject.in_pieces([self.subject.rows])
        return [self._way(f"time {number}", way) for number in range(2, 4 if self._quick else 6)]

    def _decode(self) -> list[Case]:
        return [self._way("token by token", self.subject.decoding())]

    def _pieces(self) -> list[Case]:
        rows = self.subject.rows
        sizes = [64, 2, 33, 7, 16] if self._quick else [*range(64, 0, -1), rows - 1]
        return [
            self._way(f"pieces of {size}", self.subject.in_pieces(_cut(rows, size)))
            for size in dict.fromkeys(min(size, rows) for size in sizes)
        ]

    def _guesses(self) -> list[Case]:
        counts = [4, 1, 8] if self._quick else [4, 1, 2, 3, 5, 7, 8, 15, 16, 24]
        return [
            self._way(
                f"{count} guesses" + (f", every {wrong}. wrong" if wrong else ""),
                self.subject.verifying(count, wrong),
            )
            for count in counts
            for wrong in (None, 1, 3)
        ]

    def _warm(self) -> list[Case]:
        rows, prompt = self.subject.rows, self.subject.prompt
        lengths = [prompt - 1, 1, 32] if self._quick else [prompt - 1, 256, 1, 31, 32, 33, 255, 257]
        return [
            self._way(
                f"{'truncated to' if truncated else 'forked at'} {length}",
                self.subject.warm(length, truncated=truncated),
            )
            for length in lengths
            for truncated in (False, True)
            if length < rows
        ]

    def _batches(self) -> list[Case]:
        sizes = [2, 3, 8, 17] if self._quick else [2, 17, 64, 257, 128, 32, *range(1, 17)]
        most = NEIGHBOURS_BYTES // self._loaded.decoder.cache_bytes(NEIGHBOUR)
        return [
            self._way(f"batch of {size}", self.subject.among(size))
            if size <= max(2, most)
            else (f"batch of {size}", None)
            for size in sizes
        ]

    def _threads(self) -> list[Case]:
        most = max(os.cpu_count() or 1, self._kernels.info().threads)
        numbers = [1, most, most + 1, *range(2, most)]
        if self._quick:
            numbers = numbers[:3]
        mixed = self._mixed(self.subject.rows)

        def case(threads: int) -> Case:
            return self._way(
                f"{threads} threads", _running(mixed, lambda: _threads(self._kernels, threads))
            )

        return [case(threads) for threads in dict.fromkeys(numbers)]

    def _isas(self) -> list[Case]:
        # The first case finds out how long a token takes: some paths are a hundred times slower.
        def case(isa: str, rows: int) -> Case:
            return self._way(
                f"{isa}, {rows} rows",
                _running(self._mixed(rows), lambda: self._kernels.using_isa(isa)),
            )

        rows = self.subject.rows
        return [
            case(isa, count)
            for count in dict.fromkeys((min(4, rows), min(40, rows), rows))
            for isa in self._kernels.info().isas
        ]

    def _mixed(self, rows: int) -> Way:
        """Feed most in one piece, then some tokens one by one."""
        alone = min(3, rows - 1)
        return self.subject.in_pieces([rows - alone, *[1] * alone])

    def _checksums(self) -> list[Case]:
        def sound() -> str | None:
            if not self.subject.faults:
                return None
            return (
                f"{len(self.subject.faults)} rows were wrong and computed again, the first in "
                f"{self.subject.faults[0]}: memory or processor can't be trusted"
            )

        return [("all passes", sound)]

    def _calls(self) -> list[Case]:
        requests = [
            Request(
                messages=(Message.of("user", f"Tell me about the number {number}."),),
                sampling=Sampling(temperature=0.8, seed=number, max_tokens=8),
            )
            for number in range(4 if self._quick else 16)
        ]
        known: list[Generation] = []

        def alone() -> list[Generation]:
            if not known:
                known.extend(self._backend.generate(request) for request in requests)
            return known

        def compared(found: list[Generation]) -> str | None:
            for generation in found:
                faults = generation.runtime.get("faults", ())
                self.subject.faults += [fault["linear"] for fault in faults]
            return _first(found, alone())

        def again() -> str | None:
            return compared([self._backend.generate(request) for request in requests])

        def together() -> str | None:
            alone()
            with ThreadPoolExecutor(len(requests)) as pool:
                return compared(list(pool.map(self._backend.generate, requests)))

        def with_records(records: list[Generation]) -> str | None:
            return compared(
                [
                    self._backend.generate(request, recorded=recorded)
                    for request, recorded in zip(requests, records, strict=True)
                ]
            )

        return [
            (f"{len(requests)} calls once more", again),
            (f"{len(requests)} calls at the same time", together),
            ("calls verified by their answers", lambda: with_records(alone())),
            ("calls misled by other answers", lambda: with_records([*alone()[1:], alone()[0]])),
        ]


def _cut(rows: int, size: int) -> list[int]:
    return [min(size, rows - start) for start in range(0, rows, size)]


def _running(way: Way, surroundings: Callable[[], Any]) -> Way:
    """Compute in surroundings."""

    def run(trace: bool) -> Evidence:
        with surroundings():
            return way(trace)

    return run


@contextmanager
def _threads(kernels: Any, threads: int) -> Iterator[None]:
    before = kernels.info().threads
    kernels.set_threads(threads)
    try:
        yield
    finally:
        kernels.set_threads(before)


def _first(found: list[Generation], expected: list[Generation]) -> str | None:
    """Return the first call that differs, and at which step."""
    for number, (new, old) in enumerate(zip(found, expected, strict=True)):
        if new.tokens == old.tokens and new.content == old.content:
            continue
        assert new.tokens is not None
        assert old.tokens is not None
        for step, (one, other) in enumerate(zip(new.tokens.ids, old.tokens.ids, strict=False)):
            at = slice(32 * step, 32 * step + 32)
            if new.tokens.digests[at] != old.tokens.digests[at]:
                return f"call {number}: the logits of step {step} differ"
            if one != other:
                return f"call {number}: token {one} at step {step}, {other} when alone"
        return f"call {number}: its answer differs"
    return None
