"""The decoder engine: packed weights, and sessions that hold a key-value cache.

Llama, Qwen2, Qwen3, Mistral and SmolLM are one graph with switches (kernels/NUMERICS.md, section
7). A pass over all layers is one call into the library, which releases the interpreter lock.

Invariants: logits depend on the tokens up to them and on nothing else: not on how they were cut
into feeds, threads, capacity or instruction set. A failed call leaves the session's length.
"""

from __future__ import annotations

import ctypes
import math
import re
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from isonomy.kernels.arrays import Floats, Weights, address, ids, weights, widened
from isonomy.kernels.errors import (
    ArgumentError,
    KernelError,
    UnsupportedError,
    WeightsError,
)
from isonomy.kernels.library import Config, check, load
from isonomy.kernels.sampling import GREEDY, SamplingParams, parameters_of

_ACTIVATIONS = {"silu": 0, "gelu_erf": 1, "gelu_tanh": 2}


class DecoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape and switches of a decoder.

    Attributes:
        vocab: rows of the embedding table.
        hidden: width of the residual stream.
        layers: how many.
        heads: query heads.
        kv_heads: key-value heads; divides `heads`.
        head_dim: dimensions of a head.
        intermediate: width of the gated MLP.
        rms_eps: of every norm.
        frequencies: from `rope_frequencies`; twice as many dimensions are rotated.
        attention_factor: multiplies the rope tables.
        max_positions: largest capacity of a session.
        qkv_bias: q, k and v projections have biases.
        o_bias: the output projection has one.
        mlp_bias: gate, up and down have them.
        qk_norm: RMS norm over each head of q and k, before rope.
        windows: one a layer, the sliding window (0: none); empty: none anywhere.
        tied: the output layer is the embedding table.
        activation: "silu", "gelu_erf" or "gelu_tanh".
        scale: of attention scores; None is 1/sqrt(head_dim).
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    rms_eps: float
    frequencies: tuple[float, ...]
    max_positions: int
    attention_factor: float = 1.0
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int, ...] = ()
    tied: bool = False
    activation: str = "silu"
    scale: float | None = None


class StepResult(msgspec.Struct, frozen=True, eq=False):
    """One step of generation.

    Attributes:
        token: the token drawn.
        logprob: its log-probability, before penalties and temperature.
        digest: BLAKE3 of the step's logits, 32 bytes.
        logits: float32 `[vocab]` where they were asked for.
    """

    token: int
    logprob: np.float32
    digest: bytes
    logits: Floats | None = None


_OUTSIDE_LAYERS = {
    "model.embed_tokens.weight": 0,
    "model.norm.weight": 1,
    "lm_head.weight": 2,
}
_IN_LAYERS = {
    "input_layernorm.weight": 3,
    "post_attention_layernorm.weight": 4,
    "self_attn.q_proj.weight": 5,
    "self_attn.k_proj.weight": 6,
    "self_attn.v_proj.weight": 7,
    "self_attn.o_proj.weight": 8,
    "mlp.gate_proj.weight": 9,
    "mlp.up_proj.weight": 10,
    "mlp.down_proj.weight": 11,
    "self_attn.q_proj.bias": 12,
    "self_attn.k_proj.bias": 13,
    "self_attn.v_proj.bias": 14,
    "self_attn.o_proj.bias": 15,
    "mlp.gate_proj.bias": 16,
    "mlp.up_proj.bias": 17,
    "mlp.down_proj.bias": 18,
    "self_attn.q_norm.weight": 19,
    "self_attn.k_norm.weight": 20,
}
# Tensors that are packed together have one storage; where a checkpoint mixes, they become float32.
_TOGETHER = (
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
)


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a decoder of this configuration needs, by its name in a checkpoint."""
    hidden, inner, dim = config.hidden, config.intermediate, config.head_dim
    q, kv = config.heads * dim, config.kv_heads * dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.qkv_bias:
        for name, n in (("q", q), ("k", kv), ("v", kv)):
            layer[f"self_attn.{name}_proj.bias"] = (n,)
    if config.o_bias:
        layer["self_attn.o_proj.bias"] = (hidden,)
    if config.mlp_bias:
        for name, n in (("gate", inner), ("up", inner), ("down", hidden)):
            layer[f"mlp.{name}_proj.bias"] = (n,)
    if config.qk_norm:
        layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (dim,)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab, hidden)}
    for i in range(config.layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab, hidden)
    return shapes


class Decoder:
    """A decoder with packed weights, for any number of sessions.

    Attributes:
        config: as given.
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
        record, kept = _record_of(config)
        check(library.iso_decoder_new(ctypes.byref(record), ctypes.byref(handle)))
        del kept
        self._handle = handle
        weakref.finalize(self, library.iso_decoder_free, handle)
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
        layer, slot = -1, _OUTSIDE_LAYERS.get(name)
        if slot is None:
            match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
            assert match is not None
            layer, slot = int(match[1]), _IN_LAYERS[match[2]]
            group = next((group for group in _TOGETHER if match[2] in group), ())
            prefix = name.removesuffix(match[2])
            if len({tensors[prefix + member].dtype for member in group}) > 1:
                data, storage = widened(data), 0
        columns = shape[1] if len(shape) == 2 else 1
        check(
            load().iso_decoder_load(
                self._handle, slot, layer, address(data), storage, shape[0], columns
            )
        )

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed weights."""
        return int(load().iso_decoder_bytes(self._handle))

    def session(self, capacity: int) -> Session:
        """An empty session for at most `capacity` tokens (at most `max_positions`)."""
        return Session(self, capacity)


def _record_of(config: DecoderConfig) -> tuple[Config, tuple[npt.NDArray[Any], ...]]:
    """The C record, and the arrays it points into."""
    if config.activation not in _ACTIVATIONS:
        raise UnsupportedError("activation", config.activation, tuple(_ACTIVATIONS))
    windows = config.windows or (0,) * config.layers
    if len(windows) != config.layers:
        raise ArgumentError(f"windows: {len(windows)} given for {config.layers} layers")
    sizes = {
        "vocab": config.vocab,
        "hidden": config.hidden,
        "layers": config.layers,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate": config.intermediate,
        "max_positions": config.max_positions,
    }
    for name, value in sizes.items():
        if not 0 < value < 2**31:
            raise ArgumentError(f"{name} must be positive, not {value}")
    frequencies = np.array(config.frequencies, np.float64)
    # A window beyond int32 cannot be left by any position.
    windows_array = np.array([w if w < 2**31 else 0 for w in windows], np.int32)
    scale = config.scale if config.scale is not None else 1.0 / math.sqrt(config.head_dim)
    record = Config(
        **sizes,
        rotary_dim=2 * len(config.frequencies),
        qkv_bias=config.qkv_bias,
        o_bias=config.o_bias,
        mlp_bias=config.mlp_bias,
        qk_norm=config.qk_norm,
        tied=config.tied,
        activation=_ACTIVATIONS[config.activation],
        rms_eps=config.rms_eps,
        scale=scale,
        attention_factor=config.attention_factor,
        frequencies=address(frequencies),
        windows=address(windows_array),
    )
    return record, (frequencies, windows_array)


def _require_tied(tensors: Mapping[str, Weights]) -> None:
    output, embedding = tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
    if output.dtype != embedding.dtype or not np.array_equal(
        output.view(np.uint8), embedding.view(np.uint8)
    ):
        raise WeightsError(
            "the configuration ties the output layer to the embedding, but their tensors differ",
            ("lm_head.weight", "model.embed_tokens.weight"),
        )


class Session:
    """One sequence and its key-value cache. Not for two threads at a time (they get an error).

    Attributes:
        capacity: most tokens it can hold.
    """

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        if not 0 < capacity <= decoder.config.max_positions:
            raise ArgumentError(
                f"capacity must be between 1 and {decoder.config.max_positions} positions, "
                f"not {capacity}"
            )
        library = load()
        handle = ctypes.c_void_p()
        check(library.iso_session_new(decoder._handle, capacity, ctypes.byref(handle)))
        self.capacity = capacity
        self._library, self._handle, self._decoder = library, handle, decoder
        self._busy = threading.Lock()
        weakref.finalize(self, library.iso_session_free, handle)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self._library.iso_session_length(self._handle))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise KernelError(
                "this session is in use by another thread: give each sequence its own session"
            )
        try:
            yield
        finally:
            self._busy.release()

    def truncate(self, n: int) -> None:
        """Forget all but the first `n` tokens."""
        if not 0 <= n <= self.length:
            raise ArgumentError(f"truncate: between 0 and {self.length} tokens, not {n}")
        with self._alone():
            check(self._library.iso_session_truncate(self._handle, n))

    def prefill(self, tokens: npt.ArrayLike) -> None:
        """Append tokens without computing logits: for all but the last piece of a prompt."""
        self._feed(tokens, "none")

    def feed(self, tokens: npt.ArrayLike, *, all_logits: bool = False) -> Floats:
        """Append tokens.

        Args:
            tokens: ids `[n]`, at least one.
            all_logits: return every token's logits instead of the last one's.

        Returns:
            float32 `[1, vocab]`, or `[n, vocab]`.

        Raises:
            NonFiniteError: with the layer; the session is as before the call.
            CapacityError: they do not fit; the session is as before the call.
            ArgumentError: an id outside the vocabulary, or no token.
        """
        return self._feed(tokens, "all" if all_logits else "last")

    def _feed(self, tokens: npt.ArrayLike, logits: Literal["none", "last", "all"]) -> Floats:
        new = ids("tokens", tokens)
        rows = {"none": 0, "last": 1, "all": new.shape[0]}[logits]
        y = np.empty((rows, self._decoder.config.vocab), np.float32)
        with self._alone():
            check(
                self._library.iso_session_feed(
                    self._handle, address(new), new.shape[0], rows, address(y)
                )
            )
        return y

    def step(
        self,
        tokens: npt.ArrayLike,
        params: SamplingParams | None = None,
        history: npt.ArrayLike = (),
        *,
        with_logits: bool = False,
    ) -> StepResult:
        """Append tokens, digest the last one's logits and draw the next token: one library call.

        Args:
            tokens: ids `[n]`, at least one.
            params: how to draw; None takes the highest logit. The position is the new length.
            history: ids of prompt and answer, for the repetition penalty.
            with_logits: return the logits, too.

        Raises:
            NonFiniteError: with the layer; the session is as before the call.
            CapacityError: they do not fit; the session is as before the call.
            ArgumentError: an id or a parameter out of its range.
        """
        new, past = ids("tokens", tokens), ids("history", history)
        record = parameters_of(params or GREEDY)
        token, logprob = ctypes.c_int32(), ctypes.c_float()
        digest = ctypes.create_string_buffer(32)
        logits = np.empty(self._decoder.config.vocab, np.float32) if with_logits else None
        with self._alone():
            check(
                self._library.iso_session_step(
                    self._handle,
                    address(new),
                    new.shape[0],
                    ctypes.byref(record),
                    address(past),
                    past.shape[0],
                    ctypes.addressof(token),
                    ctypes.addressof(logprob),
                    ctypes.addressof(digest),
                    None if logits is None else address(logits),
                )
            )
        return StepResult(token.value, np.float32(logprob.value), digest.raw, logits)
