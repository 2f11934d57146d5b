"""Chat completions through the real openai client and through plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any, Literal

import httpx2 as httpx
import openai
import pydantic
import pytest
import uvicorn

from isonomy.sdk import (
    Block,
    Guard,
    Image,
    Json,
    Message,
    Replace,
    Text,
    ToolCall,
    ToolResult,
    hookimpl,
    on_output,
)
from isonomy.sdk.gateway import Settings, app

from .conftest import Serve, decoded
from .speaking import Speaker

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def shouting(text: str) -> Any:
    return Replace(text.upper())


def test_a_plain_call(serve: Serve) -> None:
    served = serve(Guard(Speaker(), policy=[on_output(shouting)]))
    completion = served.openai().chat.completions.create(
        model="speaker", messages=[{"role": "user", "content": "hello"}]
    )
    choice = completion.choices[0]
    assert choice.message.content == "YOU SAID: HELLO"
    assert (choice.message.role, choice.finish_reason, choice.index) == ("assistant", "stop", 0)
    assert completion.model == "speaker"
    assert completion.object == "chat.completion"
    assert completion.system_fingerprint == "fp_tests"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.total_tokens) == (3, 8)
    assert completion.id.startswith("chatcmpl-")


def test_headers_tell_call_verdict_and_request(serve: Serve, tmp_path: Any) -> None:
    served = serve(Guard(Speaker(), policy=[on_output(shouting)], log=tmp_path / "audit"))
    answer = served.ask("hello", headers={"x-request-id": "from-client:1"})
    assert answer.headers["x-request-id"] == "from-client:1"
    assert answer.headers["x-isonomy-verdict"] == "replace"
    call_id = answer.headers["x-isonomy-call-id"]
    body = decoded(answer)
    assert body["isonomy"] == {"call_id": call_id, "verdict": "replace"}
    assert body["id"] == f"chatcmpl-{call_id}"
    assert answer.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers


def test_the_record_has_actor_tags_session_and_trace(serve: Serve, tmp_path: Any) -> None:
    served = serve(Guard(Speaker(), policy=[on_output(lambda text: True)], log=tmp_path / "audit"))
    answer = served.ask(
        "hello",
        headers={
            "x-request-id": "req-7",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "x-isonomy-session": "session-9",
            "x-isonomy-subject": "subject-9",
        },
        user="user-1",
        metadata={"feature": "search"},
    )
    from isonomy.replay import ReplayLog

    with ReplayLog(tmp_path / "audit") as log:
        [row] = log.sql(
            "select call_id, actor, session, subject, trace_id, parent_id, tags::json::varchar "
            "from calls"
        ).fetchall()
    call_id, actor, session, subject, trace_id, parent_id, tags = row
    assert call_id == answer.headers["x-isonomy-call-id"]
    assert (actor, session, subject) == ("user-1", "session-9", "subject-9")
    assert trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert parent_id == "b7ad6b7169203331"
    assert json.loads(tags) == {"feature": "search", "request_id": "req-7"}


def test_a_blocked_call(serve: Serve) -> None:
    served = serve(Guard(Speaker(), policy=[on_output(lambda text: False)]))
    completion = served.openai().chat.completions.create(
        model="speaker", messages=[{"role": "user", "content": "hello"}]
    )
    choice = completion.choices[0]
    assert choice.finish_reason == "content_filter"
    assert choice.message.content == Guard(Speaker()).policy.refusal
    assert "hello" not in completion.model_dump_json()


def test_tools_there_and_back(serve: Serve) -> None:
    def answer(messages: tuple[Message, ...]) -> Any:
        last = messages[-1].content[-1]
        if isinstance(last, ToolResult):
            return f"It is {last.content} there."
        return (Text("Let me see."), ToolCall("call_1", "weather", {"city": "Ghent"}))

    speaker = Speaker(answer)
    client = serve(Guard(speaker, policy=[on_output(lambda text: True)])).openai()
    asked: list[Any] = [{"role": "user", "content": "Rain in Ghent?"}]
    first = client.chat.completions.create(
        model="speaker", messages=asked, tools=[WEATHER], tool_choice="auto"
    )
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    call = choice.message.tool_calls[0]
    assert call.type == "function"
    assert (call.id, call.function.name) == ("call_1", "weather")
    assert json.loads(call.function.arguments) == {"city": "Ghent"}
    assert speaker.requests[0].tools == (WEATHER,)
    assert speaker.requests[0].extra == {"tool_choice": "auto"}
    asked += [
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": "call_1", "content": "wet"},
    ]
    second = client.chat.completions.create(model="speaker", messages=asked, tools=[WEATHER])
    assert second.choices[0].message.content == "It is wet there."
    assert ToolCall("call_1", "weather", {"city": "Ghent"}) in (
        speaker.requests[1].messages[1].content
    )


def test_a_tool_call_can_be_blocked(serve: Serve) -> None:
    class NoWeather:
        @hookimpl
        def tool_call(self, tool_call: ToolCall) -> Any:
            return Block(f"no {tool_call.name}")

    speaker = Speaker(lambda messages: (ToolCall("call_1", "weather", {}),))
    client = serve(Guard(speaker, policy=[NoWeather()])).openai()
    completion = client.chat.completions.create(
        model="speaker", messages=[{"role": "user", "content": "Rain?"}], tools=[WEATHER]
    )
    assert completion.choices[0].finish_reason == "content_filter"
    assert completion.choices[0].message.tool_calls is None


def test_sampling_and_what_the_provider_alone_knows(serve: Serve) -> None:
    speaker = Speaker()
    client = serve(Guard(speaker)).openai()
    client.chat.completions.create(
        model="speaker",
        messages=[{"role": "user", "content": "hello"}],
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=7,
        stop=["a", "b"],
        seed=11,
        logit_bias={"50256": -100},
        presence_penalty=0.25,
        extra_body={"top_k": 4, "repetition_penalty": 1.1},
    )
    request = speaker.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.9, 7)
    assert (sampling.stop, sampling.seed) == (("a", "b"), 11)
    assert (sampling.top_k, sampling.repetition_penalty) == (4, 1.1)
    assert request.extra == {"logit_bias": {"50256": -100}, "presence_penalty": 0.25}


def test_several_choices_are_several_calls(serve: Serve, tmp_path: Any) -> None:
    def each(text: str) -> bool:
        return "2" not in text

    count = iter(range(10))
    speaker = Speaker(lambda messages: f"answer {next(count)}")
    served = serve(Guard(speaker, policy=[on_output(each)], log=tmp_path / "audit"))
    answer = served.ask("hello", n=4, seed=5)
    body = decoded(answer)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    reasons = sorted(choice["finish_reason"] for choice in body["choices"])
    assert reasons == ["content_filter", "stop", "stop", "stop"]
    ids = answer.headers["x-isonomy-call-id"].split(", ")
    assert len(set(ids)) == 4
    assert [choice["isonomy"]["call_id"] for choice in body["choices"]] == ids
    assert answer.headers["x-isonomy-verdict"] == "block"
    assert sorted(r.sampling.seed or 0 for r in speaker.requests) == [5, 6, 7, 8]
    assert body["usage"] == {"prompt_tokens": 12, "completion_tokens": 20, "total_tokens": 32}


class Order(pydantic.BaseModel):
    size: Literal["small", "large"]
    express: bool


def test_the_built_in_model_with_a_schema(serve: Serve, tmp_path: Any) -> None:
    guard = Guard("local:demo", policy=[on_output(lambda text: True)], log=tmp_path / "audit")
    client = serve(guard).openai()
    parsed = client.chat.completions.parse(
        model="demo",
        messages=[{"role": "user", "content": "How do I reset my password?"}],
        response_format=Order,
        max_completion_tokens=200,
        seed=3,
    )
    found = parsed.choices[0].message.parsed
    assert isinstance(found, Order)
    plain = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Hello"}], temperature=0
    )
    assert plain.choices[0].message.content == "Hello! How can I help you today?"


def test_models(serve: Serve) -> None:
    guard = Guard(Speaker(), backends={"other": Speaker(lambda messages: "Other.", name="other")})
    client = serve(guard, models={"gpt-4o": "default", "small": "other"}).openai()
    assert [model.id for model in client.models.list()] == ["gpt-4o", "small"]
    assert client.models.retrieve("small").owned_by == "tests"
    asked: list[Any] = [{"role": "user", "content": "hello"}]
    first = client.chat.completions.create(model="gpt-4o", messages=asked)
    second = client.chat.completions.create(model="small", messages=asked)
    assert (first.model, first.choices[0].message.content) == ("gpt-4o", "You said: hello")
    assert (second.model, second.choices[0].message.content) == ("small", "Other.")
    with pytest.raises(openai.NotFoundError, match="there is no model nope") as caught:
        client.chat.completions.create(model="nope", messages=asked)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_any_model(serve: Serve) -> None:
    served = serve(Guard(Speaker()), any_model=True)
    assert decoded(served.http.get("/v1/models"))["data"][0]["id"] == "speaker"
    body = {"model": "whatever", "messages": [{"role": "user", "content": "x"}]}
    assert served.http.post("/v1/chat/completions", json=body).status_code == 200


def test_models_of_backends_that_are_not_there() -> None:
    with Guard(Speaker()) as guard, pytest.raises(Exception, match=r"serve.models.x: .*'nope'"):
        app(guard, Settings(models={"x": "nope"}))


def test_health_and_readiness(serve: Serve) -> None:
    served = serve(Guard(Speaker()), keys={"id": "k" * 20})
    assert decoded(served.http.get("/health")) == {"status": "ok"}
    assert decoded(served.http.get("/ready")) == {"status": "ok"}


def test_mounted_in_another_application(serve: Serve) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from .conftest import Served

    with Guard(Speaker()) as guard:
        served = Served(Starlette(routes=[Mount("/llm", app(guard))]))
        try:
            client = openai.OpenAI(base_url=f"{served.url}/llm/v1", api_key="x", max_retries=0)
            with client:
                completion = client.chat.completions.create(
                    model="speaker", messages=[{"role": "user", "content": "hello"}]
                )
            assert completion.choices[0].message.content == "You said: hello"
        finally:
            served.close()


def test_structured_data_is_text_there_and_images_are_refused(serve: Serve) -> None:
    def answer(messages: tuple[Message, ...]) -> Any:
        if messages[-1].text == "draw":
            return (Image("https://example.org/x.png"),)
        return (Json({"b": 1, "a": [2]}),)

    served = serve(Guard(Speaker(answer)))
    for stream in (False, True):
        text = served.ask("hello", stream=stream).text
        assert r'"content":"{\"a\":[2],\"b\":1}"' in text, text
        assert "unsupported_answer" in served.ask("draw", stream=stream).text


@pytest.mark.parametrize("stream", [False, True])
def test_sixty_four_at_a_time_never_mix(serve: Serve, tmp_path: Any, stream: bool) -> None:
    def renamed(text: str) -> Any:
        number = text.rpartition(" ")[2]
        return Replace(f"{text} for {number}")

    speaker = Speaker(pause=0.002)
    guard = Guard(speaker, policy=[on_output(renamed)], log=tmp_path / "audit")
    served = serve(guard)

    async def asked(client: openai.AsyncOpenAI, number: int) -> tuple[str, str]:
        messages: list[Any] = [{"role": "user", "content": f"number {number}"}]
        if not stream:
            whole = await client.chat.completions.create(model="speaker", messages=messages)
            return whole.id, whole.choices[0].message.content or ""
        text = ""
        async with await client.chat.completions.create(
            model="speaker", messages=messages, stream=True
        ) as chunks:
            async for chunk in chunks:
                text += chunk.choices[0].delta.content or ""
        return chunk.id, text

    async def all_of_them() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(
            base_url=f"{served.url}/v1", api_key="x", max_retries=0, timeout=60
        ) as client:
            return await asyncio.gather(*(asked(client, i) for i in range(64)))

    answers = asyncio.run(all_of_them())
    assert [text for _, text in answers] == [f"You said: number {i} for {i}" for i in range(64)]
    assert len({completion_id for completion_id, _ in answers}) == 64


def test_nothing_is_left_on_the_loop(tmp_path: Any) -> None:
    async def tried() -> set[str]:
        with Guard(Speaker(pause=0.05), log=tmp_path / "audit") as guard:
            config = uvicorn.Config(app(guard), port=0, log_config=None, lifespan="on")
            server = uvicorn.Server(config)
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                serving = asyncio.create_task(server.serve([listener]))
                while not server.started:
                    await asyncio.sleep(0.01)
                before = asyncio.all_tasks()
                async with httpx.AsyncClient(base_url=url) as client:
                    for stream in (False, True):
                        for timeout in (0.05, 5.0):
                            body = {
                                "model": "speaker",
                                "stream": stream,
                                "messages": [{"role": "user", "content": "hello " * 4}],
                            }
                            with contextlib.suppress(httpx.TimeoutException):
                                await client.post(
                                    "/v1/chat/completions", json=body, timeout=timeout
                                )
                for _ in range(100):
                    left = asyncio.all_tasks() - before
                    if not left:
                        break
                    await asyncio.sleep(0.02)
                server.should_exit = True
                await serving
                return {task.get_coro().__qualname__ for task in left}  # type: ignore[union-attr]

    assert asyncio.run(tried()) == set()
    from isonomy.replay import ReplayLog

    with ReplayLog(tmp_path / "audit") as log:
        rows = log.sql("select error, count(*) from calls group by all order by all").fetchall()
    assert sorted(rows, key=str) == [("Cancelled", 2), (None, 2)]
