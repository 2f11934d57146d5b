"""What the provider of openai_server.py answers to the responses API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .openai_server import CUT, calls_for, last_text

Say = Callable[[dict[str, Any], int], str]


def output(body: dict[str, Any], say: Say) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if "think" in last_text(body):
        summary = [{"type": "summary_text", "text": f"They want: {last_text(body)}"}]
        items.append(
            {"id": "rs_1", "type": "reasoning", "summary": summary, "encrypted_content": "gAAA"}
        )
    if "search" in last_text(body):
        action = {"type": "search", "query": "bern"}
        items.append(
            {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": action}
        )
    calls = calls_for(body)
    for call in calls:
        function = call["function"]
        items.append(
            {
                "id": f"fc_{call['id']}",
                "type": "function_call",
                "status": "completed",
                "call_id": call["id"],
                "name": function["name"],
                "arguments": function["arguments"],
            }
        )
    if not calls:
        part = {"type": "output_text", "text": say(body, 0), "annotations": [], "logprobs": []}
        items.append(
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        )
    return items


def frame(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1700000000,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "model": f"{body['model']}-2026",
        "output": [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": body.get("tools") or [],
        "top_p": 1.0,
        "usage": None,
    }


def response(body: dict[str, Any], say: Say) -> dict[str, Any]:
    usage = {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 16,
    }
    return {**frame(body), "status": "completed", "output": output(body, say), "usage": usage}


def events(body: dict[str, Any], say: Say) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def emit(type: str, **fields: Any) -> None:
        made.append({"type": f"response.{type}", "sequence_number": len(made), **fields})

    emit("created", response=frame(body))
    emit("in_progress", response=frame(body))
    for place, item in enumerate(output(body, say)):
        at = {"output_index": place, "item_id": item["id"]}
        if item["type"] == "message":
            part = item["content"][0]
            opening = {**item, "status": "in_progress", "content": []}
            emit("output_item.added", output_index=place, item=opening)
            emit("content_part.added", **at, content_index=0, part={**part, "text": ""})
            for start in range(0, len(part["text"]), CUT[0]):
                piece = part["text"][start : start + CUT[0]]
                emit("output_text.delta", **at, content_index=0, delta=piece, logprobs=[])
            emit("output_text.done", **at, content_index=0, text=part["text"], logprobs=[])
            emit("content_part.done", **at, content_index=0, part=part)
        elif item["type"] == "function_call":
            emit("output_item.added", output_index=place, item={**item, "arguments": ""})
            written = item["arguments"]
            for piece in (written[:5], written[5:]):
                emit("function_call_arguments.delta", **at, delta=piece)
            emit("function_call_arguments.done", **at, name=item["name"], arguments=written)
        elif item["type"] == "reasoning":
            emit("output_item.added", output_index=place, item={**item, "summary": []})
            emit(
                "reasoning_summary_text.delta",
                **at,
                summary_index=0,
                delta=item["summary"][0]["text"],
            )
        else:
            emit("output_item.added", output_index=place, item=item)
        emit("output_item.done", output_index=place, item=item)
    emit("completed", response=response(body, say))
    return json.loads(json.dumps(made))
