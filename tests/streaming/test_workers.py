"""Forked workers: gunicorn, with the guard made before it forks, and clients who hang up."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from isonomy.replay import ReplayLog

pytest.importorskip("gunicorn")
ROOT = Path(__file__).parents[2]


def test_forked_workers_lose_no_record(tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = subprocess.Popen(
        [
            sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", "4",
            "--bind", "127.0.0.1:0", "--no-control-socket", "tests.streaming.wsgi:app",
        ],
        cwd=ROOT,
        env={**os.environ, "STREAMING_LOG": str(log), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    said: list[str] = []
    assert server.stderr is not None
    for line in server.stderr:
        said.append(line)
        if found := re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line):
            break
    else:
        raise AssertionError("".join(said))
    port = int(found[1])
    drained = threading.Thread(target=server.stderr.read)
    drained.start()
    texts: dict[int, str] = {}

    def read(number: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/word{number}", timeout=60) as answer:
            texts[number] = answer.read().decode()

    def hang_up(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(f"GET /word{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            client.recv(200)

    try:
        readers = [threading.Thread(target=read, args=(number,)) for number in range(6)]
        leavers = [threading.Thread(target=hang_up, args=(number,)) for number in range(100, 104)]
        for thread in (*readers, *leavers):
            thread.start()
        for thread in (*readers, *leavers):
            thread.join()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        drained.join()
        server.stderr.close()
    assert texts == {number: f"word{number} and then " * 50 for number in range(6)}
    with ReplayLog(log) as opened:
        assert opened.verify().findings == ()
        calls = opened.calls()
        assert len(calls) == 11
        assert {call.status for call in calls} == {"complete"}
        errors = [call.result.error for call in calls if call.result]
        assert errors.count(None) + errors.count("Cancelled") == 11
        assert errors.count("Cancelled") >= 1
        processes = {call.intent.process for call in calls if call.intent}
        assert len(processes) >= 2
        for call in calls:
            left = "".join(text or "" for _, text in call.segments)
            assert call.output is not None
            assert (call.output.text or "") == left
