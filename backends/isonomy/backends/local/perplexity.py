"""Perplexity of a text: windows of the context, moved on by a stride.

Each window's new tokens are scored after the older ones in it, so that every token but the first
is scored once, with at least ``window - stride`` tokens before it wherever the text has them
(https://huggingface.co/docs/transformers/perplexity). The sum over all tokens is exact and rounded
once, so the result depends on model, text, window and stride alone.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from isonomy.sdk.errors import InputError

from . import forcing
from .scoring import UNBOUNDED, Perplexity, exp

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

WINDOW = 2048
"""Tokens of a window where nobody says otherwise and the model's context is no smaller."""


class _Window(NamedTuple):
    begin: int
    scored: int  # the first token that is scored here
    end: int


def perplexity(
    loaded: Checkpoint,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    begin: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Return a text's perplexity.

    Args:
        loaded: The model.
        text: Plain text; no chat template is put around it, no token is added to it.
        window: Tokens seen at once, at most the model's context; `None`: that, up to `WINDOW`.
        stride: New tokens a window; `None`: half a window.
        begin: Put the model's begin token before every window, as many models were trained.
        progress: Called with the number of tokens scored and of all.

    Raises:
        InputError: the text has too few tokens, or an argument is out of its range.
        NonFinite: a hidden state or logit became infinite or NaN.
    """
    if not isinstance(text, str):
        raise InputError(f"what is scored must be a text, not {type(text).__name__}.")
    first = [_begin_token(loaded)] if begin else []
    size, step = _sizes(loaded, window, stride, len(first))
    tokens = loaded.tokenizer.encode(text, context=UNBOUNDED)
    scored = len(tokens) - (0 if begin else 1)
    if scored < 1:
        raise InputError(
            "the text is too short: it needs two tokens, the second of which is scored. Pass a "
            "longer text."
        )
    total = len(text.encode())
    if not begin:
        total -= min(total, len(loaded.tokenizer.decode(tokens[:1]).encode()))
    values: list[float] = []
    with forcing.explained():
        session = loaded.decoder.session(min(size, len(first) + len(tokens)))
    for each in _windows(len(tokens), size - len(first), step, 0 if begin else 1):
        session.truncate(0)
        seen = [*first, *tokens[each.begin : each.end]]
        start = len(first) + each.scored - each.begin
        for rows in forcing.steps(loaded.decoder, session, seen, start):
            values += struct.unpack(f"<{len(rows.logprobs) // 4}f", rows.logprobs)
            if progress is not None:
                progress(len(values), scored)
    nats = -math.fsum(values)
    return Perplexity(
        tokens=len(tokens),
        scored=scored,
        bytes=total,
        nats=nats,
        mean=nats / scored,
        perplexity=exp(nats / scored),
        bits_per_byte=nats / math.log(2) / total if total else math.inf,
        window=size,
        stride=step,
        begin=begin,
        model=loaded.artefacts["model"],
        weights=loaded.stored,
    )


def _windows(tokens: int, size: int, stride: int, first: int) -> Iterator[_Window]:
    """Yield windows over `tokens` tokens; `first` is the first one to be scored."""
    end = min(size, tokens)
    yield _Window(0, first, end)
    while end < tokens:
        scored, end = end, min(end + stride, tokens)
        yield _Window(end - size, scored, end)


def _sizes(
    loaded: Checkpoint, window: int | None, stride: int | None, begin: int
) -> tuple[int, int]:
    """Return the sizes of window and stride, which leaves a token before the first scored one."""
    for name, value in (("window", window), ("stride", stride)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InputError(f"{name} must be a whole number of tokens, not {value!r}.")
    size = min(loaded.context, WINDOW) if window is None else window
    if not 2 <= size <= loaded.context:
        raise InputError(
            f"a window must have 2 tokens at least and {loaded.context} at most, the model's "
            f"context, not {size}."
        )
    step = max(1, size // 2) if stride is None else stride
    if not 1 <= step <= size - 1:
        raise InputError(
            f"the stride must be from 1 to {size - 1} tokens, one less than the window, not {step}."
        )
    return size, step


def _begin_token(loaded: Checkpoint) -> int:
    text = loaded.tokenizer.named.get("bos_token")
    ids: Sequence[int] = loaded.tokenizer.encode(text, context=UNBOUNDED) if text else ()
    if len(ids) != 1:
        raise InputError("this model's tokenizer names no begin token. Leave it out.")
    return ids[0]
