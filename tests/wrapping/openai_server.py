"""A provider on the loopback that speaks chat completions and responses, and keeps what it got.

What it answers follows from the request alone, so that two clients that ask the same get the same,
unless a test puts something else in its place (`Provider.say`, `Provider.answer`).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

CUT = [7]
"""Into pieces of how many characters a stream cuts its text."""


class Raw(Exception):
    """Answer with exactly this; `pieces` may hold numbers: seconds to wait."""

    def __init__(
        self, *pieces: bytes | float, status: int = 200, type: str = "application/json"
    ) -> None:
        self.pieces, self.status, self.type = pieces, status, type


class Cut(Exception):
    """Answer so many bytes of what would be said, then break the connection."""

    def __init__(self, after: int) -> None:
        self.after = after


def last_text(body: dict[str, Any]) -> str:
    """What the user said last."""
    items = body.get("messages", body.get("input"))
    if isinstance(items, str):
        return items
    for item in reversed(items or []):
        if item.get("role") == "user":
            content = item["content"]
            if isinstance(content, str):
                return content
            return "".join(part.get("text", "") for part in content)
    return ""


def spoken(body: dict[str, Any], index: int = 0) -> str:
    """The default answer: it repeats the question, so that nobody's answers can be mixed up."""
    more = f" ({index})" if index else ""
    return f"You said: {last_text(body)}{more}"


def calls_for(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A call of every tool that is offered, where the user asks for them."""
    if "use tools" not in last_text(body):
        return []
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {
                "name": tool.get("function", tool)["name"],
                "arguments": json.dumps({"city": "Bern", "days": number}),
            },
        }
        for number, tool in enumerate(body.get("tools", []))
    ]


def logprobs_for(text: str) -> dict[str, Any]:
    return {
        "content": [
            {"token": word, "bytes": None, "logprob": -0.5, "top_logprobs": []}
            for word in text.split(" ")
        ],
        "refusal": None,
    }


def completion(body: dict[str, Any], say: Callable[[dict[str, Any], int], str]) -> dict[str, Any]:
    choices = []
    for index in range(body.get("n") or 1):
        text, calls = say(body, index), calls_for(body)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": None, "tool_calls": calls}
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": logprobs_for(text) if body.get("logprobs") else None,
                "finish_reason": "tool_calls" if calls else "stop",
            }
        )
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": f"{body['model']}-2026",
        "service_tier": "default",
        "system_fingerprint": "fp_1",
        "choices": choices,
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 5,
            "total_tokens": 16,
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }


def chunks(body: dict[str, Any], say: Callable[[dict[str, Any], int], str]) -> list[dict[str, Any]]:
    whole = completion(body, say)
    frame = {name: whole[name] for name in ("id", "created", "model", "system_fingerprint")}
    frame |= {"object": "chat.completion.chunk", "usage": None}

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> Any:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**frame, "choices": [choice | more]}

    per_choice = []
    for choice in whole["choices"]:
        index, message = choice["index"], choice["message"]
        said = [chunk(index, {"role": "assistant", "content": "", "refusal": None})]
        text = message["content"] or ""
        for start in range(0, len(text), CUT[0]):
            piece = text[start : start + CUT[0]]
            more = {"logprobs": logprobs_for(piece)} if choice["logprobs"] else {}
            said.append(chunk(index, {"content": piece}, **more))
        for number, call in enumerate(message.get("tool_calls", [])):
            arguments = call["function"]["arguments"]
            opening = {**call, "function": {**call["function"], "arguments": ""}}
            said.append(chunk(index, {"tool_calls": [{"index": number, **opening}]}))
            said += [
                chunk(
                    index,
                    {"tool_calls": [{"index": number, "function": {"arguments": piece}}]},
                )
                for piece in (arguments[:5], arguments[5:])
            ]
        said.append(chunk(index, {}, choice["finish_reason"]))
        per_choice.append(said)
    longest = max(len(said) for said in per_choice)
    mixed = [said[turn] for turn in range(longest) for said in per_choice if turn < len(said)]
    if (body.get("stream_options") or {}).get("include_usage"):
        mixed.append({**frame, "choices": [], "usage": whole["usage"]})
    return mixed


class Provider:
    """The server and what it was sent."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.say: Callable[[dict[str, Any], int], str] = spoken
        self.answer: Callable[[dict[str, Any]], Any] | None = None
        """Called with each request's body: a JSON answer, `Raw`, `Cut`, or `None` for the usual."""
        self.pause = 0.0
        """Seconds between the events of a stream."""
        self.sent = 0
        """Events that were sent in streams."""
        routes = [
            Route(f"/v1/{path}", self._serve, methods=["POST", "GET", "DELETE"])
            for path in ("chat/completions", "responses", "embeddings", "models", "{rest:path}")
        ]
        azure = "/openai/deployments/{model}/chat/completions"
        routes.append(Route(azure, self._serve, methods=["POST"]))
        config = uvicorn.Config(
            Starlette(routes=routes), host="127.0.0.1", port=0, log_level="critical", ws="none"
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.origin = f"http://127.0.0.1:{port}"
        self.url = f"{self.origin}/v1"

    async def _serve(self, request: Request) -> Response:
        raw = await request.body()
        body = json.loads(raw) if raw else {}
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.paths.append(f"{request.method} {request.url.path}")
        headers = {"x-request-id": f"req_{len(raw)}"}
        path = request.url.path
        answer = self.answer(body) if self.answer is not None else None
        if isinstance(answer, Raw):

            async def pieces() -> Any:
                for piece in answer.pieces:
                    if isinstance(piece, bytes):
                        yield piece
                    else:
                        await asyncio.sleep(piece)

            return StreamingResponse(
                pieces(), status_code=answer.status, headers=headers, media_type=answer.type
            )
        if isinstance(answer, dict):
            return JSONResponse(answer, headers=headers)
        if path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            return JSONResponse({"object": "list", "data": data, "model": "e"})
        if path.endswith("/chat/completions") and request.method == "GET":
            return JSONResponse({"object": "list", "data": []})
        if path.endswith("/models"):
            data = [{"id": "m", "object": "model", "created": 1, "owned_by": "us"}]
            return JSONResponse({"object": "list", "data": data})
        if not path.endswith(("/chat/completions", "/responses")) or request.method != "POST":
            return JSONResponse({"error": {"message": "no such thing"}}, status_code=404)
        responses = path.endswith("/responses")
        if not body.get("stream"):
            if responses:
                from .openai_responses_server import response

                return JSONResponse(response(body, self.say), headers=headers)
            return JSONResponse(completion(body, self.say), headers=headers)
        if responses:
            from .openai_responses_server import events

            lines = [
                f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events(body, self.say)
            ]
        else:
            lines = [f"data: {json.dumps(c)}\n\n" for c in chunks(body, self.say)]
            lines.append("data: [DONE]\n\n")
        cut = answer if isinstance(answer, Cut) else None

        async def streamed() -> Any:
            count = 0
            for line in lines:
                if self.pause:
                    await asyncio.sleep(self.pause)
                data = line.encode()
                if cut is not None and count + len(data) > cut.after:
                    yield data[: cut.after - count]
                    raise ConnectionResetError  # without the last chunk of the encoding
                count += len(data)
                self.sent += 1
                yield data

        return StreamingResponse(streamed(), headers=headers, media_type="text/event-stream")

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()
