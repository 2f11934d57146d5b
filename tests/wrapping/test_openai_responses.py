"""Wrapped OpenAI clients, the responses API: what is unchanged, replaced, stopped."""

import json
from typing import Any

import openai
import pydantic
import pytest

from isonomy.sdk import (
    Block,
    Guard,
    InputError,
    Json,
    Reasoning,
    Replace,
    Retry,
    ToolCall,
    ToolResult,
    check,
    hookimpl,
    on_input,
    on_output,
    reply_of,
)

from .openai_server import Raw

TOOL = {
    "type": "function",
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
CALL = {
    "type": "function_call",
    "call_id": "c1",
    "name": "weather",
    "arguments": '{"city": "Bern"}',
}
MATRIX: dict[str, dict[str, Any]] = {
    "text": {"input": "hello"},
    "settings": {
        "input": "hello",
        "instructions": "Be brief.",
        "temperature": 0.3,
        "max_output_tokens": 40,
        "metadata": {"a": "b"},
        "safety_identifier": "u-1",
        "previous_response_id": "resp_0",
        "store": False,
        "extra_body": {"vendor": 1},
    },
    "items": {
        "input": [
            {"role": "developer", "content": "Be brief."},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "what is it", "vendor": 1},
                    {"type": "input_image", "image_url": "https://a/b.png", "detail": "low"},
                ],
            },
            {"type": "reasoning", "id": "rs_0", "summary": [], "encrypted_content": "gAAA"},
            {"type": "web_search_call", "id": "ws_0", "status": "completed"},
            CALL,
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "item_reference", "id": "msg_0"},
            {"role": "user", "content": "and"},
        ]
    },
    "tools": {"input": "use tools", "tools": [TOOL], "tool_choice": "auto"},
    "thinking and searching": {
        "input": "think and search",
        "include": ["reasoning.encrypted_content"],
    },
    "a form": {"input": "hello", "text": {"format": {"type": "json_object"}, "verbosity": "low"}},
    "a stored prompt": {"prompt": {"id": "p", "variables": {"city": "Bern"}}, "input": "hi"},
}


class Person(pydantic.BaseModel):
    name: str
    age: int


class Looking:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answered: list[Any] = []

    @hookimpl
    def pre_filter(self, messages: Any) -> None:
        LOOKED.extend(messages)

    @hookimpl
    def post_validate(self, candidate: Any) -> None:
        LOOKED.append(candidate)


LOOKED: list[Any] = []


@pytest.fixture(params=MATRIX)
def arguments(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"model": "m", **MATRIX[request.param]}


def test_the_same_request_and_the_same_object(provider, client, acall, arguments):
    plain = client.responses.create(**arguments)
    with Guard(policy=[lambda text: True]) as guard:
        wrapped = guard.wrap(client).responses.create(**arguments)
        again = acall(guard, lambda c: c.responses.create(**arguments))
    assert type(wrapped) is type(plain)
    assert wrapped.model_dump() == plain.model_dump() == again.model_dump()
    assert wrapped._request_id == plain._request_id == again._request_id
    assert wrapped.output_text == plain.output_text
    assert provider.requests == [provider.requests[0]] * 3
    assert reply_of(wrapped).blocked is False


def test_checks_see_all_that_is_said(provider, client):
    LOOKED.clear()
    with Guard(policy=[check(Looking(), id="looking")]) as guard:
        guard.wrap(client).responses.create(model="m", instructions="Be kind.", **MATRIX["items"])
        asked = LOOKED[:-1]
        LOOKED.clear()
        guard.wrap(client).responses.create(model="m", input="think and search")
        (candidate,) = LOOKED[-1:]
        LOOKED.clear()
        guard.wrap(client).responses.create(model="m", **MATRIX["a stored prompt"])
    assert [message.role for message in asked] == (
        ["system", "system", "user"] + ["assistant"] * 3 + ["tool", "assistant", "user"]
    )
    assert asked[0].text == "Be kind."
    assert asked[3].content == (Reasoning("", "gAAA"),)
    assert asked[5].content == (ToolCall("c1", "weather", {"city": "Bern"}),)
    assert asked[6].content == (ToolResult("c1", "rain"),)
    assert candidate.content[0] == Reasoning("They want: think and search", "gAAA")
    assert isinstance(candidate.content[1], Json)
    assert candidate.text == "You said: think and search"
    assert [message.text for message in LOOKED[:2]] == ["Bern", "hi"]


def test_what_a_check_replaces_is_what_the_provider_is_sent(provider, client):
    def masked(text: str) -> Replace:
        return Replace(content=text.replace("4111", "[card]"))

    items = json.loads(json.dumps(MATRIX["items"]["input"]))
    items[1]["content"][0]["text"] = "card 4111"
    items[5]["output"] = "paid 4111"
    with Guard(policy=[on_input(masked)]) as guard:
        wrapped = guard.wrap(client)
        wrapped.responses.create(model="m", instructions="keep 4111", input=items)
        wrapped.responses.create(model="m", input="my 4111", temperature=0.5)
        prompt = {
            "id": "p",
            "variables": {"a": "4111", "b": {"type": "input_text", "text": "4111"}},
        }
        wrapped.responses.create(model="m", prompt=prompt)
    first, second, third = provider.requests
    assert first["instructions"] == "keep 4111"  # the system's own is not shown to callables
    expected = json.loads(json.dumps(items))
    expected[1]["content"][0]["text"] = "card [card]"
    expected[5]["output"] = "paid [card]"
    assert first["input"] == expected
    assert second == {"model": "m", "input": "my [card]", "temperature": 0.5}
    assert third["prompt"] == {
        "id": "p",
        "variables": {"a": "[card]", "b": {"type": "input_text", "text": "[card]"}},
    }

    class Prepending:
        @hookimpl
        def pre_filter(self, messages: Any) -> Any:
            from isonomy.sdk import Message

            if messages[0].text == "Be kind.":
                return None
            return Replace(content=(Message.of("system", "Be kind."), *messages))

    with Guard(policy=[check(Prepending(), id="prepending")]) as guard:
        guard.wrap(client).responses.create(model="m", input="hi")
    assert provider.requests[-1]["input"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
    ]


def test_a_replaced_answer_loses_what_nobody_checked(provider, client):
    def hide(text: str) -> Replace:
        return Replace(content=text.replace("think", "..."))

    with Guard(policy=[on_output(hide)]) as guard:
        released = guard.wrap(client).responses.create(model="m", input="think and search")
    assert released.output_text == "You said: ... and search"
    assert [item.type for item in released.output] == ["web_search_call", "message"]
    assert "think" not in released.model_dump_json()
    assert released.status == "completed"
    assert released.usage.total_tokens == 16
    assert released.output[1].id == "msg_1"


def test_calls_that_are_stopped(provider, client, acall):
    with Guard(policy=[on_input(lambda text: False)]) as guard:
        answer = guard.wrap(client).responses.create(model="m", input="hello")
        again = acall(guard, lambda c: c.responses.create(model="m", input="hello"))
        assert provider.requests == []
        for stopped in (answer, again):
            assert stopped.status == "incomplete"
            assert stopped.incomplete_details.reason == "content_filter"
            assert stopped.output_text == guard.policy.refusal
            assert (stopped.usage.total_tokens, stopped.model) == (0, "m")
            assert stopped.id == f"resp_{reply_of(stopped).call_id}"
    with Guard(policy=[on_output(lambda text: False)]) as guard:
        stopped = guard.wrap(client).responses.create(model="m", input="hello")
        assert (stopped.status, stopped.output_text) == ("incomplete", guard.policy.refusal)
        assert "hello" not in stopped.model_dump_json()
        assert stopped.usage.total_tokens == 16
        form = {"format": {"type": "json_object"}}
        stopped = guard.wrap(client).responses.create(model="m", input="hello", text=form)
        assert stopped.output_text == ""
        assert stopped.output[0].content[0].refusal == guard.policy.refusal


def test_parse_is_made_of_what_is_released(provider, client):
    provider.say = lambda body, index: '{"name": "Ann", "age": 5}'
    arguments = {"model": "m", "input": "hello", "text_format": Person}
    plain = client.responses.parse(**arguments)
    with Guard(policy=[lambda text: True]) as guard:
        wrapped = guard.wrap(client).responses.parse(**arguments)
    assert wrapped.model_dump(warnings=False) == plain.model_dump(warnings=False)
    assert wrapped.output_parsed == Person(name="Ann", age=5)
    with Guard(policy=[on_output(lambda text: Replace(content=text.replace("5", "50")))]) as guard:
        assert guard.wrap(client).responses.parse(**arguments).output_parsed.age == 50
    with Guard(policy=[on_output(lambda text: False)]) as guard:
        stopped = guard.wrap(client).responses.parse(**arguments)
        assert stopped.output_parsed is None
        assert stopped.status == "incomplete"


def test_tools_are_judged(provider, client):
    class Careful:
        @hookimpl
        def tool_call(self, tool_call: Any) -> Any:
            return Block("no") if tool_call.arguments["city"] == "Bern" else None

        @hookimpl
        def tool_result(self, tool_call: Any, result: Any) -> Any:
            return Block("no") if (tool_call.name, result.content) == ("weather", "evil") else None

    with Guard(policy=[check(Careful(), id="careful")]) as guard:
        wrapped = guard.wrap(client)
        stopped = wrapped.responses.create(model="m", input="use tools", tools=[TOOL])
        assert stopped.status == "incomplete"
        output = {"type": "function_call_output", "call_id": "c1"}
        wrapped.responses.create(model="m", input=[CALL, {**output, "output": "fine"}])
        items = [{"type": "input_text", "text": "evil"}]
        stopped = wrapped.responses.create(model="m", input=[CALL, {**output, "output": items}])
        assert stopped.status == "incomplete"
    assert len(provider.requests) == 2


def test_another_round_answers_the_calls_that_were_not_run(provider, client):
    class Once:
        @hookimpl
        def post_validate(self, candidate: Any) -> Any:
            calls = [part for part in candidate.content if isinstance(part, ToolCall)]
            return Retry(feedback="without tools") if calls else None

    with Guard(policy=[check(Once(), id="once")]) as guard:
        answer = guard.wrap(client).responses.create(model="m", input="use tools", tools=[TOOL])
        assert answer.output_text == "You said: without tools"
    assert provider.requests[1]["input"] == [
        {"role": "user", "content": "use tools"},
        {
            "type": "function_call",
            "call_id": "call_0",
            "name": "weather",
            "arguments": '{"city":"Bern","days":0}',
        },
        {"type": "function_call_output", "call_id": "call_0", "output": "This call was not run."},
        {"role": "user", "content": "without tools"},
    ]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([{"type": "input_file", "file_id": "f"}], "input[0]"),
        ([{"role": "user", "content": [{"type": "input_file"}]}], "input[0].content[0]"),
        ([{"type": "shell_call_output", "call_id": "c", "output": [{"x": 1}]}], "input[0].output"),
        ([{"role": "wizard", "content": "x"}], "input[0].role"),
        ([7], "input[0]"),
        (7, "input"),
    ],
)
def test_items_that_nobody_could_judge_are_refused_by_name(provider, client, given, named):
    with Guard() as guard:
        with pytest.raises(InputError) as caught:
            guard.wrap(client).responses.create(model="m", input=given)
        assert str(caught.value).startswith(named)
    assert provider.requests == []


def test_what_is_carried_is_sent_as_it_is(provider, client):
    given = [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]
    with Guard() as guard:
        guard.wrap(client, carry=("input_file",)).responses.create(model="m", input=given)
    assert provider.requests[0]["input"] == given


def test_an_answer_in_the_background_is_refused(provider, client):
    with Guard() as guard:
        with pytest.raises(InputError, match="background"):
            guard.wrap(client).responses.create(model="m", input="x", background=True)
        guard.wrap(client, allow=["responses.retrieve"]).responses.create(
            model="m", input="x", background=True
        )


def test_errors_and_answers_that_are_none(provider, client):
    from isonomy.sdk import BackendError

    provider.answer = lambda body: Raw(b'{"error": {"message": "slow down"}}', status=429)
    with Guard() as guard:
        with pytest.raises(openai.RateLimitError, match="slow down"):
            guard.wrap(client).responses.create(model="m", input="x")
        provider.answer = lambda body: {"error": {"message": "odd"}}
        with pytest.raises(BackendError, match="odd"):
            guard.wrap(client).responses.create(model="m", input="x")


def test_a_check_can_ask_the_same_model(provider, client):
    class Judge:
        @hookimpl
        def post_validate(self, candidate: Any, ctx: Any) -> Any:
            said = ctx.generate([{"role": "user", "content": "is it fine?"}]).text
            return None if said == "You said: is it fine?" else Block(said)

    with Guard(policy=[check(Judge(), id="judge")]) as guard:
        answer = guard.wrap(client).responses.create(model="m", input="hello", store=False)
        assert answer.output_text == "You said: hello"
    assert provider.requests[1] == {
        "model": "m",
        "store": False,
        "input": [{"role": "user", "content": "is it fine?"}],
    }


def test_keys_of_tools_on_other_servers_are_in_no_record(provider, client, tmp_path):
    tool = {
        "type": "mcp",
        "server_label": "shop",
        "server_url": "https://shop.example/mcp",
        "authorization": "token-0123456789-abcdef",
        "headers": {"x-key": "header-0123456789-abcdef"},
    }
    with Guard(log=tmp_path) as guard:
        guard.wrap(client).responses.create(model="m", input="hello", tools=[tool])
        list(guard.wrap(client).responses.create(model="m", input="hi", tools=[tool], stream=True))
    assert provider.requests[0]["tools"] == [tool]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"shop.example" in written
    for secret in (b"token-0123", b"header-0123", b"sk-0123456789abcdef"):
        assert secret not in written
