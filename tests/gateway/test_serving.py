"""`isonomy serve` as operators run it: processes, signals, one log, and the errors of a start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from isonomy.sdk import ConfigError, IsonomyError
from isonomy.sdk.gateway.serving import Plan, _bound, serve
from isonomy.sdk.gateway.settings import Settings

from .conftest import ISONOMY, Process, received

Command = Callable[..., Process]

SLOW = """
from isonomy.sdk import hookimpl
import asyncio

class Backend:
    def __init__(self, argument, **options):
        self.pause = float(argument)

    def identity(self):
        from isonomy.sdk import Identity
        return Identity(provider="tests", model="slow", spec="slow")

    def resolve(self, sampling):
        return sampling

    def generate(self, request, *, on_text=None):
        raise NotImplementedError

    async def agenerate(self, request, *, on_text=None):
        from isonomy.sdk import Generation, Text, Usage
        text = ""
        for number in range(40):
            piece = f"This is sentence {number:02} of forty. "
            await asyncio.sleep(self.pause)
            if on_text is not None:
                on_text(piece)
            text += piece
        return Generation(content=(Text(text),), finish_reason="stop", model="slow", usage=Usage())

    def close(self):
        pass

@hookimpl
def isonomy_backends():
    return {"slow": Backend}
"""

CONFIG = """
[backend]
use = "local:demo"
[log]
path = "audit"
[policy]
name = "served"
[[policy.checks]]
use = "length"
id = "short"
stages = ["pre_filter"]
max = 500
"""

SLOW_CONFIG = """
[backend]
use = "slow:{pause}"
[log]
path = "audit"
[policy]
name = "served"
plugins = ["slow_backend"]
[[policy.checks]]
use = "length"
id = "short"
stages = ["pre_filter"]
max = 500
[serve]
drain_seconds = {drain}
"""


def asked(url: str, text: str, **more: Any) -> httpx.Response:
    body = {"model": "demo", "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def verified(folder: Path) -> None:
    from isonomy.replay import ReplayLog

    with ReplayLog(folder / "audit") as log:
        assert log.verify().findings == ()


def rows(folder: Path, query: str) -> list[Any]:
    from isonomy.replay import ReplayLog

    with ReplayLog(folder / "audit") as log:
        return list(log.sql(query).fetchall())


def samples(url: str) -> dict[str, float]:
    """The metrics, summed over labels, parsed by Prometheus' own parser."""
    found: dict[str, float] = {}
    answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_one_process(command: Command, tmp_path: Path) -> None:
    process = command(CONFIG)
    process.ready()
    answer = asked(process.url, "Hello", user="user-1")
    assert answer.json()["choices"][0]["message"]["content"] == "Hello! How can I help you today?"
    assert asked(process.url, "x " * 400).json()["choices"][0]["finish_reason"] == "content_filter"
    found = samples(process.url)
    assert found["isonomy_calls_total"] == 2
    assert found["isonomy_requests_total"] == 2
    assert found["isonomy_tokens_total"] == sum(
        answer.json()["usage"][f"{kind}_tokens"] for kind in ("prompt", "completion")
    )
    assert found["isonomy_requests_in_flight"] == 1  # this one
    assert process.stop() == 0
    requests = [line for line in process.lines() if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200, 200, 200]
    assert requests[0]["calls"] == [answer.headers["x-isonomy-call-id"]]
    assert requests[0]["request_id"] == answer.headers["x-request-id"]
    assert requests[0]["verdict"] == "allow"
    told = json.dumps(process.lines())
    assert "How can I help" not in told
    assert "Hello" not in told
    verified(tmp_path)


def test_two_workers_on_one_log(command: Command, tmp_path: Path) -> None:
    process = command(CONFIG, "--workers", "2")
    process.ready(workers=2)

    def ask(number: int) -> str:
        answer = asked(process.url, f"Where is my order {number}?", max_tokens=8)
        assert answer.status_code == 200
        return answer.headers["x-isonomy-call-id"]

    with ThreadPoolExecutor(8) as pool:
        answered = list(pool.map(ask, range(24)))
    assert samples(process.url)["isonomy_calls_total"] == 24

    # One that dies is replaced, and what it had counted stays.
    victim = next(line["process"] for line in process.lines() if line["event"] == "ready")
    os.kill(victim, signal.SIGKILL)
    process.event("ready", 3)
    answered += [ask(number) for number in range(24, 28)]
    found = samples(process.url)
    assert (found["isonomy_calls_total"], found["isonomy_requests_in_flight"]) == (28, 1)

    assert process.stop() == 0
    assert {row[0] for row in rows(tmp_path, "select call_id from calls")} == set(answered)
    workers = {line["process"] for line in process.lines() if line["event"] == "ready"}
    assert len(workers) == 3
    assert {row[0] for row in rows(tmp_path, "select distinct process from calls")} <= workers
    verified(tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []  # the files that the metrics were shared in


def slow(tmp_path: Path, command: Command, pause: float, drain: float, *options: str) -> Process:
    (tmp_path / "slow_backend.py").write_text(SLOW)
    process = command(
        SLOW_CONFIG.format(pause=pause, drain=drain),
        *options,
        environment={"PYTHONPATH": str(tmp_path)},
    )
    process.ready(int(options[1]) if options else 1)
    return process


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_sigterm_lets_a_stream_end(command: Command, tmp_path: Path, options: Any) -> None:
    process = slow(tmp_path, command, 0.03, 20, *options)
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="slow", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        texts = []
        for chunk in stream:
            if not any(texts) and chunk.choices[0].delta.content:
                process.process.send_signal(signal.SIGTERM)
                process.event("draining")
                _until_nobody_listens(process.url)
            texts.append(chunk.choices[0].delta.content or "")
        assert chunk.choices[0].finish_reason == "stop"
    assert "".join(texts) == "".join(f"This is sentence {n:02} of forty. " for n in range(40))
    assert process.process.wait(30) == 0
    assert rows(tmp_path, "select error from calls") == [(None,)]
    verified(tmp_path)


def _until_nobody_listens(url: str) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/ready", timeout=2)
        except httpx.TransportError:
            return
        time.sleep(0.02)
    raise AssertionError("a server that stops still takes connections")


def test_sigterm_cancels_what_does_not_end_in_time(command: Command, tmp_path: Path) -> None:
    process = slow(tmp_path, command, 0.5, 0.5)
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="slow", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        process.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
    assert process.process.wait(30) == 0
    assert rows(tmp_path, "select error from calls") == [("Cancelled",)]
    verified(tmp_path)


def test_clients_that_stall_or_send_too_many_headers(command: Command) -> None:
    process = command(CONFIG + "[serve]\nheader_seconds = 0.4\nmax_header_bytes = 4000\n")
    process.ready()
    port = int(process.url.rpartition(":")[2])
    started = time.monotonic()
    for first in (b"", b"GET /health HTT"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(first)
            assert received(connection) == b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        for byte in (b"GET /h", b"e", b"a"):
            connection.sendall(byte)
            time.sleep(0.1)
        received(connection)
    assert time.monotonic() - started < 3
    with httpx.Client(base_url=process.url) as client:
        for _ in range(2):
            assert client.get("/health").status_code == 200
            time.sleep(0.6)  # a connection that is kept alive may rest for longer
        assert client.get("/health", headers={"x-long": "x" * 8000}).status_code == 431


def test_sighup_replaces_the_workers_while_calls_go_on(command: Command, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("shop shop-key-0123456789\n")
    process = command(CONFIG, "--workers", "2", "--keys-file", "keys")
    process.ready(workers=2)

    def status(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"{process.url}/v1/models", headers=headers).status_code

    (tmp_path / "keys").write_text("shop new--key-0123456789\n")
    assert (status("shop-key-0123456789"), status("new--key-0123456789")) == (200, 401)
    process.process.send_signal(signal.SIGHUP)
    process.event("stopped", 2)
    assert {status("shop-key-0123456789") for _ in range(8)} == {401}
    assert {status("new--key-0123456789") for _ in range(8)} == {200}
    (tmp_path / "keys").write_text("")
    process.process.send_signal(signal.SIGHUP)
    process.event("worker_not_replaced")
    assert {status("new--key-0123456789") for _ in range(8)} == {200}
    assert process.stop() == 0


def test_workers_do_not_outlive_their_supervisor(command: Command, tmp_path: Path) -> None:
    process = command(CONFIG, "--workers", "2")
    process.ready(workers=2)
    process.process.kill()
    process.process.wait()
    process.event("stopped", 2)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{process.url}/health")
    deadline = time.monotonic() + 5
    while list((tmp_path / "tmp").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list((tmp_path / "tmp").iterdir()) == []


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ISONOMY, "serve", "isonomy.toml", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_other_machines_without_keys_are_refused(tmp_path: Path) -> None:
    (tmp_path / "isonomy.toml").write_text(CONFIG)
    done = run(tmp_path, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "serve.host: 0.0.0.0 is reachable from other machines" in done.stderr
    assert "--no-auth" in done.stderr


def test_other_machines_with_keys_or_without_on_purpose(command: Command, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("shop shop-key-0123456789\n")
    process = command(CONFIG, "--host", "0.0.0.0", "--keys-file", "keys")
    process.ready()
    url = process.url.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/v1/models").status_code == 401
    headers = {"authorization": "Bearer shop-key-0123456789"}
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
    assert process.stop() == 0
    assert "shop-key-0123456789" not in json.dumps(process.lines())
    assert [line.get("key") for line in process.lines() if line["event"] == "request"] == [
        None,
        "shop",
    ]
    process = command(CONFIG, "--host", "0.0.0.0", "--no-auth")
    process.ready()
    url = process.url.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("toml", "options", "problem"),
    [
        (CONFIG + "[serve]\nprot = 1\n", (), "serve.prot"),
        (CONFIG + "[serve]\nkeys_file = 'nope'\n", (), "nope"),
        (CONFIG + "[serve]\nmodels = { x = 'nope' }\n", (), "no backend 'nope'"),
        (CONFIG.replace("demo", "nope"), (), "nope"),
        (CONFIG, ("--policy", "nope"), "nope"),
        ("[policy]\nname = 'x'\n", (), "names no backend"),
    ],
)
def test_a_start_that_fails_says_why(
    tmp_path: Path, toml: str, options: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "isonomy.toml").write_text(toml)
    policy = options[1] if options else None
    with pytest.raises(IsonomyError, match=problem):
        serve(Plan(file=str(tmp_path / "isonomy.toml"), given={"port": 0}, policy=policy))


def test_workers_that_can_not_start_end_the_server(tmp_path: Path) -> None:
    (tmp_path / "isonomy.toml").write_text(CONFIG.replace("local:demo", "local:nope"))
    done = run(tmp_path, "--port", "0", "--workers", "2")
    assert done.returncode != 0
    assert "worker_failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "isonomy.toml").write_text(CONFIG)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        plan = Plan(file=str(tmp_path / "isonomy.toml"), given={"port": taken.getsockname()[1]})
        with pytest.raises(ConfigError, match="Address already in use"):
            serve(plan)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_answers_are_not_held_back_by_the_socket(host: str) -> None:
    with _bound(Settings(host=host, port=0)) as listener:
        with socket.create_connection(listener.getsockname()[:2]):
            accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # what asyncio asks before it sets NODELAY


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "isonomy.toml").write_text(CONFIG)
    program = (
        "import sys; sys.modules['uvicorn'] = None; "
        "from isonomy.sdk.cli import main; main(['serve', 'isonomy.toml'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'isonomy[serve]'" in done.stderr
