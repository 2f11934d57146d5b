"""What is wrong with a configuration file, all at once, and what in it is of no use.

Loading stops at the first error; an author wants all of them. So the file is loaded again and
again, each time without what was found wrong before, until nothing is refused: every error is one
that loading would raise, in its own words. What loads is looked at for what can't be meant.

The file itself is never changed.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from . import config, policyfile, tomlfile
from .checks import STAGES, Check
from .errors import ConfigError, IsonomyError
from .policy import Policy
from .registry import Registry
from .vocabulary import Stage

Level = Literal["error", "warning"]
_ROW = re.compile(r"((?:policy|policies\.[\w-]+)\.checks)\[(\d+)\](?:\.([\w-]+).*)?")
_ALWAYS: dict[Stage, str] = {"pre_filter": "what goes in", "post_validate": "what comes out"}
_MOST = 200
"""Errors of one file."""


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong (`error`: the file is refused) or of no use (`warning`)."""

    level: Level
    file: str
    key: str | None
    message: str

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.key) if part)
        return f"{self.level}: {where}: {self.message}"


class Examined(msgspec.Struct, frozen=True):
    """What `examine` found. `policies` are those that load, by their names in the file."""

    problems: tuple[Problem, ...]
    policies: dict[str, Policy]

    def count(self, level: Level) -> int:
        """Return how many problems of a level there are."""
        return sum(problem.level == level for problem in self.problems)


def examine(file: str, *, environ: Mapping[str, str] | None = None) -> Examined:
    """Return everything that is wrong with a configuration file.

    Args:
        file: its path.
        environ: where ``${NAME}`` comes from; the process's own environment, unless given.

    Raises:
        ConfigError: the file can't be read, or is not TOML.
    """
    values = os.environ if environ is None else environ
    tomlfile.read(file)
    found: dict[Problem, None] = {}
    policies: dict[str, Policy] = {}
    assembled: dict[str, policyfile.Assembled] = {}

    def whole(files: _Files) -> None:
        config.decode_tables(files.read(file), file=file)

    found.update(dict.fromkeys(_errors(file, whole)))
    for name in policyfile.names(tomlfile.read(file)):

        def build(files: _Files, name: str | None = name) -> None:
            policy = policyfile.assemble(file, files.read(file), name, read=files.read)
            key = policy.place.key
            policies[key], assembled[key] = policy.build(values), policy

        found.update(dict.fromkeys(_errors(file, build)))
    registry = next(iter(policies.values())).registry if policies else Registry()

    def outside(files: _Files) -> None:
        tables = files.read(file)
        beside = {key: value for key, value in tables.items() if not key.startswith("polic")}
        whole = config.decode_tables(beside, file=file)
        read = config.read_outside(beside, whole, registry, file=file, environ=values)
        _read_serve(read["serve"], file)
        for policy in policies.values() if read["mask"] else ():
            config.require_usable(read["mask"], policy, file)

    found.update(dict.fromkeys(_errors(file, outside)))
    if not found:
        for key, policy in policies.items():
            found.update(dict.fromkeys(_useless(policy, assembled[key])))
        found.update(dict.fromkeys(_unused(file)))
    return Examined(tuple(found), policies)


def _read_serve(table: dict[str, Any], file: str) -> None:
    if not table:
        return
    try:
        from .gateway.settings import settings_of
    except ImportError:  # the extra is not installed, so nobody serves here
        return
    settings_of(table, file)


class _Files:
    """The tables of files as they are, but for what was taken out of them."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[str, Any]] = {}
        self._gone: dict[tuple[str, str], list[int]] = {}
        self._cut: set[tuple[str, str]] = set()

    def read(self, file: str) -> dict[str, Any]:
        """Return the tables of a file."""
        if file not in self._tables:
            self._tables[file] = copy.deepcopy(tomlfile.read(file))
        return self._tables[file]

    def original(self, file: str, key: str | None) -> str | None:
        """Return where a key stands in the file as it is, before items were taken out."""
        if key is None:
            return None
        return re.sub(
            r"^(.*?)\[(\d+)\]",
            lambda found: f"{found[1]}[{self._index(file, found[1], int(found[2]))}]",
            key,
        )

    def _index(self, file: str, listed: str, index: int) -> int:
        for gone in sorted(self._gone.get((file, listed), ())):
            index += gone <= index
        return index

    def follows(self, file: str, key: str | None) -> bool:
        """Return whether an error is about what only stands like this without what was cut."""
        whole = self.original(file, key) or ""
        return any(
            cut == whole or cut.startswith((f"{whole}.", f"{whole}[")) for at, cut in self._cut
            if at == file
        )  # fmt: skip

    def cut(self, file: str, key: str | None) -> bool:
        """Take out what a key names, or else what it stands in; return whether that was done."""
        tables = self.read(file)
        row = _ROW.fullmatch(key or "")
        if row is not None:
            listed, number, setting = row[1], int(row[2]), row[3]
            rows = _at(tables, listed)
            if not isinstance(rows, list) or number >= len(rows):
                return False
            self._cut.add((file, self.original(file, key) or ""))
            if setting is not None and isinstance(rows[number], dict) and setting in rows[number]:
                del rows[number][setting]
                return True
            self._gone.setdefault((file, listed), []).append(self._index(file, listed, number))
            del rows[number]
            return True
        steps = re.sub(r"\[.*", "", key or "").split(".")
        steps = steps[: 3 if steps[0] in ("policies", "backends") else 2]
        while steps:
            holder = _at(tables, ".".join(steps[:-1]))
            if isinstance(holder, dict) and steps[-1] in holder:
                self._cut.add((file, ".".join(steps)))
                del holder[steps[-1]]
                return True
            steps.pop()
        return False


def _at(tables: Any, path: str) -> Any:
    for step in filter(None, path.split(".")):
        tables = tables.get(step) if isinstance(tables, dict) else None
    return tables


def _errors(file: str, load: Callable[[_Files], None]) -> Iterator[Problem]:
    """Give every error of loading a file, one after the other."""
    files = _Files()
    for _ in range(_MOST):
        try:
            load(files)
        except ConfigError as error:
            where = error.file or file
            if not files.follows(where, error.key):
                key = files.original(where, error.key)
                yield Problem("error", where, key, error.problem)
            try:
                going = files.cut(where, error.key)
            except ConfigError:  # the other file can't be read
                going = False
            if not going:
                return
        except IsonomyError as error:
            yield Problem("error", file, None, str(error))
            return
        else:
            return


def _useless(policy: Policy, written: policyfile.Assembled) -> Iterator[Problem]:
    """Give what in a policy can't be meant."""

    def warn(message: str, check: Check | None = None, term: str = "") -> Problem:
        place = written.place
        if check is not None:
            place = written.checks[policy.checks.index(check)]
        key = f"{place.key}.{term}" if term else place.key
        return Problem("warning", place.file, key, message)

    if not policy.checks:
        yield warn("the policy has no check: nothing is judged.")
        return
    for stage, what in _ALWAYS.items():
        if not policy.at(stage):
            yield warn(f"no check is asked at {stage}: {what} is not judged.")
    for stage in STAGES:
        asked = policy.at(stage)
        if asked and all(check.shadow for check in asked):
            yield warn(f"every check at {stage} is a shadow: nothing decides there.")
    yield from _constitution(policy, warn)
    for number, check in enumerate(policy.checks):
        row = written.table["checks"][number]
        yield from _never(policy, check, row, warn)
        for other in policy.checks[:number]:
            if _shadowed(check, other):
                yield warn(
                    f"{other.id!r} judges the same before it, in the same way: this check has "
                    "nothing to add. Take one of them out.",
                    check,
                )
                break


Warn = Callable[..., Problem]


def _constitution(policy: Policy, warn: Warn) -> Iterator[Problem]:
    critique, revise, rank = (policy.at(stage) for stage in ("critique", "revise", "rank"))
    for check in rank:
        if policy.candidates == 1 and check not in (*critique, *revise):
            yield warn(
                "it can't matter: there is one candidate. Set candidates in the policy.", check
            )
    if policy.candidates > 1 and not rank:
        yield warn(f"{policy.candidates} candidates are generated, and no check ranks them.")
    if critique and not revise and not rank:
        yield warn("nobody reads its critiques: no check revises or ranks.", critique[0])
    for check in revise:
        if not critique:
            yield warn("it is shown no critiques: no check gives any.", check)


_REPLACING = ("redact", "mask", "hash", "truncate")


def _never(policy: Policy, check: Check, row: Mapping[str, Any], warn: Warn) -> Iterator[Problem]:
    """Give what a check is told to do and never will."""
    if "timeout" in row and check.inline:
        yield warn("it runs inline, where no timeout can stop it.", check, "timeout")
    if "on_error" in row and check.shadow:
        yield warn("it is a shadow: its failure counts as nothing.", check, "on_error")
    action = row.get("action")
    if action == "retry" and policy.max_rounds == 0:
        yield warn("the policy allows no further round (max_rounds = 0), so it blocks.", check)
    if action == "retry" and check.stages == ("pre_filter",):
        yield warn("there is no answer to try again at pre_filter, so it blocks.", check)
    if action in _REPLACING and check.read_only:
        yield warn("it is read_only, so it can't replace anything.", check, "read_only")


def _shadowed(check: Check, earlier: Check) -> bool:
    same = (check.use, check.settings) == (earlier.use, earlier.settings)
    covered = set(check.stages) <= set(earlier.stages)
    data = isinstance(check.plugin, msgspec.Struct)  # of others, settings do not tell everything
    return data and same and covered and bool(check.stages) and not earlier.shadow


def _unused(file: str) -> Iterator[Problem]:
    tables = tomlfile.read(file)
    text = repr({key: value for key, value in tables.items() if key != "environment"})
    for number, name in enumerate(tables.get("environment", {}).get("allow", ())):
        if f"${{{name}}}" not in text:
            key = f"environment.allow[{number}]"
            yield Problem("warning", file, key, f"the file takes no {name!r} from the environment.")
