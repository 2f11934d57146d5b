"""Training batches: dialogues as rows of tokens, positions and marks of what is to be learned.

Each row is one dialogue, so nothing leaks from one into another. Rows of similar length share a
batch. Only the answers, with the token that ends them, are learned. In a third of the rows the
positions jump between messages, up to the model's last position, so that the distances of long
conversations are met without paying for their tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import torch
from tokenizers import Tokenizer

from demo_model import checkpoint, world

_POOL = 600  # dialogues that are sorted by length together


class Row(msgspec.Struct, frozen=True):
    """One dialogue as tokens.

    Attributes:
        tokens: The complete text of the chat template, without the last line break.
        answers: For each assistant message the half-open range of its tokens, end token included.
        starts: Where the messages begin.
    """

    tokens: list[int]
    answers: list[tuple[int, int]]
    starts: list[int]


class Batch(msgspec.Struct, frozen=True):
    """Tensors of a training step, each of shape (rows, longest row).

    `targets` holds the next token where it is to be learned, -100 elsewhere.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor


def encode(messages: list[dict[str, str]], tokenizer: Tokenizer) -> Row:
    """Encodes messages as the chat template does (a test holds the two equal)."""
    tokens: list[int] = []
    answers: list[tuple[int, int]] = []
    starts: list[int] = []
    for message in messages:
        head = f"{checkpoint.IM_START}{message['role']}\n"
        body = f"{message['content']}{checkpoint.IM_END}"
        starts.append(len(tokens))
        tokens += tokenizer.encode(head).ids
        begin = len(tokens)
        tokens += tokenizer.encode(body).ids
        if message["role"] == "assistant":
            answers.append((begin, len(tokens)))
        tokens += tokenizer.encode("\n").ids
    return Row(tokens[:-1], answers, starts)


def stack(rows: list[Row], rng: random.Random | None = None) -> Batch:
    """Pads rows on the right; with a generator, a third of them get jumps in their positions."""
    width = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    targets = torch.full((len(rows), width), -100, dtype=torch.long)
    positions = torch.arange(width).repeat(len(rows), 1)
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = torch.tensor(row.tokens)
        for begin, end in row.answers:
            targets[index, begin - 1 : end - 1] = torch.tensor(row.tokens[begin:end])
        if rng is not None and rng.random() < 1 / 3:
            spare = checkpoint.MAX_POSITIONS - width
            for start in row.starts:
                jump = rng.randrange(1 + int(spare * rng.random() ** 2)) if spare > 0 else 0
                positions[index, start:] += jump
                spare -= jump
    return Batch(tokens, positions, targets)


def stream(seed: int, tokenizer: Tokenizer, budget: int) -> Iterator[Batch]:
    """Batches of training dialogues without end, each of at most `budget` tokens with padding."""
    dialogues = world.dialogues(seed, held_out=False)
    rng = random.Random(seed + 1)
    while True:
        rows = [encode(next(dialogues).messages(), tokenizer) for _ in range(_POOL)]
        rows = [row for row in rows if len(row.tokens) <= checkpoint.MAX_POSITIONS // 2]
        rows.sort(key=lambda row: len(row.tokens))
        groups: list[list[Row]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row.tokens) > budget:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            yield stack(group, rng)
