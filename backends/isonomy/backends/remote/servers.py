"""Servers that speak the chat-completions format, and where they differ from it.

What stands here is what their own documentation and code say; tests hold each against a server that
answers as it does. An endpoint that is not listed is treated as by the format.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from isonomy.sdk import ConfigError
from isonomy.sdk.registry import nearest

SEED_BITS = 63
"""The format's seeds are signed 64-bit integers."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of server.

    `base_url` is where it listens unless told otherwise. `max_tokens` is the name of that setting;
    `beside` are names of settings that the format does not have, by our own. `seed_bits` is how
    much of a seed it takes.
    """

    base_url: str
    max_tokens: str = "max_tokens"
    beside: Mapping[str, str] = {}
    seed_bits: int = SEED_BITS


BESIDE = {name: name for name in ("top_k", "min_p", "repetition_penalty")}
"""Settings that the format does not have, as most servers that know them call them."""
OPENAI = Server(base_url="https://api.openai.com/v1", max_tokens="max_completion_tokens")
SERVERS: Mapping[str, Server] = {
    "vllm": Server(base_url="http://localhost:8000/v1", beside=BESIDE),
    # It drops what it does not know, so nothing beside the format is sent.
    "ollama": Server(base_url="http://localhost:11434/v1", seed_bits=31),
    "lmstudio": Server(
        base_url="http://localhost:1234/v1",
        beside={"top_k": "top_k", "repetition_penalty": "repeat_penalty"},
        seed_bits=31,
    ),
    # Its seeds are unsigned 32-bit integers, the highest of which means a random one.
    "llamacpp": Server(
        base_url="http://localhost:8080/v1",
        beside={"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty"},
        seed_bits=31,
    ),
}


def server_named(name: str) -> Server:
    """Return what is known of a server.

    Raises:
        ConfigError: nothing is; names the nearest.
    """
    server = SERVERS.get(name)
    if server is None:
        raise ConfigError(
            f"there is no server {name!r}.{nearest(str(name), SERVERS)}", key="server"
        )
    return server
