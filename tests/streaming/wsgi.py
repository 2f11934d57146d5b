"""A WSGI application that streams through one guard, made before its server forks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.streaming.world import Pieces, passing

from isonomy.sdk import Generation, Guard, Text


class Slow(Pieces):
    """Answers with fifty words, a few at a time."""

    def generate(self, request: Any, *, on_text: Any = None) -> Generation:
        word = request.messages[-1].text
        for _ in range(50):
            on_text(f"{word} and then ")
            time.sleep(0.002)
        return Generation(
            content=(Text(f"{word} and then " * 50),), finish_reason="stop", model="parrot"
        )


guard = Guard(Slow([]), [passing()], os.environ["STREAMING_LOG"])
list(guard.stream("before the fork"))  # threads and files that the workers must not inherit


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    """Stream an answer to what the path says."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    with guard.stream(environ["PATH_INFO"].strip("/")) as pieces:
        for piece in pieces:
            yield piece.encode()
