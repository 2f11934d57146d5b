"""A real HTTP server on the loopback that answers as a script says."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


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


class Endpoint:
    """Serves scripted answers, one a request, the last one for ever; keeps what it was sent."""

    def __init__(self) -> None:
        self.script: list[tuple[int, dict[str, str], Any]] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.hang = 0.0
        self.drip = 0.0
        self.connections: set[Any] = set()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                headers = {name.lower(): value for name, value in self.headers.items()}
                endpoint.requests.append((self.path, headers, json.loads(self.rfile.read(length))))
                endpoint.connections.add(self.client_address)
                time.sleep(endpoint.hang)
                status, extra, body = endpoint.script[0]
                if len(endpoint.script) > 1:
                    endpoint.script.pop(0)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
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

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

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
        """Set the script: bodies, or (status, headers, body)."""
        self.script = [s if isinstance(s, tuple) else (200, {}, s) for s in script]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    served.answers(completion())
    yield served
    served.close()


@pytest.fixture
def completed() -> Any:
    return completion
