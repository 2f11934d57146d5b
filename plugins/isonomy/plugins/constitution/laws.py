"""Principles and where they come from: TOML files, the constitutions that are shipped, or a list.

A constitution's file::

    name = "house-rules"                # the file's name without its ending, unless given

    [[principles]]
    id = "no-advice"                    # unique; in records it is house-rules/no-advice
    precedence = 0                      # 0 comes first; principles may share a place
    text = "The answer gives no medical advice."
    critique_request = "..."            # what to look for; a general sentence unless given
    revision_request = "..."            # how to mend a breach; a general sentence unless given

Reading is strict: what is unknown, missing, double or empty is refused with file, key and the
nearest valid name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from isonomy.sdk.decoding import decode
from isonomy.sdk.errors import ConfigError
from isonomy.sdk.registry import nearest
from isonomy.sdk.tomlfile import read

MOST = 64
"""Principles that a constitution may have: each costs a judgement of every candidate."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SHIPPED = Path(__file__).parent


class Principle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One law.

    Attributes:
        id: unique in its constitution: letters, digits, ``_``, ``.``, ``-``.
        text: the law itself, as the judge reads it.
        precedence: 0 comes first. A breach of a principle is never outweighed by anything that
            comes after it.
        critique_request: what the judge is asked to look for.
        revision_request: what the model is asked to do where the principle is breached.

    Raises:
        ValueError: one of them can't be used.
    """

    id: str
    text: str
    precedence: int
    critique_request: str = "Name the part of the answer that breaches the law, and say how."
    revision_request: str = "Change what breaches the law, and keep everything else."

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(
                f"id must be letters, digits, '_', '.' and '-', at most 64, not {self.id!r}."
            )
        for name in ("text", "critique_request", "revision_request"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} of {self.id!r} is empty. Write a sentence.")
        if not 0 <= self.precedence <= 1000:
            raise ValueError(
                f"precedence of {self.id!r} must be from 0 (first) to 1000, not {self.precedence}."
            )


class Laws(msgspec.Struct, frozen=True, kw_only=True):
    """A constitution's file."""

    principles: tuple[Principle, ...]
    name: str = ""


def shipped() -> list[str]:
    """Return the names of the constitutions that come with the package."""
    return sorted(file.stem for file in _SHIPPED.glob("*.toml"))


def named(name: str) -> Laws:
    """Return a shipped constitution.

    Raises:
        ValueError: there is none of this name; says which is nearest.
    """
    if name not in shipped():
        raise ValueError(f"there is no constitution {name!r}.{nearest(name, shipped())}")
    return from_file(str(_SHIPPED / f"{name}.toml"))


def from_file(file: str) -> Laws:
    """Read a constitution's file.

    Raises:
        ConfigError: naming file, key and the nearest valid name.
    """
    laws = decode(read(file), Laws, file=file, key="")
    try:
        require_usable(laws.principles)
    except ValueError as error:
        raise ConfigError(str(error), file=file, key="principles") from None
    return laws if laws.name else msgspec.structs.replace(laws, name=Path(file).stem)


def require_usable(principles: Iterable[Principle]) -> None:
    """Refuse principles that make no constitution.

    Raises:
        ValueError: there are none or too many, or two have the same id.
    """
    ids = [principle.id for principle in principles]
    if not ids:
        raise ValueError("a constitution needs at least one principle.")
    if len(ids) > MOST:
        raise ValueError(f"a constitution may have {MOST} principles, not {len(ids)}.")
    double = next((id for id in ids if ids.count(id) > 1), None)
    if double is not None:
        raise ValueError(f"two principles have the id {double!r}; ids are unique.")
