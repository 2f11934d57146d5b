"""Bad input: each is answered in OpenAI's error shape, and the server goes on."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isonomy.sdk import BackendError, Guard, RemoteError
from isonomy.sdk.errors import ContextLength, LogError, Overloaded
from isonomy.sdk.gateway import app
from isonomy.sdk.generation import Attempt

from .conftest import Serve, Served, decoded, received
from .speaking import Speaker

JSON = {"content-type": "application/json"}
ASKED = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """One server for all bad input: it must stand all of it."""
    with Guard(Speaker()) as guard:
        found = Served(app(guard))
        yield found
        assert found.ask().status_code == 200
        found.close()


def body(**more: Any) -> dict[str, Any]:
    return {"model": "speaker", "messages": ASKED, **more}


@pytest.mark.parametrize(
    ("sent", "param", "message"),
    [
        ({"messages": ASKED}, "model", "model must be"),
        ({"model": 3, "messages": ASKED}, "model", "model must be"),
        ({"model": "speaker"}, "messages", "messages must be a list"),
        (body(messages=[]), None, "there are no messages"),
        (body(messages=["hello"]), "messages[0]", "must be a dictionary"),
        (body(messages=[{"role": "king", "content": "x"}]), "messages[0].role", "one of system"),
        (body(messages=[{"role": "user", "content": 3}]), "messages[0].content", "text or a list"),
        (
            body(messages=[{"role": "user", "content": [{"type": "hologram", "hologram": {}}]}]),
            "messages[0].content[0]",
            "hologram",
        ),
        (body(temperature="hot"), "temperature", "temperature: "),
        (body(seed=-1), "seed", "seed: "),
        (body(n=0), "n", "n must be"),
        (body(n=17), "n", "at most 16"),
        (body(stream="yes"), "stream", "stream must be"),
        (body(tools="hammer"), "tools", "tools must be a list"),
        (body(response_format="json"), "response_format", "must be a dictionary"),
        (body(metadata={"a": 1}), "metadata.a", "must be a text"),
        (body(metadata={str(i): "x" for i in range(17)}), "metadata", "at most 16"),
        (body(metadata=["a"]), "metadata", "must be an object"),
    ],
)
def test_wrong_fields(served: Served, sent: Any, param: str | None, message: str) -> None:
    answer = served.http.post("/v1/chat/completions", json=sent)
    assert answer.status_code == 400
    error = decoded(answer)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"{",
        b'{"model": "speaker", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"model": "speaker", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": NaN}',
        b"[1]",
        b'"text"',
        b"[" * 200_000,
        b'{"a":' * 5000,
        b'{"model": "speaker"} {"messages": []}',
    ],
    ids=["empty", "cut", "utf8", "surrogate", "nan", "list", "text", "deep", "deep2", "two"],
)
def test_no_json(served: Served, sent: bytes) -> None:
    answer = served.http.post("/v1/chat/completions", content=sent, headers=JSON)
    assert answer.status_code == 400
    assert decoded(answer)["error"]["code"] == "invalid_json"
    assert served.ask().status_code == 200


def test_the_client_gets_its_own_exceptions(served: Served) -> None:
    client = served.openai()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="speaker", messages=[])
    assert caught.value.code == "invalid_input"
    assert caught.value.request_id is not None


def test_media_types(served: Served) -> None:
    for headers in (
        {"content-type": "text/plain"},
        {},
        {**JSON, "content-encoding": "gzip"},
    ):
        answer = served.http.post("/v1/chat/completions", content=b"{}", headers=headers)
        assert answer.status_code == 415
    fine = {"content-type": "Application/JSON; charset=utf-8"}
    assert served.ask(headers=fine).status_code == 200


def test_paths_and_methods(served: Served) -> None:
    for method, path, status, code in (
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/v1/nothing", 404, "unknown_path"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("POST", "/v1/chat/completions/", 404, "unknown_path"),
        ("GET", "/..%2f..%2fetc/passwd", 404, "unknown_path"),
    ):
        answer = served.http.request(method, path)
        assert (answer.status_code, decoded(answer)["error"]["code"]) == (status, code), path
        assert "access-control-allow-origin" not in answer.headers


def test_ten_megabytes_are_refused_and_the_client_hears_it(served: Served) -> None:
    answer = served.ask("x" * 10_000_000)
    assert answer.status_code == 413
    assert decoded(answer)["error"]["code"] == "body_too_large"
    with pytest.raises(openai.APIStatusError) as caught:
        served.openai().chat.completions.create(
            model="speaker", messages=[{"role": "user", "content": "x" * 10_000_000}]
        )
    assert caught.value.status_code == 413


def test_what_is_much_too_large_is_not_read_at_all(served: Served) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    started = time.monotonic()
    answer = served.raw(head + b"content-length: 10000000000\r\n\r\n" + b"{")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - started < 2
    answer = served.raw(head + b"expect: 100-continue\r\ncontent-length: 9000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_limited_too(serve: Serve) -> None:
    served = serve(Guard(Speaker()), max_body_bytes=1000)

    def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100

    answer = served.http.post("/v1/chat/completions", content=chunks(), headers=JSON)
    assert answer.status_code == 413
    assert served.ask().status_code == 200


def test_a_body_that_stalls(serve: Serve) -> None:
    served = serve(Guard(Speaker()), body_seconds=0.3)
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 1000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(head)
        for _ in range(4):
            connection.sendall(b"{")
            time.sleep(0.05)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


def test_a_client_that_leaves_in_its_own_body(serve: Serve) -> None:
    served = serve(Guard(Speaker()))
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 1000\r\n\r\n{"
        )
    assert served.ask().status_code == 200
    assert 'route="chat",status="499"' in served.http.get("/metrics").text


@pytest.mark.parametrize(
    "sent", ["a b", "x" * 129, "ü", "a\tb", "<script>", "", "a;b", "%0d%0aset-cookie:1"]
)
def test_request_ids_that_are_not_plain_are_replaced(served: Served, sent: str) -> None:
    answer = served.ask(headers={"x-request-id": sent.encode()})  # type: ignore[dict-item]
    assert answer.status_code == 200
    made = answer.headers["x-request-id"]
    assert made != sent
    assert len(made) == 32


@pytest.mark.parametrize("half", ["\\ud800", "\\ud800x and more", "\\udc00", "\\ud83d\\u0041"])
def test_half_of_a_surrogate_pair_is_named(served: Served, half: str) -> None:
    sent = json.dumps(body(user="HALF")).replace("HALF", half).encode()
    answer = served.http.post("/v1/chat/completions", content=sent, headers=JSON)
    assert answer.status_code == 400
    assert "half of a surrogate pair" in answer.json()["error"]["message"]
    whole = json.dumps(body(user="\U0001f600"))[:-1]
    answer = served.http.post("/v1/chat/completions", content=whole, headers=JSON)
    assert "surrogate" not in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["x-isonomy-session", "x-isonomy-subject"])
@pytest.mark.parametrize("sent", [["mia@example.com"], ["a b"], [""], ["x" * 129], ["a", "b"]])
def test_sessions_and_subjects_that_are_not_plain_are_refused(
    served: Served, name: str, sent: list[str]
) -> None:
    headers = [*JSON.items(), *((name, value) for value in sent)]
    answer = served.http.post("/v1/chat/completions", json=body(), headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name
    assert "letters, digits" in answer.json()["error"]["message"]


def test_a_body_of_two_lengths_ends_the_connection(served: Served) -> None:
    asked = json.dumps(body()).encode()
    answer = served.raw(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"%x\r\n%s\r\n0\r\n\r\n" % (len(asked), asked)
        + b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Transfer-Encoding" in answer
    assert answer.count(b"HTTP/1.1") == 1


def test_headers_can_not_be_injected(served: Served) -> None:
    for name in (b"x-request-id", b"x-isonomy-session", b"traceparent", b"authorization"):
        answer = served.raw(
            b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            + name
            + b": a\rset-cookie: b\r\n\r\n"
        )
        assert b"set-cookie" not in answer
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 200 "))
    two = served.http.get("/health", headers=[("x-request-id", "a"), ("x-request-id", "b")])
    assert two.headers.get_list("x-request-id") not in (["a"], ["b"])


@pytest.mark.parametrize(
    "sent",
    [
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "nonsense",
    ],
)
def test_traces_that_are_none(sent: str) -> None:
    from isonomy.sdk.gateway.exchange import Exchange

    exchange = Exchange({"headers": [(b"traceparent", sent.encode())]}, time.perf_counter)
    assert (exchange.trace_id, exchange.parent_id) == (None, None)


def test_a_trace_of_a_later_version() -> None:
    from isonomy.sdk.gateway.exchange import Exchange

    sent = b"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"
    exchange = Exchange({"headers": [(b"traceparent", sent)]}, time.perf_counter)
    assert exchange.parent_id == "b7ad6b7169203331"


SECRET = "http://internal.example/key=hunter2"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BackendError(SECRET, backend="x"), 502, "backend_failed"),
        (RemoteError(SECRET, backend="x", status=500), 502, "backend_failed"),
        (RemoteError(SECRET, backend="x", status=401), 502, "backend_failed"),
        (RemoteError(SECRET, backend="x", status=400), 400, "refused_by_provider"),
        (RemoteError(SECRET, backend="x", status=429), 429, "overloaded"),
        (
            RemoteError(SECRET, backend="x", attempts=(Attempt(number=1, outcome="timeout"),)),
            504,
            "backend_timeout",
        ),
        (
            RemoteError(SECRET, backend="x", attempts=(Attempt(number=1, outcome="open"),)),
            503,
            "backend_unavailable",
        ),
        (Overloaded(SECRET, backend="x"), 429, "overloaded"),
        (
            ContextLength("9 tokens do not fit into 8.", backend="x", tokens=9, limit=8),
            400,
            "context_length_exceeded",
        ),
        (RuntimeError(SECRET), 502, "backend_failed"),
    ],
)
def test_what_goes_wrong_behind(serve: Serve, error: Exception, status: int, code: str) -> None:
    served = serve(Guard(Speaker(lambda messages: error)))
    answer = served.ask()
    assert (answer.status_code, decoded(answer)["error"]["code"]) == (status, code)
    assert "hunter2" not in answer.text
    assert (answer.headers.get("retry-after") == "1") is (status in (429, 503))
    name = "BackendError" if isinstance(error, RuntimeError) else type(error).__name__
    metrics = served.http.get("/metrics").text
    assert f'isonomy_call_errors_total{{error="{name}"}} 1.0' in metrics
    assert len(answer.headers["x-isonomy-call-id"]) == 36  # by which the log tells more


def test_a_log_that_can_not_be_written(serve: Serve, tmp_path: Any) -> None:
    class Full:
        path = "audit"

        def append(self, entries: Any) -> list[int]:
            raise LogError(f"the disk is full: {SECRET}", path="audit")

        def close(self) -> None:
            pass

    answer = serve(Guard(Speaker(), log=Full())).ask()
    assert (answer.status_code, decoded(answer)["error"]["code"]) == (503, "log_unavailable")
    assert "hunter2" not in answer.text
    assert "You said" not in answer.text


def test_a_call_that_takes_too_long_is_cancelled(serve: Serve) -> None:
    speaker = Speaker(pause=0.2)
    answer = serve(Guard(speaker), call_seconds=0.3).ask("hello there, this takes a while")
    assert (answer.status_code, decoded(answer)["error"]["code"]) == (504, "timeout")
    assert speaker.cancelled.wait(5)


def test_a_client_that_does_not_wait_ends_its_call(serve: Serve) -> None:
    speaker = Speaker(pause=0.2)
    served = serve(Guard(speaker))
    with pytest.raises(openai.APITimeoutError):
        served.openai().with_options(timeout=0.3).chat.completions.create(
            model="speaker", messages=[{"role": "user", "content": "hello " * 20}]
        )
    assert speaker.cancelled.wait(5)


def test_too_many_at_a_time(serve: Serve) -> None:
    served = serve(Guard(Speaker(pause=0.1)), max_calls=2)

    async def four() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{served.url}/v1", api_key="x", max_retries=0
        ) as client:
            return await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="speaker", messages=[{"role": "user", "content": "hello"}]
                    )
                    for _ in range(4)
                ),
                return_exceptions=True,
            )

    answers = asyncio.run(four())
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert len(refused) == 2
    assert refused[0].response.headers["retry-after"] == "1"
    assert served.ask().status_code == 200
    assert served.http.get("/health").status_code == 200


def test_checks_that_block_or_hang_do_not_stop_the_server(serve: Serve) -> None:
    from isonomy.sdk import check

    async def blocks_the_loop(text: str) -> bool:
        time.sleep(1.0)
        return True

    def hangs(text: str) -> bool:
        time.sleep(1.0)
        return True

    policy = [
        check(blocks_the_loop, id="blocks", stages=["post_validate"], timeout=0.2, on_error="flag"),
        check(hangs, id="hangs", stages=["post_validate"], timeout=0.2),
    ]
    served = serve(Guard(Speaker(), policy=policy))

    async def asked_and_healthy() -> tuple[Any, list[float]]:
        import httpx2 as httpx

        async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
            asked = asyncio.create_task(
                client.post("/v1/chat/completions", json=body(), headers=JSON)
            )
            took = []
            while not asked.done():
                started = time.monotonic()
                assert (await client.get("/health")).status_code == 200
                took.append(time.monotonic() - started)
                await asyncio.sleep(0.02)
            return await asked, took

    answer, took = asyncio.run(asked_and_healthy())
    assert decoded(answer)["choices"][0]["finish_reason"] == "content_filter"
    assert max(took) < 0.6
    metrics = served.http.get("/metrics").text
    for name in ("blocks", "hangs"):
        assert f'check="{name}",outcome="failed"' in metrics


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)
)
FIELDS = (
    *("model", "messages", "temperature", "top_p", "top_k", "max_tokens", "stop", "seed", "n"),
    *("stream", "stream_options", "tools", "tool_choice", "response_format", "user", "metadata"),
    *("logit_bias", "something_else"),
)


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changed=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3), part=VALUES)
def test_whatever_is_sent_is_answered(served: Served, changed: Any, part: Any) -> None:
    sent = {**body(), **changed}
    if "messages" not in changed:
        sent["messages"] = [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]
    content = json.dumps(sent).encode()
    answer = served.http.post("/v1/chat/completions", content=content, headers=JSON)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert set(decoded(answer)["error"]) == {"message", "type", "param", "code"}
