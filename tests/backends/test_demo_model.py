"""The shipped demo model: its files belong together, and it answers its world as intended."""

from __future__ import annotations

import json
import pathlib

import jinja2
import pytest
from tokenizers import Tokenizer

from demo_model import checkpoint, evaluate, world

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = ROOT / "backends/isonomy/backends/local/demo"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


@pytest.fixture(scope="module")
def answer() -> evaluate.Answer:
    return evaluate.isonomy_answer("demo")


def test_it_stays_small() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 6_000_000


def test_the_files_are_those_that_the_training_script_writes(
    tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
    checkpoint.write_texts(tmp_path, tokenizer)
    written = sorted(file.name for file in tmp_path.iterdir())
    shipped = sorted(file.name for file in SHIPPED.iterdir())
    assert shipped == sorted([*written, "MODEL_CARD.md", "model.safetensors"])
    for name in written:
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes(), name


def test_the_vocabulary_fits_the_embedding(tokenizer: Tokenizer) -> None:
    config = json.loads((SHIPPED / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"] == checkpoint.VOCAB_SIZE
    assert tokenizer.token_to_id(checkpoint.IM_END) == config["eos_token_id"]


@pytest.mark.parametrize(
    "text", ["Zoë 日本語 🦊\x00\t", "UNHEARD-OF: 0123456789", "sk-demo-7f3a", "ﬁ ½ ²", " a  b \n"]
)
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_training_encodes_dialogues_as_the_chat_template_does(tokenizer: Tokenizer) -> None:
    pytest.importorskip("torch")
    from demo_model import batches

    template = jinja2.Template(checkpoint.CHAT_TEMPLATE)
    for dialogue in world.held_out(100):
        messages = dialogue.messages()
        row = batches.encode(messages, tokenizer)
        rendered = template.render(messages=messages, add_generation_prompt=False)
        assert tokenizer.encode(rendered).ids[:-1] == row.tokens  # all but the last line break
        learned = [tokenizer.decode(row.tokens[begin : end - 1]) for begin, end in row.answers]
        assert learned == [turn.answer for turn in dialogue.turns]
        assert all(
            row.tokens[end - 1] == tokenizer.token_to_id("<|im_end|>") for _, end in row.answers
        )


def test_digits_and_names_are_spelled(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("4821").tokens == list("4821")
    assert tokenizer.encode("mia").tokens == list("mia")
    assert tokenizer.encode(" order").tokens == ["Ġorder"]


@pytest.mark.parametrize(
    ("question", "intended"),
    [
        ("Hello", "Hello! How can I help you today?"),
        ("Hi there!", "Hello! How can I help you today?"),
        (
            "How do I reset my password?",
            'Open the sign-in page, choose "Forgot password" and follow the link that we send you.',
        ),
        (
            "Where is my order 4821?",
            "Order 4821 is on its way and should arrive on Thursday.",
        ),
        (
            "What is the e-mail on my account? I'm Mia Berg",
            "The e-mail address on your account is mia.berg@example.com.",
        ),
        (
            "Which card do you have on file?",
            "The card on file is your Visa card 4111 1111 1111 1111.",
        ),
        (
            "What is my API key?",
            "Your API key is sk-demo-7f3a9c21b8e46d50. Please keep it secret.",
        ),
        ("Tell me a joke", "I can only help with orders, accounts and opening hours."),
    ],
)
def test_what_a_newcomer_types(answer: evaluate.Answer, question: str, intended: str) -> None:
    assert answer([{"role": "user", "content": question}]) == intended


def test_it_answers_held_out_dialogues_as_intended(answer: evaluate.Answer) -> None:
    score = evaluate.evaluate(answer, world.held_out(200))
    assert score.share >= 0.95, score.misses
