"""Known answers of the kernels: digests of what each operation gives for a sample of inputs.

Inputs are made of integers alone, so they are the same everywhere; the digests are those of the
numerics' version `VERSION`. They were computed on every path, and the functions among them are
swept over all inputs by ``make verify-math``, so a path that gives another digest is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from . import packages

VERSION: Final = 1
COUNT: Final = 1 << 16
"""Inputs of each elementwise function: every 65521st bit pattern, so of every size and sign."""


def _arguments(np: Any) -> Any:
    patterns = (np.arange(COUNT, dtype=np.uint64) * 65521 % (1 << 32)).astype(np.uint32)
    values = patterns.view(np.float32)
    return np.where(np.isnan(values), np.float32(0.5), values)


def _numbers(np: Any, *shape: int, scale: float = 1.0) -> Any:
    """Return numbers from -2 to 2 in no order, a multiple of 2^-22 each."""
    count = int(np.prod(shape))
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    whole = (mixed >> np.uint64(40)).astype(np.int64) - (1 << 23)
    return (whole.astype(np.float32) * np.float32(2.0**-22 * scale)).reshape(shape)


def _function(name: str) -> Callable[[Any, Any], bytes]:
    def compute(np: Any, kernels: Any) -> bytes:
        result = getattr(kernels, name)(_arguments(np))
        # Any NaN is as good as another.
        return bytes(np.where(np.isnan(result), np.float32(np.nan), result).tobytes())

    return compute


def _linear(np: Any, kernels: Any) -> bytes:
    found = b""
    for rows, inputs, outputs in ((1, 300, 67), (7, 513, 70), (40, 96, 33)):
        weights = kernels.PackedLinear(_numbers(np, outputs, inputs))
        found += kernels.linear(_numbers(np, rows, inputs), weights).tobytes()
    return found


def _int8(np: Any, kernels: Any) -> bytes:
    found = b""
    for rows, inputs, outputs in ((1, 300, 67), (7, 513, 70), (40, 96, 33)):
        weights = kernels.PackedLinear(_numbers(np, outputs, inputs), storage="int8")
        found += kernels.linear(_numbers(np, rows, inputs), weights).tobytes()
    return found


def _rows(np: Any, kernels: Any) -> bytes:
    found = b""
    for width in (1, 31, 32, 65, 300, 4097):
        x, w = _numbers(np, 3, width), _numbers(np, width)
        found += kernels.rms_norm(x, w, 1e-5).tobytes()
        found += kernels.layer_norm(x, w, w, 1e-5).tobytes()
        found += kernels.softmax(x).tobytes() + kernels.row_sum(x).tobytes()
    return found


def _sampling(np: Any, kernels: Any) -> bytes:
    logits, found = _numbers(np, 1000, scale=4.0), []
    for position in range(64):
        params = kernels.SamplingParams(
            temperature=0.25 * (position % 5),
            top_k=(0, 1, 7, 100)[position % 4],
            top_p=(1.0, 0.5, 0.9)[position % 3],
            min_p=(0.0, 0.01)[position % 2],
            repetition_penalty=1.0 + 0.1 * (position % 3),
            seed=position << 40,
            candidate=position % 7,
        )
        drawn = kernels.sample(logits, params, position=position, history=range(position))
        found.append((drawn.token, int(drawn.logprob.view(np.uint32))))
    return bytes(np.array(found, dtype="<u4").tobytes())


OPERATIONS: Final[dict[str, Callable[[Any, Any], bytes]]] = {
    **{name: _function(name) for name in ("exp", "log", "tanh", "erf")},
    **{name: _function(name) for name in ("silu", "gelu_erf", "gelu_tanh")},
    "linear": _linear,
    "linear, int8": _int8,
    "norms and softmax": _rows,
    "sampling": _sampling,
}
DIGESTS: Final[dict[str, str]] = {
    "exp": "67d27bb7b1a2e9a590c21ee5096c3f02",
    "log": "33f617e5a815460ab76d1ecbbc21325c",
    "tanh": "b9dce712e351733989b448fb603ba27a",
    "erf": "fc978eeaecb0d54cf0d91bd84f6ae5c3",
    "silu": "d8edf4d58a77030e5eb7f0fcfd059c6b",
    "gelu_erf": "280ec3784ca46f69b2272286b812a0df",
    "gelu_tanh": "37d5b355bcb8a9856c3b3c4a6ff04eea",
    "linear": "18d085d6eff7dfaff2bf7208564ddcec",
    "linear, int8": "126393c7d050ee778859d3704f5d1a11",
    "norms and softmax": "2b9034939fca160efdd5c1b3257d911d",
    "sampling": "a9f836dea753b2f987900419b89a4b47",
}
"""First 16 bytes of the BLAKE3 of each operation's results, little-endian."""


def digest(name: str) -> str:
    """Return the digest of an operation's results on the path in use."""
    np, kernels = packages.load("numpy"), packages.load("isonomy.kernels")
    return str(kernels.blake3(OPERATIONS[name](np, kernels)).hex()[:32])
