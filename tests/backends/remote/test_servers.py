"""Servers that speak the format, each answering as its own code and documentation say."""

import json
from typing import Any

import msgspec
import pytest
from tests.backends.remote.conftest import Opened
from tests.backends.remote.serving import ASK, KEY, STREAM, Endpoint, content_of, sse, told

from isonomy.backends import OpenAI
from isonomy.backends.remote.servers import SERVERS
from isonomy.sdk import ConfigError, InputError, RemoteError
from isonomy.sdk.generation import Request, Sampling, Usage
from isonomy.sdk.vocabulary import Message, Reasoning, Text, ToolCall

SETTINGS = Sampling(
    temperature=0.5, top_k=4, min_p=0.1, repetition_penalty=1.1, max_tokens=9, seed=2**40 + 5
)
COMMON = {"temperature": 0.5, "max_tokens": 9}


@pytest.mark.parametrize(
    ("server", "settings", "sent"),
    [
        (
            "vllm",
            SETTINGS,
            {"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 2**40 + 5},
        ),
        ("llamacpp", SETTINGS, {"top_k": 4, "min_p": 0.1, "repeat_penalty": 1.1, "seed": 5}),
        (
            "lmstudio",
            msgspec.structs.replace(SETTINGS, min_p=None),
            {"top_k": 4, "repeat_penalty": 1.1, "seed": 5},
        ),
        ("ollama", Sampling(temperature=0.5, max_tokens=9, seed=2**40 + 5), {"seed": 5}),
    ],
)
def test_settings_go_by_the_servers_names(
    endpoint: Endpoint, opened: Opened, server: str, settings: Sampling, sent: Any
) -> None:
    backend = opened(server=server, api_key=None, environment={"OPENAI_API_KEY": KEY})
    backend.generate(Request(messages=ASK.messages, sampling=backend.resolve(settings)))
    _, headers, body = endpoint.requests[0]
    assert {k: v for k, v in body.items() if k not in ("model", "messages")} == COMMON | sent
    assert "authorization" not in headers  # a key of OpenAI's is not for it
    assert backend.identity().options == {"base_url": endpoint.url, "server": server}


@pytest.mark.parametrize("server", SERVERS)
def test_where_they_listen(server: str) -> None:
    backend = OpenAI("m", server=server, environment={"OPENAI_BASE_URL": "http://elsewhere/v1"})
    base_url = backend.identity().options["base_url"]
    assert base_url == SERVERS[server].base_url
    assert base_url.startswith("http://localhost:")


def test_what_a_server_does_not_have_is_refused(opened: Opened) -> None:
    with pytest.raises(InputError, match="no top_k"):
        opened(server="ollama").resolve(Sampling(top_k=3))
    with pytest.raises(InputError, match="no min_p"):
        opened(server="lmstudio").resolve(Sampling(min_p=0.1))
    with pytest.raises(ConfigError, match=r"no server 'olama'. Did you mean 'ollama'"):
        opened(server="olama")


def chunks(common: dict[str, Any], *choices: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**common, "choices": [{"index": 0, **choice}]} for choice in choices]


CALL = {"name": "get_weather", "arguments": '{"city":"Paris"}'}

VLLM = {"id": "chatcmpl-7c", "object": "chat.completion.chunk", "created": 1, "model": "qwen3"}
VLLM_USAGE = {"prompt_tokens": 11, "total_tokens": 20, "completion_tokens": 9}
VLLM_STREAM = [
    *chunks(
        VLLM,
        {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None},
        {"delta": {"reasoning_content": "The user"}, "logprobs": None, "finish_reason": None},
        {"delta": {"reasoning_content": " asks."}, "logprobs": None, "finish_reason": None},
        {"delta": {"content": "Let me look."}, "logprobs": None, "finish_reason": None},
        {
            "delta": {
                "tool_calls": [
                    {"id": "chatcmpl-tool-1", "type": "function", "index": 0,
                     "function": {"name": "get_weather"}}
                ]
            },
            "finish_reason": None,
        },
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]}},
        {"delta": {"content": ""}, "finish_reason": "tool_calls", "stop_reason": None},
    ),
    {**VLLM, "choices": [], "usage": VLLM_USAGE},
]  # fmt: skip
VLLM_WHOLE = {
    **VLLM,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "reasoning_content": "The user asks.",
                "content": "Let me look.",
                "tool_calls": [{"id": "chatcmpl-tool-1", "type": "function", "function": CALL}],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
            "stop_reason": None,
        }
    ],
    "usage": VLLM_USAGE | {"prompt_tokens_details": None},
    "prompt_logprobs": None,
    "kv_transfer_params": None,
}

OLLAMA = {
    "id": "chatcmpl-881",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "qwen3",
    "system_fingerprint": "fp_ollama",
}
OLLAMA_STREAM = [
    *chunks(
        OLLAMA,
        {"delta": {"role": "assistant", "content": "", "reasoning": "The user"},
         "finish_reason": None},
        {"delta": {"role": "assistant", "content": "", "reasoning": " asks."},
         "finish_reason": None},
        {"delta": {"role": "assistant", "content": "Let me"}, "finish_reason": None},
        {"delta": {"role": "assistant", "content": " look."}, "finish_reason": None},
        # Calls come whole, all with the index 0 in older versions.
        {
            "delta": {
                "role": "assistant", "content": "",
                "tool_calls": [{"id": "call_a", "index": 0, "type": "function", "function": CALL}],
            },
            "finish_reason": None,
        },
        {
            "delta": {
                "role": "assistant", "content": "",
                "tool_calls": [{"id": "call_b", "index": 0, "type": "function", "function": CALL}],
            },
            "finish_reason": None,
        },
        {"delta": {"role": "assistant", "content": ""}, "finish_reason": "tool_calls"},
    ),
    {**OLLAMA, "choices": [], "usage": VLLM_USAGE},
]  # fmt: skip
OLLAMA_WHOLE = {
    **OLLAMA,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Let me look.",
                "reasoning": "The user asks.",
                "tool_calls": [
                    {"id": "call_a", "index": 0, "type": "function", "function": CALL},
                    {"id": "call_b", "index": 1, "type": "function", "function": CALL},
                ],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": VLLM_USAGE,
}

LLAMACPP = {
    "id": "chatcmpl-Zx",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "qwen3.gguf",
    "system_fingerprint": "b6000-abc",
}
LLAMACPP_STREAM = [
    *chunks(
        LLAMACPP,
        {"finish_reason": None, "delta": {"role": "assistant", "content": None}},
        {"finish_reason": None, "delta": {"reasoning_content": "The user asks."}},
        {"finish_reason": None, "delta": {"content": "Let me look."}},
        {
            "finish_reason": None,
            "delta": {
                "tool_calls": [
                    {"index": 0, "id": "x1", "type": "function",
                     "function": {"name": "get_weather", "arguments": '{"city"'}}
                ]
            },
        },
        {
            "finish_reason": None,
            "delta": {"tool_calls": [{"index": 0, "function": {"arguments": ':"Paris"}'}}]},
        },
        {"finish_reason": "tool_calls", "delta": {}},
    ),
    {
        **LLAMACPP,
        "choices": [],
        "usage": VLLM_USAGE,
        "timings": {"prompt_n": 11, "predicted_per_second": 55.5},
    },
]  # fmt: skip
LLAMACPP_WHOLE = {
    **LLAMACPP,
    "object": "chat.completion",
    "choices": [
        {
            "finish_reason": "tool_calls",
            "index": 0,
            "message": {
                "role": "assistant",
                "reasoning_content": "The user asks.",
                "content": "Let me look.",
                "tool_calls": [{"type": "function", "function": CALL, "id": "x1"}],
            },
        }
    ],
    "usage": VLLM_USAGE,
    "timings": {"prompt_n": 11},
}

LMSTUDIO = {
    "id": "chatcmpl-q1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "qwen3",
    "system_fingerprint": "qwen3",
}
LMSTUDIO_STREAM = [
    *chunks(
        LMSTUDIO,
        {"delta": {"role": "assistant", "reasoning_content": "The user asks."}, "logprobs": None,
         "finish_reason": None},
        {"delta": {"role": "assistant", "content": "Let me look."}, "logprobs": None,
         "finish_reason": None},
        {
            "delta": {
                "tool_calls": [
                    {"index": 0, "id": "36512", "type": "function",
                     "function": {"name": "get_weather", "arguments": ""}}
                ]
            },
            "logprobs": None,
            "finish_reason": None,
        },
        {
            "delta": {
                "tool_calls": [
                    {"index": 0, "type": "function", "function": {"name": None, "arguments": part}}
                    for part in ('{"city"', ':"Paris"}')
                ]
            },
            "logprobs": None,
            "finish_reason": None,
        },
        {"delta": {}, "logprobs": None, "finish_reason": "tool_calls"},
    ),
    {**LMSTUDIO, "choices": [], "usage": VLLM_USAGE},
]  # fmt: skip
LMSTUDIO_WHOLE = {
    **LMSTUDIO,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "logprobs": None,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": "Let me look.",
                "reasoning_content": "The user asks.",
                "tool_calls": [{"type": "function", "id": "36512", "function": CALL}],
            },
        }
    ],
    "usage": VLLM_USAGE,
    "stats": {},
}

ANSWERS = {
    "vllm": (VLLM_STREAM, VLLM_WHOLE, ["chatcmpl-tool-1"]),
    "ollama": (OLLAMA_STREAM, OLLAMA_WHOLE, ["call_a", "call_b"]),
    "llamacpp": (LLAMACPP_STREAM, LLAMACPP_WHOLE, ["x1"]),
    "lmstudio": (LMSTUDIO_STREAM, LMSTUDIO_WHOLE, ["36512"]),
}


@pytest.mark.parametrize("server", SERVERS)
def test_reasoning_text_and_tool_calls(endpoint: Endpoint, opened: Opened, server: str) -> None:
    stream, whole, ids = ANSWERS[server]
    backend = opened(server=server)
    endpoint.answers((200, STREAM, sse(*stream)))
    streamed, pieces = told(backend)
    assert "".join(pieces) == "Let me look."
    assert streamed.content == (
        Reasoning("The user asks."),
        Text("Let me look."),
        *(ToolCall(id, "get_weather", {"city": "Paris"}) for id in ids),
    )
    assert streamed.usage == Usage(11, 9)
    assert streamed.finish_reason == "tool_calls"
    endpoint.answers(whole)
    plain = backend.generate(ASK)
    assert content_of(plain) == content_of(streamed)
    fingerprint = whole.get("system_fingerprint")
    assert plain.runtime.get("system_fingerprint") == fingerprint
    assert streamed.runtime.get("system_fingerprint") == fingerprint
    # What it said comes back to it as it said it.
    again = Request(messages=(*ASK.messages, Message("assistant", plain.content)))
    opened(server=server, send_reasoning=True).generate(again)
    sent = endpoint.requests[-1][2]["messages"][1]
    assert sent["reasoning_content"] == "The user asks."
    assert [json.loads(c["function"]["arguments"]) for c in sent["tool_calls"]] == [
        {"city": "Paris"}
    ] * len(ids)
    backend.generate(again)
    assert "reasoning_content" not in endpoint.requests[-1][2]["messages"][1]


@pytest.mark.parametrize(
    ("server", "answer", "said", "outcome"),
    [
        ("vllm", (404, {}, {"object": "error", "message": "The model `x` does not exist.",
                            "type": "NotFoundError", "param": None, "code": 404}),
         "status 404: The model `x` does not exist", "refused"),
        ("vllm", (400, {}, {"error": {"message": "too long", "type": "BadRequestError",
                                      "param": None, "code": 400}}),
         "status 400: too long", "refused"),
        ("vllm", (400, {}, {"error": {"message": "The maximum context length is 64 tokens.",
                                      "type": "BadRequestError", "param": None, "code": 400}}),
         "status 400: The maximum context length.*larger context", "context"),
        ("vllm", (400, {}, {"error": {"message": "no", "code": "context_length_exceeded"}}),
         "status 400: no.*larger context", "context"),
        ("llamacpp", (400, {}, {"error": {"code": 400, "message": "it does not fit",
                                          "type": "exceed_context_size_error"}}),
         "status 400: it does not fit", "context"),
        ("vllm", (422, {}, {"detail": [{"loc": ["body"], "msg": "field required"}]}),
         "status 422: .*field required", "refused"),
        ("vllm", (200, STREAM, sse({"error": {"message": "EngineDeadError", "code": 500}})),
         "told of an error: EngineDeadError", "failed"),
        ("ollama", (404, {}, {"error": {"message": "model 'x' not found", "param": None,
                                        "type": "not_found_error", "code": None}}),
         "status 404: model 'x' not found", "refused"),
        ("llamacpp", (503, {}, {"error": {"code": 503, "message": "Loading model",
                                          "type": "unavailable_error"}}),
         "status 503: Loading model", "failed"),
        ("llamacpp", (200, STREAM, b'error: {"code":500,"message":"slot failed"}\n\n'),
         "told of an error: .*slot failed", "failed"),
        ("lmstudio", (404, {}, {"error": "Model not loaded"}),
         "status 404: Model not loaded", "refused"),
        ("lmstudio", (200, STREAM, sse({"error": "Model unloaded."}, name="error", done=False)),
         "told of an error: Model unloaded", "failed"),
    ],
)  # fmt: skip
def test_their_errors(
    endpoint: Endpoint, opened: Opened, server: str, answer: Any, said: str, outcome: str
) -> None:
    endpoint.answers(answer)
    with pytest.raises(RemoteError, match=said) as caught:
        opened(server=server, max_attempts=2).generate(ASK, on_text=lambda _: None)
    tries = 1 if outcome in ("refused", "context") else 2
    assert [a.outcome for a in caught.value.attempts] == [outcome] * tries


def test_a_model_that_is_still_loading(endpoint: Endpoint, opened: Opened) -> None:
    loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    endpoint.answers((503, {}, loading), (200, STREAM, sse(*LLAMACPP_STREAM)))
    generation = opened(server="llamacpp").generate(ASK, on_text=lambda _: None)
    assert [a.outcome for a in generation.attempts] == ["failed", "ok"]


def scored(*tokens: tuple[str, float]) -> dict[str, Any]:
    top = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in tokens]
    return {
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": tokens[0][0]},
                "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
                "finish_reason": "length",
            }
        ],
    }


def test_log_probabilities_of_labels(endpoint: Endpoint, opened: Opened) -> None:
    backend = opened()
    endpoint.answers(scored(("A", -0.1), ("B", -2.5), ("C", -9999.0), ("A", -7.0)))
    asked = Request(messages=ASK.messages, sampling=Sampling(temperature=0.9), extra={"user": "u"})
    assert backend.logprobs(asked, ("B", "A", "C")) == (-2.5, -0.1, -9999.0)
    body = endpoint.requests[0][2]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)
    assert body["user"] == "u"
    assert "temperature" not in body


def test_log_probabilities_that_nobody_tells(endpoint: Endpoint, opened: Opened) -> None:
    from isonomy.sdk import BackendError
    from isonomy.sdk.generation import Scorer

    backend = opened()
    assert isinstance(backend, Scorer)
    endpoint.answers(scored(("A", -0.1)))
    with pytest.raises(BackendError, match="no log-probability of 'two words'"):
        backend.logprobs(ASK, ("A", "two words"))
    with pytest.raises(BackendError, match="must not be empty"):
        backend.logprobs(ASK, ("A", ""))
    for answer in (
        {"choices": [{"message": {"content": "A"}, "logprobs": None}]},
        {"choices": [{"message": {"content": "A"}}]},
        {"choices": [{"message": {"content": "A"}, "logprobs": {"content": []}}]},
    ):
        endpoint.answers(answer)
        with pytest.raises(BackendError, match="no log-probability at all"):
            backend.logprobs(ASK, ("A",))
    endpoint.answers({"choices": [{"message": {"content": "A"}, "logprobs": {"content": 3}}]})
    with pytest.raises(BackendError, match="in another shape"):
        backend.logprobs(ASK, ("A",))
    endpoint.answers((400, {}, {"error": {"message": "logprobs are not supported"}}))
    with pytest.raises(RemoteError, match="logprobs are not supported"):
        backend.logprobs(ASK, ("A",))
