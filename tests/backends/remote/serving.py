"""A real HTTP server on the loopback that answers as a script says, and ways to ask it."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from isonomy.sdk.generation import Generation, Request, Sampling
from isonomy.sdk.vocabulary import Message

KEY = "sk-very-secret-1234567890"
ASK = Request(messages=(Message.of("user", "Hi"),), sampling=Sampling(seed=7))
EVIDENCE: dict[str, Any] = {"timings": {}, "attempts": (), "runtime": {}, "raw": None}


def completion(
    content: Any = "Hello!", *, finish_reason: str = "stop", **message: Any
) -> dict[str, Any]:
    """The body of a successful answer."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "small-2026",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **message},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
    }


def sse(*data: Any, done: bool = True, name: str = "") -> bytes:
    """Server-sent events as OpenAI's servers write them; data that is no bytes is JSON."""
    event = f"event: {name}\n".encode() if name else b""
    lines = [d if isinstance(d, bytes) else json.dumps(d).encode() for d in data]
    return b"".join(event + b"data: " + line + b"\n\n" for line in lines) + (
        b"data: [DONE]\n\n" if done else b""
    )


def chunk(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk of a streamed answer."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "small-2026",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


def streamed(*pieces: str) -> list[Any]:
    """The chunks of an answer with these pieces of text, and its token counts."""
    return [
        chunk(role="assistant", content=""),
        *(chunk(content=piece) for piece in pieces),
        chunk("stop"),
        {**chunk(), "choices": [], "usage": USAGE},
    ]


STREAM = {"content-type": "text/event-stream; charset=utf-8"}
CUT = None
"""In a body that is a list: break the connection."""


class Endpoint:
    """Serves scripted answers, one a request, the last one for ever; keeps what it was sent.

    A body that is a function is called with the request. One that is an iterable of bytes, numbers
    (seconds to wait) and `CUT` is sent bit by bit, in HTTP's chunks. `gone` is set when a client
    went away before the end.
    """

    def __init__(self) -> None:
        self.script: list[tuple[int, dict[str, str], Any]] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.hang = 0.0
        self.drip = 0.0
        self.connections: set[Any] = set()
        self.gone = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = json.loads(self.rfile.read(length))
                endpoint.requests.append((self.path, headers, asked))
                endpoint.connections.add(self.client_address)
                time.sleep(endpoint.hang)
                status, extra, body = endpoint.script[0]
                if len(endpoint.script) > 1:
                    endpoint.script.pop(0)
                if callable(body):
                    body = body(asked)
                self.send_response(status)
                if isinstance(body, list | Iterator):
                    self.bit_by_bit(extra, body)
                    return
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                for name, value in {"content-type": "application/json", **extra}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                try:
                    for i in range(len(data)) if endpoint.drip else ():
                        self.wfile.write(data[i : i + 1])
                        time.sleep(endpoint.drip)
                    if not endpoint.drip:
                        self.wfile.write(data)
                except OSError:
                    self.close_connection = True

            def bit_by_bit(self, headers: dict[str, str], body: Any) -> None:
                for name, value in {**STREAM, **headers}.items():
                    self.send_header(name, value)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                try:
                    for bit in [*body, b""] if isinstance(body, list) else body:
                        if bit is CUT:
                            self.close_connection = True
                            return
                        if isinstance(bit, float):
                            time.sleep(bit)
                            continue
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(bit), bit))
                        self.wfile.flush()
                except OSError:
                    self.close_connection = True
                    endpoint.gone.set()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def answers(self, *script: Any) -> None:
        """Set the script: bodies, or (status, headers, body); a list is sent bit by bit."""
        self.script = [s if isinstance(s, tuple) else (200, {}, s) for s in script]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def told(backend: Any, request: Request = ASK) -> tuple[Generation, list[str]]:
    """Ask with `on_text` in both ways, see that they agree, and return answer and pieces."""
    pieces: list[str] = []
    apieces: list[str] = []
    plain = backend.generate(request, on_text=pieces.append)
    other = asyncio.run(backend.agenerate(request, on_text=apieces.append))
    assert content_of(plain) == content_of(other)
    assert "".join(pieces) == "".join(apieces) == plain.text
    return plain, pieces


def content_of(generation: Generation) -> Generation:
    """Return a generation without its evidence."""
    return msgspec.structs.replace(generation, **EVIDENCE)
