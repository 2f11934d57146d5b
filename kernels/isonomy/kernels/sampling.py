"""From logits to a token, keyed by seed, position and token id (kernels/NUMERICS.md, section 9).

What is drawn depends on these logits, parameters, position and history, and on nothing else:
no generator state, no neighbours, no rank.
"""

from __future__ import annotations

import ctypes

import msgspec
import numpy as np
import numpy.typing as npt

from isonomy.kernels.arrays import Floats, address, floats, ids
from isonomy.kernels.errors import ArgumentError, DtypeError, ShapeError
from isonomy.kernels.library import Sampling, check, load


class SamplingParams(msgspec.Struct, frozen=True):
    """How to draw a token.

    Attributes:
        temperature: 0 takes the highest logit (the lowest id among equals).
        top_k: ranks that survive; 0 is off.
        top_p: the shortest prefix of the ranks with this share of the mass; 1 is off.
        min_p: least probability relative to the highest; 0 is off.
        repetition_penalty: once for each distinct id of the history; 1 is off.
        seed: unsigned 64 bits.
        candidate: index of the answer among those drawn with one seed, unsigned 32 bits.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    candidate: int = 0


GREEDY = SamplingParams(temperature=0.0)


class Sampled(msgspec.Struct, frozen=True):
    """A token and its log-probability from the logits before penalties and temperature."""

    token: int
    logprob: np.float32


def parameters_of(params: SamplingParams, position: int = 0) -> Sampling:
    """The C record of the parameters; ranges that its integers cannot hold are refused here."""
    if not 0 <= params.seed < 2**64:
        raise ArgumentError(f"seed must be an unsigned 64-bit number, not {params.seed}")
    if not 0 <= params.candidate < 2**32 or not 0 <= position < 2**32:
        raise ArgumentError("candidate and position must be unsigned 32-bit numbers")
    if not 0 <= params.top_k < 2**63:
        raise ArgumentError(f"top_k must not be negative (0 is off), got {params.top_k}")
    return Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        seed=params.seed,
        candidate=params.candidate,
        position=position,
        top_k=params.top_k,
    )


def mask_of(mask: npt.NDArray[np.uint32], rows: int, vocab: int) -> npt.NDArray[np.uint32]:
    """`mask` as C-contiguous uint32 `[rows, ceil(vocab / 32)]`; one row may come without its axis.

    Raises:
        DtypeError, ShapeError: it is something else.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint32:
        raise DtypeError("mask", "a uint32 array", getattr(mask, "dtype", type(mask).__name__))
    words = (vocab + 31) // 32
    if mask.shape != (rows, words) and (rows != 1 or mask.shape != (words,)):
        raise ShapeError("mask", f"({rows}, {words}): a bit a token", mask.shape)
    return np.ascontiguousarray(mask)


def sample(
    logits: Floats,
    params: SamplingParams,
    *,
    position: int,
    history: npt.ArrayLike = (),
    mask: npt.NDArray[np.uint32] | None = None,
) -> Sampled:
    """Draw one token.

    Args:
        logits: `[V]`, finite.
        params: how.
        position: absolute position that the token will take (the number of tokens before it).
        history: ids of prompt and answer so far, for the repetition penalty.
        mask: uint32 `[ceil(V / 32)]`, bit `i % 32` of word `i // 32` admits token i; None: all.

    Raises:
        NonFiniteError: a logit is NaN or infinite.
        ArgumentError: a parameter is out of its range, or the mask admits nothing.
    """
    logits = floats("logits", logits, 1)
    past = ids("history", history)
    admitted = None if mask is None else mask_of(mask, 1, logits.shape[0])
    record = parameters_of(params, position)
    token, logprob = ctypes.c_int32(), ctypes.c_float()
    check(
        load().iso_sample(
            address(logits),
            logits.shape[0],
            ctypes.byref(record),
            address(past),
            past.shape[0],
            None if admitted is None else address(admitted),
            ctypes.addressof(token),
            ctypes.addressof(logprob),
        )
    )
    return Sampled(token.value, np.float32(logprob.value))


def top_logprobs(logits: Floats, n: int) -> list[tuple[int, np.float32]]:
    """The highest `n` ids of `logits[V]` with their log-probabilities.

    Ranked by (value descending, id ascending).
    """
    logits = floats("logits", logits, 1)
    if not 0 <= n <= logits.shape[0]:
        raise ArgumentError(f"n must be between 0 and {logits.shape[0]}, not {n}")
    token_ids, logprobs = np.empty(n, np.int32), np.empty(n, np.float32)
    check(
        load().iso_top_logprobs(
            address(logits), logits.shape[0], n, address(token_ids), address(logprobs)
        )
    )
    return list(zip(token_ids.tolist(), logprobs, strict=True))


def logprobs(logits: Floats, token_ids: npt.ArrayLike) -> Floats:
    """Log-probability of `token_ids[M]`, one a row of `logits[M, V]`: float32 `[M]`."""
    logits = floats("logits", logits, 2)
    rows = ids("token_ids", token_ids, logits.shape[0])
    result = np.empty(logits.shape[0], np.float32)
    check(load().iso_logprobs(address(logits), *logits.shape, address(rows), address(result)))
    return result


def philox4x32_10(key: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Four random words of Philox4x32-10 for a 64-bit key and a counter of four 32-bit words."""
    if not 0 <= key < 2**64:
        raise ArgumentError(f"key must be an unsigned 64-bit number, not {key}")
    if len(counter) != 4 or not all(0 <= word < 2**32 for word in counter):
        raise ArgumentError("counter must be four unsigned 32-bit numbers")
    words = (ctypes.c_uint32 * 4)(*counter)
    out = (ctypes.c_uint32 * 4)()
    check(load().iso_philox(key, words, out))
    return (out[0], out[1], out[2], out[3])
