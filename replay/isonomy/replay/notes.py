r"""Signed notes (C2SP signed-note): text with Ed25519 signatures under it, and their keys.

A note is lines of text, an empty line, and a line for each signature: ``— NAME BASE64``, where the
base64 is of the key's id (4 bytes) and the signature of the text. A key's id is the beginning of
``SHA-256(NAME || "\n" || 0x01 || public key)``.

Keys are lines of text too: ``NAME+ID+BASE64(0x01 || public key)`` for whoever checks, and
``PRIVATE+KEY+NAME+ID+BASE64(0x01 || seed)`` for who signs (the format of Go's note package). The
private one belongs outside of the log, readable by its owner only. Needs the package cryptography
(extra ``signing``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from isonomy.sdk.errors import InputError, MissingExtra

_ED25519 = b"\x01"
_PRIVATE = "PRIVATE+KEY+"
_DASH = "\N{EM DASH} "
_LONGEST = 1 << 20
"""Characters of a note that are read; a checkpoint has a few hundred."""
_PATIENCE = 60.0
"""Seconds for a command that signs."""

Entropy = Callable[[int], bytes]


class Key(msgspec.Struct, frozen=True):
    """A public key: who signs, and how to check it."""

    name: str
    id: bytes
    public: bytes

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{_base64(_ED25519 + self.public)}"

    @classmethod
    def parse(cls, text: str) -> Key:
        """Read a key as `isonomy log keygen` prints it.

        Raises:
            InputError: it is none.
        """
        name, _, rest = text.strip().partition("+")
        hexadecimal, _, encoded = rest.partition("+")
        data = _decoded(encoded)
        if not _is_name(name) or data[:1] != _ED25519 or len(data) != 33:
            raise InputError(
                f"{_shown(text)} is no public key of Ed25519: such a key is a line "
                "NAME+ID+BASE64, as `isonomy log keygen` prints it."
            )
        key = cls(name, _key_id(name, data[1:]), data[1:])
        if key.id.hex() != hexadecimal:
            raise InputError(f"the key {name} does not fit its id: it was not copied whole.")
        return key

    def verifies(self, text: str, signature: bytes) -> bool:
        """Return whether `signature` is this key's of a note's text."""
        exceptions, ed25519 = _cryptography()
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
        except (exceptions.InvalidSignature, ValueError):
            return False
        return True


class Signer(Protocol):
    """Who signs notes."""

    @property
    def key(self) -> Key:
        """The public key."""
        ...

    def sign(self, text: str) -> bytes:
        """Return the signature of a note's text."""
        ...


class PrivateKey:
    """A signing key in this process. Its text form never appears in an error."""

    def __init__(self, name: str, seed: bytes) -> None:
        _, ed25519 = _cryptography()
        _require_name(name)
        self._name = name
        self._seed = seed
        self._private = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        public = self._private.public_key().public_bytes_raw()
        self.key = Key(name, _key_id(name, public), public)

    @classmethod
    def generate(cls, name: str, *, entropy: Entropy = os.urandom) -> PrivateKey:
        """Return a fresh key under a name, such as ``example.com/support-log``."""
        return cls(name, entropy(32))

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> PrivateKey:
        """Read a key file.

        Raises:
            InputError: it can't be read, is no key, or others may read it.
        """
        path = Path(file)
        try:
            mode = path.stat().st_mode
            text = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the signing key {path} can't be read ({type(error).__name__}). Check the path."
            ) from None
        if stat.S_IMODE(mode) & 0o077:
            raise InputError(
                f"the signing key {path} can be read by others (mode {stat.S_IMODE(mode):04o}). "
                f"Run: chmod 600 {path}"
            )
        name, _, rest = text.removeprefix(_PRIVATE).partition("+")
        hexadecimal, _, encoded = rest.partition("+")
        data = _decoded(encoded)
        if not text.startswith(_PRIVATE) or data[:1] != _ED25519 or len(data) != 33:
            raise InputError(f"{path} holds no signing key. Make one with isonomy log keygen.")
        private = cls(name, data[1:])
        if private.key.id.hex() != hexadecimal:
            raise InputError(f"the signing key {path} does not fit its id: it was altered.")
        return private

    def write(self, file: str | os.PathLike[str]) -> None:
        """Write the key to a new file that only its owner can read.

        Raises:
            InputError: the file exists, or can't be written.
        """
        text = f"{_PRIVATE}{self._name}+{self.key.id.hex()}+{_base64(_ED25519 + self._seed)}\n"
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except OSError as error:
            raise InputError(
                f"the signing key can't be written to {os.fspath(file)}: "
                f"{error.strerror or error}. Name a new file."
            ) from None
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)

    def sign(self, text: str) -> bytes:
        """Return the signature of a note's text."""
        signature: bytes = self._private.sign(text.encode())
        return signature


class Command:
    """A command that signs: it is given the text on standard input, and prints the note.

    For keys that this machine must not hold: an agent, a token, a service. What it prints is
    checked against `key` before it is used.
    """

    def __init__(self, arguments: Sequence[str], key: Key) -> None:
        self._arguments = tuple(arguments)
        self.key = key

    def sign(self, text: str) -> bytes:
        """Return the signature that the command gave.

        Raises:
            InputError: it failed, or printed no signature of this key.
        """
        try:
            done = subprocess.run(
                self._arguments,
                input=text,
                capture_output=True,
                text=True,
                check=False,
                timeout=_PATIENCE,
            )
        except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
            raise InputError(
                f"the command that signs, {self._arguments[0]}, failed: {type(error).__name__}."
            ) from None
        for name, key_id, signature in _signatures(done.stdout):
            if (name, key_id) == (self.key.name, self.key.id) and self.key.verifies(
                text, signature
            ):
                return signature
        raise InputError(
            f"the command that signs, {self._arguments[0]}, printed no signature of the key "
            f"{self.key.name} (exit status {done.returncode}). It must print the note, or its "
            "signature line."
        )


def signed(text: str, signers: Iterable[Signer]) -> str:
    """Return the note that text becomes when signed; `text` ends with a line's end."""
    lines = [
        f"{_DASH}{signer.key.name} {_base64(signer.key.id + signer.sign(text))}\n"
        for signer in signers
    ]
    return f"{text}\n{''.join(lines)}"


def opened(note: str, trusted: Iterable[Key]) -> tuple[str, tuple[Key, ...]]:
    """Return a note's text, and those trusted keys whose signatures it bears.

    A signature of an unknown key says nothing, and is passed over.

    Raises:
        InputError: it is no note, or a trusted key's signature does not fit.
    """
    keys = {(key.name, key.id): key for key in trusted}
    text, separator, under = note.rpartition("\n\n")
    text += "\n"
    found = tuple(_signatures(under)) if separator else ()
    if not found or len(note) > _LONGEST:
        raise InputError("this is no signed note: text, an empty line, and signature lines.")
    bearing = []
    for name, key_id, signature in found:
        key = keys.get((name, key_id))
        if key is None:
            continue
        if not key.verifies(text, signature):
            raise InputError(f"the signature of {name} does not fit the note: it was altered.")
        bearing.append(key)
    return text, tuple(bearing)


def _signatures(text: str) -> Iterable[tuple[str, bytes, bytes]]:
    for line in text.splitlines():
        if line.startswith(_DASH):
            name, _, encoded = line.removeprefix(_DASH).partition(" ")
            data = _decoded(encoded)
            if _is_name(name) and len(data) > 4:
                yield name, data[:4], data[4:]


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(c.isspace() for c in name)


def _require_name(name: str) -> None:
    if not _is_name(name):
        raise InputError(
            f"{_shown(name)} can't name a key: no spaces, no plus sign. Take something like "
            "example.com/support-log."
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography import exceptions
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingExtra("signing checkpoints", "signing", "cryptography") from None
    return exceptions, ed25519
