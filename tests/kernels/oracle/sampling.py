"""Philox4x32-10, sampling, log-probability, and the digests of a step's logits.

Contract: logits are finite binary32 bit patterns, ascending id. Everything between penalty and
argmax follows section 9 of NUMERICS.md; probability mass is integer.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

from blake3 import blake3

from .functions import exp32, log32
from .ieee import B32, B64

_WORD = 0xFFFFFFFF


def philox4x32_10(key: int, counter: Sequence[int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox (Salmon et al. 2011) on four words; the key's low word comes first."""
    k0, k1 = key & _WORD, key >> 32
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def gumbel(seed: int, token: int, position: int, candidate: int) -> int:
    """The noise of a token at a position: -log(-log(u))."""
    word = philox4x32_10(seed, (token >> 2, position, candidate, 0))[token & 3]
    u = B32.round_fraction((Fraction(word >> 9) + Fraction(1, 2)) / (1 << 23))
    return B32.neg(log32(B32.neg(log32(u))))


@dataclass(frozen=True)
class Params:
    """Sampling parameters; numbers are binary64 and rounded once where the text says binary32."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    candidate: int = 0


def mass(a: int, m: int) -> int:
    """uint64(rint(exp(a - m) * 2^32)), ties to even."""
    return round(B32.fraction(exp32(B32.sub(a, m))) * (1 << 32))


def survivors(logits: Sequence[int], params: Params) -> list[int]:
    """Ids that top-k, top-p and min-p leave, by rank, from logits after penalty and temperature."""
    m = B32.max(logits)
    ranked = sorted(range(len(logits)), key=lambda i: (-B32.key(logits[i]), i))
    if params.top_k:
        ranked = ranked[: params.top_k]
    if params.top_p < 1.0:
        masses = [mass(logits[i], m) for i in ranked]
        threshold = B64.mul(B64.from_float(params.top_p), B64.from_int(sum(masses)))
        held, kept = 0, 0
        while kept < len(ranked):
            held += masses[kept]
            kept += 1
            if B64.key(B64.from_int(held)) >= B64.key(threshold):
                break
        ranked = ranked[:kept]
    floor = B32.from_float(params.min_p)
    return [i for i in ranked if B32.key(exp32(B32.sub(logits[i], m))) >= B32.key(floor)]


def sample(logits: Sequence[int], params: Params, position: int, history: Collection[int]) -> int:
    """The drawn token."""
    scores = list(logits)
    penalty = B32.from_float(params.repetition_penalty)
    for i in set(history):
        apply = B32.div if B32.key(scores[i]) > 0 else B32.mul
        scores[i] = apply(scores[i], penalty)
    temperature = B32.from_float(params.temperature)
    if B32.is_zero(temperature):
        return argmax(dict(enumerate(scores)))
    scores = [B32.div(a, temperature) for a in scores]
    return argmax(
        {
            i: B32.add(scores[i], gumbel(params.seed, i, position, params.candidate))
            for i in survivors(scores, params)
        }
    )


def argmax(scores: dict[int, int]) -> int:
    """The id of the greatest number, the lowest among equals."""
    return min(scores, key=lambda i: (-B32.key(scores[i]), i))


def logprobs(logits: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """Log-probabilities of ids, from the logits before penalties."""
    m = B32.max(logits)
    z = B32.mul(B32.from_int(sum(mass(a, m) for a in logits)), B32.from_float(2.0**-32))
    return [B32.sub(B32.sub(logits[i], m), log32(z)) for i in tokens]


def logprob(logits: Sequence[int], token: int) -> int:
    """Log-probability of one id."""
    return logprobs(logits, [token])[0]


def digest(logits: Sequence[int]) -> bytes:
    """BLAKE3 of the logits as little-endian binary32."""
    return blake3(struct.pack(f"<{len(logits)}I", *logits)).digest()


def chain_digests(digests: Sequence[bytes], start: bytes = bytes(32)) -> bytes:
    """The chained digest of consecutive steps."""
    for one in digests:
        start = blake3(start + one).digest()
    return start
