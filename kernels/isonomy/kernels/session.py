"""A session: one sequence of tokens and its key-value cache.

Everything that computes is a step of the decoder with one item. A session is not for two threads
at a time: the second gets an error. Forks of one session may be taken by several threads at once.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from isonomy.kernels.arrays import Floats, ids
from isonomy.kernels.errors import ArgumentError, KernelError
from isonomy.kernels.library import check, load
from isonomy.kernels.sampling import SamplingParams
from isonomy.kernels.steps import NO_IDS, StepItem, StepsResult, take_steps

if TYPE_CHECKING:
    from isonomy.kernels.decoder import Decoder


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


class Session:
    """One sequence and its key-value cache.

    Attributes:
        capacity: most tokens it can hold.
        handle: of the library's session, for `steps.py`.
    """

    def __init__(self, decoder: Decoder, capacity: int, _handle: int | None = None) -> None:
        if not 0 < capacity <= decoder.config.max_positions:
            raise ArgumentError(
                f"capacity must be between 1 and {decoder.config.max_positions} positions, "
                f"not {capacity}"
            )
        library = load()
        if _handle is None:
            fresh = ctypes.c_void_p()
            check(library.iso_session_new(decoder.handle, capacity, ctypes.byref(fresh)))
            _handle = fresh.value
        assert _handle is not None
        self.capacity = capacity
        self.handle = _handle
        self._library, self._decoder = library, decoder
        # Not at exit: a daemon thread may compute with it until the process is gone.
        weakref.finalize(self, library.iso_session_free, _handle).atexit = False

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self._library.iso_session_length(self.handle))

    @property
    def cache_bytes(self) -> int:
        """Memory of its cache pages, those shared with forks included."""
        return int(self._library.iso_session_cache_bytes(self.handle))

    def truncate(self, n: int) -> None:
        """Forget all but the first `n` tokens; memory is kept for those to come."""
        if not 0 <= n <= self.length:
            raise ArgumentError(f"truncate: between 0 and {self.length} tokens, not {n}")
        check(self._library.iso_session_truncate(self.handle, n))

    def fork(self, capacity: int | None = None, length: int | None = None) -> Session:
        """A session of its own that starts with this one's tokens.

        Full pages of the cache (256 positions) are shared and never written again; what is left is
        copied.

        Args:
            capacity: of the fork; None: as this session's.
            length: how many of the first tokens it holds; None: all.

        Raises:
            ArgumentError: `length` is more than there is, or more than `capacity`.
            OutOfMemoryError: there is no memory for the copy.
        """
        capacity = self.capacity if capacity is None else capacity
        length = self.length if length is None else length
        if not 0 <= length <= min(self.length, capacity):
            raise ArgumentError(
                f"fork: length must be between 0 and {min(self.length, capacity)}, not {length}"
            )
        if not 0 < capacity <= self._decoder.config.max_positions:
            raise ArgumentError(
                f"capacity must be between 1 and {self._decoder.config.max_positions} positions, "
                f"not {capacity}"
            )
        handle = ctypes.c_void_p()
        check(self._library.iso_session_fork(self.handle, capacity, length, ctypes.byref(handle)))
        return Session(self._decoder, capacity, handle.value)

    def prefill(self, tokens: npt.ArrayLike) -> None:
        """Append tokens without computing logits: for all but the last piece of a prompt."""
        self._take(StepItem(self, tokens, 0), only_logits=True)

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
        new = ids("tokens", tokens)
        draws = new.shape[0] if all_logits else 1
        result = self._take(StepItem(self, new, draws, with_logits=True), only_logits=True)
        assert result.logits is not None
        return result.logits

    def step(
        self,
        tokens: npt.ArrayLike,
        params: SamplingParams | None = None,
        history: npt.ArrayLike = NO_IDS,
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
        item = StepItem(self, tokens, 1, params, history, with_logits=with_logits)
        result = self._take(item)
        logits = None if result.logits is None else result.logits[0]
        return StepResult(result.tokens[0], result.logprobs[0], result.digests, logits)

    def _take(self, item: StepItem, *, only_logits: bool = False) -> StepsResult:
        decoder, config = self._decoder, self._decoder.config
        steps = take_steps(
            decoder.handle, config.vocab, config.layers, (item,), only_logits=only_logits
        )
        if isinstance(steps[0], KernelError):
            raise steps[0]
        return steps[0]
