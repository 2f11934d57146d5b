"""One sequence computed in many ways, which must all give the same bits (kernels/NUMERICS.md).

A `Subject` is a random prompt and an answer drawn after it, with the digest of every row's logits.
Each way of computing it again gives `Evidence` of some of its rows; `Subject.difference` compares.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import faults, forcing, packages

if TYPE_CHECKING:
    from isonomy.kernels import Decoder, Session

SEED = 20_251_115
NEIGHBOUR = 32
"""Tokens that a neighbour has room for."""


Drawn = tuple[int, int, int]


class Evidence(NamedTuple):
    """What a way of computing gave for the rows from `start` on.

    `digests` are 32 bytes a row, `layers` 32 bytes for [row][layer][stage] where they were asked
    for, `drawn` what was drawn: row, token, and the bits of its log-probability.
    """

    start: int
    digests: bytes
    layers: bytes = b""
    drawn: tuple[Drawn, ...] = ()


Way = Callable[[bool], Evidence]
"""Computes once more; with digests of the layers if the argument is true."""


class Subject:
    """A sequence of a model, and the bits that it has.

    Args:
        decoder: The model.
        prompt: Tokens of the random prompt.
        answer: Tokens to draw after it.
    """

    def __init__(self, decoder: Decoder, prompt: int, answer: int) -> None:
        self._np = packages.load("numpy")
        self._kernels: Any = packages.load("isonomy.kernels")
        self.decoder = decoder
        self.prompt = prompt
        self.params = self._kernels.SamplingParams(
            temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=SEED, candidate=1
        )
        self._random = random.Random(SEED)  # an ordinary generator: the choice matters to nobody
        self.ids = self._np.array(self.some(prompt), self._np.int32)
        session = decoder.session(prompt + answer)
        drawn: list[Drawn] = []
        session.prefill(self.ids[:-1])
        for row in range(prompt - 1, prompt - 1 + answer):
            step = self._take(session, self.ids[-1:], draws=1, history=self.ids)
            drawn += self._drawn(step, row)
            self.ids = self._np.append(self.ids, self._np.int32(step.tokens[0]))
        self.rows = len(self.ids) - 1
        self.digests = self.in_pieces([self.rows])(False).digests
        self.drawn = tuple(drawn)
        self.faults: list[str] = []
        """Int8 linears whose checksum failed; they were computed again, so nothing else shows."""

    def some(self, count: int) -> list[int]:
        """Return random ids."""
        vocab = self.decoder.config.vocab
        return [self._random.randrange(vocab) for _ in range(count)]

    def session(self) -> Session:
        """Return an empty session with room for the whole sequence."""
        return self.decoder.session(len(self.ids))

    def in_pieces(self, sizes: Iterable[int], session: Session | None = None) -> Way:
        """Feed the sequence in pieces of these sizes, with the logits of all rows."""
        sizes = list(sizes)

        def way(trace: bool) -> Evidence:
            mine = session or self.session()
            start = mine.length
            digests, layers = bytearray(), bytearray()
            for size in sizes:
                tokens = self.ids[mine.length : mine.length + size]
                step = self._take(mine, tokens, draws=size, trace=trace, forced=True)
                digests += step.digests
                layers += step.trace or b""
            return Evidence(start, bytes(digests), bytes(layers))

        return way

    def decoding(self) -> Way:
        """Feed every token alone, and draw the answer's."""

        def way(trace: bool) -> Evidence:
            session = self.session()
            found = self.in_pieces([1] * (self.prompt - 1), session)(trace)
            digests, layers, drawn = bytearray(found.digests), bytearray(found.layers), []
            for at in range(self.prompt - 1, self.rows):
                step = self._take(
                    session, self.ids[at : at + 1], draws=1, history=self.ids[: at + 1], trace=trace
                )
                digests += step.digests
                layers += step.trace or b""
                drawn += self._drawn(step, at)
            return Evidence(0, bytes(digests), bytes(layers), tuple(drawn))

        return way

    def verifying(self, guesses: int, wrong: int | None) -> Way:
        """Draw the answer with so many guesses a pass; every `wrong`th guess is a wrong one."""

        def way(trace: bool) -> Evidence:
            session = self.session()
            session.prefill(self.ids[: self.prompt - 1])
            digests, layers, drawn = bytearray(), bytearray(), []
            counter = itertools.count(1)
            at = self.prompt - 1
            while at < self.rows:
                tokens = self.ids[at : min(at + 1 + guesses, self.rows)].copy()
                for i in range(1, len(tokens)):
                    if wrong is not None and next(counter) % wrong == 0:
                        tokens[i] = (int(tokens[i]) + 1) % self.decoder.config.vocab
                step = self._take(
                    session,
                    tokens,
                    draws=len(tokens),
                    history=self._np.concatenate([self.ids[:at], tokens]),
                    trace=trace,
                )
                digests += step.digests
                layers += step.trace or b""
                drawn += self._drawn(step, at)
                at += len(step.tokens)
            return Evidence(self.prompt - 1, bytes(digests), bytes(layers), tuple(drawn))

        return way

    def warm(self, length: int, *, truncated: bool) -> Way:
        """Go on from a prefix that another session computed, and that yet another went on from."""
        strange = self._np.array(self.some(len(self.ids) - length), self._np.int32)

        def way(trace: bool) -> Evidence:
            first = self.session()
            first.prefill(self.ids[:-1])
            other = first if truncated else first.fork(length=length)
            if truncated:
                other.truncate(length)
            other.prefill(strange)
            mine = other if truncated else first.fork(length=length)
            mine.truncate(length)
            return self.in_pieces([self.rows - length], mine)(trace)

        return way

    def among(self, size: int) -> Way:
        """Prompt and some steps in passes together with `size` - 1 random neighbours."""
        room = min(NEIGHBOUR, self.decoder.config.max_positions)
        lengths = [self._random.randint(1, room - 8) for _ in range(size - 1)]
        prompts = [self._np.array(self.some(n), self._np.int32) for n in lengths]
        place = self._random.randrange(size)
        steps = min(4, self.rows - self.prompt + 1)

        def way(trace: bool) -> Evidence:
            item = self._kernels.StepItem
            mine = self.session()
            theirs = [self.decoder.session(room) for _ in prompts]
            ids = list(prompts)
            digests, layers, drawn = bytearray(), bytearray(), []
            for number in range(steps):
                at = self.prompt - 1 + number
                tokens = self.ids[at : at + 1] if number else self.ids[: self.prompt]
                own = item(
                    mine,
                    tokens,
                    len(tokens),
                    self.params,
                    self.ids[: at + 1],
                    trace=trace,
                    forced=number == 0,
                )
                items = [
                    item(session, known[session.length :], 1, self.params, known)
                    for session, known in zip(theirs, ids, strict=True)
                ]
                results: Any = self.decoder.step([*items[:place], own, *items[place:]])
                for result in results:
                    if isinstance(result, self._kernels.KernelError):
                        raise result
                step = results.pop(place)
                digests += step.digests
                layers += step.trace or b""
                drawn += self._drawn(step, at)
                ids = [
                    self._np.append(known, self._np.int32(result.tokens[0]))
                    for known, result in zip(ids, results, strict=True)
                ]
            return Evidence(0, bytes(digests), bytes(layers), tuple(drawn))

        return way

    def difference(self, way: Way) -> str | None:
        """Return what differs first when the sequence is computed in a way, `None` if nothing.

        Raises:
            NonFinite: the model left the finite numbers.
            BackendError: memory ran out.
        """
        with forcing.explained():
            found = way(False)
            self.faults += [fault["linear"] for fault in faults.report()]
            row = self._first(found)
            if row is not None:
                return f"row {row}: {self._where(way, row)}"
        for row, token, bits in found.drawn:
            _, other, its = self.drawn[row - self.prompt + 1]
            if (token, bits) != (other, its):
                return (
                    f"row {row}: equal logits, but token {token} was drawn instead of {other} "
                    f"(log-probabilities 0x{bits:08x}, 0x{its:08x})"
                )
        return None

    def _first(self, found: Evidence) -> int | None:
        """Return the first row whose digest is not the subject's."""
        for at in range(0, len(found.digests), 32):
            row = found.start + at // 32
            if found.digests[at : at + 32] != self.digests[32 * row : 32 * row + 32]:
                return row
        return None

    def _where(self, way: Way, row: int) -> str:
        """Compute again with digests of the layers, and say which operation differs first."""
        found, whole = way(True), self.in_pieces([self.rows])(True)
        if self._first(found) is None:
            return "its logits differ, but did not when they were computed once more"
        stages = self._kernels.STAGES
        count = 32 * len(stages) * self.decoder.config.layers
        theirs = whole.layers[count * found.start : count * found.start + len(found.layers)]
        for at in range(0, len(theirs), 32):
            if found.layers[at : at + 32] != theirs[at : at + 32]:
                other, place = divmod(at, count)
                layer, stage = divmod(place // 32, len(stages))
                name = f"layer {layer}, {stages[stage]}"
                if found.start + other == row:
                    return f"{name}, is the first operation that differs"
                return f"the first operation that differs is {name}, in row {found.start + other}"
        return "every layer agrees, and the final norm or the output layer differs"

    def _take(self, session: Session, tokens: Sequence[int], **options: Any) -> Any:
        given = self._kernels.StepItem(session, tokens, params=self.params, **options)
        step: Any = self.decoder.step([given])[0]
        if isinstance(step, self._kernels.KernelError):
            raise step
        return step

    def _drawn(self, step: Any, row: int) -> list[Drawn]:
        bits = step.logprobs.view(self._np.uint32).tolist()
        return [(row + i, token, bits[i]) for i, token in enumerate(step.tokens)]
