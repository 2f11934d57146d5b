"""Decode and prompt speed of the engine beside transformers' eager generate, same weights, one run.

Both run with the same number of threads on the same random-weight checkpoint (135M parameters, the
shape of SmolLM-135M): a prompt of 512 tokens, and 64 tokens decoded one at a time after 16. Ours
runs through the public backend, digests of every step's logits included.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from . import checkpoints
from .measuring import alternate, median, table

PROMPT = 512
DECODED = 64


def main(*, repetitions: int = 5, threads: int = 2, quick: bool = False) -> str:
    """Return the comparison as a Markdown table."""
    os.environ["ISONOMY_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    repetitions = 2 if quick else repetitions
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype, name in (("float32", "f32"), ("bfloat16", "bf16")):
            path = Path(folder) / name
            checkpoints.write(path, dtype=dtype)
            rows += _compare(path, dtype, name, repetitions)
    isa = _isa()
    heading = (
        f"tokens/s, {threads} threads, ours on {isa}, medians of {repetitions} alternating runs"
    )
    return f"{heading}\n\n" + table(
        ["weights", "what", "transformers eager", "Isonomy", "ratio"], rows
    )


def _isa() -> str:
    from isonomy.kernels import info

    return info().isa


def _compare(path: Path, dtype: str, name: str, repetitions: int) -> list[list[str]]:
    import torch
    from transformers import AutoModelForCausalLM

    from isonomy.backends.local import Local
    from isonomy.sdk import Message, Request, Sampling

    local = Local(path)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()
    long_text, long_ids = checkpoints.prompt(PROMPT, checkpoints.SHAPE_135M["vocab_size"])
    short_text, short_ids = checkpoints.prompt(16, checkpoints.SHAPE_135M["vocab_size"])

    def request(text: str, tokens: int) -> Request:
        return Request(
            messages=(Message.of("user", text),),
            sampling=Sampling(temperature=0.0, max_tokens=tokens),
        )

    def our_prompt() -> float:
        return PROMPT / local.generate(request(long_text, 1)).timings["prompt"]

    def our_decode() -> float:
        generation = local.generate(request(short_text, DECODED + 1))
        return DECODED / generation.timings["decode"]

    @torch.inference_mode()
    def their_prompt() -> float:
        import time

        ids = torch.tensor([long_ids])
        started = time.perf_counter()
        model(ids, use_cache=True, logits_to_keep=1)
        return PROMPT / (time.perf_counter() - started)

    @torch.inference_mode()
    def their_decode() -> float:
        import time

        ids = torch.tensor([short_ids])
        times = []
        for tokens in (1, DECODED + 1):
            started = time.perf_counter()
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
            )
            times.append(time.perf_counter() - started)
        return DECODED / (times[1] - times[0])

    rows = []
    for what, ours, theirs in (
        ("decode, batch 1", our_decode, their_decode),
        (f"prompt, {PROMPT} tokens", our_prompt, their_prompt),
    ):
        speeds = alternate({"theirs": theirs, "ours": ours}, repetitions=repetitions)
        old, new = median(speeds["theirs"]), median(speeds["ours"])
        rows.append([name, what, f"{old:.1f}", f"{new:.1f}", f"{new / old:.2f}"])
    local.close()
    return rows
