import asyncio
import os
import random
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

import msgspec
import pytest
from tests.backends.remote.conftest import Opened
from tests.backends.remote.serving import ASK, KEY

from isonomy.backends import OpenAI
from isonomy.backends.remote.endpoint import retry_after
from isonomy.sdk import Backend, BackendError, ConfigError, InputError, RemoteError
from isonomy.sdk.generation import Generation, Request, Sampling, Usage
from isonomy.sdk.vocabulary import (
    Audio,
    Image,
    Json,
    Message,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
)

FORK = "ignore:This process:DeprecationWarning"
"""Python 3.12 warns of every fork of a process with threads; surviving one is what is tested."""


def both(backend: OpenAI, request: Request = ASK) -> Generation:
    """Ask in both ways, see that they agree but for the evidence, and return the answer."""
    plain = backend.generate(request)
    other = asyncio.run(backend.agenerate(request))
    same = {"timings": {}, "attempts": (), "runtime": {}}
    assert msgspec.structs.replace(plain, **same) == msgspec.structs.replace(other, **same)
    assert len(plain.attempts) == len(other.attempts)
    return plain


def test_an_answer(endpoint: Any, opened: Opened) -> None:
    endpoint.answers((200, {"x-request-id": "req-1"}, endpoint.script[0][2]))
    backend = opened(organization="org-1")
    assert isinstance(backend, Backend)
    generation = both(backend)
    assert generation.text == "Hello!"
    assert generation.finish_reason == "stop"
    assert generation.model == "small-2026"
    assert generation.usage == Usage(12, 3)
    assert generation.raw is not None
    assert msgspec.json.decode(generation.raw)["id"] == "chatcmpl-1"
    assert generation.runtime["request_id"] == "req-1"
    assert [(a.number, a.outcome, a.status) for a in generation.attempts] == [(1, "ok", 200)]
    assert generation.attempts[0].duration_ns > 0
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["openai-organization"] == "org-1"
    assert body == {
        "model": "small",
        "messages": [{"role": "user", "content": "Hi"}],
        "seed": 7,
    }


def test_pieces_of_text_join_to_the_text(opened: Opened) -> None:
    backend = opened()
    pieces: list[str] = []
    generation = backend.generate(ASK, on_text=pieces.append)
    assert "".join(pieces) == generation.text
    pieces.clear()
    asyncio.run(backend.agenerate(ASK, on_text=pieces.append))
    assert "".join(pieces) == generation.text


def test_connections_are_kept_from_call_to_call_and_loop_to_loop(
    endpoint: Any, opened: Opened
) -> None:
    backend = opened()
    for _ in range(3):
        backend.generate(ASK)
        asyncio.run(backend.agenerate(ASK))

    async def inside_a_running_loop() -> Generation:
        return backend.generate(ASK)

    assert asyncio.run(inside_a_running_loop()).text == "Hello!"
    assert len(endpoint.requests) == 7
    assert len(endpoint.connections) == 1


def test_many_threads(endpoint: Any, opened: Opened) -> None:
    backend = opened()
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(backend.generate(ASK).text)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["Hello!"] * 8


def test_what_is_sent(endpoint: Any, opened: Opened) -> None:
    tool = {"type": "function", "function": {"name": "find", "parameters": {}}}
    request = Request(
        messages=(
            Message.of("system", "Be brief."),
            Message("user", (Text("What is "), Text("this?"))),
            Message("user", (Text("See"), Image("https://example.org/a.png"))),
            Message("assistant", (Text("Hm"), ToolCall("c1", "find", {"a": "é"}))),
            Message("assistant", (ToolCall("c2", "find", {}),)),
            Message("tool", (ToolResult("c1", "one"), ToolResult("c2", "two"))),
        ),
        sampling=Sampling(
            temperature=0.0, top_p=0.5, max_tokens=9, stop=("a", "b"), seed=2**64 - 1, candidate=2
        ),
        tools=(tool,),
        response_format={"type": "json_object"},
    )
    opened().generate(request)
    call = {"type": "function", "function": {"name": "find", "arguments": '{"a":"é"}'}}
    none = {"type": "function", "function": {"name": "find", "arguments": "{}"}}
    assert endpoint.requests[0][2] == {
        "model": "small",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is this?"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "See"},
                    {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
                ],
            },
            {"role": "assistant", "content": "Hm", "tool_calls": [{"id": "c1", **call}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c2", **none}]},
            {"role": "tool", "tool_call_id": "c1", "content": "one"},
            {"role": "tool", "tool_call_id": "c2", "content": "two"},
        ],
        "temperature": 0.0,
        "top_p": 0.5,
        "max_tokens": 9,
        "stop": ["a", "b"],
        "seed": 1,
        "tools": [tool],
        "response_format": {"type": "json_object"},
    }


def test_parts_of_every_kind(endpoint: Any, opened: Opened) -> None:
    request = Request(
        messages=(
            Message("system", (Text("Data: "), Json({"a": [1, "é"]}))),
            Message(
                "user",
                (
                    Text("Hear"),
                    Audio("data:audio/x-wav;base64,AAEC"),
                    Audio("data:audio/mpeg;base64,AAEC"),
                    Audio("https://example.org/a.ogg"),
                    Json(None),
                    Json({"type": "file", "file": {"file_id": "f1"}}),
                    Json({"type": "order"}),
                ),
            ),
            Message("assistant", (Reasoning("hm"), ToolCall("c1", "f", {}, "{broken"))),
            Message("tool", (ToolResult("c1", "no"),)),
            Message("assistant", (Text("So"), ToolCall("c2", "f", {}), ToolCall("c3", "f", {}))),
            Message("tool", (ToolResult("c3", "yes"),)),
            Message.of("user", "Try again."),
            Message("assistant", (ToolCall("c4", "f", {}),)),
        )
    )
    opened().generate(request)

    def call(id: str, arguments: str = "{}") -> dict[str, Any]:
        function = {"name": "f", "arguments": arguments}
        return {"id": id, "type": "function", "function": function}

    assert endpoint.requests[0][2]["messages"] == [
        {"role": "system", "content": 'Data: {"a":[1,"é"]}'},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Hear"},
                {"type": "input_audio", "input_audio": {"data": "AAEC", "format": "wav"}},
                {"type": "input_audio", "input_audio": {"data": "AAEC", "format": "mp3"}},
                {"type": "audio_url", "audio_url": {"url": "https://example.org/a.ogg"}},
                {"type": "text", "text": "null"},
                {"type": "file", "file": {"file_id": "f1"}},
                {"type": "text", "text": '{"type":"order"}'},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [call("c1", "{broken")]},
        {"role": "tool", "tool_call_id": "c1", "content": "no"},
        {"role": "assistant", "content": "So", "tool_calls": [call("c2"), call("c3")]},
        # What nothing answered before the conversation went on.
        {"role": "tool", "tool_call_id": "c2", "content": "This tool was not run."},
        {"role": "tool", "tool_call_id": "c3", "content": "yes"},
        {"role": "user", "content": "Try again."},
        {"role": "assistant", "content": None, "tool_calls": [call("c4")]},
    ]
    with pytest.raises(InputError, match="message 1 refers to a recording that lies elsewhere"):
        opened(base_url="https://api.openai.com/v1").generate(request)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Message("user", (ToolResult("1", "x"),)), "'user' and holds ToolResult"),
        (
            Message("assistant", (Image("x"),)),
            "that role holds Text or Json or Reasoning or ToolCall",
        ),
        (Message("tool", (Text("x"),)), "that role holds ToolResult"),
        (Message("system", (Image("x"),)), "message 0 has the role 'system'"),
        (Message.of("user", "\ud800"), "lone surrogate"),
    ],
)
def test_what_can_not_be_sent(endpoint: Any, opened: Opened, message: Message, said: str) -> None:
    with pytest.raises(InputError, match=said):
        opened().generate(Request(messages=(message,)))
    assert endpoint.requests == []


def test_settings_beside_the_format(endpoint: Any, opened: Opened) -> None:
    sampling = Sampling(top_k=5, min_p=0.1, seed=1)
    with pytest.raises(InputError, match=r"no top_k, min_p.*extra_parameters"):
        opened().resolve(sampling)
    with pytest.raises(InputError, match="no top_k, min_p"):
        opened().generate(Request(messages=ASK.messages, sampling=sampling))
    with pytest.raises(InputError, match="temperature must be a finite number"):
        opened().generate(
            Request(messages=ASK.messages, sampling=Sampling(temperature=float("nan")))
        )
    assert endpoint.requests == []
    backend = opened(extra_parameters=True)
    backend.generate(Request(messages=ASK.messages, sampling=backend.resolve(sampling)))
    body = endpoint.requests[0][2]
    assert (body["top_k"], body["min_p"]) == (5, 0.1)
    assert "repetition_penalty" not in body


def test_seeds(endpoint: Any, opened: Opened) -> None:
    backend = opened(rng=random.Random(3))
    expected = random.Random(3).getrandbits(63)
    assert backend.resolve(Sampling()).seed == expected
    assert backend.resolve(Sampling(seed=0)) == Sampling(seed=0)
    without = opened(send_seed=False)
    assert without.resolve(Sampling(seed=3)).seed is None
    without.generate(ASK)
    assert "seed" not in endpoint.requests[0][2]


def test_the_name_of_max_tokens(endpoint: Any, opened: Opened) -> None:
    request = Request(messages=ASK.messages, sampling=Sampling(max_tokens=3))
    opened(max_tokens_name="max_completion_tokens").generate(request)
    assert endpoint.requests[0][2]["max_completion_tokens"] == 3


def test_overloaded_then_an_answer(endpoint: Any, opened: Opened, waits: list[float]) -> None:
    overloaded = (429, {"retry-after": "2"}, {"error": {"message": "slow down"}})
    endpoint.answers(overloaded, (503, {}, b"busy"), (408, {}, b""), endpoint.script[0][2])
    generation = opened().generate(ASK)
    assert generation.text == "Hello!"
    outcomes = [(a.number, a.outcome, a.status, a.error) for a in generation.attempts]
    assert outcomes == [
        (1, "overloaded", 429, "status 429: slow down"),
        (2, "failed", 503, "status 503: busy"),
        (3, "refused", 408, "status 408: Request Timeout"),
        (4, "ok", 200, None),
    ]
    assert waits[0] == 2
    assert 0.5 <= waits[1] <= 1
    assert 1 <= waits[2] <= 2
    assert [a.wait_ns for a in generation.attempts] == [*(int(w * 1e9) for w in waits), 0]


@pytest.mark.parametrize("is_async", [False, True])
def test_failing_to_the_end(
    endpoint: Any, opened: Opened, waits: list[float], is_async: bool
) -> None:
    endpoint.answers((500, {}, {"error": {"message": f"broken, {KEY}"}}))
    backend = opened(max_attempts=3)

    def ask() -> Generation:
        return asyncio.run(backend.agenerate(ASK)) if is_async else backend.generate(ASK)

    with pytest.raises(RemoteError) as caught:
        ask()
    error = caught.value
    assert error.status == 500
    assert [a.number for a in error.attempts] == [1, 2, 3]
    assert error.attempts[-1].wait_ns == 0
    assert len(waits) == 2
    assert "failed 3 times, in the end: status 500: broken, [api key]. Try again later." in str(
        error
    )
    shown = "".join(traceback.format_exception(error)) + repr(vars(error))
    assert KEY not in shown
    assert error.__cause__ is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_refusals_are_not_tried_again(endpoint: Any, opened: Opened, status: int) -> None:
    endpoint.answers((status, {}, {"error": {"message": "no", "code": "x"}}))
    with pytest.raises(RemoteError, match=f"failed, in the end: status {status}: no") as caught:
        opened().generate(ASK)
    assert len(endpoint.requests) == 1
    assert [(a.outcome, a.status) for a in caught.value.attempts] == [("refused", status)]
    if status == 401:
        assert "OPENAI_API_KEY" in str(caught.value)


def test_the_endpoint_may_say_that_trying_again_is_useless(
    endpoint: Any, opened: Opened, waits: list[float]
) -> None:
    endpoint.answers((429, {"x-should-retry": "false"}, {"error": {"message": "quota"}}))
    with pytest.raises(RemoteError, match="quota"):
        opened().generate(ASK)
    endpoint.answers((429, {"retry-after": "3600"}, b"later"))
    with pytest.raises(RemoteError, match=r"asks to wait 3600 s, longer than max_wait \(60 s\)"):
        opened().generate(ASK)
    assert len(endpoint.requests) == 2
    assert waits == []


def test_redirects_are_not_followed(endpoint: Any, opened: Opened) -> None:
    endpoint.answers((307, {"location": endpoint.url + "/elsewhere"}, b""))
    with pytest.raises(RemoteError, match="a redirect, which is not followed"):
        opened().generate(ASK)
    assert [path for path, _, _ in endpoint.requests] == ["/v1/chat/completions"]


@pytest.mark.parametrize("slow", ["hang", "drip"])
def test_a_deadline_for_the_whole_attempt(endpoint: Any, opened: Opened, slow: str) -> None:
    # Dripping is a byte every few milliseconds, for ever: no single read times out.
    setattr(endpoint, slow, {"hang": 20, "drip": 0.1}[slow])
    started = time.perf_counter()
    with pytest.raises(RemoteError, match=r"no complete answer within 0.3 s") as caught:
        opened(timeout=0.3, max_attempts=2).generate(ASK)
    assert time.perf_counter() - started < 10
    assert [a.outcome for a in caught.value.attempts] == ["timeout", "timeout"]
    assert "Raise timeout" in str(caught.value)


def test_nobody_listens(opened: Opened) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(RemoteError, match=f"127.0.0.1:{port} failed 2 times.*no connection") as e:
        opened(base_url=f"http://127.0.0.1:{port}/v1", max_attempts=2).generate(ASK)
    assert [a.outcome for a in e.value.attempts] == ["unreachable", "unreachable"]
    assert e.value.status is None
    assert "base_url" in str(e.value)


def test_a_connection_that_breaks(endpoint: Any, opened: Opened) -> None:
    # Fewer bytes than announced, then the end.
    body = b'{"choices": ['
    endpoint.answers((200, {"connection": "close", "content-encoding": "gzip"}, body))
    with pytest.raises(RemoteError):
        opened(max_attempts=2).generate(ASK)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>hello</html>", "it is not JSON"),
        (b'{"choices": [', "it is not JSON"),
        (b"", "it is not JSON"),
        ({"choices": []}, "it holds no choices"),
        ({"error": {"message": "out of order"}}, "it holds an error: out of order"),
        (b"[1]", "it is not a chat completion: Expected `object`"),
        ({"choices": [{"message": {"content": 3}}]}, r"at `\$.choices\[0\].message.content`"),
        ({"choices": [{}]}, "missing required field `message`"),
    ],
)
def test_nonsense(endpoint: Any, opened: Opened, body: Any, said: str) -> None:
    endpoint.answers(body)
    with pytest.raises(RemoteError, match=said) as caught:
        opened().generate(ASK)
    assert caught.value.status == 200
    assert [a.outcome for a in caught.value.attempts] == ["invalid"]


def test_tool_calls(endpoint: Any, opened: Opened, completed: Any) -> None:
    def call(arguments: str, **other: Any) -> dict[str, Any]:
        function = {"name": "find", "arguments": arguments}
        return {"id": "c1", "type": "function", "function": function, **other}

    endpoint.answers(completed(None, finish_reason="tool_calls", tool_calls=[call('{"a": [1]}')]))
    generation = both(opened())
    assert generation.content == (ToolCall("c1", "find", {"a": [1]}),)
    assert generation.finish_reason == "tool_calls"
    endpoint.answers(completed("So:", tool_calls=[call(""), call("{}")]))
    generation = opened().generate(ASK)
    assert generation.content == (
        Text("So:"),
        ToolCall("c1", "find", {}),
        ToolCall("c1", "find", {}),
    )
    for arguments in ("{", "[]", "nonsense", '{"a": 1e999}', "[" * 5000):
        endpoint.answers(completed(None, tool_calls=[call("{}"), call(arguments)]))
        assert opened().generate(ASK).content == (
            ToolCall("c1", "find", {}),
            ToolCall("c1", "find", {}, arguments),
        )
    endpoint.answers(completed(None, tool_calls=[{"id": "x", "type": "custom", "custom": {}}]))
    with pytest.raises(BackendError, match="of type 'custom'"):
        opened().generate(ASK)


@pytest.mark.parametrize(
    ("content", "message", "text", "finish_reason"),
    [
        (None, {}, "", "stop"),
        ("", {}, "", "stop"),
        (None, {"refusal": "I won't."}, "I won't.", "refusal"),
        ([{"type": "text", "text": "a"}, {"type": "thinking"}, {"type": "text", "text": "b"}], {},
         "ab", "stop"),
        ("plain", {"refusal": None, "tool_calls": None, "reasoning": {"a": 1}}, "plain",
         "stop"),
    ],
)  # fmt: skip
def test_contents(
    endpoint: Any,
    opened: Opened,
    completed: Any,
    content: Any,
    message: dict[str, Any],
    text: str,
    finish_reason: str,
) -> None:
    endpoint.answers(completed(content, **message))
    generation = opened().generate(ASK)
    assert (generation.content, generation.finish_reason) == ((Text(text),), finish_reason)


def test_a_bare_answer(endpoint: Any, opened: Opened) -> None:
    endpoint.answers({"choices": [{"message": {"content": "x"}}]})
    generation = opened().generate(ASK)
    assert (generation.model, generation.finish_reason) == ("small", "unknown")
    assert generation.usage == Usage(None, None)


def test_the_key_is_nowhere(endpoint: Any, opened: Opened, completed: Any) -> None:
    endpoint.answers(completed(f"your key is {KEY}"))
    backend = opened()
    generation = backend.generate(ASK)
    written = msgspec.json.encode([generation, backend.identity()]).decode() + repr(backend)
    assert KEY not in written
    assert generation.text == "your key is [api key]"


def test_identity(endpoint: Any, opened: Opened) -> None:
    identity = opened("org/small").identity()
    assert identity.provider == endpoint.url.split("/")[2]
    assert (identity.model, identity.spec) == ("org/small", "openai:org/small")
    assert not identity.deterministic
    assert identity.options == {"base_url": endpoint.url}
    assert KEY not in repr(opened(base_url=f"{endpoint.url}?key={KEY}").identity())
    official = opened(base_url="https://api.openai.com/v1").identity()
    assert (official.provider, official.options) == ("openai", {})


def test_environment(endpoint: Any) -> None:
    backend = OpenAI(
        "m", environment={"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": f" {KEY}\n"}
    )
    backend.generate(ASK)
    backend.close()
    assert endpoint.requests[0][1]["authorization"] == f"Bearer {KEY}"
    # A local endpoint without a key.
    backend = OpenAI("m", environment={"OPENAI_BASE_URL": endpoint.url})
    backend.generate(ASK)
    backend.close()
    assert KEY not in str(endpoint.requests[1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no API key. Set the environment variable OPENAI_API_KEY"),
        ({"api_key": "sk-geheim-ü"}, "holds characters that can't be in one"),
        ({"api_key": "sk-geheim x"}, "holds characters that can't be in one"),
        ({"api_key": "sk-geheim\r\nx-evil: 1"}, "holds characters that can't be in one"),
        ({"api_key": "k", "organization": "geheim\r\nx-evil: 1"}, "one line of ASCII"),
        ({"api_key": "k", "headers": {"Authorization": "geheim"}}, "set by the backend itself"),
        ({"base_url": "http://x/v1\r\nx-evil: geheim"}, "must be http://HOST"),
        ({"base_url": "localhost:8000"}, "must be http://HOST"),
        ({"base_url": "ftp://x/v1"}, "must be http://HOST"),
        ({"base_url": "http://x:port/v1"}, "must be http://HOST"),
        ({"base_url": "http://jo:geheim@x/v1"}, "user name or password"),
        ({"model": " "}, "needs a model's name"),
        ({"api_key": "k", "timeout": 0}, "timeout: it must be a number between 0.001"),
        ({"api_key": "k", "timeout": float("nan")}, "timeout: it must be a number"),
        ({"api_key": "k", "max_attempts": 0}, "max_attempts: it must be a number between 1"),
        ({"api_key": "k", "max_wait": -1}, "max_wait: it must be a number between 0"),
    ],
)
def test_wrong_settings(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        OpenAI(**{"model": "m", "environment": {}, **options})
    assert "geheim" not in str(caught.value)


def test_a_client_of_ones_own(endpoint: Any, opened: Opened) -> None:
    import openai

    client = openai.DefaultAsyncHttpxClient(headers={"x-mine": "1"})
    backend = opened(http_client=client)
    backend.generate(ASK)
    assert endpoint.requests[0][1]["x-mine"] == "1"
    backend._loop.run(client.aclose())  # it lives on the backend's loop; the backend leaves it open


def test_cancelling_ends_the_request(endpoint: Any, opened: Opened) -> None:
    endpoint.hang = 0.5
    backend = opened()

    async def cancelled() -> None:
        task = asyncio.create_task(backend.agenerate(ASK))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    endpoint.hang = 0
    assert backend.generate(ASK).text == "Hello!"


def test_closed(opened: Opened) -> None:
    unused, backend = opened(), opened()
    backend.generate(ASK)
    for one in (unused, backend):
        one.close()
        with pytest.raises(BackendError, match="was closed"):
            one.generate(ASK)
        with pytest.raises(BackendError, match="was closed"):
            asyncio.run(one.agenerate(ASK))
    assert not [t for t in threading.enumerate() if t.name == "isonomy-openai"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "٣"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=10.0) == seconds


def _run(code: str, url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", FORK, "-c", code, url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_without_the_package() -> None:
    code = (
        "import sys; sys.modules['httpx2'] = sys.modules['httpx'] = None\n"
        "import isonomy.backends as b; assert 'OpenAI' in dir(b)\n"
        "from isonomy.sdk import MissingExtra\n"
        "try: b.OpenAI('m')\n"
        "except MissingExtra as e: print(e.extra, e)\n"
    )
    said = _run(code, "http://127.0.0.1:1/v1")
    assert said.startswith("openai ")
    assert "pip install 'isonomy[openai]'" in said


def test_nothing_is_loaded_until_used_and_nothing_is_left_at_exit(endpoint: Any) -> None:
    code = (
        "import sys, os\n"
        "import isonomy.backends as b\n"
        "assert not {'openai', 'httpx', 'httpx2', 'tenacity', 'numpy'} & set(sys.modules)\n"
        "backend = b.OpenAI('m'); assert not {'openai', 'httpx', 'httpx2'} & set(sys.modules)\n"
        "from isonomy.sdk.generation import Request\n"
        "from isonomy.sdk.vocabulary import Message\n"
        "ask = Request(messages=(Message.of('user', 'Hi'),))\n"
        "print(backend.generate(ask).text, flush=True)\n"
        "child = os.fork()\n"  # a child has the connections of its parent, and no threads
        "if child == 0: print(backend.generate(ask).text, flush=True); os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "print(backend.generate(ask).text)\n"
        "# no close: the end of the interpreter closes\n"
    )
    assert _run(code, endpoint.url) == "Hello!\n" * 3
