import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from isonomy.backends import Callable, Recorded
from isonomy.backends.recorded import line_of, question_of
from isonomy.sdk import Backend, BackendError, ConfigError, Guard, LogError, on_output
from isonomy.sdk.generation import Attempt, Generation, Request, Sampling, TokenTrace, Usage
from isonomy.sdk.vocabulary import Message, Reasoning, Text, ToolCall


def asked(*texts: str) -> Request:
    roles = ("user", "assistant")
    messages = tuple(Message.of(roles[i % 2], text) for i, text in enumerate(texts))  # type: ignore[arg-type]
    return Request(messages=messages, sampling=Sampling(seed=3))


def opened(tmp_path: Path, *lines: Any, **options: Any) -> Recorded:
    written = [line if isinstance(line, bytes) else msgspec.json.encode(line) for line in lines]
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"\n".join(written) + b"\n")
    return Recorded(file, **options)


def test_answers_in_order(tmp_path: Path) -> None:
    backend = opened(tmp_path, {"text": "one"}, b"", {"text": "two"})
    assert isinstance(backend, Backend)
    assert backend.generate(asked("x")).content == (Text("one"),)
    assert asyncio.run(backend.agenerate(asked("y"))).text == "two"
    with pytest.raises(
        BackendError, match=r"no answer to 'z' .sha256:.*all 2 lines.*were used"
    ) as e:
        backend.generate(asked("z"))
    assert e.value.backend == "recorded"
    again = opened(tmp_path, {"text": "one"}, {"text": "two"}, repeat=True)
    assert [again.generate(asked("x")).text for _ in range(5)] == ["one", "two"] * 2 + ["one"]


def test_answers_to_a_prompt_or_to_all_messages(tmp_path: Path) -> None:
    question = asked("a", "b", "Hi")
    backend = opened(
        tmp_path,
        {"prompt": "Hi", "text": "by the prompt"},
        {"question": question_of(question.messages), "text": "by the question"},
        {"text": "any"},
        {"prompt": "twice", "text": "first"},
        {"prompt": "twice", "text": "second"},
    )
    assert backend.generate(question).text == "by the question"
    assert backend.generate(asked("Hi")).text == "by the prompt"
    assert backend.generate(asked("Hi")).text == "by the prompt"  # as often as it is asked
    assert backend.generate(asked("else")).text == "any"
    texts = [backend.generate(asked("twice")).text for _ in range(3)]
    assert texts == ["first", "second", "first"]
    with pytest.raises(BackendError, match="no answer to 'else'"):
        backend.generate(asked("else"))


def test_whole_generations_and_errors(tmp_path: Path) -> None:
    whole = Generation(
        content=(Reasoning("hm"), Text("é"), ToolCall("1", "f", {"a": [1]})),
        finish_reason="tool_calls",
        model="m",
        usage=Usage(3, 4),
        tokens=TokenTrace(ids=(1,), texts=("é",), logprobs=b"1234", digests=b"x" * 32, chain=b"c"),
        attempts=(Attempt(number=1, outcome="ok"),),
        runtime={"system_fingerprint": "fp"},
    )
    question = asked("Hi")
    backend = opened(tmp_path, line_of(question, whole), {"error": "the model is down"})
    assert backend.generate(question) == whole
    assert backend.generate(question) == whole
    with pytest.raises(BackendError, match=r"^the model is down$"):
        backend.generate(asked("else"))


def test_pieces_of_text(tmp_path: Path) -> None:
    lines = [{"prompt": "Hi", "text": "Hello!"}, {"prompt": "", "text": ""}]
    for piece, expected in ((None, ["Hello!"]), (4, ["Hell", "o!"]), (1, list("Hello!"))):
        backend = opened(tmp_path, *lines, piece=piece)
        pieces: list[str] = []
        backend.generate(asked("Hi"), on_text=pieces.append)
        asyncio.run(backend.agenerate(asked("Hi"), on_text=pieces.append))
        backend.generate(asked(""), on_text=pieces.append)
        assert pieces == expected * 2

    class Gone(Exception):
        pass

    def leave(piece: str) -> None:
        raise Gone

    with pytest.raises(Gone):
        opened(tmp_path, *lines).generate(asked("Hi"), on_text=leave)
    with pytest.raises(ConfigError, match="piece: it must be a number from 1"):
        opened(tmp_path, *lines, piece=0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "line 2: Input data was truncated"),
        (b"[]", "line 2: Expected `object`"),
        (b'{"txt": "x"}', "line 2: Object contains unknown field `txt`"),
        (b'{"text": 3}', r"line 2: Expected `str | null`, got `int` - at `\$.text`"),
        (b'{"text": "a", "error": "b"}', "line 2: it must have exactly one of"),
        (b'{"prompt": "a"}', "line 2: it must have exactly one of"),
        (b'{"text": "\xff"}', "line 2: .*can't decode byte"),
        (b'{"generation": {"content": []}}', "missing required field `finish_reason`"),
    ],
)
def test_a_line_that_is_not_as_it_should_be(tmp_path: Path, line: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        opened(tmp_path, {"text": "fine"}, line)
    assert caught.value.file == str(tmp_path / "answers.jsonl")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be read: No such file"):
        Recorded(tmp_path / "nothing")
    with pytest.raises(LogError):
        Recorded(tmp_path)  # a directory that is no log


def test_identity_and_closing(tmp_path: Path) -> None:
    backend = opened(tmp_path, {"text": "x"})
    identity = backend.identity()
    assert (identity.provider, identity.model) == ("recorded", "answers.jsonl")
    assert identity.spec == f"recorded:{tmp_path}/answers.jsonl"
    assert identity.artefacts["answers"].startswith("sha256:")
    assert not identity.deterministic
    assert backend.resolve(Sampling(top_k=2)) == Sampling(top_k=2)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        backend.generate(asked("x"))


def test_each_line_is_used_once_whoever_asks(tmp_path: Path) -> None:
    backend = opened(tmp_path, *({"text": str(i)} for i in range(200)))
    texts: list[str] = []

    def ask() -> None:
        texts.extend(backend.generate(asked("x")).text for _ in range(25))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts, key=int) == [str(i) for i in range(200)]


def test_a_log_answers_its_own_calls(tmp_path: Path) -> None:
    def answer(messages: list[dict[str, Any]]) -> str:
        return f"{len(messages)}: {messages[-1]['content']}"

    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    with Guard(backend=answer, log=tmp_path / "log") as guard:
        guard.chat("first")
        guard.chat(talk)
    backend = Recorded(tmp_path / "log")
    # Another policy, the same answers: what a changed check would have done.
    with Guard(backend=backend, policy=[on_output(lambda text: "Bye" not in text)]) as guard:
        assert guard.chat("first").text == "1: first"
        assert guard.chat(talk).blocked
        with pytest.raises(BackendError, match="has no answer to 'never asked'"):
            guard.chat("never asked")
    assert Callable(answer).identity().model != backend.identity().model
