"""Our clients against a server that is not ours: llama-cpp-python's, with the demo model.

Outside of `make check`, whose files are called test_*: `make test-foreign` runs it. The server
lives in an environment of its own, ``build/peers``; make says how to get it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from tests.gateway.conftest import Served

import isonomy.backends.local.demo as demo
from isonomy.sdk import BackendError, Guard, Replace, Sampling, check

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "build/peers/bin/python"
FOLDER = Path(next(iter(demo.__path__)))
ASKED: list[Any] = [{"role": "user", "content": "How do I reset my password?"}]
OPTIONS = ("--n_ctx", "1024", "--n_threads", "1", "--model_alias", "demo")
GREETING = "Hello! How can I help you today?"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("llama")
    file = folder / "demo.gguf"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [PEERS, "-m", "tests.foreign.demo_gguf", FOLDER, file],
        cwd=ROOT,
        check=True,
        env=environment,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [PEERS, "-m", "llama_cpp.server", "--model", file, "--port", str(port), *OPTIONS],
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/v1/models").raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail((folder / "server.log").read_text())
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(params=["plain", "llamacpp"])
def guard(url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guard]:
    """A guard in front of the server, by our backend."""
    options: dict[str, Any] = {"base_url": url, "api_key": "none"}
    if request.param == "llamacpp":
        options = {"base_url": url, "server": "llamacpp"}
    policy = [check(lambda text: True, id="any", stages=["post_validate"], lookback=0)]
    with Guard(
        "openai:demo",
        policy=policy,
        log=tmp_path / "audit",
        sampling=Sampling(temperature=0.0, max_tokens=64),
        options=options,
    ) as opened:
        yield opened


def test_our_backend(guard: Guard) -> None:
    reply = guard.chat("Hello")
    assert (reply.text, reply.finish_reason) == (GREETING, "stop")
    assert reply.usage.input_tokens == 9
    assert guard.chat("Hello", sampling=Sampling(max_tokens=3)).finish_reason == "length"
    assert guard.chat("Hello", sampling=Sampling(stop=(" help",))).text == "Hello! How can I"


def test_our_backend_streams(guard: Guard) -> None:
    whole = guard.chat(ASKED)
    with guard.stream(ASKED) as stream:
        pieces = list(stream)
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1


def test_our_backend_and_a_schema(guard: Guard) -> None:
    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}},
        "required": ["size"],
    }
    reply = guard.chat(ASKED, response_format={"type": "json_object", "schema": schema})
    assert reply.text.replace(" ", "").strip() in ('{"size":"small"}', '{"size":"large"}')


def test_a_prompt_that_does_not_fit(guard: Guard) -> None:
    with pytest.raises(BackendError):
        guard.chat("word " * 3000)


def without_names(answer: Any) -> Any:
    """An answer without what differs from call to call."""
    return answer.model_dump(exclude={"id", "created"})


def test_the_wrapped_client_gives_what_the_client_gives(url: str, client: openai.OpenAI) -> None:
    with Guard() as guard:
        wrapped = guard.wrap(client)
        for options in (
            {"temperature": 0, "max_tokens": 40},
            {"temperature": 0, "max_tokens": 3},
            {"temperature": 0, "max_tokens": 40, "stop": ["."]},
            {"temperature": 0.8, "seed": 7, "max_tokens": 20},
        ):
            asked: dict[str, Any] = {"model": "demo", "messages": ASKED, **options}
            plain = client.chat.completions.create(**asked)
            guarded = wrapped.chat.completions.create(**asked)
            assert type(guarded) is type(plain)
            assert without_names(guarded) == without_names(plain)
        asked = {"model": "demo", "messages": ASKED, "temperature": 0, "max_tokens": 40}
        with client.chat.completions.create(**asked, stream=True) as chunks:
            plain_text = "".join(c.choices[0].delta.content or "" for c in chunks)
        with wrapped.chat.completions.create(**asked, stream=True) as chunks:
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert text == plain_text


def test_the_wrapped_client_replaces_and_blocks(client: openai.OpenAI) -> None:
    def loud(text: str) -> Any:
        return Replace(text.upper()) if text != text.upper() else True

    with Guard(policy=[check(loud, id="loud", stages=["post_validate"])]) as guard:
        wrapped = guard.wrap(client)
        answer = wrapped.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Hello"}], temperature=0
        )
        assert answer.choices[0].message.content == GREETING.upper()
    with Guard(policy=[check(lambda t: False, id="no", stages=["post_validate"])]) as guard:
        answer = guard.wrap(client).chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Hello"}], temperature=0
        )
        assert answer.choices[0].finish_reason == "content_filter"


def test_the_gateway_in_front_of_it(guard: Guard, client: openai.OpenAI) -> None:
    from isonomy.sdk.gateway import app

    served = Served(app(guard))
    try:
        ours = served.openai()
        asked: dict[str, Any] = {"model": "demo", "messages": ASKED, "temperature": 0}
        direct = client.chat.completions.create(**asked, max_tokens=64)
        through = ours.chat.completions.create(**asked, max_tokens=64)
        assert through.choices[0].message.content == direct.choices[0].message.content
        assert through.choices[0].finish_reason == direct.choices[0].finish_reason
        assert through.usage == direct.usage
        with ours.chat.completions.create(**asked, max_tokens=64, stream=True) as chunks:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == direct.choices[0].message.content
    finally:
        served.close()
