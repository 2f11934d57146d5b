"""Scoring: how probable a given answer is, token by token, to the bits that sampling records.

Scoring an answer that the model gave to the same messages gives the log-probabilities, digests and
chain of its record. Memory is bounded by the piece that is computed at once, not by the answer.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from decimal import Context, Decimal
from typing import TYPE_CHECKING

import msgspec

from isonomy.sdk.errors import ContextLength, InputError
from isonomy.sdk.generation import Generation

from . import forcing, packages
from .errors import BACKEND
from .text import Detokenizer

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

UNBOUNDED = 1 << 62
"""A limit of tokens that no text reaches: windows bound the work instead."""


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """A completion's tokens and how probable each was after what came before it.

    `ids` has n entries, `texts` the text that each stands for, `logprobs` n little-endian binary32
    numbers (natural logarithms, before penalties and temperature), `digests` n times 32 bytes and
    `chain` 32, as in `TokenTrace`.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    logprobs: bytes
    digests: bytes
    chain: bytes

    @property
    def values(self) -> tuple[float, ...]:
        """The log-probabilities as numbers."""
        return struct.unpack(f"<{len(self.ids)}f", self.logprobs)

    @property
    def total(self) -> float:
        """The log-probability of the whole: the exact sum of `values`, rounded once."""
        return math.fsum(self.values)

    @property
    def perplexity(self) -> float:
        """Perplexity a token."""
        return exp(-self.total / len(self.ids))


class Perplexity(msgspec.Struct, frozen=True, kw_only=True):
    """How well a model predicts a text.

    `tokens` are the text's, `scored` those of them that had something before them. `nats` is the
    negative log-likelihood of all scored tokens, `mean` the same a token, `perplexity` its
    exponential, `bits_per_byte` it in bits over the `bytes` (UTF-8) that the scored tokens stand
    for. Windows of `window` tokens began every `stride` tokens; `begin` tells whether each began
    with the model's begin token. `model` is the digest of the model, `weights` the type of those
    that were computed with.
    """

    tokens: int
    scored: int
    bytes: int
    nats: float
    mean: float
    perplexity: float
    bits_per_byte: float
    window: int
    stride: int
    begin: bool
    model: str
    weights: str


def exp(value: float) -> float:
    """Return the exponential, correctly rounded: the same on every platform."""
    try:
        return float(Decimal(value).exp(Context(prec=40)))
    except ArithmeticError:
        return math.inf


def ids_of(loaded: Checkpoint, completion: str | Sequence[int] | Generation) -> tuple[int, ...]:
    """Return the tokens of a completion.

    A text is cut into tokens by itself, which need not be how the model would have cut it.

    Raises:
        InputError: it has no tokens, or some that the model does not have.
    """
    if isinstance(completion, Generation):
        completion = completion.tokens.ids if completion.tokens is not None else completion.text
    if isinstance(completion, bytes) or not isinstance(completion, Sequence):
        raise InputError(
            "a completion must be a text, token ids or a generation, not "
            f"{type(completion).__name__}."
        )
    if isinstance(completion, str):
        ids = tuple(loaded.tokenizer.encode(completion, context=UNBOUNDED))
    else:
        ids = tuple(completion)
        vocab = loaded.architecture.vocab
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
                raise InputError(
                    f"a completion's token must be an id from 0 to {vocab - 1}, not {token!r}."
                )
    if not ids:
        raise InputError("the completion is empty: there is no token to score. Pass some text.")
    return ids


def score(
    loaded: Checkpoint, prompt: Sequence[int], completion: str | Sequence[int] | Generation
) -> Scored:
    """Score a completion after a prompt.

    Raises:
        InputError: see `ids_of`.
        ContextLength: both together do not fit into the model's context.
        NonFinite: a hidden state or logit became infinite or NaN.
    """
    ids = ids_of(loaded, completion)
    tokens = [*prompt, *ids]
    _fitting(loaded, prompt, len(ids))
    kernels = packages.load("isonomy.kernels")
    logprobs, digests, chain = bytearray(), bytearray(), bytes(32)
    with forcing.explained():
        session = loaded.decoder.session(len(tokens))
    for rows in forcing.steps(loaded.decoder, session, tokens, len(prompt)):
        logprobs += rows.logprobs
        digests += rows.digests
    for at in range(0, len(digests), 32):
        chain = kernels.chain(chain, bytes(digests[at : at + 32]))
    return Scored(
        ids=ids,
        texts=_texts(loaded, ids),
        logprobs=bytes(logprobs),
        digests=bytes(digests),
        chain=chain,
    )


def logprobs(loaded: Checkpoint, prompt: Sequence[int], labels: Sequence[str]) -> tuple[float, ...]:
    """Return the log-probability of each label after a prompt: the bits of `Scored.total`.

    The prompt is computed once for all of them.

    Raises:
        InputError: there are no labels, or one is no text or empty.
        ContextLength: the prompt and a label do not fit into the model's context.
        NonFinite: a hidden state or logit became infinite or NaN.
    """
    if isinstance(labels, str) or not labels:
        raise InputError('labels must be a tuple of answers to compare: ("yes", "no").')
    for label in labels:
        if not isinstance(label, str) or not label:
            raise InputError(f"a label must be a text that is not empty, not {label!r}.")
    answers = [ids_of(loaded, label) for label in labels]
    longest = _fitting(loaded, prompt, max(len(ids) for ids in answers))
    with forcing.explained():
        session = loaded.decoder.session(longest)
    found = []
    for ids in answers:
        with forcing.explained():
            session.truncate(min(session.length, len(prompt) - 1))
        steps = forcing.steps(loaded.decoder, session, [*prompt, *ids], len(prompt))
        values = struct.unpack(f"<{len(ids)}f", b"".join(rows.logprobs for rows in steps))
        found.append(math.fsum(values))
    return tuple(found)


def _fitting(loaded: Checkpoint, prompt: Sequence[int], completion: int) -> int:
    """Return how many tokens a prompt and a completion of so many have, if they can be scored."""
    if not prompt:
        raise InputError("the prompt is empty, so the first token has nothing before it.")
    count = len(prompt) + completion
    if count > loaded.context:
        raise ContextLength(
            f"prompt and completion have {count} tokens together; the model's context is "
            f"{loaded.context} tokens. Score a shorter completion.",
            backend=BACKEND,
            tokens=count,
            limit=loaded.context,
        )
    return count


def _texts(loaded: Checkpoint, ids: Sequence[int]) -> tuple[str, ...]:
    """Return the text of each token as a generation gives it: an end token stands for none."""
    detokenizer = Detokenizer(loaded.tokenizer.decode)
    texts = ["" if token in loaded.eos_ids else detokenizer.push(token) for token in ids]
    texts[-1] += detokenizer.finish()
    return tuple(texts)
