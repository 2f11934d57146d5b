"""llama.cpp, through llama-cpp-python's bindings of its C API. Runs in the peers' environment.

Its defaults, but for the number of threads: flash attention as it chooses, memory-mapped weights,
logical batches of 2048 tokens. Several calls are one batch with a sequence each.
"""

from __future__ import annotations

import os
import time

import llama_cpp
from llama_cpp import llama_cpp as api

from ..checkpoints import prompt
from .serving import serve

POSITIONS = 1024
CALLS = 32


@api.llama_log_callback
def _quiet(level: int, text: bytes, data: object) -> None:
    del level, text, data


class Llama:
    """A GGUF file, loaded."""

    def __init__(self, file: str) -> None:
        threads = int(os.environ["OMP_NUM_THREADS"])
        api.llama_log_set(_quiet, None)
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(
            os.fsencode(file), api.llama_model_default_params()
        )
        if not self._model:
            raise ValueError("can't load the model")
        parameters = api.llama_context_default_params()
        parameters.n_ctx = POSITIONS + CALLS * 64
        parameters.n_seq_max = CALLS
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ValueError("can't make a context")
        self._memory = api.llama_get_memory(self._context)
        self._vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._greedy = api.llama_sampler_init_greedy()
        self._batch = api.llama_batch_init(POSITIONS, 0, CALLS)

    def decode(self, tokens: int, number: int) -> float:
        """Return tokens a second, one call alone."""
        return self._decoded([prompt(16, self._vocab, number)], tokens)

    def batch(self, calls: int, tokens: int, number: int) -> float:
        """Return tokens a second of all sequences of one batch."""
        prompts = [prompt(16, self._vocab, 1000 * number + call) for call in range(calls)]
        return self._decoded(prompts, tokens)

    def prompt(self, tokens: int, number: int) -> float:
        """Return tokens a second of a prompt."""
        self._forget()
        ids = prompt(tokens, self._vocab, number)
        started = time.perf_counter()
        self._feed(ids)
        api.llama_sampler_sample(self._greedy, self._context, -1)
        return tokens / (time.perf_counter() - started)

    def next_token(self, number: int) -> int:
        """Return the likeliest token after a prompt."""
        self._forget()
        self._feed(prompt(16, self._vocab, number))
        return int(api.llama_sampler_sample(self._greedy, self._context, -1))

    def version(self) -> str:
        """Return what is measured."""
        return f"llama-cpp-python {llama_cpp.__version__}"

    def _forget(self) -> None:
        api.llama_memory_clear(self._memory, True)

    def _feed(self, ids: list[int], sequence: int = 0) -> None:
        """Feed a prompt; logits of its last token only."""
        last = len(ids) - 1
        self._run([(id_, place, sequence, place == last) for place, id_ in enumerate(ids)])

    def _decoded(self, prompts: list[list[int]], tokens: int) -> float:
        self._forget()
        current = []
        for sequence, ids in enumerate(prompts):
            self._feed(ids, sequence)
            current.append(api.llama_sampler_sample(self._greedy, self._context, -1))
        length = len(prompts[0])
        started = time.perf_counter()
        for step in range(tokens):
            self._run(
                [(token, length + step, sequence, True) for sequence, token in enumerate(current)]
            )
            current = [
                api.llama_sampler_sample(self._greedy, self._context, row)
                for row in range(len(current))
            ]
        return len(prompts) * tokens / (time.perf_counter() - started)

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for row, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = wanted
        if api.llama_decode(self._context, batch):
            raise ValueError("llama_decode failed")


if __name__ == "__main__":
    serve(Llama)
