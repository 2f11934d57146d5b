"""Values from the environment in configuration files: ``${NAME}``.

```toml
[environment]
allow = ["TENANT"]                # the only names that this file may use

[[policy.checks]]
use = "patterns"
deny = ["${TENANT}-[0-9]+"]       # $${ is a literal ${
```

Rules:

- A file lists the names that it may use; one that is not listed, or not set, is refused with file
  and key. Values are text. They may stand in the settings of checks, in ``refusal``, and anywhere
  in ``[backend]``, ``[backends.*]``, ``[log]`` and ``[serve]``, but not in keys, and not where a
  record names things: ``name``, ``use``, ``id`` and the other terms of a check.
- The policy is recorded as written, with ``${NAME}`` in it. Beside it stands, in its table
  ``environment``, a keyed digest of each value: HMAC-SHA256 under the secret that the environment
  variable ``ISONOMY_POLICY_KEY`` holds. So the log tells whether two calls had the same values, and
  whoever reads it can't find them by trying, as he could with plain digests of short values. The
  key is never written anywhere: it comes from where the values come from, and is to be the same on
  all machines whose records are to be compared.
- A replay takes values and key from its own environment. Digests are compared before a value is
  used: another value, another key, or a log that was altered to name other variables, is refused.
- Where a table has no ``environment``, ``${`` is text like any other: policies made in code hold
  what they hold.

What ``[backend]`` takes from the environment is no part of the policy. A backend's identity is
recorded with the options that matter to its answers, as they are: pass API keys as the backend's
own environment variable, never as an option.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .errors import ConfigError
from .registry import nearest

KEY = "ISONOMY_POLICY_KEY"
_SHORTEST_KEY = 16
_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TELLING = 4
"""Shorter values are no secrets, and taking them out of a sentence would leave no sentence."""


def require_allowed(value: Any, allow: Iterable[str], *, file: str | None, key: str) -> None:
    """Refuse what a file may not take from the environment.

    Raises:
        ConfigError: a name is not listed in ``[environment] allow``, or a ``${`` is no reference;
            names the key.
    """
    allowed = set(allow)
    for place in _keys(value, key):
        raise ConfigError(
            "a key is recorded as it stands and can't hold ${. Values can.", file=file, key=place
        )
    for place, name, literal in _tokens(value, key):
        if literal:
            continue
        if name is None or not _NAME.fullmatch(name):
            raise ConfigError(
                "${ begins the name of an environment variable, as in ${NAME}. Write $${ for the "
                "characters themselves.",
                file=file,
                key=place,
            )
        if name not in allowed:
            hint = nearest(name, allowed) if allowed else ""
            raise ConfigError(
                f"the environment variable {name!r} is not listed in this file.{hint} "
                f'Add it: [environment] allow = ["{name}"]; or write $${{ for the characters '
                "themselves.",
                file=file,
                key=place,
            )


def _keys(value: Any, key: str) -> Iterator[str]:
    """Give the place of every key of a table that holds a ``${``."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            if "${" in name:
                yield f"{key}.{name}".lstrip(".")
            yield from _keys(each, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _keys(each, f"{key}[{index}]")


def any_in(value: Any) -> bool:
    """Return whether plain data holds a ``${``."""
    return next(_tokens(value, ""), None) is not None


def _tokens(value: Any, key: str) -> Iterator[tuple[str, str | None, bool]]:
    """Give the place of every ``${``, the name in it, and whether it stands for itself."""
    if isinstance(value, str):
        for found in _REFERENCE.finditer(value):
            yield key, found[1], found[0] == "$${"
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _tokens(each, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _tokens(each, f"{key}[{index}]")


def filled(value: Any, environ: Mapping[str, str], *, file: str | None, key: str) -> Any:
    """Return plain data with every ``${NAME}`` replaced by its value, and ``$${`` by ``${``.

    Raises:
        ConfigError: a name is not set; names the key.
    """
    if isinstance(value, str):

        def value_of(found: re.Match[str]) -> str:
            if found[0] == "$${":
                return "${"
            name = found[1] or ""
            if name not in environ:
                raise ConfigError(
                    f"the environment variable {name!r} is not set. Set it, or take ${{{name}}} "
                    "out.",
                    file=file,
                    key=key,
                )
            return _utf8(name, environ[name], file, key)

        return _REFERENCE.sub(value_of, value)
    if isinstance(value, Mapping):
        return {
            name: filled(each, environ, file=file, key=f"{key}.{name}".lstrip("."))
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            filled(each, environ, file=file, key=f"{key}[{index}]")
            for index, each in enumerate(value)
        ]
    return value


def _utf8(name: str, value: str, file: str | None, key: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"the environment variable {name!r} is not UTF-8 text.", file=file, key=key
        ) from None
    return value


def sealed(
    table: Mapping[str, Any], environ: Mapping[str, str], *, file: str | None, key: str
) -> dict[str, Any]:
    """Return a policy's table as it is recorded: as written, with digests of what it takes.

    A table without ``${`` is returned as it is.

    Raises:
        ConfigError: a name is not set, or there is no key for the digests.
    """
    found = [(place, name) for place, name, _ in _tokens(table, key)]
    if not found:
        return dict(table)
    filled(table, environ, file=file, key=key)
    place = next((place for place, name in found if name), key)
    return {
        **table,
        "environment": {
            name: digest(name, environ, file=file, key=place) for name in _names(table)
        },
    }  # fmt: skip


def digest(name: str, environ: Mapping[str, str], *, file: str | None, key: str) -> str:
    """Return the keyed digest of a variable's value.

    HMAC-SHA256 under ``ISONOMY_POLICY_KEY`` (UTF-8) of the name, a NUL, and the value.

    Raises:
        ConfigError: there is no key, or too short a one.
    """
    secret = environ.get(KEY, "")
    if len(secret) < _SHORTEST_KEY:
        was = f"{KEY} has fewer than {_SHORTEST_KEY} characters" if secret else f"{KEY} is not set"
        raise ConfigError(
            f"the policy takes {name!r} from the environment, and the record of it needs a key: "
            f"{was}. Set it to a secret of its own, the same wherever these calls are made and "
            "replayed, for example: openssl rand -hex 32",
            file=file,
            key=key,
        )
    body = f"{name}\0{environ[name]}".encode("utf-8", "surrogateescape")
    mac = hmac.new(secret.encode("utf-8", "surrogateescape"), body, hashlib.sha256)
    return f"hmac-sha256:{mac.hexdigest()}"


def restored(
    table: Mapping[str, Any], environ: Mapping[str, str], *, file: str | None, key: str
) -> dict[str, Any]:
    """Return a recorded policy's table with its values, after comparing their digests.

    Args:
        table: as `sealed` gave it; its ``environment`` is left out.
        environ: where values and key come from.
        file: shown in errors.
        key: where the table stands in the file.

    Raises:
        ConfigError: a value is not set, or is not the recorded one.
    """
    recorded = table["environment"]
    plain = {name: value for name, value in table.items() if name != "environment"}
    for name in _names(plain):
        if name not in environ:
            raise ConfigError(
                f"the policy takes {name!r} from the environment, where it is not set. Set it to "
                "the value that it had.",
                file=file,
                key=key,
            )
        given = recorded.get(name) if isinstance(recorded, Mapping) else None
        present = digest(name, environ, file=file, key=key)
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), present.encode()):
            raise ConfigError(
                f"the environment variable {name!r} is not what it was: its keyed digest is "
                f"{present}, recorded {given}. Set {name} and {KEY} to what they were.",
                file=file,
                key=key,
            )
    whole: dict[str, Any] = filled(plain, environ, file=file, key=key)
    return whole


def taken(table: Any, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a recorded policy takes.

    For the environment of a process that replays: it gets no others, and these only where their
    digests are the recorded ones, so that a log can't ask for what it pleases.

    Raises:
        ConfigError: as `restored`.
    """
    if not isinstance(table, Mapping) or "environment" not in table:
        return {}
    restored(table, environ, file=None, key="policy")
    return {name: environ[name] for name in _names(table)}


def _names(table: Any) -> list[str]:
    return sorted({name for _, name, _ in _tokens(table, "") if name})


def unquoted(problem: str, table: Any, environ: Mapping[str, str]) -> str:
    """Return a sentence about a table without the values that the table took.

    Errors are read by more people than environments.
    """
    for name in sorted(_names(table), key=lambda name: -len(environ.get(name, ""))):
        value = environ.get(name, "")
        if len(value) >= _TELLING:
            for form in (repr(value)[1:-1], value):
                problem = problem.replace(form, f"${{{name}}}")
    return problem
