"""A judge behind a real HTTP endpoint of each kind: with log-probabilities, by schema, in words."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.judges import assistant, by_law, laws, parsed, reply
from tests.sdk.world import of_type

from isonomy.backends import OpenAI
from isonomy.sdk import Guard, Policy, Sampling
from isonomy.sdk.events import Critiqued, Generated, Scored


class JudgingEndpoint:
    """Judges by the words "boom" and "rude"; refuses the parameters named in `refuses`."""

    def __init__(self, *refuses: str) -> None:
        self.bodies: list[dict[str, Any]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.bodies.append(body)
                refused = [name for name in refuses if name in body]
                data = json.dumps(
                    {"error": {"message": f"unknown parameter {refused[0]}"}}
                    if refused
                    else endpoint.answer(body)
                ).encode()
                self.send_response(400 if refused else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"]
        score = by_law(parsed(prompt))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if body.get("logprobs"):
            likely = [("yes", score / 100), ("no", 1 - score / 100), (" perhaps", 1e-9)]
            top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in likely]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
            text = "yes"
        else:
            text = "It says so." if prompt.endswith("three sentences.") else reply(score)
        choice["message"] = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320}
        base = {"id": "1", "object": "chat.completion", "created": 1, "model": "judge-1"}
        return {**base, "choices": [choice], "usage": usage}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(params=[(), ("logprobs",), ("logprobs", "response_format")], ids=str)
def endpoint(request: pytest.FixtureRequest) -> Iterator[JudgingEndpoint]:
    served = JudgingEndpoint(*request.param)
    yield served
    served.close()


def test_a_judge_of_each_kind(
    endpoint: JudgingEndpoint, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kind = len(request.node.callspec.params["endpoint"])
    remote = OpenAI("judge", base_url=endpoint.url, api_key="sk-1", environment={})
    sampling = Sampling(temperature=1.5, top_k=3, repetition_penalty=2.0, stop=("{",), seed=7)
    with Guard(
        assistant("boom"),
        Policy([laws(backend="judge")]),
        tmp_path,
        backends={"judge": remote},
        sampling=sampling,
    ) as kept:
        answered = kept.chat("tea?")
        assert answered.text == "A nice cup of tea."
        scores = [[c.score for c in e.critiques] for e in of_type(answered, Critiqued)]
        assert scores == [pytest.approx([0.1, 0.9]), pytest.approx([0.9, 0.9])]
        told = [event.logprobs is not None for event in of_type(answered, Scored)]
        assert told == [[True] * 4, [False] * 2, [False] * 2][kind]
        nested = [e for e in of_type(answered, Generated) if e.backend == "judge"]
        assert len(nested) == [1, 4, 4][kind]
        written = [body for body in endpoint.bodies if "logprobs" not in body]
        assert all("stop" not in body and body["temperature"] == 0.0 for body in written)
        assert sum("response_format" in body for body in written) == [0, 4, 2][kind]
        asked = len(endpoint.bodies)
        replayed = kept.replay(answered.call_id)
        assert replayed.status == "verified", replayed.sentence()
        assert len(endpoint.bodies) == asked
