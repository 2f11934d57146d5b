"""Known tokens through the model: what each step of an answer had to be.

Nothing is drawn. Every token is given, and of each the evidence is computed that a generation would
have recorded when it came to it: log-probability, digest of the logits, digests of the layers. Bits
do not depend on how the tokens are cut into pieces, so pieces only bound memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from isonomy.sdk.errors import BackendError
from isonomy.sdk.generation import LayerTrace

from . import faults, packages
from .errors import BACKEND, Corrupt, NonFinite

if TYPE_CHECKING:
    from isonomy.kernels import Decoder, Session

    from .checkpoint import Checkpoint

PIECE = 128
"""Tokens whose logits are computed at once."""


class Rows(NamedTuple):
    """The evidence of some consecutive steps, in the formats of `TokenTrace`."""

    logprobs: bytes
    digests: bytes
    layers: bytes


def steps(
    decoder: Decoder,
    session: Session,
    tokens: Sequence[int],
    first: int,
    *,
    piece: int | None = None,
    layers: bool = False,
) -> Iterator[Rows]:
    """Yield the evidence of the steps that gave ``tokens[first:]``, a piece of them at a time.

    Args:
        decoder: The model.
        session: Holds the first tokens or none; has room for all of them. It is left holding all
            but the last.
        tokens: Prompt and answer.
        first: From 1 on: what comes before has to be given.
        piece: Feed so many tokens at once; `None`: `PIECE`.
        layers: Compute the digests of the layers, too.

    Raises:
        NonFinite: a hidden state or logit became infinite or NaN.
        BackendError: memory ran out, or an id is not in the vocabulary.
    """
    np = packages.load("numpy")
    kernels = packages.load("isonomy.kernels")
    count = decoder.config.layers * len(kernels.STAGES) * 32
    ids = np.asarray(tokens, dtype=np.int32)
    size = piece or PIECE
    with explained():
        for start in range(session.length, first - 1, size):
            session.prefill(ids[start : min(start + size, first - 1)])
        for start in range(first - 1, len(ids) - 1, size):
            end = min(start + size, len(ids) - 1)
            rows = end - start
            # The token after these is fed too, to be scored, and again with its own piece.
            given = kernels.StepItem(
                session, ids[start : end + 1], rows + 1, trace=layers, forced=True
            )
            step: Any = decoder.step([given])[0]
            if isinstance(step, kernels.KernelError):
                raise step
            session.truncate(end)
            yield Rows(
                step.logprobs[:rows].astype("<f4").tobytes(),
                step.digests[: 32 * rows],
                step.trace[: count * rows] if layers else b"",
            )


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of the kernels into those of a backend."""
    kernels: Any = packages.load("isonomy.kernels")
    try:
        yield
    except kernels.NonFiniteError as error:
        raise NonFinite(error.layer, error.where, str(error)) from error
    except kernels.CorruptionError as error:
        raise Corrupt(str(error)) from error
    except kernels.KernelError as error:
        raise BackendError(
            f"the kernels could not take this step: {error}.", backend=BACKEND
        ) from error
    finally:
        faults.report()


def retrace(
    loaded: Checkpoint,
    prompt: Sequence[int],
    ids: Sequence[int],
    runtime: Mapping[str, Any] | None = None,
) -> LayerTrace:
    """Return what every layer computes at each step of an answer; see `Retracer`.

    Raises:
        NonFinite: a hidden state or logit became infinite or NaN.
        BackendError: memory ran out, or an id is not in the vocabulary.
    """
    kernels = packages.load("isonomy.kernels")
    digests, logits = bytearray(), bytearray()
    with running(runtime or {}) as told:
        with explained():
            session = loaded.decoder.session(len(prompt) + len(ids))
        for rows in steps(
            loaded.decoder,
            session,
            [*prompt, *ids],
            len(prompt),
            piece=told["prompt_chunk"],
            layers=True,
        ):
            digests += rows.layers
            logits += rows.digests
    return LayerTrace(
        layers=loaded.decoder.config.layers,
        stages=kernels.STAGES,
        digests=bytes(digests),
        logits=bytes(logits),
        runtime=told,
    )


@contextmanager
def running(runtime: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Run the block as a record says, as far as this machine can, and tell how that is.

    Instruction set and threads change for the whole process meanwhile: never a bit, but speed.
    """
    kernels = packages.load("isonomy.kernels")
    before = kernels.info()
    isa = runtime.get("isa")
    threads, piece = _number(runtime.get("threads")), _number(runtime.get("prompt_chunk"))
    with kernels.using_isa(isa if isa in before.isas else before.isa):
        try:
            if threads is not None:
                kernels.set_threads(min(threads, max(before.threads, os.cpu_count() or 1)))
            now = kernels.info()
            yield {"isa": now.isa, "threads": now.threads, "prompt_chunk": piece}
        finally:
            if threads is not None:
                kernels.set_threads(before.threads)


def _number(value: Any) -> int | None:
    """Return a count that a record may hold, unless it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
