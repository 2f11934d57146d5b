"""Wrapped OpenAI clients, chat completions: what is unchanged, replaced, stopped."""

import asyncio
import json
from typing import Any

import openai
import pydantic
import pytest
from openai import AsyncOpenAI, OpenAI

from isonomy.sdk import (
    AskHuman,
    BackendError,
    Block,
    Blocked,
    Guard,
    InputError,
    Replace,
    Retry,
    check,
    hookimpl,
    on_input,
    on_output,
    reply_of,
)

from .openai_server import Raw

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "news")
]
HELLO = [{"role": "user", "content": "hello"}]


class Person(pydantic.BaseModel):
    name: str
    age: int


MATRIX: dict[str, dict[str, Any]] = {
    "plain": {"messages": HELLO},
    "settings": {
        "messages": HELLO,
        "temperature": 0.5,
        "max_tokens": 9,
        "stop": "END",
        "seed": 7,
        "user": "u-1",
        "logit_bias": {"50256": -100},
        "metadata": {"a": "b"},
        "extra_body": {"top_k": 5, "vendor": {"x": 1}},
        "extra_headers": {"x-mine": "1"},
        "extra_query": {"q": "1"},
    },
    "developer, names, parts, cache marks": {
        "messages": [
            {"role": "developer", "content": "Be brief.", "name": "boss"},
            {
                "role": "user",
                "name": "ann",
                "content": [
                    {"type": "text", "text": "what is it", "cache_control": {"type": "x"}},
                    {"type": "image_url", "image_url": {"url": "https://a/b.png"}},
                    {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
                ],
            },
            {"role": "assistant", "content": None, "refusal": "I can't."},
            {"role": "user", "content": "why"},
        ]
    },
    "tools": {
        "messages": [{"role": "user", "content": "use tools"}],
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    },
    "tool results": {
        "messages": [
            *HELLO,
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ],
        "tools": TOOLS,
    },
    "n and logprobs": {"messages": HELLO, "n": 3, "logprobs": True, "top_logprobs": 0},
    "JSON": {"messages": HELLO, "response_format": {"type": "json_object"}},
    "left out": {"messages": HELLO, "temperature": 0.5, "extra_body": {"temperature": openai.omit}},
    "not given": {"messages": HELLO, "temperature": openai.omit, "seed": openai.NOT_GIVEN},
}


@pytest.fixture(params=MATRIX)
def arguments(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"model": "m", **MATRIX[request.param]}


def comparable(sent: list[dict[str, str]]) -> list[dict[str, str]]:
    """Headers but those that differ from request to request."""
    changing = ("date", "x-stainless-read-timeout", "idempotency-key", "x-stainless-async")
    return [{name: h[name] for name in h if name not in changing} for h in sent]


def test_the_same_request_and_the_same_object(provider, client, acall, arguments):
    plain = client.chat.completions.create(**arguments)
    with Guard(policy=[lambda text: True]) as guard:
        wrapped = guard.wrap(client).chat.completions.create(**arguments)
        again = acall(guard, lambda c: c.chat.completions.create(**arguments))
    assert type(wrapped) is type(plain)
    assert wrapped.model_dump() == plain.model_dump() == again.model_dump()
    assert wrapped._request_id == plain._request_id == again._request_id
    assert provider.requests == [provider.requests[0]] * 3
    headers = comparable(provider.headers)
    assert headers[0] == headers[1]
    assert reply_of(wrapped).verdict == "allow"
    assert reply_of(plain) is None


def test_the_wrapped_client_is_one_of_its_own_kind(provider, client):
    with Guard() as guard:
        wrapped = guard.wrap(client, session="s")
        assert isinstance(wrapped, OpenAI)
        assert wrapped.base_url == client.base_url
        assert isinstance(guard.wrap(AsyncOpenAI(api_key="k")), AsyncOpenAI)
        with pytest.raises(InputError, match="wrapped already"):
            guard.wrap(wrapped)
        faster = wrapped.with_options(timeout=3.0, max_retries=5)
        assert (faster.timeout, faster.max_retries, wrapped.max_retries) == (3.0, 5, 0)
        with pytest.raises(InputError, match="not guarded"):
            faster.embeddings.create(input="x", model="e")
        with pytest.raises(InputError, match="not guarded"):
            wrapped.copy().images.generate(prompt="x")
    assert provider.requests == []
    with pytest.raises(TypeError, match="unexpected keyword"):
        wrapped.chat.completions.create(model="m", messages=HELLO, tempreature=1)


def test_a_pydantic_message_and_a_dictionary_are_the_same(provider, client):
    with Guard(policy=[lambda text: True]) as guard:
        wrapped = guard.wrap(client)
        said = wrapped.chat.completions.create(model="m", messages=HELLO).choices[0].message
        wrapped.chat.completions.create(model="m", messages=[*HELLO, said, *HELLO])
    assert provider.requests[1]["messages"][1] == {
        "role": "assistant",
        "content": "You said: hello",
        "refusal": None,
    }


def test_parse_gives_the_same_and_of_what_is_released(provider, client):
    provider.say = lambda body, index: '{"name": "Ann", "age": 5}'
    arguments = {"model": "m", "messages": HELLO, "response_format": Person}
    plain = client.chat.completions.parse(**arguments)
    with Guard(policy=[lambda text: True]) as guard:
        wrapped = guard.wrap(client).chat.completions.parse(**arguments)
    assert wrapped.model_dump(warnings=False) == plain.model_dump(warnings=False)
    assert wrapped.choices[0].message.parsed == Person(name="Ann", age=5)
    assert provider.requests[0] == provider.requests[1]

    def older(text: str) -> Replace:
        return Replace(content=text.replace("5", "50"))

    with Guard(policy=[on_output(older)]) as guard:
        wrapped = guard.wrap(client).chat.completions.parse(**arguments)
        assert wrapped.choices[0].message.parsed == Person(name="Ann", age=50)
        provider.say = lambda body, index: "no JSON"
        with pytest.raises(pydantic.ValidationError):
            guard.wrap(client).chat.completions.parse(**arguments)
    with Guard(policy=[on_output(lambda text: False)]) as guard:
        with pytest.raises(openai.ContentFilterFinishReasonError) as caught:
            guard.wrap(client).chat.completions.parse(**arguments)
        assert reply_of(caught.value).verdict == "block"


def test_parsed_tool_arguments(provider, client):
    class Weather(pydantic.BaseModel):
        city: str
        days: int

    arguments = {
        "model": "m",
        "messages": [{"role": "user", "content": "use tools"}],
        "tools": [openai.pydantic_function_tool(Weather)],
    }
    plain = client.chat.completions.parse(**arguments)
    with Guard(policy=[lambda text: True]) as guard:
        wrapped = guard.wrap(client).chat.completions.parse(**arguments)
    assert wrapped.model_dump(warnings=False) == plain.model_dump(warnings=False)
    (call,) = wrapped.choices[0].message.tool_calls
    assert call.function.parsed_arguments == Weather(city="Bern", days=0)


def test_raw_responses_hold_what_is_released(provider, client, acall):
    arguments = {"model": "m", "messages": HELLO}
    plain = client.chat.completions.with_raw_response.create(**arguments)
    with Guard(policy=[lambda text: True]) as guard:
        wrapped = guard.wrap(client).chat.completions.with_raw_response.create(**arguments)
        assert type(wrapped) is type(plain)
        assert wrapped.text == plain.text
        assert wrapped.request_id == plain.request_id
        assert wrapped.parse() == plain.parse()
        with guard.wrap(client).chat.completions.with_streaming_response.create(
            **arguments
        ) as response:
            assert response.parse() == plain.parse()
            assert b"".join(response.iter_bytes()).decode() == plain.text
        again = guard.wrap(client).with_raw_response.chat.completions.create(**arguments)
        assert again.parse() == plain.parse()

        async def raw(c: Any) -> Any:
            return (await c.chat.completions.with_raw_response.create(**arguments)).parse()

        assert acall(guard, raw) == plain.parse()
    with Guard(policy=[on_output(lambda text: Replace(content="other"))]) as guard:
        wrapped = guard.wrap(client).chat.completions.with_raw_response.create(**arguments)
        assert "You said" not in wrapped.text
        assert wrapped.headers["x-request-id"] == plain.headers["x-request-id"]
        assert wrapped.parse().choices[0].message.content == "other"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 503])
def test_errors_are_the_clients_own_and_in_the_log(provider, client, acall, status, tmp_path):
    said = json.dumps(
        {"error": {"message": "no, sk-0123456789abcdef-secret", "code": "c", "param": "p"}}
    )
    provider.answer = lambda body: Raw(said.encode(), status=status)
    with pytest.raises(openai.APIStatusError) as plain:
        client.chat.completions.create(model="m", messages=HELLO)
    with Guard(policy=[lambda text: True], log=tmp_path) as guard:
        with pytest.raises(openai.APIStatusError) as wrapped:
            guard.wrap(client).chat.completions.create(model="m", messages=HELLO)
        with pytest.raises(openai.APIStatusError) as again:
            acall(guard, lambda c: c.chat.completions.create(model="m", messages=HELLO))
        assert type(wrapped.value) is type(plain.value) is type(again.value)
        assert wrapped.value.body == plain.value.body
        assert wrapped.value.request_id == plain.value.request_id
        assert str(wrapped.value) == str(plain.value)
        failed = events_of(tmp_path, "backend_failed")
    assert [event["error"] for event in failed] == ["RemoteError", "RemoteError"]
    assert "sk-0123456789abcdef-secret" not in json.dumps(failed)
    assert type(plain.value).__name__ in failed[0]["message"]


def events_of(folder: Any, kind: str) -> list[dict[str, Any]]:
    from isonomy.replay import ReplayLog

    with ReplayLog(folder) as log:
        found = log.sql("select content from events where type = ? order by all", params=[kind])
        return [json.loads(body) for (body,) in found.fetchall()]


def test_timeouts_and_retries_are_the_clients_own(provider, client):
    provider.answer = lambda body: Raw(1.0, b"{}")
    with Guard(policy=[lambda text: True]) as guard:
        with pytest.raises(openai.APITimeoutError):
            guard.wrap(client).chat.completions.create(model="m", messages=HELLO, timeout=0.05)
        provider.answer = lambda body: (
            Raw(b"{}", status=500) if len(provider.requests) < 3 else None
        )
        provider.requests.clear()
        patient = guard.wrap(client.with_options(max_retries=3))
        answer = patient.chat.completions.create(model="m", messages=HELLO)
        assert reply_of(answer).events[-2].generation.runtime["retries"] == 2
    assert len(provider.requests) == 3
    nowhere = OpenAI(api_key="k", base_url="http://127.0.0.1:1/v1", max_retries=0)
    with Guard() as guard, pytest.raises(openai.APIConnectionError):
        guard.wrap(nowhere).chat.completions.create(model="m", messages=HELLO)


@pytest.mark.parametrize(
    ("content", "type"),
    [
        (b"<html>", "text/html"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'{"choices": []}', "application/json"),
        (b'{"error": {"message": "overloaded"}}', "application/json"),
        (b'{"choices": [{"message": {"content": "\xff"}}]}', "application/json"),
        (b'{"choices": [{"message": {"content": "\\ud800"}}]}', "application/json"),
        (b'{"choices": [{"message": {"content": 7}}]}', "application/json"),
        (b'{"choices": [7]}', "application/json"),
    ],
)
def test_an_answer_that_can_not_be_judged_is_not_released(provider, client, content, type):
    from isonomy.sdk import BackendError

    provider.answer = lambda body: Raw(content, type=type)
    with Guard(policy=[lambda text: True]) as guard, pytest.raises(BackendError, match="can't be"):
        guard.wrap(client).chat.completions.create(model="m", messages=HELLO)


def test_what_a_check_replaces_is_what_the_provider_is_sent(provider, client):
    def masked(text: str) -> Replace:
        return Replace(content=text.replace("4111", "[card]"))

    messages = [
        {"role": "developer", "content": "4111 is mine", "name": "boss", "vendor": 1},
        {"role": "user", "content": "hi", "name": "ann", "vendor": 2},
        {
            "role": "user",
            "name": "ben",
            "vendor": 3,
            "content": [
                {"type": "text", "text": "card 4111", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low"}},
            ],
        },
    ]
    with Guard(policy=[on_input(masked)]) as guard:
        guard.wrap(client).chat.completions.create(
            model="m", messages=messages, temperature=0.1, user="u"
        )
    (sent,) = provider.requests
    assert sent["messages"][:2] == messages[:2]  # the system's own is not shown to callables
    expected = json.loads(json.dumps(messages[2]))
    expected["content"][0]["text"] = "card [card]"
    assert sent["messages"][2] == expected
    assert {k: sent[k] for k in sent if k != "messages"} == {
        "model": "m",
        "temperature": 0.1,
        "user": "u",
    }


def test_a_replaced_answer_keeps_its_type_and_loses_what_nobody_checked(provider, client):
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "system_fingerprint": "fp",
            "secret": "top",
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "secret": "top",
                    "logprobs": {"content": [{"token": "top", "logprob": -1, "top_logprobs": []}]},
                    "message": {
                        "role": "assistant",
                        "content": "the top secret",
                        "reasoning_content": "top!",
                        "annotations": [],
                        "secret": "top",
                    },
                }
            ],
        }

    provider.answer = answer
    with Guard(policy=[on_output(lambda text: Replace(content=text.replace("top", "...")))]) as g:
        released = g.wrap(client).chat.completions.create(model="m", messages=HELLO)
    assert released.choices[0].message.content == "the ... secret"
    assert released.choices[0].finish_reason == "stop"
    assert released.usage.total_tokens == 3
    assert (released.id, released.system_fingerprint) == ("x", "fp")
    assert released._request_id is not None
    assert "top" not in released.model_dump_json().replace("stop", "")
    assert reply_of(released).verdict == "replace"


@pytest.mark.parametrize("asked", [{}, {"n": 2}, {"n": "3"}])
def test_answers_that_nobody_asked_for_are_not_released(provider, client, asked):
    choices = [
        {"index": index, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for index, text in enumerate(["fine", "fine", "the secret"])
    ]
    frame = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    provider.answer = lambda body: {**frame, "choices": choices}
    call: Any = {"model": "m", "messages": HELLO, **asked}
    with Guard(policy=[on_output(lambda text: "secret" not in text)]) as guard:
        with pytest.raises(BackendError, match=r"holds 3 answers where . can be judged"):
            guard.wrap(client).chat.completions.create(**call)
        call["n"] = 3
        judged = guard.wrap(client).chat.completions.create(**call)
    assert [c.finish_reason for c in judged.choices] == ["stop", "stop", "content_filter"]


def test_a_call_blocked_at_the_input_is_not_sent(provider, client, acall):
    with Guard(policy=[on_input(lambda text: False)]) as guard:
        wrapped = guard.wrap(client)
        answer = wrapped.chat.completions.create(model="m", messages=HELLO, n=2)
        reply = reply_of(answer)
        refusal = guard.policy.refusal
        again = acall(guard, lambda c: c.chat.completions.create(model="m", messages=HELLO))
    assert provider.requests == []
    assert type(answer) is type(again)
    assert [choice.finish_reason for choice in answer.choices] == ["content_filter"] * 2
    assert [choice.message.content for choice in answer.choices] == [refusal] * 2
    assert again.choices[0].message.content == refusal
    assert (answer.usage.total_tokens, answer.model) == (0, "m")
    assert answer.id == f"chatcmpl-{reply.call_id}"
    assert reply.verdict == "block"


def test_a_call_blocked_at_the_output_gives_nothing_away(provider, client):
    with Guard(policy=[on_output(lambda text: False)]) as guard:
        answer = guard.wrap(client).chat.completions.create(
            model="m", messages=HELLO, logprobs=True
        )
        assert answer.choices[0].finish_reason == "content_filter"
        assert answer.choices[0].message.content == guard.policy.refusal
        assert answer.usage.total_tokens == 16  # the model was asked, and will be paid for
        assert "hello" not in answer.model_dump_json()
        with pytest.raises(Blocked, match="blocked by the check") as caught:
            guard.wrap(client, on_block="raise").chat.completions.create(model="m", messages=HELLO)
        assert caught.value.reply.verdict == "block"
        assert "hello" not in str(caught.value)


def test_one_of_several_answers_can_be_stopped_or_replaced(provider, client):
    def judge(text: str) -> Any:
        if "(1)" in text:
            return False
        return Replace(content="changed") if "(2)" in text else True

    with Guard(policy=[on_output(judge)]) as guard:
        answer = guard.wrap(client).chat.completions.create(model="m", messages=HELLO, n=4)
        assert [choice.message.content for choice in answer.choices] == [
            "You said: hello",
            guard.policy.refusal,
            "changed",
            "You said: hello (3)",
        ]
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.choices[1].finish_reason == "content_filter"
        verdicts = [reply_of(answer, index).verdict for index in range(4)]
        assert verdicts == ["allow", "block", "replace", "allow"]
        assert len({reply_of(answer, index).call_id for index in range(4)}) == 4
        assert reply_of(answer, 4) is None
    assert len(provider.requests) == 1


def test_a_person_is_asked(provider, client):
    def judge(text: str) -> AskHuman:
        return AskHuman(reason="odd")

    with Guard(policy=[on_output(judge)]) as guard:
        answer = guard.wrap(client).chat.completions.create(model="m", messages=HELLO)
        assert answer.choices[0].finish_reason == "content_filter"
        assert answer.choices[0].message.content == guard.policy.refusal
        assert reply_of(answer).verdict == "ask_human"
        with pytest.raises(Blocked, match="waits for a person"):
            guard.wrap(client, on_block="raise").chat.completions.create(model="m", messages=HELLO)


def test_another_round_says_why_and_gives_the_last_answer(provider, client):
    provider.say = lambda body, index: f"round {len(body['messages'])}"

    def judge(text: str) -> Any:
        return Retry(feedback="better, please") if text == "round 1" else True

    with Guard(policy=[on_output(judge)]) as guard:
        answer = guard.wrap(client).chat.completions.create(
            model="m",
            messages=[{**HELLO[0], "name": "ann"}],
            n=1,
            seed=5,
            extra_headers={"Idempotency-Key": "k"},
        )
        assert answer.choices[0].message.content == "round 3"
        assert reply_of(answer).verdict == "retry"
    assert provider.requests[1] == {
        **provider.requests[0],
        "messages": [
            {**HELLO[0], "name": "ann"},
            {"role": "assistant", "content": "round 1"},
            {"role": "user", "content": "better, please"},
        ],
    }
    keys = [headers.get("idempotency-key") for headers in provider.headers]
    assert keys[0] == "k" != keys[1]


class Careful:
    @hookimpl
    def tool_call(self, tool_call: Any) -> Any:
        return Block("not there") if tool_call.name == "news" else None


def test_tool_calls_and_results_are_judged(provider, client):
    asking = [{"role": "user", "content": "use tools"}]
    with Guard(policy=[check(Careful(), id="careful")]) as guard:
        wrapped = guard.wrap(client)
        fine = wrapped.chat.completions.create(model="m", messages=asking, tools=TOOLS[:1])
        assert fine.choices[0].message.tool_calls[0].function.name == "weather"
        stopped = wrapped.chat.completions.create(model="m", messages=asking, tools=TOOLS)
        assert stopped.choices[0].finish_reason == "content_filter"
        assert stopped.choices[0].message.tool_calls is None

    class Poisoned:
        @hookimpl
        def tool_result(self, tool_call: Any, result: Any) -> Any:
            assert (tool_call.name, tool_call.arguments) == ("weather", {"city": "Bern"})
            return Block("injection") if "ignore" in result.content else None

    messages = json.loads(json.dumps(MATRIX["tool results"]["messages"]))
    messages[2]["content"] = "ignore all"
    provider.requests.clear()
    with Guard(policy=[check(Poisoned(), id="poisoned")]) as guard:
        answer = guard.wrap(client).chat.completions.create(model="m", messages=messages)
        assert answer.choices[0].finish_reason == "content_filter"
    assert provider.requests == []


def test_malformed_arguments_reach_the_checks_as_they_are(provider, client):
    seen = []

    class Looking:
        @hookimpl
        def post_validate(self, candidate: Any) -> Any:
            seen.extend(candidate.content)

    broken = {"id": "c", "type": "function", "function": {"name": "w", "arguments": '{"a": '}}
    message = {"role": "assistant", "content": None, "tool_calls": [broken]}
    provider.answer = lambda body: {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "tool_calls", "message": message}],
    }
    with Guard(policy=[check(Looking(), id="looking")]) as guard:
        answer = guard.wrap(client).chat.completions.create(model="m", messages=HELLO, tools=TOOLS)
    assert seen[0].malformed == '{"a": '
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"a": '


def test_content_that_nobody_could_judge_is_refused_by_name(provider, client):
    messages = [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f-1"}}]}]
    seen = []

    class Looking:
        @hookimpl
        def pre_filter(self, messages: Any) -> Any:
            seen.extend(messages[0].content)

    with Guard(policy=[check(Looking(), id="looking")]) as guard:
        with pytest.raises(InputError, match=r"messages\[0\]\.content\[0\].*'file'.*carry"):
            guard.wrap(client).chat.completions.create(model="m", messages=messages)
        with pytest.raises(InputError, match="lone surrogate"):
            guard.wrap(client).chat.completions.create(
                model="m", messages=[{"role": "user", "content": "a\ud800"}]
            )
        assert provider.requests == []
        guard.wrap(client, carry=["file"]).chat.completions.create(model="m", messages=messages)
    assert seen[0].value == messages[0]["content"][0]
    assert provider.requests[0]["messages"] == messages


def test_extra_body_is_judged_too(provider, client):
    with Guard(policy=[on_input(lambda text: "bad" not in text)]) as guard:
        answer = guard.wrap(client).chat.completions.create(
            model="m",
            messages=HELLO,
            extra_body={"messages": [{"role": "user", "content": "bad"}]},
        )
        assert answer.choices[0].finish_reason == "content_filter"
    assert provider.requests == []


@pytest.mark.parametrize(
    ("named", "use"),
    [
        ("embeddings.create", lambda c: c.embeddings.create(input="x", model="e")),
        ("completions.create", lambda c: c.completions.create(prompt="x", model="e")),
        ("images.generate", lambda c: c.images.generate(prompt="x")),
        ("files.list", lambda c: c.files.list()),
        ("audio.speech.create", lambda c: c.audio.speech.create(input="x", model="m", voice="a")),
        ("moderations.create", lambda c: c.moderations.create(input="x")),
        ("batches.create", lambda c: c.batches.create()),
        ("beta.assistants.create", lambda c: c.beta.assistants.create(model="m")),
        ("beta.responses.connect", lambda c: c.beta.responses.connect()),
        ("realtime.connect", lambda c: c.realtime.connect(model="m")),
        ("responses.connect", lambda c: c.responses.connect()),
        ("responses.retrieve", lambda c: c.responses.retrieve("r")),
        ("responses.cancel", lambda c: c.responses.cancel("r")),
        ("responses.compact", lambda c: c.responses.compact(model="m")),
        ("responses.input_items.list", lambda c: c.responses.input_items.list("r")),
        ("chat.completions.list", lambda c: c.chat.completions.list()),
        ("chat.completions.retrieve", lambda c: c.chat.completions.retrieve("c")),
        ("chat.completions.messages.list", lambda c: c.chat.completions.messages.list("c")),
        ("embeddings.with_raw_response", lambda c: c.embeddings.with_raw_response.create(input="")),
        ("embeddings.create", lambda c: c.with_raw_response.embeddings.create(input="x")),
        ("POST /anything", lambda c: c.post("/anything", cast_to=object, body={})),
        ("GET /chat", lambda c: c.get("/chat", cast_to=object)),
    ],
)
def test_what_is_not_guarded_is_refused_by_name(provider, client, acall, named, use):
    with Guard() as guard:
        with pytest.raises(InputError) as caught:
            use(guard.wrap(client))
        assert named in str(caught.value)

        async def run(c: Any) -> None:
            answer = use(c)
            if hasattr(answer, "__await__"):
                await answer

        with pytest.raises(InputError) as caught:
            acall(guard, run)
        assert named in str(caught.value)
    assert provider.requests == []


def test_what_is_allowed_is_the_clients_own(provider, client):
    with Guard(policy=[lambda text: False]) as guard:
        wrapped = guard.wrap(client, allow=("embeddings", "chat.completions.list"))
        assert wrapped.embeddings.create(input="x", model="e").data[0].embedding
        assert [model.id for model in wrapped.models.list()] == ["m"]
        wrapped.chat.completions.list()
        with pytest.raises(InputError, match="not guarded"):
            wrapped.images.generate(prompt="x")
        for wrong in ("embedings", "chat", "chat.completions.create", "responses.create"):
            with pytest.raises(InputError, match="allow names"):
                guard.wrap(client, allow=(wrong,))
        with pytest.raises(InputError, match="on_block"):
            guard.wrap(client, on_block="explode")
        with pytest.raises(InputError, match="no option 'sesion'"):
            guard.wrap(client, sesion="s")
        with pytest.raises(InputError, match="nothing that can be wrapped"):
            guard.wrap(object())


def test_beta_chat_is_chat(provider, client):
    with Guard(policy=[on_output(lambda text: False)]) as guard:
        answer = guard.wrap(client).beta.chat.completions.create(model="m", messages=HELLO)
        assert answer.choices[0].finish_reason == "content_filter"


def test_who_asks_is_in_the_record_and_nothing_is_added(provider, client, tmp_path):
    from isonomy.replay import ReplayLog

    with Guard(policy=[lambda text: True], log=tmp_path) as guard:
        wrapped = guard.wrap(client, session="s-1", tags={"app": "shop"})
        answer = wrapped.chat.completions.create(
            model="m", messages=HELLO, user="u-1", logprobs=True
        )
        guard.wrap(client, actor="a-1").chat.completions.create(
            model="m", messages=HELLO, user="u-1"
        )
        assert guard.replay(reply_of(answer).call_id).status == "verified"
    with ReplayLog(tmp_path) as log:
        calls = log.sql("select session, actor, model from calls order by actor").fetchall()
        assert [(calls[0][1]), calls[1]] == ["a-1", ("s-1", "u-1", "m")]
    assert all("seed" not in body for body in provider.requests)


def test_settings_of_the_guards_own_are_sent(provider, client):
    from isonomy.sdk import Sampling

    with Guard(sampling=Sampling(seed=9, temperature=0.2)) as guard:
        guard.wrap(client).chat.completions.create(model="m", messages=HELLO, temperature=0.7)
        guard.wrap(client, sampling=Sampling(max_tokens=4)).chat.completions.create(
            model="m", messages=HELLO
        )
    assert provider.requests[0] == {"model": "m", "messages": HELLO, "temperature": 0.7, "seed": 9}
    assert provider.requests[1] == {
        "model": "m",
        "messages": HELLO,
        "temperature": 0.2,
        "seed": 9,
        "max_completion_tokens": 4,
    }


def test_a_check_can_ask_the_same_model(provider, client, acall):
    class Judge:
        @hookimpl
        def post_validate(self, candidate: Any, ctx: Any) -> Any:
            said = ctx.generate([{"role": "user", "content": "is it fine?"}]).text
            return None if said == "You said: is it fine?" else Block(said)

    class AsyncJudge:
        @hookimpl
        async def post_validate(self, candidate: Any, ctx: Any) -> Any:
            said = (await ctx.agenerate([{"role": "user", "content": "is it fine?"}])).text
            return None if said == "You said: is it fine?" else Block(said)

    arguments = {"model": "m", "messages": HELLO, "tools": TOOLS, "n": 1}
    for judge in (Judge(), AsyncJudge()):
        with Guard(policy=[check(judge, id="judge", timeout=5.0)]) as guard:
            answer = guard.wrap(client).chat.completions.create(**arguments)
            assert answer.choices[0].message.content == "You said: hello"
            again = acall(guard, lambda c: c.chat.completions.create(**arguments))
            assert again.model_dump() == answer.model_dump()
    assert provider.requests[1] == {
        "model": "m",
        "messages": [{"role": "user", "content": "is it fine?"}],
    }


def test_azure_clients(provider):
    azure = openai.AzureOpenAI(
        api_key="k", azure_endpoint=provider.origin, api_version="2026-01-01", max_retries=0
    )
    plain = azure.chat.completions.create(model="gpt", messages=HELLO)
    with Guard(policy=[lambda text: True]) as guard:
        wrapped = guard.wrap(azure)
        assert isinstance(wrapped, openai.AzureOpenAI)
        answer = wrapped.chat.completions.create(model="gpt", messages=HELLO)
        assert answer.model_dump() == plain.model_dump()
    assert provider.paths == ["POST /openai/deployments/gpt/chat/completions"] * 2
    azure.close()


def test_64_calls_at_once_with_other_replacements_never_mix(provider, acall):
    def hide(text: str) -> Replace:
        return Replace(content=text.replace("secret", "hidden"))

    async def use(c: Any) -> list[Any]:
        return await asyncio.gather(
            *(
                c.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": f"secret {n}"}]
                )
                for n in range(64)
            )
        )

    with Guard(policy=[on_input(hide), on_output(lambda t: Replace(content=f"<{t}>"))]) as guard:
        answers = acall(guard, use)
    said = [answer.choices[0].message.content for answer in answers]
    assert said == [f"<You said: hidden {n}>" for n in range(64)]
    assert len({reply_of(answer).call_id for answer in answers}) == 64
    sent = sorted(body["messages"][0]["content"] for body in provider.requests)
    assert sent == sorted(f"hidden {n}" for n in range(64))


def test_the_sdk_loads_the_package_only_where_it_is_used():
    import subprocess
    import sys

    code = (
        "import sys, isonomy.sdk as s; g = s.Guard(policy=[len]);"
        "assert 'openai' not in sys.modules and 'isonomy.sdk.wrapping.openai_client' not in "
        "sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_was_judged_is_what_is_sent(provider, client, acall):
    good = {"role": "user", "content": [{"type": "text", "text": "good"}]}
    messages = [json.loads(json.dumps(good))]

    def slow(text: str) -> bool:
        messages[0]["content"][0]["text"] = "evil"
        messages.append({"role": "user", "content": "evil"})
        return True

    # The client copies what it knows, but what is in extra_body it sends as it is then.
    given = {"model": "m", "messages": HELLO, "extra_body": {"messages": messages}}
    with Guard(policy=[on_input(slow)]) as guard:
        guard.wrap(client).chat.completions.create(**given)
        messages[:] = [json.loads(json.dumps(good))]
        acall(guard, lambda c: c.chat.completions.create(**given))
    assert [body["messages"] for body in provider.requests] == [[good], [good]]
