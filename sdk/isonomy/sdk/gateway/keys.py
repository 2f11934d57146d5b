"""API keys: who may use the gateway.

Only digests of keys are kept. A presented key is compared with all of them, each in constant time,
without stopping at a match; which key it was, and how much of a wrong one was right, shows in no
timing. Keys are known in the log by their ids, and appear in no message.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import ConfigError

SHORTEST = 16
"""Characters of the shortest key that is accepted: shorter ones can be guessed."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Keys:
    """Some keys.

    Args:
        digests: SHA-256 of each key (UTF-8), by key id.
    """

    def __init__(self, digests: Mapping[str, bytes] | None = None) -> None:
        self._digests = dict(digests or {})

    def __bool__(self) -> bool:
        return bool(self._digests)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the keys."""
        return tuple(self._digests)

    def owner(self, presented: str) -> str | None:
        """Return the id of the key that was presented, or `None` if it is none of these."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()
        found = None
        for name, own in self._digests.items():
            if hmac.compare_digest(own, digest):
                found = name
        return found

    def in_common(self, other: Keys) -> str | None:
        """Return the id of a key that is also one of the other's, if there is one."""
        shared = set(self._digests.values()) & set(other._digests.values())
        return next((name for name, digest in other._digests.items() if digest in shared), None)

    @classmethod
    def read(
        cls,
        path: str | None,
        variables: Mapping[str, str],
        what: str,
        file: str,
        environ: Mapping[str, str],
    ) -> Keys:
        """Read keys from a file and from environment variables.

        Args:
            path: a file with a line ``ID KEY`` or ``ID sha256:DIGEST`` a key; empty lines and those
                that begin with ``#`` do not count.
            variables: names of environment variables by key id.
            what: ``keys`` or ``reviewer_keys``: the settings that name them.
            file: the configuration file, for errors.
            environ: the environment.

        Raises:
            ConfigError: a key can't be read, is too short, or stands there twice.
        """
        digests: dict[str, bytes] = {}
        listed = [] if path is None else _lines(path)
        if path is not None and not listed:
            raise ConfigError("holds no keys. Write lines of the form: ID KEY.", file=path)
        for number, line in listed:
            _add(digests, *_split(line, path, number), where=f"line {number}", file=path)
        for name, variable in variables.items():
            place = f"serve.{what}_env.{name}"
            if not environ.get(variable):
                raise ConfigError(
                    f"the environment variable {variable} is not set. Set it to the key.",
                    file=file,
                    key=place,
                )
            _add(digests, name, environ[variable], where=place, file=file)
        return cls(digests)


def _lines(path: str) -> list[tuple[int, str]]:
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}. Check the path.", file=path) from None
    except ValueError:
        raise ConfigError("is not UTF-8 text.", file=repr(path)) from None
    return [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _split(line: str, path: str | None, number: int) -> tuple[str, str]:
    words = line.split()
    if len(words) != 2:
        raise ConfigError(
            f"has {len(words)} words where an id and a key must be, separated by a space.",
            file=path,
            key=f"line {number}",
        )
    return words[0], words[1]


def _add(digests: dict[str, bytes], name: str, key: str, *, where: str, file: str | None) -> None:
    """Add a key; the errors of this never show it."""
    if _ID.fullmatch(name) is None:
        raise ConfigError(
            "a key's id must be letters, digits, dots, dashes and underscores, at most 64.",
            file=file,
            key=where,
        )
    if name in digests:
        raise ConfigError(f"there are two keys of the id {name!r}.", file=file, key=where)
    if (digest := _DIGEST.fullmatch(key)) is not None:
        digests[name] = bytes.fromhex(digest[1])
        return
    if key.startswith("sha256:"):
        raise ConfigError(
            "a digest must have 64 hexadecimal digits in lower case.", file=file, key=where
        )
    if len(key) < SHORTEST:
        raise ConfigError(
            f"the key {name!r} is shorter than {SHORTEST} characters. Make one with: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
            file=file,
            key=where,
        )
    digests[name] = hashlib.sha256(key.encode()).digest()


def bearer(headers: Iterator[tuple[bytes, bytes]]) -> str | None:
    """Return the token of the only ``Authorization: Bearer`` header, if there is just one."""
    found = [value for name, value in headers if name == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _, token = found[0].decode("latin-1").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None
