"""A server on the loopback that speaks Anthropic's messages API, streams of events included."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic

Block = dict[str, Any]


def opened(server: Server, **settings: Any) -> anthropic.Anthropic:
    """A client of the server; without certificates, which take long to load."""
    settings = {"api_key": "key-123", "base_url": server.url, "max_retries": 0, **settings}
    http = anthropic.DefaultHttpxClient(verify=False)
    return anthropic.Anthropic(http_client=http, **settings)


def asynchronously(
    server: Server, use: Callable[[anthropic.AsyncAnthropic], Any], **settings: Any
) -> Any:
    """Use an async client of the server in a loop of its own."""

    async def used() -> Any:
        given = {"api_key": "key-123", "base_url": server.url, "max_retries": 0, **settings}
        http = anthropic.DefaultAsyncHttpxClient(verify=False)
        async with anthropic.AsyncAnthropic(http_client=http, **given) as client:
            return await use(client)

    return asyncio.run(used())


def said(text: str) -> list[Block]:
    """Messages of one of a user's."""
    return [{"role": "user", "content": text}]


def message(*blocks: Block | str, stop_reason: str = "end_turn", **fields: Any) -> Block:
    """The body of an answer; a string is a block of text."""
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-small",
        "content": [
            {"type": "text", "text": block} if isinstance(block, str) else block for block in blocks
        ],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 12,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 5,
            "output_tokens": 7,
        },
        **fields,
    }


def failure(kind: str, said: str = "no") -> Block:
    """The body of an error."""
    return {"type": "error", "error": {"type": kind, "message": said}, "request_id": "req_011"}


def pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)] or [""]


def events(body: Block, size: int = 7) -> list[Block]:
    """The events that stream an answer, its texts in pieces of `size` characters."""
    started = {**body, "content": [], "stop_reason": None}
    started["usage"] = {**body["usage"], "output_tokens": 1}
    made: list[Block] = [{"type": "message_start", "message": started}, {"type": "ping"}]
    for index, block in enumerate(body["content"]):
        empty, deltas = dict(block), []
        if block["type"] == "text":
            empty["text"] = ""
            empty.pop("citations", None)
            deltas = [{"type": "text_delta", "text": t} for t in pieces(block["text"], size)]
            for citation in block.get("citations") or ():
                empty["citations"] = []
                deltas.append({"type": "citations_delta", "citation": citation})
        elif block["type"] == "thinking":
            empty.update(thinking="", signature="")
            deltas = [
                {"type": "thinking_delta", "thinking": t} for t in pieces(block["thinking"], size)
            ]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif block["type"] in ("tool_use", "server_tool_use"):
            empty["input"] = {}
            written = block["input"]
            if not isinstance(written, str):
                written = json.dumps(written)
            deltas = [{"type": "input_json_delta", "partial_json": t} for t in pieces(written, 5)]
        made.append({"type": "content_block_start", "index": index, "content_block": empty})
        made += [{"type": "content_block_delta", "index": index, "delta": d} for d in deltas]
        made.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": body["stop_reason"], "stop_sequence": body["stop_sequence"]}
    usage = {"output_tokens": body["usage"]["output_tokens"]}
    made.append({"type": "message_delta", "delta": delta, "usage": usage})
    made.append({"type": "message_stop"})
    return made


def encoded(event: Block) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


class Server:
    """Answers requests by `answer`; keeps what it was sent.

    `answer` takes a request's body and returns an answer's body, or a status and an error's body,
    or (for a stream) the pieces of bytes to send; an exception as a piece cuts the connection, a
    number is a pause in seconds.
    """

    def __init__(self) -> None:
        self.answer: Callable[[Block], Any] = lambda body: message("Hello, world.")
        self.requests: list[tuple[str, dict[str, str], Block]] = []
        self.headers: dict[str, str] = {}
        self.gone = threading.Event()
        self.release = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                server._models(self)

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = json.loads(self.rfile.read(length))
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.requests.append((self.path, headers, body))
                server._serve(self, body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def bodies(self) -> list[Block]:
        return [body for _, _, body in self.requests]

    def _models(self, handler: Any) -> None:
        model = {"type": "model", "id": "claude-small", "display_name": "Small"}
        model["created_at"] = "2026-01-01T00:00:00Z"
        listed = {"data": [model], "has_more": False, "first_id": None, "last_id": None}
        self._json(handler, 200, listed)

    def _serve(self, handler: Any, body: Block) -> None:
        if handler.path.endswith("/count_tokens"):
            self._json(handler, 200, {"input_tokens": 3})
            return
        answered = self.answer(body)
        if isinstance(answered, tuple):
            self._json(handler, *answered)
        elif isinstance(answered, bytes):
            self._bytes(handler, 200, answered)
        elif isinstance(answered, dict) and not body.get("stream"):
            self._json(handler, 200, answered)
        else:
            if isinstance(answered, dict):
                answered = [encoded(event) for event in events(answered)]
            self._stream(handler, answered)

    def _json(self, handler: Any, status: int, body: Any) -> None:
        self._bytes(handler, status, json.dumps(body).encode())

    def _bytes(self, handler: Any, status: int, data: bytes) -> None:
        handler.send_response(status)
        headers = {"content-type": "application/json", "request-id": "req_011", **self.headers}
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _stream(self, handler: Any, sent: list[Any]) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream; charset=utf-8")
        handler.send_header("request-id", "req_011")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        try:
            for piece in sent:
                if isinstance(piece, Exception):
                    handler.close_connection = True
                    handler.connection.shutdown(2)
                    return
                if isinstance(piece, threading.Event):
                    piece.wait(10)
                elif isinstance(piece, int | float):
                    time.sleep(piece)
                else:
                    handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    handler.wfile.flush()
            handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.gone.set()
            handler.close_connection = True

    def close(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
