import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .openai_server import CUT, Provider, spoken


@pytest.fixture(scope="session")
def openai_server() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture
def provider(openai_server: Provider) -> Iterator[Provider]:
    """A provider that was asked nothing yet, and answers as usual."""
    server = openai_server
    for kept in (server.requests, server.headers, server.paths):
        kept.clear()
    server.sent = 0
    yield server
    server.say, server.answer, server.pause = spoken, None, 0.0
    CUT[0] = 7


@pytest.fixture
def client(provider: Provider) -> Iterator[Any]:
    from openai import OpenAI

    with OpenAI(
        api_key="sk-0123456789abcdef-secret", base_url=provider.url, max_retries=0
    ) as opened:
        yield opened


@pytest.fixture
def acall(provider: Provider) -> Callable[..., Any]:
    """Run ``use(a wrapped async client)`` in a loop of its own."""
    from openai import AsyncOpenAI

    def call(guard: Any, use: Any, **options: Any) -> Any:
        async def run() -> Any:
            async with AsyncOpenAI(
                api_key="sk-0123456789abcdef-secret", base_url=provider.url, max_retries=0
            ) as opened:
                return await use(guard.wrap(opened, **options))

        return asyncio.run(run())

    return call
