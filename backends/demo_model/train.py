"""Trains the demo model from nothing and writes its checkpoint folder.

    cd backends && python -m demo_model.train [--out FOLDER] [--steps N] [--threads N]

Every run sees the same dialogues in the same order. The bits of the weights still depend on torch's
version, the processor and the number of threads: expect an equivalent model, not an identical file.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import time

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from demo_model import batches, checkpoint, world

SEED = 20_260
STEPS = 2800
TOKENS_PER_STEP = 3072
MUON_RATE = 5e-3
ADAMW_RATE = 2.5e-3
WARMUP = 40
REPORT_EVERY = 100
SHIPPED = pathlib.Path(__file__).parents[1] / "isonomy/backends/local/demo"


def schedule(step: int, steps: int) -> float:
    """The learning rate of a step over its peak: linear warm-up, then a cosine to a fiftieth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def new_model(tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """A model of random weights, float32."""
    settings = checkpoint.config(tokenizer)
    settings.pop("torch_dtype")
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**settings))


def new_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms."""
    matrices = [value for value in model.model.layers.parameters() if value.ndim == 2]
    known = {id(value) for value in matrices}
    others = [value for value in model.parameters() if id(value) not in known]
    return [
        torch.optim.Muon(
            [{"params": matrices, "peak": MUON_RATE}],
            lr=MUON_RATE,
            weight_decay=0.05,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [{"params": others, "peak": ADAMW_RATE}],
            lr=ADAMW_RATE,
            betas=(0.9, 0.98),
            weight_decay=0.0,
        ),
    ]


def learned_logits(
    model: LlamaForCausalLM, batch: batches.Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (positions, vocabulary) and targets (positions,) of what is to be learned.

    The mask of ones is passed because transformers would otherwise read a jump in the positions as
    the border between two packed texts.
    """
    hidden = model.model(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        attention_mask=torch.ones_like(batch.tokens),
        use_cache=False,
    ).last_hidden_state
    learned = batch.targets != -100
    return functional.linear(hidden[learned], model.lm_head.weight), batch.targets[learned]


def share_right(model: LlamaForCausalLM, tokenizer: Tokenizer, count: int) -> float:
    """The share of held-out answers predicted right in every token, given the dialogue before."""
    right = total = 0
    for dialogue in world.held_out(count):
        messages = dialogue.messages()
        replies = [message for message in messages if message["role"] == "assistant"]
        for turn, message in zip(dialogue.turns, replies, strict=True):
            message["content"] = turn.accepted[0]
        row = batches.encode(messages, tokenizer)
        with torch.no_grad():
            logits, targets = learned_logits(model, batches.stack([row]))
        correct = (logits.argmax(-1) == targets).tolist()
        for begin, end in row.answers:
            right += all(correct[: end - begin])
            del correct[: end - begin]
            total += 1
    return right / total


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Writes the checkpoint, weights rounded to bfloat16, the tied output matrix left out."""
    checkpoint.write_texts(folder, tokenizer)
    weights = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    file = folder / "model.safetensors"
    save_file(weights, str(file), metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes it readable by its owner only


def train(out: pathlib.Path, steps: int, seed: int = SEED) -> None:
    """Trains and saves; prints the loss and the held-out share as it goes."""
    started = time.monotonic()
    tokenizer = checkpoint.train_tokenizer(seed)
    model = new_model(tokenizer, seed)
    optimizers = new_optimizers(model)
    stream = batches.stream(seed + 1, tokenizer, TOKENS_PER_STEP)
    seen, losses = 0, 0.0
    for step in range(steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(step, steps)
        batch = next(stream)
        logits, targets = learned_logits(model, batch)
        loss = functional.cross_entropy(logits, targets)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen += batch.tokens.numel()
        losses += loss.item()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            save(model, tokenizer, out)
            print(
                f"step {step + 1}/{steps}  loss {losses / REPORT_EVERY:.4f}  "
                f"held-out answers {share_right(model, tokenizer, 100):.3f}  "
                f"tokens {seen}  seconds {time.monotonic() - started:.0f}",
                flush=True,
            )
            losses = 0.0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=pathlib.Path, default=SHIPPED, help="the checkpoint folder")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
