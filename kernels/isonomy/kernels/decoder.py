"""The decoder: packed weights, and passes over any number of sessions together.

A pass over all layers is one call into the library, which releases the interpreter lock.

Invariants: a session's logits depend on its own tokens up to them and on nothing else: not on its
neighbours in a step, not on how the tokens were cut into steps, threads, capacity or instruction
set. An item that fails leaves its session as it was.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence

from isonomy.kernels.arrays import F32, INT8, Weights, address, weights, widened
from isonomy.kernels.configuration import (
    DecoderConfig,
    expected_shapes,
    packed_together,
    record_of,
    slot_of,
)
from isonomy.kernels.errors import ArgumentError, KernelError, WeightsError
from isonomy.kernels.library import check, load
from isonomy.kernels.quantised import Quantised, quantised
from isonomy.kernels.session import Session
from isonomy.kernels.steps import StepItem, StepsResult, take_steps


class Decoder:
    """A decoder with packed weights, for any number of sessions.

    Attributes:
        config: as given.
        handle: of the library's decoder.
    """

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Weights | Quantised]) -> None:
        """Copy and pack the weights.

        Args:
            config: shape and switches.
            weights: the tensors that `expected_shapes` names, float32 or uint16 holding bfloat16
                bits, and with `weights="int8"` linears as `Quantised`, too; read one at a time.

        Raises:
            WeightsError: tensors are missing, unknown or of the wrong shape.
            DtypeError: a tensor of another type.
            NonFiniteError: a weight is NaN or infinite.
            ArgumentError: the configuration contradicts itself.
            UnsupportedError: the activation is not covered.
        """
        self.config = config
        library = load()
        handle = ctypes.c_void_p()
        record, kept = record_of(config)
        check(library.iso_decoder_new(ctypes.byref(record), ctypes.byref(handle)))
        del kept
        self.handle = handle
        # Not at exit: a daemon thread may compute with it until the process is gone.
        weakref.finalize(self, library.iso_decoder_free, handle).atexit = False
        self._load(weights)
        check(library.iso_decoder_ready(handle))

    def _load(self, tensors: Mapping[str, Weights | Quantised]) -> None:
        shapes = expected_shapes(self.config)
        present = set(tensors)
        if self.config.tied and "lm_head.weight" in present:
            _require_tied(tensors)
            present.discard("lm_head.weight")
        if missing := tuple(name for name in shapes if name not in present):
            raise WeightsError("tensors are missing", missing)
        if unknown := tuple(sorted(present - shapes.keys())):
            raise WeightsError("tensors that this configuration has no place for", unknown)
        # Weights come before their biases.
        for name in sorted(shapes, key=lambda name: name.endswith(".bias")):
            self._put(name, shapes[name], tensors)

    def _put(
        self, name: str, shape: tuple[int, ...], tensors: Mapping[str, Weights | Quantised]
    ) -> None:
        tensor = tensors[name]
        if tensor.shape != shape:
            raise WeightsError(f"expected shape {shape}, got {tensor.shape}", (name,))
        rows, columns = shape if len(shape) == 2 else (*shape, 1)
        if isinstance(tensor, Quantised):
            tensor = quantised(name, tensor)
            data, storage, scales = address(tensor.q), INT8, address(tensor.scales)
        else:
            tensor, storage = weights(name, tensor, len(shape))
            if self.config.weights == "stored" and self._mixed(name, tensors):
                tensor, storage = widened(tensor), F32
            data, scales = address(tensor), None
        check(
            load().iso_decoder_load(
                self.handle, *slot_of(name), data, storage, scales, rows, columns
            )
        )

    @staticmethod
    def _mixed(name: str, tensors: Mapping[str, Weights | Quantised]) -> bool:
        together = (member for member in packed_together(name) if member in tensors)
        return len({tensors[member].dtype for member in together}) > 1

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed weights."""
        return int(load().iso_decoder_bytes(self.handle))

    def cache_bytes(self, capacity: int) -> int:
        """Most memory that a session of this capacity takes, all of it filled."""
        if not 0 <= capacity < 2**31:
            raise ArgumentError(f"capacity must be between 0 and 2^31 - 1, not {capacity}")
        return int(load().iso_decoder_cache_bytes(self.handle, capacity))

    @property
    def cache_in_use(self) -> int:
        """Memory of the cache pages of all sessions; pages that sessions share count once."""
        return int(load().iso_decoder_cache_in_use(self.handle))

    def session(self, capacity: int) -> Session:
        """An empty session for at most `capacity` tokens (at most `max_positions`).

        Memory for its cache is taken as it grows.
        """
        return Session(self, capacity)

    def step(self, items: Sequence[StepItem]) -> list[StepsResult | KernelError]:
        """One pass over all layers for all items together, and what is drawn from its logits.

        Then, for items with `ahead`, further passes of plain decoding in the same call.

        Args:
            items: of sessions of this decoder, each session at most once.

        Returns:
            For each item its result, or the error that it met: `NonFiniteError` with the layer,
            `CapacityError`, `ArgumentError`, `OutOfMemoryError`. Such an item's session is as it
            was before, and the others are not touched by it.

        Raises:
            OutOfMemoryError: there is no memory for the pass; all sessions are as they were.
        """
        return take_steps(self.handle, self.config.vocab, self.config.layers, items)


def _require_tied(tensors: Mapping[str, Weights | Quantised]) -> None:
    if _bits(tensors["lm_head.weight"]) != _bits(tensors["model.embed_tokens.weight"]):
        raise WeightsError(
            "the configuration ties the output layer to the embedding, but their tensors differ",
            ("lm_head.weight", "model.embed_tokens.weight"),
        )


def _bits(tensor: Weights | Quantised) -> tuple[str, tuple[int, ...], bytes, bytes]:
    if isinstance(tensor, Quantised):
        return "int8", tensor.shape, tensor.q.tobytes(), tensor.scales.tobytes()
    return str(tensor.dtype), tensor.shape, tensor.tobytes(), b""
