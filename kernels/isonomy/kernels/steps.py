"""Steps of a decoder: what each session brings to a pass, and what it gets from it.

Contract: marshalling costs a few microseconds an item, and never looks at logits. An item that
does not fit its record (a wrong dtype, a parameter out of range) fails like one that fails inside
the library: alone.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from isonomy.kernels.arrays import Floats, Ids, address, ids
from isonomy.kernels.errors import ArgumentError, KernelError
from isonomy.kernels.library import check, error_of, load
from isonomy.kernels.sampling import GREEDY, SamplingParams, mask_of, parameters_of

if TYPE_CHECKING:
    from isonomy.kernels.session import Session

STAGES = (
    "attention_norm",
    "qkv",
    "rope",
    "attention",
    "attention_residual",
    "mlp_norm",
    "mlp_inner",
    "mlp_residual",
)
"""Operations of a layer that a trace digests, in their order (kernels/NUMERICS.md, section 7)."""

NO_IDS: Ids = np.empty(0, np.int32)
MOST_AHEAD = 1024
_INT32 = np.dtype(np.int32)

# iso_item of isonomy.h: ten pointers, five counts, the sampling, the mode; the results follow.
_ITEM = struct.Struct("=10Q5Q56si")
_RESULT = struct.Struct("=3i")
_RESULT_AT, _ERROR_AT, _SIZE = 180, 192, 448
_DRAW, _FORCED, _LOGITS = 0, 1, 2


class StepItem(msgspec.Struct, frozen=True, eq=False):
    """What a session brings to a step.

    Attributes:
        session: whose tokens these are.
        tokens: int32 `[n]`, at least one, appended to the session.
        draws: how many of the last rows get logits, 0 .. n. Row j draws the token that follows
            `tokens[n - draws + j]`; drawing stops at the first token that is not the next one of
            `tokens`, and before a guess that can't draw: the last `draws - 1` tokens are guesses.
        params: how to draw; None takes the highest logit.
        history: int32, ids of prompt and answer so far, `tokens` and so the guesses included; for
            the repetition penalty. Each row sees what precedes the token it draws.
        mask: uint32 `[draws, ceil(vocab / 32)]`; bit `i % 32` of word `i // 32` admits token i.
        with_logits: return the logits, too.
        trace: return a digest of each layer's stages, too.
        forced: draw nothing and keep all tokens; rows report the log-probability of the token that
            follows in `tokens`.
        ahead: after that, so many steps of plain decoding in the same call: each appends the token
            drawn last and draws the next. They end early where one of `ends` is drawn, or a step
            fails, whose error is met by asking for it again. Not with a mask or a penalty.
        ends: int32, see `ahead`.
    """

    session: Session
    tokens: npt.ArrayLike
    draws: int = 1
    params: SamplingParams | None = None
    history: npt.ArrayLike = NO_IDS
    mask: npt.NDArray[np.uint32] | None = None
    with_logits: bool = False
    trace: bool = False
    forced: bool = False
    ahead: int = 0
    ends: npt.ArrayLike = NO_IDS


class StepsResult(msgspec.Struct, frozen=True, eq=False):
    """What a session gets from a step: the rows up to the one whose token was no guess, and ahead.

    Attributes:
        tokens: drawn; all but the last are in the session. Empty where `forced`.
        logprobs: float32, one a row, before penalties, mask and temperature. Where `forced`, of the
            token that follows; the last row's is NaN.
        digests: 32 bytes a row, BLAKE3 of its logits.
        logits: float32 `[rows, vocab]` where they were asked for.
        trace: 32 bytes for each row, layer and stage (`STAGES`) where they were asked for.
    """

    tokens: tuple[int, ...]
    logprobs: Floats
    digests: bytes
    logits: Floats | None = None
    trace: bytes | None = None


@functools.lru_cache(maxsize=1024)
def _sampling_of(params: SamplingParams) -> bytes:
    return bytes(parameters_of(params))


def _array(name: str, x: npt.ArrayLike) -> Ids:
    if type(x) is np.ndarray and x.dtype is _INT32 and x.ndim == 1 and x.flags.c_contiguous:
        return x
    return ids(name, x)


def _rows_of(item: StepItem) -> int:
    """Rows of results that the item can have; none where `add` will refuse it."""
    n = item.tokens.size if type(item.tokens) is np.ndarray else np.size(item.tokens)
    fits = 0 <= item.draws <= n and 0 <= item.ahead <= MOST_AHEAD
    return item.draws + item.ahead if fits else 0


class _Step:
    """The records of one call, and the arrays that they point into."""

    def __init__(self, vocab: int, layers: int, items: Sequence[StepItem], mode: int) -> None:
        self.vocab, self.layers, self.mode = vocab, layers, mode
        draws = sum(_rows_of(item) for item in items)
        self.records = bytearray(_SIZE * len(items))
        self.drawn = np.empty(draws, np.int32)
        self.logprobs = np.empty(draws, np.float32)
        self.digests = bytearray(32 * draws)
        self.places = [address(self.drawn), address(self.logprobs), address(self.digests)]
        self.kept: list[Any] = []  # arrays that only the records refer to
        self.count = self.rows = 0

    def add(self, item: StepItem) -> _Place:
        """Write the item's record."""
        tokens, params = _array("tokens", item.tokens), item.params or GREEDY
        n, draws, mode = tokens.shape[0], item.draws, self.mode
        # Only a penalty looks at the history.
        history = NO_IDS if params.repetition_penalty == 1 else _array("history", item.history)
        if not 0 <= draws <= n:
            raise ArgumentError(
                f"draws must be between 0 and the number of tokens, {n}, not {draws}"
                if n
                else "there must be at least one token"
            )
        if not 0 <= item.ahead <= MOST_AHEAD:
            raise ArgumentError(f"ahead must be between 0 and {MOST_AHEAD}, not {item.ahead}")
        ends = _array("ends", item.ends) if item.ahead else NO_IDS
        rows = draws + item.ahead
        mask = logits = trace = None
        if mode == _DRAW and item.forced:
            mode = _FORCED
        if item.mask is not None:
            mask = mask_of(item.mask, draws, self.vocab)
        if item.with_logits:
            logits = np.empty((rows, self.vocab), np.float32)
        if item.trace:
            trace = bytearray(32 * rows * self.layers * len(STAGES))
        drawn, logprobs, digests = self.places
        _ITEM.pack_into(
            self.records,
            self.count * _SIZE,
            item.session.handle,
            address(tokens),
            address(history) if history is not NO_IDS else 0,
            0 if mask is None else address(mask),
            address(ends),
            drawn + 4 * self.rows,
            logprobs + 4 * self.rows,
            digests + 32 * self.rows,
            0 if logits is None else address(logits),
            address(trace) if trace else 0,
            n,
            draws,
            item.ahead,
            history.shape[0],
            ends.shape[0],
            _sampling_of(params),
            mode,
        )
        self.kept.append((tokens, history, mask, ends))
        place = self.count, self.rows, mode, logits, trace
        self.count += 1
        self.rows += rows
        return place

    def result(self, place: _Place) -> StepsResult | KernelError:
        """What the library wrote into the item's record and arrays."""
        index, start, mode, logits, trace = place
        code, layer, rows = _RESULT.unpack_from(self.records, index * _SIZE + _RESULT_AT)
        if code:
            at = index * _SIZE + _ERROR_AT
            text = bytes(self.records[at : (index + 1) * _SIZE]).partition(b"\0")[0]
            return error_of(code, text.decode(errors="replace"), layer)
        end = start + rows
        return StepsResult(
            tuple(self.drawn[start:end].tolist()) if mode == _DRAW else (),
            self.logprobs[start:end] if mode != _LOGITS else _NO_LOGPROBS,
            bytes(self.digests[32 * start : 32 * end]) if mode != _LOGITS else b"",
            None if logits is None else logits[:rows],
            None if trace is None else bytes(trace[: 32 * rows * self.layers * len(STAGES)]),
        )


_Place = tuple[int, int, int, Floats | None, bytearray | None]
_NO_LOGPROBS: Floats = np.empty(0, np.float32)


def take_steps(
    decoder: Any, vocab: int, layers: int, items: Sequence[StepItem], *, only_logits: bool = False
) -> list[StepsResult | KernelError]:
    """One pass for all items; `only_logits` neither draws nor digests. See `Decoder.step`."""
    step = _Step(vocab, layers, items, _LOGITS if only_logits else _DRAW)
    places: list[_Place | KernelError] = []
    for item in items:
        try:
            places.append(step.add(item))
        except KernelError as error:
            places.append(error)
    if step.count:
        check(load().iso_decoder_step(decoder, address(step.records), step.count))
    return [place if isinstance(place, KernelError) else step.result(place) for place in places]
