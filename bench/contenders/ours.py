"""Isonomy, through its public backend: digests of every step's logits included."""

from __future__ import annotations

import importlib.metadata
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

from isonomy.backends.local import Local
from isonomy.kernels import info
from isonomy.sdk import Message, Request, Sampling
from isonomy.sdk.generation import Generation

from ..checkpoints import prompt
from .serving import serve


class Ours:
    """A checkpoint, loaded.

    Args:
        folder: of the checkpoint.
        weights: ``f32`` or ``bf16`` as stored, or ``int8``.
        options: of `Local`.
    """

    def __init__(self, folder: str, weights: str, **options: Any) -> None:
        self._before = _memory()
        chosen = {"weights": "int8"} if weights == "int8" else {}
        self._local = Local(folder, **chosen, **options)
        self._loaded = _memory()
        self._decoder: Any = self._local._loaded().decoder
        self._vocab = int(self._decoder.config.vocab)
        self._watch: _Watch | None = None

    def decode(self, tokens: int, number: int) -> float:
        """Return tokens a second, one call alone."""
        generation = self._generate(prompt(16, self._vocab, number), tokens + 1)
        return tokens / generation.timings["decode"]

    def context(self, length: int, tokens: int, number: int) -> dict[str, float]:
        """Return tokens a second of a prompt, and of the answer's tokens after it."""
        generation = self._generate(prompt(length, self._vocab, number), tokens + 1)
        return {
            "prompt": length / generation.timings["prompt"],
            "decode": tokens / generation.timings["decode"],
        }

    def prompt(self, tokens: int, number: int) -> float:
        """Return tokens a second of a prompt that was never seen before."""
        generation = self._generate(prompt(tokens, self._vocab, number), 1)
        return tokens / generation.timings["prompt"]

    def batch(self, calls: int, tokens: int, number: int) -> float:
        """Return tokens a second of all calls together, each in a thread of its own.

        The time runs from when half of them have their first token until the last one ends.
        """
        began: list[float] = []
        ended: list[float] = []

        def call(ids: list[int]) -> None:
            generation = self._generate(ids, tokens + 1)
            ended.append(time.perf_counter())
            began.append(ended[-1] - generation.timings["decode"])

        prompts = [prompt(16, self._vocab, 1000 * number + call) for call in range(calls)]
        threads = [threading.Thread(target=call, args=(ids,)) for ids in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(began) < calls:
            raise RuntimeError("a call failed")
        return calls * tokens / (max(ended) - statistics.median(began))

    def verify(self, tokens: int, number: int, repeated: int = 3) -> dict[str, float]:
        """Return the seconds of an answer's generation, of its verification, and of a prompt.

        The prompt is as long as the answer, with the output layer on all rows.
        """
        import numpy as np

        ids = prompt(16, self._vocab, number)
        started = time.perf_counter()
        answer = self._generate(ids, tokens)
        generated = time.perf_counter() - started
        assert answer.tokens is not None
        answered = np.asarray(answer.tokens.ids, dtype=np.int32)
        verified, prompted = [], []
        for _ in range(repeated):
            started = time.perf_counter()
            again = self._local.generate(_request(ids, tokens), recorded=answer)
            verified.append(time.perf_counter() - started)
            if again.tokens != answer.tokens:
                raise RuntimeError("verification gave other tokens")
            session = self._decoder.session(len(ids) + tokens)
            session.prefill(np.asarray(ids, dtype=np.int32))
            started = time.perf_counter()
            session.feed(answered, all_logits=True)
            prompted.append(time.perf_counter() - started)
        return {
            "generate": generated,
            "verify": statistics.median(verified),
            "prompt": statistics.median(prompted),
        }

    def outside(self, tokens: int, number: int) -> float:
        """Return the microseconds a decode step spends outside of the compiled library."""
        self._watch = self._watch or _Watch()
        ids = prompt(16, self._vocab, number)
        beyond = []
        self._generate(ids, tokens + 1)  # what a process does once is done
        for most in (1, tokens + 1):
            inside = self._watch.spent
            started = time.perf_counter()
            self._generate(ids, most)
            beyond.append(time.perf_counter() - started - (self._watch.spent - inside))
        return 1e6 * (beyond[1] - beyond[0]) / tokens

    def next_token(self, number: int) -> int:
        """Return the likeliest token after a prompt."""
        generation = self._generate(prompt(16, self._vocab, number), 1)
        assert generation.tokens is not None
        return generation.tokens.ids[0]

    def version(self) -> str:
        """Return what is measured."""
        return f"Isonomy {importlib.metadata.version('isonomy')} ({info().isa})"

    def memory(self) -> dict[str, int]:
        """Return resident bytes: of the bare process, after loading, now, and the most ever."""
        return {
            "bare": self._before["VmRSS"],
            "loaded": self._loaded["VmRSS"],
            "now": _memory()["VmRSS"],
            "most": _memory()["VmHWM"],
        }

    def _generate(self, ids: Sequence[int], tokens: int) -> Generation:
        return self._local.generate(_request(ids, tokens))


def _request(ids: Sequence[int], tokens: int) -> Request:
    return Request(
        messages=(Message.of("user", " ".join(f"t{id_}" for id_ in ids)),),
        sampling=Sampling(temperature=0.0, max_tokens=tokens),
    )


class _Watch:
    """Sums up the seconds spent in the compiled library, from now on."""

    def __init__(self) -> None:
        from isonomy.kernels import library

        self.spent = 0.0
        compiled = library.load()
        for name in dir(compiled):
            function = getattr(compiled, name)
            if name.startswith("iso_") and callable(function):
                setattr(compiled, name, self._timed(function))

    def _timed(self, function: Any) -> Any:
        def run(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.spent += time.perf_counter() - started

        return run


def _memory() -> dict[str, int]:
    """Return this process's resident bytes, now and at most."""
    found = {}
    with open("/proc/self/status") as lines:  # noqa: PTH123
        for line in lines:
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                found[name] = int(value.split()[0]) * 1024
    return found


if __name__ == "__main__":
    serve(Ours)
