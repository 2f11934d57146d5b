"""How the gateway is set: the ``[serve]`` table of the configuration file.

```toml
[serve]
host = "127.0.0.1"
port = 8080
keys_file = "keys"                     # relative to this file; or:
keys_env = { shop = "SHOP_KEY" }       # key id = environment variable that holds the key
models = { "gpt-4o" = "default" }      # names to offer; "default" is the guard's own backend
```

Every key is a field of `Settings`. Durations are seconds, sizes bytes; limits count per process.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..decoding import decode
from ..errors import ConfigError
from .keys import Keys

DEFAULT = "default"
"""What stands for the guard's own backend in `Settings.models`."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[serve]`` table.

    host, port: where to listen; port 0 takes a free one.
    workers: processes that answer, each with a guard of its own, all on one log.
    keys_file: a file with a line ``ID KEY`` or ``ID sha256:DIGEST`` for each key.
    keys_env: environment variables that hold keys, by key id.
    reviewer_keys_file, reviewer_keys_env: the same, for those who may resume calls that wait for a
        person; if there are none, the ordinary keys may.
    open_metrics: whether GET /metrics is answered without a key.
    models: names that clients may ask for, and the backend behind each: ``default``, or one of the
        guard's further backends. Empty: the model of the guard's own backend, by its own name.
    any_model: whether other names are answered too, by the guard's own backend.
    max_body_bytes, max_header_bytes: larger requests are refused.
    max_calls: requests at work at a time; more are refused with status 429.
    max_choices: the largest `n` of a request.
    header_seconds, body_seconds: within which a request's headers, and its body, must be here.
    write_seconds: for which a client may read nothing while there is something for it.
    call_seconds: within which a request must be answered.
    keep_alive_seconds: between signs of life in a stream that has nothing to say yet.
    drain_seconds: for which running requests may go on when the server stops.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    keys_file: str | None = None
    keys_env: dict[str, str] = {}
    reviewer_keys_file: str | None = None
    reviewer_keys_env: dict[str, str] = {}
    open_metrics: bool = False
    models: dict[str, str] = {}
    any_model: bool = False
    max_body_bytes: int = 8 << 20
    max_header_bytes: int = 32 << 10
    max_calls: int = 256
    max_choices: int = 16
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 60.0
    call_seconds: float = 600.0
    keep_alive_seconds: float = 15.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        # msgspec's conversion reports a ValueError at the table; the message names the key.
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, not {self.port}")
        for name in ("workers", "max_body_bytes", "max_header_bytes", "max_calls", "max_choices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for field in msgspec.structs.fields(self):
            if field.name.endswith("_seconds") and not 0 < getattr(self, field.name) < 1e6:
                raise ValueError(f"{field.name} must be more than 0, and less than a million")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def settings_of(table: dict[str, Any], file: str, **given: Any) -> Settings:
    """Decode a ``[serve]`` table; what is given (and not `None`) wins over it.

    Paths of the table become relative to the file's folder.

    Raises:
        ConfigError: a key or value is wrong; names file, key and the nearest valid name.
    """
    decoded = decode(table, Settings, file=file, key="serve")
    folder = Path(file).parent
    changes = {
        name: str(folder / path)
        for name in ("keys_file", "reviewer_keys_file")
        if (path := getattr(decoded, name)) is not None
    }
    changes |= {name: value for name, value in given.items() if value is not None}
    return msgspec.structs.replace(decoded, **changes)


def keys_of(
    settings: Settings, *, file: str, environ: Mapping[str, str] = os.environ
) -> tuple[Keys, Keys]:
    """Read the keys that settings name: those of clients, and those of reviewers.

    Raises:
        ConfigError: a key can't be read or is too weak, or one stands in both sets.
    """
    clients = Keys.read(settings.keys_file, settings.keys_env, "keys", file, environ)
    reviewers = Keys.read(
        settings.reviewer_keys_file, settings.reviewer_keys_env, "reviewer_keys", file, environ
    )
    if shared := clients.in_common(reviewers):
        raise ConfigError(
            f"the key {shared!r} is a client's key too, so that clients could approve their own "
            "calls. Give reviewers keys of their own.",
            file=file,
            key="serve.reviewer_keys",
        )
    return clients, reviewers


def require_keys(settings: Settings, keys: Keys, *, file: str) -> None:
    """Refuse to serve others than this machine without keys.

    Raises:
        ConfigError: it says how to get keys, or do without.
    """
    if not keys and not is_loopback(settings.host):
        raise ConfigError(
            f"{settings.host} is reachable from other machines, and no keys are configured, so "
            "that anybody could use the backend. Set keys_file or keys_env, or listen on "
            "127.0.0.1; --no-auth says that something else keeps strangers out.",
            file=file,
            key="serve.host",
        )
