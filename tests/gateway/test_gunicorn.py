"""Guards and the gateway under gunicorn: forked workers lose no record."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

PROGRAM = """
import json
from isonomy.sdk import Guard, Replace, on_output
from isonomy.sdk.gateway import app

def named(text):
    return Replace(f"{text} ({text.rpartition(' ')[2]})")

guard = Guard(
    lambda messages: f"You said: {messages[-1]['content']}",
    policy=[on_output(named)],
    log="audit",
)
gateway = app(guard)

def application(environ, start_response):
    asked = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
    reply = guard.chat(asked)
    start_response("200 OK", [("content-type", "application/json")])
    return [json.dumps({"call_id": reply.call_id, "text": reply.text}).encode()]
"""


class Gunicorn:
    """A gunicorn with two forked workers; the program is loaded before the fork."""

    def __init__(self, folder: Path, target: str, *options: str) -> None:
        (folder / "program.py").write_text(PROGRAM)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.errors = (folder / "gunicorn.err").open("w+")
        command = [
            sys.executable,
            "-m",
            "gunicorn",
            "--preload",
            "--workers",
            "2",
            "--no-control-socket",
        ]
        self.process = subprocess.Popen(
            [*command, "--bind", f"127.0.0.1:{port}", *options, target],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            env={**os.environ, "PYTHONWARNINGS": "default"},
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                httpx.post(f"{self.url}/v1/nothing", content=b"ready?", timeout=5)
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError((folder / "gunicorn.err").read_text())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        self.errors.close()


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_forked_workers_lose_no_record(tmp_path: Path, kind: str) -> None:
    if kind == "wsgi":
        server = Gunicorn(tmp_path, "program:application", "-k", "gthread", "--threads", "4")
    else:
        server = Gunicorn(tmp_path, "program:gateway", "-k", "asgi")

    model = ""
    if kind == "asgi":
        model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]

    def ask(number: int) -> tuple[str, Any]:
        question = f"number {number}"
        if kind == "wsgi":
            answer = httpx.post(server.url, content=question.encode(), timeout=30).json()
            return answer["call_id"], answer["text"]
        body = {"model": model, "messages": [{"role": "user", "content": question}]}
        response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
        text = response.json()["choices"][0]["message"]["content"]
        return response.headers["x-isonomy-call-id"], text

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(40)))
    server.stop()
    assert [text for _, text in answers] == [f"You said: number {i} ({i})" for i in range(40)]
    from isonomy.replay import ReplayLog

    with ReplayLog(tmp_path / "audit") as log:
        found = log.sql("select call_id, process, error, finish_reason from calls").fetchall()
        verified = log.verify()
    recorded = {call_id: (error, finish) for call_id, _, error, finish in found}
    assert {call_id for call_id, _ in answers} <= set(recorded)
    assert {recorded[call_id] for call_id, _ in answers} == {(None, "stop")}
    assert server.process.pid not in {process for _, process, _, _ in found}
    assert verified.findings == ()
