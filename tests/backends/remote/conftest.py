import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.backends.remote.serving import KEY, Endpoint, completion

from isonomy.backends import OpenAI

Opened = Callable[..., OpenAI]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    served.answers(completion())
    yield served
    served.close()


@pytest.fixture
def completed() -> Any:
    return completion


@pytest.fixture
def waits() -> list[float]:
    """What backends of `opened` have waited, which takes them no time."""
    return []


@pytest.fixture
def opened(endpoint: Endpoint, waits: list[float]) -> Iterator[Opened]:
    """Open backends on the endpoint, which wait for nobody and are closed in the end."""
    backends: list[Any] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    def make(model: str = "small", kind: Any = OpenAI, **options: Any) -> Any:
        settings = {
            "base_url": endpoint.url,
            "api_key": KEY,
            "environment": {},
            "rng": random.Random(1),
            "sleep": sleep,
        }
        backends.append(kind(model, **{**settings, **options}))
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()
        backend.close()
