"""Transformers, eager: its own graph and its own `generate`, as most people run it on a CPU."""

from __future__ import annotations

import os
import time

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from ..checkpoints import prompt
from .serving import serve


class Eager:
    """A checkpoint, loaded in the type it is stored in."""

    def __init__(self, folder: str) -> None:
        logging.disable_progress_bar()
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", attn_implementation="eager"
        ).eval()
        self._vocab = int(self._model.config.vocab_size)

    def decode(self, tokens: int, number: int) -> float:
        """Return tokens a second, one call alone."""
        return self._decoded([prompt(16, self._vocab, number)], tokens)

    def batch(self, calls: int, tokens: int, number: int) -> float:
        """Return tokens a second of one batched generation."""
        prompts = [prompt(16, self._vocab, 1000 * number + call) for call in range(calls)]
        return self._decoded(prompts, tokens)

    @torch.inference_mode()
    def prompt(self, tokens: int, number: int) -> float:
        """Return tokens a second of a prompt."""
        ids = torch.tensor([prompt(tokens, self._vocab, number)])
        started = time.perf_counter()
        self._model(ids, use_cache=True, logits_to_keep=1)
        return tokens / (time.perf_counter() - started)

    @torch.inference_mode()
    def next_token(self, number: int) -> int:
        """Return the likeliest token after a prompt."""
        ids = torch.tensor([prompt(16, self._vocab, number)])
        return int(self._model(ids).logits[0, -1].argmax())

    def version(self) -> str:
        """Return what is measured."""
        return f"transformers {transformers.__version__} (torch {torch.__version__})"

    @torch.inference_mode()
    def _decoded(self, prompts: list[list[int]], tokens: int) -> float:
        ids = torch.tensor(prompts)
        spent = []
        for most in (1, tokens + 1):
            started = time.perf_counter()
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=most,
                max_new_tokens=most,
                do_sample=False,
            )
            spent.append(time.perf_counter() - started)
        return len(prompts) * tokens / (spent[1] - spent[0])


if __name__ == "__main__":
    serve(Eager)
