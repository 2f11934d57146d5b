"""Policies in files: inheritance, named policies, and what they become before they are built.

```toml
[policy]
extends = "base.toml"             # its [policy]; relative to this file
remove = ["no-email"]             # checks of the base that are not asked here

[[policy.checks]]
id = "no-keys"                    # the base has this id: this check stands in its place
use = "patterns"
deny = ["sk-[A-Za-z0-9]{16,}"]

[policies.strict]                 # Guard.from_file(file, policy="strict")
extends = "#policy"               # another policy of this file; of another: "base.toml#strict"
```

How a policy and its base become one:

- ``checks``: those of the base in their order. A check that says an ``id`` of the base's takes that
  one's place, whole; all others follow, in their order. ``remove`` takes checks of the base out. A
  check without an ``id`` of its own has its name (``use``), numbered from the second on.
- ``plugins``: the base's, then the policy's.
- a check's setting ``file`` is relative to the file in which the check is written.
- every other key: the policy's, else the base's. A named policy without a ``name`` is named as its
  table.
- A base may have a base, at most `DEEPEST` in a row; a circle is refused. Only policies are
  inherited: not ``[backend]``, ``[log]``, nor ``[environment]``, whose list holds for the file that
  it stands in.

The result is one plain table, which is what is recorded (see `isonomy.sdk.interpolation` for
``${NAME}``): a replay needs no other file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from . import interpolation, tomlfile
from .decoding import decode
from .errors import ConfigError
from .policy import TERMS, Policy, PolicyTable, Terms
from .registry import nearest

DEEPEST = 8
_MAIN = "policy"
_NAMES = ("name", "plugins", "stages", "extends", "remove")


class WrittenTable(PolicyTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ``[policy]`` or ``[policies.NAME]`` table as it stands in a file.

    Attributes:
        extends: the policy to begin with: ``FILE``, ``FILE#NAME`` or ``#NAME``.
        remove: ids of its checks that are left out.
    """

    extends: str | None = None
    remove: tuple[str, ...] = ()


class EnvironmentTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[environment]`` table.

    Attributes:
        allow: the environment variables that this file may use.
    """

    allow: tuple[str, ...] = ()


class Place(NamedTuple):
    """Where something stands: the file, and the key in it."""

    file: str
    key: str


class Assembled(msgspec.Struct, frozen=True):
    """A policy of a file with all that it inherits.

    Attributes:
        table: plain data as written, ``${NAME}`` included.
        place: where the policy stands.
        keys: where each key of `table` was written.
        checks: where each of its checks was written.
    """

    table: dict[str, Any]
    place: Place
    keys: dict[str, Place]
    checks: tuple[Place, ...]

    def build(self, environ: Mapping[str, str]) -> Policy:
        """Return the policy.

        Raises:
            ConfigError: naming file and key where the wrong thing was written.
        """
        try:
            sealed = interpolation.sealed(self.table, environ, file=None, key=_MAIN)
            return Policy.from_table(sealed, environ=environ)
        except ConfigError as error:
            raise self.located(error, environ) from error.__cause__

    def located(self, error: ConfigError, environ: Mapping[str, str]) -> ConfigError:
        """Return an error about the assembled table as one about the file it comes from."""
        problem = interpolation.unquoted(error.problem, self.table, environ)
        if error.file is not None:  # one that a check reads
            return ConfigError(problem, file=error.file, key=error.key)
        key = (error.key or _MAIN).removeprefix(_MAIN)
        row = re.match(r"\.checks\[(\d+)\]", key)
        first = re.match(r"\.(\w+)", key)
        place, rest = self.place, key
        if row is not None and int(row[1]) < len(self.checks):
            place, rest = self.checks[int(row[1])], key[row.end() :]
        elif first is not None and first[1] in self.keys:
            place, rest = self.keys[first[1]], key[first.end() :]
        return ConfigError(problem, file=place.file, key=f"{place.key}{rest}")


Read = Callable[[str], Mapping[str, Any]]


class _Folder(NamedTuple):
    """The policies of one file."""

    file: str
    tables: Mapping[str, Any]
    allow: tuple[str, ...]


def assemble(
    file: str, tables: Mapping[str, Any], name: str | None = None, *, read: Read = tomlfile.read
) -> Assembled:
    """Return a policy of a file with all that it inherits.

    Args:
        file: the file's path; files that it names are relative to its folder.
        tables: its tables.
        name: of a table ``[policies.NAME]``; ``[policy]``, unless given.
        read: gives the tables of another file.

    Raises:
        ConfigError: there is no such policy, it is wrong as it stands, or what it extends is.
    """
    return _assemble(_folder(file, tables), name or _MAIN, (), read)


def names(tables: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Return the names of a file's policies; `None` is ``[policy]``."""
    named = tables.get("policies")
    listed = tuple(named) if isinstance(named, dict) else ()
    return (None, *listed) if _MAIN in tables or not listed else listed


def _folder(file: str, tables: Mapping[str, Any]) -> _Folder:
    table = tables.get("environment", {})
    environment = decode(table, EnvironmentTable, file=file, key="environment")
    return _Folder(file, tables, environment.allow)


def own_table(file: str, tables: Mapping[str, Any], name: str) -> tuple[dict[str, Any], Place]:
    """Return one policy's table as it stands in a file, and where.

    Raises:
        ConfigError: there is none.
    """
    named = tables.get("policies", {})
    if not isinstance(named, dict):
        raise ConfigError(f"this must be a table, not {named!r}.", file=file, key="policies")
    if _MAIN in named:
        raise ConfigError(
            "[policy] has this name already. Choose another.", file=file, key=f"policies.{_MAIN}"
        )
    for each in named:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", each):
            raise ConfigError(
                f"{each!r} can't name a policy: use letters, digits, '-' and '_'.",
                file=file,
                key="policies",
            )
    place = Place(file, _MAIN if name == _MAIN else f"policies.{name}")
    if name == _MAIN and named and _MAIN not in tables:
        listed = ", ".join(named)
        raise ConfigError(
            f"the file has no [policy], but named ones. Choose one: {listed}.", file=file, key=_MAIN
        )
    if name != _MAIN and name not in named:
        known = [*named, _MAIN]
        raise ConfigError(
            f"there is no policy named {name!r}.{nearest(name, known)}", file=file, key="policies"
        )
    table = tables.get(_MAIN, {}) if name == _MAIN else named[name]
    if not isinstance(table, dict):
        raise ConfigError(f"this must be a table, not {table!r}.", file=file, key=place.key)
    return table, place


def _assemble(folder: _Folder, name: str, above: tuple[Place, ...], read: Read) -> Assembled:
    file = folder.file
    table, place = own_table(file, folder.tables, name)
    own = decode(table, WrittenTable, file=file, key=place.key)
    for number, row in enumerate(own.checks):  # by which checks are told apart, further down
        named = {"use": "", **{key: row[key] for key in ("use", "id") if key in row}}
        decode(named, Terms, file=file, key=f"{place.key}.checks[{number}]")
    _require_plain_names(table, place)
    interpolation.require_allowed(table, folder.allow, file=file, key=place.key)
    alone = Assembled(
        {key: value for key, value in table.items() if key not in ("extends", "remove")},
        place,
        {key: Place(file, f"{place.key}.{key}") for key in table},
        tuple(Place(file, f"{place.key}.checks[{i}]") for i in range(len(own.checks))),
    )
    if own.checks:
        alone.table["checks"] = [_placed(row, file) for row in own.checks]
    if name != _MAIN and "name" not in table:
        alone.table["name"] = name
    if own.extends is None:
        if own.remove:
            raise ConfigError(
                "there is nothing to remove from: the policy extends none.",
                file=file,
                key=f"{place.key}.remove",
            )
        return alone
    base = _base(folder, own.extends, place, above, read)
    return _joined(base, alone, own)


def _placed(row: dict[str, Any], file: str) -> dict[str, Any]:
    """Return a check's table with the file that it names found from where the table stands."""
    named = row.get("file")
    if not isinstance(named, str) or not named or named.startswith("${"):
        return row
    return {**row, "file": str(Path(file).parent / named)}


def _base(
    folder: _Folder, extends: str, place: Place, above: tuple[Place, ...], read: Read
) -> Assembled:
    key = f"{place.key}.extends"
    other, _, name = extends.partition("#")
    if other:
        if "\0" in other:
            raise ConfigError("a path can't hold a NUL character.", file=folder.file, key=key)
        path = str(Path(folder.file).parent / other)
        try:
            folder = _folder(path, read(path))
        except ConfigError as error:
            if error.key is None and "can't be read" in error.problem:
                raise ConfigError(
                    f"the file {path!r} {error.problem}", file=place.file, key=key
                ) from None
            raise
        if not name and _MAIN not in folder.tables:
            raise ConfigError(
                f"the file {path!r} has no [policy] to extend. Name one of its policies: "
                f'"{other}#NAME".',
                file=place.file,
                key=key,
            )
    elif not name:
        raise ConfigError(
            'this names no policy: write "FILE", "FILE#NAME" or "#NAME".', file=place.file, key=key
        )
    name = name or _MAIN
    passed = (*above, _identity(place))
    base = _identity(Place(folder.file, _MAIN if name == _MAIN else f"policies.{name}"))
    if base in passed:
        raise ConfigError(
            "policies extend each other in a circle: "
            f"{' -> '.join(f'{Path(p.file).name} {p.key}' for p in (*passed, base))}. "
            "Take one extends out.",
            file=place.file,
            key=key,
        )
    if len(passed) > DEEPEST:
        raise ConfigError(
            f"more than {DEEPEST} policies extend each other in a row. Join some of them.",
            file=place.file,
            key=key,
        )
    try:
        return _assemble(folder, name, passed, read)
    except ConfigError as error:
        if error.key == "policies" and name != _MAIN and error.file == folder.file:
            raise ConfigError(error.problem, file=place.file, key=key) from None
        raise


def _identity(place: Place) -> Place:
    return Place(str(Path(place.file).resolve()), place.key)


def _joined(base: Assembled, own: Assembled, written: WrittenTable) -> Assembled:
    ids = _ids(base.table.get("checks", ()))
    for index, id in enumerate(written.remove):
        if id not in ids:
            raise ConfigError(
                f"the policy that this one extends has no check {id!r}.{nearest(id, ids)}",
                file=own.place.file,
                key=f"{own.place.key}.remove[{index}]",
            )
    rows: list[tuple[dict[str, Any], Place]] = [
        ({**row, "id": id}, place)
        for row, id, place in zip(base.table.get("checks", ()), ids, base.checks, strict=True)
    ]
    at = {id: index for index, id in enumerate(ids)}
    gone = {at.pop(id) for id in dict.fromkeys(written.remove)}
    for row, place in zip(own.table.get("checks", ()), own.checks, strict=True):
        if row.get("id") in at:
            rows[at.pop(row["id"])] = (row, place)
        else:
            rows.append((row, place))
    kept = [each for index, each in enumerate(rows) if index not in gone]
    table = {**base.table, **own.table}
    keys = {**base.keys, **own.keys}
    if base.table.get("plugins") or own.table.get("plugins"):
        both = (*base.table.get("plugins", ()), *own.table.get("plugins", ()))
        table["plugins"] = list(dict.fromkeys(both))
    table["checks"] = [row for row, _ in kept]
    return Assembled(table, own.place, keys, tuple(place for _, place in kept))


def _ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of checks, as `Policy` gives them: numbered where none was written."""
    taken = {row["id"] for row in rows if "id" in row}
    ids = []
    for row in rows:
        id = row.get("id")
        if id is None:
            id, number = str(row.get("use")), 1
            while id in taken:
                number += 1
                id = f"{row.get('use')}-{number}"
            taken.add(id)
        ids.append(id)
    return ids


def _require_plain_names(table: Mapping[str, Any], place: Place) -> None:
    """Refuse ``${`` in what stands in records as it is."""
    rows = table.get("checks", ())
    named = [(key, table.get(key)) for key in _NAMES]
    named += [(f"checks[{i}].{k}", row.get(k)) for i, row in enumerate(rows) for k in TERMS]
    for key, value in named:
        if "${" in str(value):
            raise ConfigError(
                "a name is recorded as it stands and can't hold ${. The settings of checks, and "
                "refusal, can.",
                file=place.file,
                key=f"{place.key}.{key}",
            )
