"""Isonomy's deterministic kernels: the same bits on every thread count, batch and instruction set.

The public face of the compiled library. What every operation computes, to the bit, is fixed by
kernels/NUMERICS.md; `NUMERICS_VERSION` is its version. Needs numpy (extra `local`).
"""

from __future__ import annotations

from isonomy.kernels.configuration import DecoderConfig, Rope, expected_shapes
from isonomy.kernels.decoder import Decoder
from isonomy.kernels.errors import (
    ArgumentError,
    CapacityError,
    CorruptionError,
    DtypeError,
    KernelError,
    LibraryError,
    NonFiniteError,
    OutOfMemoryError,
    ShapeError,
    UnsupportedError,
    WeightsError,
)
from isonomy.kernels.faults import Fault, faults
from isonomy.kernels.library import NUMERICS_VERSION, KernelInfo, info, set_threads, using_isa
from isonomy.kernels.ops import (
    CHAIN_START,
    PackedLinear,
    add,
    attention,
    blake3,
    chain,
    embedding,
    erf,
    exp,
    gelu_erf,
    gelu_tanh,
    layer_norm,
    linear,
    log,
    mul,
    rms_norm,
    rope,
    row_sum,
    silu,
    softmax,
    step_digests,
    tanh,
)
from isonomy.kernels.quantised import Quantised, quantise_rows
from isonomy.kernels.rotary import rope_attention_factor, rope_frequencies, rope_tables
from isonomy.kernels.sampling import (
    GREEDY,
    Sampled,
    SamplingParams,
    logprobs,
    philox4x32_10,
    sample,
    top_logprobs,
)
from isonomy.kernels.session import Session, StepResult
from isonomy.kernels.steps import STAGES, StepItem, StepsResult

__all__ = [
    "CHAIN_START",
    "GREEDY",
    "NUMERICS_VERSION",
    "STAGES",
    "ArgumentError",
    "CapacityError",
    "CorruptionError",
    "Decoder",
    "DecoderConfig",
    "DtypeError",
    "Fault",
    "KernelError",
    "KernelInfo",
    "LibraryError",
    "NonFiniteError",
    "OutOfMemoryError",
    "PackedLinear",
    "Quantised",
    "Rope",
    "Sampled",
    "SamplingParams",
    "Session",
    "ShapeError",
    "StepItem",
    "StepResult",
    "StepsResult",
    "UnsupportedError",
    "WeightsError",
    "add",
    "attention",
    "blake3",
    "chain",
    "embedding",
    "erf",
    "exp",
    "expected_shapes",
    "faults",
    "gelu_erf",
    "gelu_tanh",
    "info",
    "layer_norm",
    "linear",
    "log",
    "logprobs",
    "mul",
    "philox4x32_10",
    "quantise_rows",
    "rms_norm",
    "rope",
    "rope_attention_factor",
    "rope_frequencies",
    "rope_tables",
    "row_sum",
    "sample",
    "set_threads",
    "silu",
    "softmax",
    "step_digests",
    "tanh",
    "top_logprobs",
    "using_isa",
]
