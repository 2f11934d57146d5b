"""Measures how many held-out dialogues a model answers as intended, word for word.

The model is any function from chat messages to the answer's text, so the same measurement serves
every engine. The conversation goes on with the model's own answers: one wrong answer spoils its
dialogue, and whatever follows has to cope with it.

    cd backends && python -m demo_model.evaluate [FOLDER] [--engine isonomy|transformers] [--misses]

The engine is Isonomy's own, or transformers (extra ``torch``) in float32 for comparison.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
from collections.abc import Callable, Iterable
from typing import cast

import msgspec

from demo_model import world

Answer = Callable[[list[dict[str, str]]], str]
"""From messages (``role`` and ``content``, the last one the user's) to the assistant's text."""

SHIPPED = pathlib.Path(__file__).parents[1] / "isonomy/backends/local/demo"


class Miss(msgspec.Struct, frozen=True):
    """An answer that was not intended: the messages before it, the answer, what was acceptable."""

    messages: tuple[str, ...]
    answer: str
    accepted: tuple[str, ...]


class Score(msgspec.Struct, frozen=True):
    """The outcome of a measurement; a dialogue is right if all of its answers are."""

    dialogues: int
    right_dialogues: int
    answers: int
    right_answers: int
    misses: tuple[Miss, ...]

    @property
    def share(self) -> float:
        """The share of dialogues answered as intended."""
        return self.right_dialogues / self.dialogues


def evaluate(answer: Answer, dialogues: Iterable[world.Dialogue]) -> Score:
    """Holds every dialogue with the model and compares its answers.

    Raises:
        ValueError: There is no dialogue.
    """
    total = right = turns = right_turns = 0
    misses: list[Miss] = []
    for dialogue in dialogues:
        messages: list[dict[str, str]] = []
        if dialogue.system is not None:
            messages.append({"role": "system", "content": dialogue.system})
        missed = len(misses)
        for turn in dialogue.turns:
            messages.append({"role": "user", "content": turn.user})
            text = answer([*messages])
            turns += 1
            if text in turn.accepted:
                right_turns += 1
            else:
                before = tuple(f"{message['role']}: {message['content']}" for message in messages)
                misses.append(Miss(before, text, turn.accepted))
            messages.append({"role": "assistant", "content": text})
        total += 1
        right += len(misses) == missed
    if total == 0:
        raise ValueError("no dialogues to evaluate: pass world.held_out(200), for example")
    return Score(total, right, turns, right_turns, tuple(misses))


def isonomy_answer(model: str, temperature: float = 0.0, seed: int = 0) -> Answer:
    """A model as an `Answer`, run by Isonomy's engine.

    Args:
        model: What ``Local`` takes: ``demo`` or a checkpoint folder.
        temperature: 0 takes the likeliest token.
        seed: Of the sampling; counted up from answer to answer.
    """
    from isonomy.backends.local import Local
    from isonomy.sdk import Message, Request, Sampling
    from isonomy.sdk.vocabulary import Role, text_of

    backend = Local(model)
    seeds = itertools.count(seed)

    def answer(messages: list[dict[str, str]]) -> str:
        asked = tuple(
            Message.of(cast(Role, message["role"]), message["content"]) for message in messages
        )
        sampling = Sampling(temperature=temperature, seed=next(seeds), max_tokens=128)
        generation = backend.generate(Request(messages=asked, sampling=sampling))
        return text_of(generation.content)

    return answer


def transformers_answer(folder: pathlib.Path, temperature: float = 0.0, seed: int = 0) -> Answer:
    """A checkpoint folder as an `Answer`, run by transformers in float32.

    Args:
        folder: The checkpoint.
        temperature: 0 takes the likeliest token.
        seed: Of the sampling, where there is any.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    end = model.config.eos_token_id

    def answer(messages: list[dict[str, str]]) -> str:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        fed = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        chosen: list[int] = []
        cache = None
        while len(chosen) < 128:
            with torch.no_grad():
                output = model(input_ids=fed, past_key_values=cache, use_cache=True)
            cache, logits = output.past_key_values, output.logits[0, -1]
            if temperature > 0:
                weights = torch.softmax(logits / temperature, dim=-1)
                token = int(torch.multinomial(weights, 1, generator=generator))
            else:
                token = int(logits.argmax())
            if token == end:
                break
            chosen.append(token)
            fed = torch.tensor([[token]])
        return str(tokenizer.decode(chosen))

    return answer


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=pathlib.Path, nargs="?", default=SHIPPED)
    parser.add_argument("--engine", choices=("isonomy", "transformers"), default="isonomy")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--misses", action="store_true", help="print what was not as intended")
    arguments = parser.parse_args()
    if arguments.engine == "isonomy":
        answer = isonomy_answer(str(arguments.folder), arguments.temperature)
    else:
        answer = transformers_answer(arguments.folder, arguments.temperature)
    score = evaluate(answer, world.held_out(arguments.count))
    if arguments.misses:
        for miss in score.misses:
            print("\n".join(miss.messages))
            print(f"  got      {miss.answer}\n  intended {' | '.join(miss.accepted)}\n")
    print(
        f"dialogues {score.right_dialogues}/{score.dialogues} = {score.share:.3f}, "
        f"answers {score.right_answers}/{score.answers} = "
        f"{score.right_answers / score.answers:.3f}"
    )


if __name__ == "__main__":
    main()
