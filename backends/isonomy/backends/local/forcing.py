"""Known tokens through the model: what each step of an answer had to be.

Nothing is drawn. Every token is given, and of each the evidence is computed that a generation would
have recorded when it came to it: log-probability, digest of the logits, digests of the layers. Bits
do not depend on how the tokens are cut into pieces, so pieces only bound memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from isonomy.sdk.errors import BackendError

from . import packages
from .errors import BACKEND, NonFinite

if TYPE_CHECKING:
    from isonomy.kernels import Decoder, Session

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
    ids = np.asarray(tokens, dtype=np.int32)
    size = piece or PIECE
    with explained():
        for start in range(session.length, first - 1, size):
            session.prefill(ids[start : min(start + size, first - 1)])
        for start in range(first - 1, len(ids) - 1, size):
            end = min(start + size, len(ids) - 1)
            logits = session.feed(ids[start:end], all_logits=True)
            yield Rows(
                kernels.logprobs(logits, ids[start + 1 : end + 1]).astype("<f4").tobytes(),
                b"".join(kernels.step_digests(logits)),
                b"",
            )


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of the kernels into those of a backend."""
    kernels: Any = packages.load("isonomy.kernels")
    try:
        yield
    except kernels.NonFiniteError as error:
        raise NonFinite(error.layer, error.where, str(error)) from error
    except kernels.KernelError as error:
        raise BackendError(
            f"the kernels could not take this step: {error}.", backend=BACKEND
        ) from error
