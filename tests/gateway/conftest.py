"""Gateways under real servers on the loopback: in a thread of the tests, or as a command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import msgspec
import openai
import pytest
import uvicorn

from isonomy.sdk import Guard
from isonomy.sdk.gateway import Keys, Settings, app
from isonomy.sdk.gateway.application import Gateway

ISONOMY = str(Path(sys.executable).parent / "isonomy")


class Served:
    """A gateway in a thread, with clients of its own."""

    def __init__(self, application: Any, **options: Any) -> None:
        self._listener = socket.socket(proto=socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(application, log_config=None, access_log=False, **options)
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, args=([self._listener],))
        self._thread.start()
        while not self.server.started:
            time.sleep(0.005)
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self._clients: list[Any] = []

    def openai(self, key: str = "none", **options: Any) -> openai.OpenAI:
        client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30, **options
        )
        self._clients.append(client)
        return client

    def ask(self, text: str = "Hello", headers: dict[str, str] | None = None, **more: Any) -> Any:
        body = {"model": "speaker", "messages": [{"role": "user", "content": text}], **more}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def raw(self, data: bytes, *, seconds: float = 10.0) -> bytes:
        """What a connection answers to these bytes, until it is closed or silent for too long."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(data)
            return received(connection)

    def close(self) -> None:
        for client in (self.http, *self._clients):
            client.close()
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._listener.close()


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    chunks = []
    try:
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    except (TimeoutError, ConnectionResetError):
        pass
    return b"".join(chunks)


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves a guard: `serve(guard, max_calls=..., keys={"id": "key"}, reviewers=...)`."""
    opened: list[Served] = []
    guards: list[Guard] = []

    def start(
        guard: Guard,
        *,
        keys: dict[str, str] | None = None,
        reviewers: dict[str, str] | None = None,
        only_local: bool = False,
        **settings: Any,
    ) -> Served:
        import hashlib

        def digested(given: dict[str, str] | None) -> Keys:
            return Keys({n: hashlib.sha256(k.encode()).digest() for n, k in (given or {}).items()})

        guards.append(guard)
        set_ = Settings(**settings)
        if only_local:
            application = Gateway(
                guard, set_, digested(keys), digested(reviewers), only_local=True
            ).application()
        else:
            application = app(guard, set_, keys=digested(keys), reviewers=digested(reviewers))
        served = Served(application)
        opened.append(served)
        return served

    yield start
    for served in opened:
        served.close()
    for guard in guards:
        guard.close()


class Process:
    """`isonomy serve`, as a process."""

    def __init__(self, folder: Path, *options: str, environment: dict[str, str]) -> None:
        (folder / "tmp").mkdir(exist_ok=True)
        self._errors = (folder / "serve.err").open("w+")
        self.process = subprocess.Popen(
            [ISONOMY, "serve", "isonomy.toml", "--port", "0", *options],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={**os.environ, "TMPDIR": str(folder / "tmp"), **environment},
        )
        self._path = folder / "serve.err"
        self.url = ""

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged; all of it is JSON."""
        text = self._path.read_text()
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def event(self, name: str, times: int = 1, seconds: float = 20.0) -> dict[str, Any]:
        """Wait until it has logged an event so often; the last of them."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [line for line in self.lines() if line["event"] == name]
            if len(found) >= times:
                return found[-1]
            time.sleep(0.02)
        raise AssertionError(f"no {name}: {self._path.read_text()}")

    def ready(self, workers: int = 1) -> None:
        self.event("ready", workers)
        self.url = self.event("listening")["url"].removesuffix("/v1")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._errors.close()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Runs `isonomy serve` on a configuration: `command(toml, "--workers", "2")`."""
    started: list[Process] = []

    def start(toml: str, *options: str, environment: dict[str, str] | None = None) -> Process:
        (tmp_path / "isonomy.toml").write_text(toml)
        process = Process(tmp_path, *options, environment=environment or {})
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()


def decoded(response: httpx.Response) -> Any:
    return msgspec.json.decode(response.content)
