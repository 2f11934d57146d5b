"""A tiny model behind an engine, and what each of its answers has to be: decoded plainly, alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from isonomy.sdk.generation import Sampling, TokenTrace

kernels = pytest.importorskip("isonomy.kernels")

from isonomy.backends.local.checkpoint import Checkpoint, load  # noqa: E402
from isonomy.backends.local.engine import Call, Engine  # noqa: E402
from isonomy.backends.local.leading import Follower  # noqa: E402
from isonomy.backends.local.sequence import Running, parameters  # noqa: E402
from isonomy.backends.local.text import Detokenizer, StopStrings  # noqa: E402

CONTEXT = 1024


class Watched:
    """A decoder that counts: sessions and rows of each pass, and memory after it."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.config = decoder.config
        self.passes: list[list[int]] = []
        self.memory = 0
        self.before: Callable[[Sequence[Any]], None] = lambda items: None
        self.after: Callable[[Sequence[Any]], None] = lambda items: None

    def cache_bytes(self, capacity: int) -> int:
        return int(self._decoder.cache_bytes(capacity))

    def session(self, capacity: int) -> Any:
        return self._decoder.session(capacity)

    def step(self, items: Sequence[Any]) -> list[Any]:
        self.before(items)
        results: list[Any] = self._decoder.step(items)
        self.passes.append([len(item.tokens) for item in items])
        self.memory = max(self.memory, self._decoder.cache_in_use)
        self.after(items)
        return results


class Model:
    """The tiny model."""

    def __init__(self, loaded: Checkpoint) -> None:
        self.loaded = loaded
        self.decoder: Any = loaded.decoder
        self.vocab = loaded.architecture.vocab
        self._known: dict[Any, Any] = {}

    def engine(self, decoder: Any = None, **options: Any) -> Engine:
        settings: dict[str, Any] = {
            "cache_bytes": 1 << 26,
            "max_running": 16,
            "max_waiting": 10_000,
            "prompt_chunk": 64,
            "prefix_cache_bytes": 1 << 24,
            "clock": time.perf_counter,
            "most_ahead": 0,  # most tests look at single passes
        }
        return Engine(self.decoder if decoder is None else decoder, **(settings | options))

    def sampling(self, **changes: Any) -> Sampling:
        settings: dict[str, Any] = {
            "temperature": 1.0,
            "top_p": 0.95,
            "top_k": 100,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": 12,
            "seed": 1,
        }
        return Sampling(**(settings | changes))

    def running(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        eos_ids: Iterable[int] = (),
        **options: Any,
    ) -> Running:
        return Running(
            prompt,
            sampling,
            decode=self.loaded.tokenizer.decode,
            eos_ids=frozenset(eos_ids),
            context=CONTEXT,
            vocab=self.vocab,
            **options,
        )

    def plain(
        self, prompt: Sequence[int], sampling: Sampling, eos_ids: Iterable[int] = ()
    ) -> tuple[TokenTrace, str, str]:
        """What an answer has to be: trace, text and why it ends. One row a step, nobody else."""
        key = (tuple(prompt), sampling, frozenset(eos_ids))
        if key not in self._known:
            self._known[key] = self._decode(*key)
        return self._known[key]

    def _decode(
        self, prompt: Sequence[int], sampling: Sampling, eos_ids: frozenset[int]
    ) -> tuple[TokenTrace, str, str]:
        assert sampling.max_tokens is not None
        session = self.decoder.session(CONTEXT)
        ids, new = list(prompt), list(prompt)
        detokenizer = Detokenizer(self.loaded.tokenizer.decode)
        stops = StopStrings(sampling.stop)
        texts, given, logprobs, digests = [], [], [], []
        chain, reason = bytes(32), ""
        while not reason:
            step = session.step(new, parameters(sampling), ids)
            new = [step.token]
            ids.append(step.token)
            logprobs.append(step.logprob)
            digests.append(step.digest)
            chain = kernels.chain(chain, step.digest)
            if step.token in eos_ids:
                piece, reason = detokenizer.finish(), "stop"
            else:
                piece = detokenizer.push(step.token)
                if len(digests) == sampling.max_tokens:
                    reason = "length"
                    piece += detokenizer.finish()
            texts.append(piece)
            given.append(stops.push(piece))
            if stops.stopped:
                reason = "stop"
        given.append(stops.finish())
        trace = TokenTrace(
            ids=tuple(ids[len(prompt) :]),
            texts=tuple(texts),
            logprobs=np.array(logprobs, "<f4").tobytes(),
            digests=b"".join(digests),
            chain=chain,
        )
        return trace, "".join(given), reason

    def check(self, running: Running, sampling: Sampling, eos_ids: Iterable[int] = ()) -> None:
        """A finished sequence is what plain decoding gives, bit for bit."""
        prompt = running.ids[: running.prompted]
        assert outcome(running) == self.plain(prompt, sampling, eos_ids)

    def prompt(self, rng: random.Random, most: int = 60, shared: Sequence[int] = ()) -> list[int]:
        """Random ids, the first of them often those of `shared`."""
        begin = list(shared[: rng.randrange(len(shared) + 1)]) if rng.random() < 0.7 else []
        return begin + [rng.randrange(3, self.vocab) for _ in range(rng.randrange(1, most))]


def outcome(running: Running) -> tuple[TokenTrace, str, str]:
    return running.trace(), "".join(running.answer.given), running.answer.finish_reason


class Driver:
    """Drives an engine by hand, a step at a time, in the test's own thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.follower = Follower()
        self.calls: dict[Running, Call] = {}
        self.woken: list[Running] = []

    def submit(self, *sequences: Running) -> None:
        for sequence in sequences:
            call = Call(sequence, lambda s=sequence: self.woken.append(s), coroutine=False)
            self.calls[sequence] = call
            self.engine._submit(call)

    def step(self, times: int = 1) -> bool:
        return sum(self.engine._step() for _ in range(times)) == times

    def finish(self) -> int:
        """Step until there is nothing to do; how many steps that took."""
        steps = 0
        while self.engine._step():
            steps += 1
        return steps

    def leave(self, sequence: Running) -> None:
        self.engine._leave(self.calls.pop(sequence), Follower())


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, build: SimpleNamespace) -> Model:
    folder: Path = tmp_path_factory.mktemp("engine") / "tiny"
    build.checkpoint(folder, build.config(max_position_embeddings=CONTEXT))
    return Model(load(folder))


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """What tests need beside the model (modules of tests can't import each other)."""
    return SimpleNamespace(Watched=Watched, Driver=Driver, outcome=outcome)
