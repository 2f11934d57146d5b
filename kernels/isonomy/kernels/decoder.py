"""The decoder: packed weights, and passes over any number of sessions together.

A pass over all layers is one call into the library, which releases the interpreter lock.

Invariants: a session's logits depend on its own tokens up to them and on nothing else: not on its
neighbours in a step, not on how the tokens were cut into steps, threads, capacity or instruction
set. An item that fails leaves its session as it was.
"""

from __future__ import annotations

import ctypes
import re
import weakref
from collections.abc import Mapping, Sequence

import numpy as np

from isonomy.kernels.arrays import Weights, address, weights, widened
from isonomy.kernels.configuration import (
    IN_LAYERS,
    OUTSIDE_LAYERS,
    TOGETHER,
    DecoderConfig,
    expected_shapes,
    record_of,
)
from isonomy.kernels.errors import ArgumentError, KernelError, WeightsError
from isonomy.kernels.library import check, load
from isonomy.kernels.session import Session
from isonomy.kernels.steps import StepItem, StepsResult, take_steps


class Decoder:
    """A decoder with packed weights, for any number of sessions.

    Attributes:
        config: as given.
        handle: of the library's decoder.
    """

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Weights]) -> None:
        """Copy and pack the weights.

        Args:
            config: shape and switches.
            weights: tensors named as in a Hugging Face Llama checkpoint, float32 or uint16 holding
                bfloat16 bits; read one at a time.

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

    def _load(self, tensors: Mapping[str, Weights]) -> None:
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

    def _put(self, name: str, shape: tuple[int, ...], tensors: Mapping[str, Weights]) -> None:
        tensor = tensors[name]
        if tensor.shape != shape:
            raise WeightsError(f"expected shape {shape}, got {tensor.shape}", (name,))
        data, storage = weights(name, tensor, len(shape))
        layer, slot = -1, OUTSIDE_LAYERS.get(name)
        if slot is None:
            match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
            assert match is not None
            layer, slot = int(match[1]), IN_LAYERS[match[2]]
            group = next((group for group in TOGETHER if match[2] in group), ())
            prefix = name.removesuffix(match[2])
            if len({tensors[prefix + member].dtype for member in group}) > 1:
                data, storage = widened(data), 0
        columns = shape[1] if len(shape) == 2 else 1
        check(
            load().iso_decoder_load(
                self.handle, slot, layer, address(data), storage, shape[0], columns
            )
        )

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed weights."""
        return int(load().iso_decoder_bytes(self.handle))

    def cache_bytes(self, capacity: int) -> int:
        """Most memory that a session of this capacity takes, all of it filled."""
        if capacity < 0:
            raise ArgumentError(f"capacity must not be negative, got {capacity}")
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


def _require_tied(tensors: Mapping[str, Weights]) -> None:
    output, embedding = tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
    if output.dtype != embedding.dtype or not np.array_equal(
        output.view(np.uint8), embedding.view(np.uint8)
    ):
        raise WeightsError(
            "the configuration ties the output layer to the embedding, but their tensors differ",
            ("lm_head.weight", "model.embed_tokens.weight"),
        )
