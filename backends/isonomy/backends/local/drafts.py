"""Guesses of tokens ahead, which the model checks in one pass.

A guess never changes a bit: the model computes every row as it would without it, and keeps the
tokens that it would have drawn. Guesses only decide how many rows a pass has. So a draft may be as
wrong as it likes, and any trouble it has is a reason to guess nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from isonomy import kernels


class Draft(Protocol):
    """Guesses how one sequence goes on. Asked again and again while it grows.

    Attributes:
        certain: guesses cost nothing and are nearly always right, so as many as fit are checked at
            once; otherwise their number follows how many were right before.
        bytes: memory that it may come to hold.
    """

    certain: bool
    bytes: int

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """Return at most `most` ids that may come after `ids` (prompt and answer so far).

        `ids` begin with those of the call before. They must not be changed.
        """
        ...


class Pace:
    """How many guesses a pass is worth, from how the last ones fared.

    Right guesses double the number, a wrong one cuts it to what was right; after passes without a
    single right guess the next ones go without, more of them each time. So where guessing is of no
    use, at most every thirty-third pass carries a useless row.
    """

    MOST = 16
    LONGEST_PAUSE = 32

    def __init__(self) -> None:
        self._most = 4
        self._failures = 0
        self._pause = 0

    def most(self) -> int:
        """Return how many to guess in this pass."""
        if self._pause:
            self._pause -= 1
            return 0
        return self._most

    def saw(self, guessed: int, accepted: int) -> None:
        """Learn what came of a pass with guesses."""
        if accepted == 0:
            self._most = 1
            self._failures += 1
            self._pause = min(2**self._failures, self.LONGEST_PAUSE)
        elif accepted == guessed:
            self._failures = 0
            self._most = min(2 * max(self._most, guessed), self.MOST)
        else:
            self._failures = 0
            self._most = accepted + 1


class PromptLookup:
    """Guesses that what followed the last tokens before follows them again.

    Looks for the latest earlier place of the last three tokens, then of the last two, in prompt and
    answer (Saxena, "Prompt lookup decoding", 2023). Useful where an answer quotes: summaries,
    corrections, code.
    """

    certain = False
    bytes = 0
    SIZES = (3, 2)

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """Return what followed the latest earlier place of the last tokens."""
        length = len(ids)
        for end in range(self._indexed + 1, length):  # not the last tokens: they are looked up
            for size in self.SIZES:
                if end >= size:
                    self._ends[tuple(ids[end - size : end])] = end
        self._indexed = max(length - 1, 0)
        for size in self.SIZES:
            if length > size:
                found = self._ends.get(tuple(ids[length - size : length]))
                if found is not None:
                    return ids[found : found + most]
        return ()


class Recorded:
    """Guesses the answer that was recorded: a replay checks it at the speed of a prompt.

    Args:
        prompt: The prompt's ids.
        answer: The recorded answer's ids.
        otherwise: Asked once the answer differs from the recorded one.
    """

    def __init__(
        self, prompt: Sequence[int], answer: Sequence[int], otherwise: Draft | None = None
    ) -> None:
        self._begin = len(prompt)
        self._answer = list(answer)
        self._checked = 0
        self._otherwise = otherwise
        self.certain = True
        self.bytes = 0 if otherwise is None else otherwise.bytes

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """Return the tokens recorded next, but for the last, after which nothing was drawn."""
        if self.certain:
            done = len(ids) - self._begin
            if list(ids[self._begin + self._checked :]) == self._answer[self._checked : done]:
                self._checked = done
                return self._answer[done : min(done + most, len(self._answer) - 1)]
            self.certain = False
            return ()  # `most` was meant for what is certain
        return () if self._otherwise is None else self._otherwise.propose(ids, most)


class DraftModel:
    """Guesses with a smaller model of the same vocabulary, by the same keys.

    It draws with the parameters, seed and positions of the answer, hence with the same noise:
    where the two models' distributions are alike, so are their tokens, at any temperature.

    Args:
        decoder: The smaller model.
        parameters: How the answer's tokens are drawn.
        capacity: Most tokens of prompt and answer.
        chunk: Most tokens that it reads in one go, so that a long prompt stalls nobody; until it
            has caught up nothing is guessed.
    """

    certain = False

    def __init__(
        self,
        decoder: kernels.Decoder,
        parameters: kernels.SamplingParams,
        *,
        capacity: int,
        chunk: int,
    ) -> None:
        self._decoder = decoder
        self._vocab = decoder.config.vocab
        self._parameters = parameters
        self._capacity = min(capacity, decoder.config.max_positions)
        self._chunk = chunk
        self.bytes = decoder.cache_bytes(self._capacity)
        self._session: kernels.Session | None = None
        self._fed: list[int] = []

    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """Return the tokens that the smaller model draws after `ids`."""
        try:
            return self._propose(ids, min(most, self._capacity - len(ids)))
        except kernels.KernelError:  # its overflow, its full cache: the answer needs none of it
            self._capacity = 0
            self._session = None
            return ()

    def _propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        if most <= 0:
            return ()
        if self._session is None:
            self._session = self._decoder.session(self._capacity)
            self._fed = []
        session, fed = self._session, self._fed
        # Guesses that were refused are behind what was drawn instead, and those alone can differ.
        same = min(len(fed), len(ids) - 1)
        while same and fed[same - 1] != ids[same - 1]:
            same -= 1
        session.truncate(same)
        del fed[same:]
        new = list(ids[same:])
        if len(new) > self._chunk:
            new = new[: self._chunk]
            session.prefill(new)
            fed += new
            return ()
        known = np.empty(len(ids) + most, np.int32)
        known[: len(ids)] = ids
        length = len(ids)
        guessed: list[int] = []
        for _ in range(most):
            step = session.step(known[len(fed) : length], self._parameters, known[:length])
            fed += known[len(fed) : length].tolist()
            known[length] = step.token
            length += 1
            guessed.append(int(step.token))
        return guessed
