"""The self-test holds on a sound machine, and on a broken one the right row says what is broken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from isonomy.backends.local import Local, invariance, knowns, selftest
from isonomy.sdk.errors import BackendError, InputError

kernels = pytest.importorskip("isonomy.kernels")

from isonomy.kernels.faults import inject_linear  # noqa: E402
from isonomy.kernels.testing import inject  # noqa: E402

ROWS = (
    "functions",
    "again",
    "decode",
    "prompt pieces",
    "guesses",
    "prefix cache",
    "batches",
    "threads",
    "instruction sets",
    "calls",
)
FAULT = {"layer": 1, "stage": "attention", "row": 40, "element": 3, "bit": 22}
NAMED = "row 40: layer 1, attention, is the first operation that differs"


@pytest.fixture(scope="module")
def backend(shared_checkpoint: Path) -> Local:
    return Local(shared_checkpoint)


def quick(backend: Local, **options: Any) -> selftest.SelfTest:
    return backend.selftest(quick=True, **{"seconds": 1000.0, **options})


def failed(found: selftest.SelfTest) -> dict[str, str]:
    assert found.held == (not any(row.difference for row in found.rows))
    return {row.name: row.difference for row in found.rows if row.difference is not None}


def test_everything_holds(backend: Local) -> None:
    plans: list[selftest.Plan] = []
    rows: list[selftest.Row] = []
    found = quick(backend, on_plan=plans.append, on_row=rows.append)
    assert found.held, failed(found)
    assert plans == [found.plan]
    assert tuple(rows) == found.rows
    assert tuple(row.name for row in rows) == found.plan.rows == ROWS
    assert found.left_out == 0
    assert all(row.cases == row.planned > 0 for row in rows)
    assert (found.plan.prompt, found.plan.answer) == (60, 8)
    assert found.plan.digest == backend.identity().artefacts["model"]
    assert found.plan.isas == kernels.info().isas


def test_nothing_stays_switched_over(backend: Local) -> None:
    before = kernels.info()
    with Local(backend._spec.removeprefix("local:")) as other:
        other.selftest(quick=True, seconds=1e-9)
    assert kernels.info() == before


def test_time_bounds_it(backend: Local) -> None:
    """Every row tries one case; the rest is counted."""
    found = quick(backend, seconds=1e-9)
    assert found.held
    assert {row.cases for row in found.rows} == {1}
    assert found.left_out == sum(row.planned - 1 for row in found.rows) > 20
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="above 0 s"):
            quick(backend, seconds=seconds)


def test_the_full_matrix_is_the_specification_s(shared_checkpoint: Path) -> None:
    """Its cases, without running them all: numerics' sizes of pieces, batches, threads, paths."""
    with Local(shared_checkpoint) as backend:
        matrix = selftest._Matrix(backend, backend._loaded(), quick=False)
        matrix.subject = invariance.Subject(backend._loaded().decoder, 60, 8)
        cases = {name: [what for what, trial in make()] for name, _, make in matrix.rows()}
    assert {f"pieces of {size}" for size in range(1, 65)} <= set(cases["prompt pieces"])
    batches = {f"batch of {size}" for size in (*range(1, 18), 32, 64, 128, 257)}
    assert set(cases["batches"]) == batches
    most = kernels.info().threads
    assert {f"{threads} threads" for threads in range(1, most + 2)} <= set(cases["threads"])
    for isa in kernels.info().isas:
        assert sum(what.startswith(f"{isa},") for what in cases["instruction sets"]) == 3
        assert sum(what.endswith(f" on {isa}") for what in cases["functions"]) == len(
            knowns.OPERATIONS
        )


@pytest.mark.parametrize("batch", [64, 257])
def test_the_largest_batches(shared_checkpoint: Path, batch: int) -> None:
    with Local(shared_checkpoint) as backend:
        subject = invariance.Subject(backend._loaded().decoder, 60, 8)
        assert subject.difference(subject.among(batch)) is None


@pytest.mark.parametrize("context", [16, 17, 64])
def test_a_short_context(shared_checkpoint: Path, context: int) -> None:
    with Local(shared_checkpoint, context=context) as backend:
        loaded = backend._loaded()
        prompt, answer = selftest._lengths(context, quick=True)
        assert prompt + answer <= context
        matrix = selftest._Matrix(backend, loaded, quick=True)
        matrix.subject = invariance.Subject(loaded.decoder, prompt, answer)
        for name, _, make in matrix.rows():
            if name != "calls":  # prompts have to fit
                assert [trial() for _, trial in make() if trial is not None] == [None] * len(make())


def test_too_short_a_context(shared_checkpoint: Path) -> None:
    with (
        Local(shared_checkpoint, context=15) as backend,
        pytest.raises(InputError, match="needs a context of 16 tokens"),
    ):
        backend.selftest()
    with Local(shared_checkpoint, context=16) as backend:
        found = quick(backend)
        (row,) = (row for row in found.rows if row.name == "calls")
        assert (found.held, row.cases, row.planned) == (True, 0, 4)


Patch = Callable[[pytest.MonkeyPatch], None]


def in_steps(chosen: Callable[[Sequence[Any]], bool]) -> Patch:
    """Break the passes that are chosen by their items."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        genuine = kernels.Decoder.step

        def step(self: Any, items: Sequence[Any]) -> Any:
            if not chosen(items):
                return genuine(self, items)
            with inject(**FAULT):
                return genuine(self, items)

        monkeypatch.setattr(kernels.Decoder, "step", step)

    return patch


def on_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = kernels.using_isa

    @contextmanager
    def using_isa(name: str) -> Iterator[None]:
        with genuine(name):
            if name != "scalar":
                yield
                return
            with inject(**FAULT):
                yield

    monkeypatch.setattr(kernels, "using_isa", using_isa)


def with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = selftest._threads

    @contextmanager
    def threads(library: Any, number: int) -> Iterator[None]:
        with genuine(library, number), inject(**FAULT):
            yield

    monkeypatch.setattr(selftest, "_threads", threads)


def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the third whole pass: the first after the two that make the subject."""
    counter = itertools.count()
    in_steps(lambda items: items[0].draws > 60 and next(counter) == 1)(monkeypatch)


def in_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks hold another token than they should."""
    genuine = kernels.Session.fork

    def fork(self: Any, *arguments: Any, **options: Any) -> Any:
        session = genuine(self, *arguments, **options)
        length = session.length
        session.truncate(length - 1)
        session.prefill([7])
        return session

    monkeypatch.setattr(kernels.Session, "fork", fork)


def in_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = kernels.exp

    def exp(x: Any) -> Any:
        y = genuine(x).copy()
        y.view(np.uint32)[123] ^= 1
        return y

    monkeypatch.setattr(kernels, "exp", exp)


def in_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses are drawn otherwise, from the right logits."""
    genuine = kernels.Decoder.step

    def step(self: Any, items: Sequence[Any]) -> Any:
        results = genuine(self, items)
        if len(items) == 1 and items[0].draws > 1 and not items[0].forced:
            tokens = (*results[0].tokens[:-1], results[0].tokens[-1] ^ 1)
            return [msgspec.structs.replace(results[0], tokens=tokens)]
        return results

    monkeypatch.setattr(kernels.Decoder, "step", step)


def is_piece(items: Sequence[Any]) -> bool:
    return len(items) == 1 and items[0].forced and 1 < items[0].draws < 60


@pytest.mark.parametrize(
    ("patch", "rows", "said"),
    [
        (on_a_path, {"instruction sets"}, NAMED),
        (with_threads, {"threads"}, NAMED),
        (in_steps(lambda items: len(items) > 1), {"batches", "calls"}, NAMED),
        (
            in_steps(lambda items: items[0].forced and items[0].draws == 1),
            {"decode"},
            NAMED,
        ),
        (in_steps(is_piece), {"prompt pieces", "prefix cache"}, "layer 1, attention, is the first"),
        (once, {"again"}, "its logits differ, but did not when they were computed once more"),
        (
            in_forks,
            {"prefix cache", "calls"},
            "layer 0, attention, is the first operation that differs",
        ),
        (in_exp, {"functions"}, "the digest of its results is"),
        (in_draws, {"guesses", "calls"}, "equal logits, but token"),
    ],
    ids=["path", "threads", "batch", "alone", "pieces", "once", "forks", "exp", "draws"],
)
def test_a_fault_makes_the_right_row_fail(
    shared_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    patch: Patch,
    rows: set[str],
    said: str,
) -> None:
    patch(monkeypatch)
    with Local(shared_checkpoint) as backend:
        found = failed(quick(backend))
    assert set(found) <= rows
    assert set(found) & (rows - {"calls"}) == rows - {"calls"}
    assert any(said in difference for difference in found.values())


def test_calls_that_differ(backend: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = backend.generate

    def generate(request: Any, *, recorded: Any = None) -> Any:
        if recorded is None:
            return genuine(request)
        with inject(layer=0, stage="qkv", row=20, element=0, bit=22):
            return genuine(request, recorded=recorded)

    monkeypatch.setattr(backend, "generate", generate)
    found = failed(quick(backend))
    assert set(found) == {"calls"}
    assert "verified by their answers: call 0: " in found["calls"]


def test_a_path_that_fails(backend: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def threads(library: Any, number: int) -> Iterator[None]:
        raise BackendError("no memory for so many threads", backend="local")
        yield

    monkeypatch.setattr(selftest, "_threads", threads)
    found = quick(backend)
    assert failed(found) == {"threads": "1 threads: no memory for so many threads"}
    assert [row.cases for row in found.rows if row.name == "threads"] == [1]


def test_known_answers_are_those_of_this_version() -> None:
    assert knowns.VERSION == kernels.NUMERICS_VERSION
    assert set(knowns.DIGESTS) == set(knowns.OPERATIONS)


def test_no_memory_for_neighbours(backend: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "NEIGHBOURS_BYTES", 1)
    found = quick(backend)
    (row,) = (row for row in found.rows if row.name == "batches")
    assert (row.held, row.cases, row.planned) == (True, 1, 4)
    assert found.left_out == 3


def test_int8_with_checksums(shared_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Local(shared_checkpoint, weights="int8", checksums=True) as backend:
        sound = quick(backend)
        assert sound.held, failed(sound)
        assert sound.plan.rows == (*ROWS, "checksums")
        genuine = selftest._threads

        @contextmanager
        def threads(library: Any, number: int) -> Iterator[None]:
            with genuine(library, number), inject_linear("layer 1 down_proj", element=5, bit=9):
                yield

        monkeypatch.setattr(selftest, "_threads", threads)
        found = failed(quick(backend))
    assert set(found) == {"checksums"}
    assert (
        "rows were wrong and computed again, the first in layer 1 down_proj" in found["checksums"]
    )
