"""A policy: the ordered checks and their terms, with a digest, recorded as it was written.

A policy comes from the ``[policy]`` table of a configuration file or from a list in code. Either
way `Policy.written` is plain data from which the same policy can be built again, as far as its
checks are registered names: a callable or an unregistered object of the application is written by
its qualified name and can be asked again only by that application.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from . import interpolation, provenance
from .canonical import canonical, sha256
from .checks import STAGES, Check
from .decoding import decode
from .errors import ConfigError, MissingExtra, PluginError
from .hooks import OBSERVING, Hooks
from .records import CheckIdentity
from .registry import Registry, nearest
from .vocabulary import Stage

REFUSAL = "I can't help with that."
MAX_CANDIDATES = 64


class PolicyTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[policy]`` table of a configuration file.

    Attributes:
        name: stands in every record.
        refusal: what the caller gets instead of an answer that is blocked.
        max_rounds: how often, beyond the first time, checks of a stage are asked again, an answer
            is revised, and the model is asked again.
        candidates: how many answers are generated for `rank` to choose from.
        stages: those at which a check must be asked; a policy without one there is refused.
        plugins: modules to import, which register names of checks and backends.
        checks: a table each: ``use``, the other terms, and the check's own settings.
    """

    name: str = "policy"
    refusal: str = REFUSAL
    max_rounds: int = 2
    candidates: int = 1
    stages: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    checks: tuple[dict[str, Any], ...] = ()


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The terms of a check: the keys of its table that are not its own settings.

    What is left out, the check's own declaration decides, where it has one (`isonomy.sdk.check`).

    Attributes:
        use: the check's registered name.
        id: its unique name in this policy and in the log.
        stages: where it is asked; everywhere it can act, unless given.
        on_error: what counts if it raises, misses its time or returns nonsense.
        timeout: seconds; 10 unless the check says otherwise.
        lookback: how many characters at the end of its output may still change while more text
            comes; "all" holds a stream back until the answer is complete.
        shadow: it is asked and recorded, and changes nothing.
        beside: it is asked while the model answers (`pre_filter`); the answer waits for it.
        read_only: it replaces nothing, and may be asked together with its neighbours.
    """

    use: str
    id: str | None = None
    stages: tuple[str, ...] | None = None
    on_error: str = "block"
    timeout: float | None = None
    lookback: int | Literal["all"] | None = None
    shadow: bool | None = None
    beside: bool | None = None
    read_only: bool | None = None


TERMS = Terms.__struct_fields__


_CONSTITUTIONAL: tuple[Stage, ...] = ("critique", "revise", "rank")


def _grouped(checks: Iterable[Check]) -> tuple[tuple[Check, ...], ...]:
    runs: list[list[Check]] = []
    for check in checks:
        if check.read_only and runs and runs[-1][0].read_only:
            runs[-1].append(check)
        else:
            runs.append([check])
    groups: list[tuple[Check, ...]] = []
    for run in runs:
        if sum(not check.inline for check in run) > 1:
            groups.append(tuple(run))
        else:  # nobody to wait for at the same time
            groups += [(check,) for check in run]
    return tuple(groups)


class Policy:
    """Ordered checks with unique ids. Immutable."""

    def __init__(
        self,
        checks: Iterable[Any] = (),
        *,
        name: str = "policy",
        refusal: str = REFUSAL,
        max_rounds: int = 2,
        candidates: int = 1,
        registry: Registry | None = None,
        written: Mapping[str, Any] | None = None,
    ) -> None:
        """Build a policy from checks, plugin instances and callables, in this order.

        Args:
            checks: what judges.
            name: for the log.
            refusal: what a caller gets instead of a blocked answer.
            max_rounds: how often, beyond the first time, checks of a stage are asked again, an
                answer is revised, and the model is asked again.
            candidates: how many answers are generated, each with its own draws of the seed, for
                `rank` to choose from.
            registry: where the names of checks are known.
            written: the policy as it was written, where it was.

        Raises:
            ConfigError: two checks were given the same id, or a number is out of range.
            PluginError: something in the list is no check.
        """
        if isinstance(checks, str | bytes | Mapping) or not isinstance(checks, Iterable):
            raise ConfigError(
                f"policy must be a list of checks, not {type(checks).__name__}. "
                "Write policy=[...], or use Guard.from_file for a policy file."
            )
        if not 0 <= max_rounds <= 100:
            raise ConfigError("max_rounds must be between 0 and 100.", key="policy.max_rounds")
        if not 1 <= candidates <= MAX_CANDIDATES:
            raise ConfigError(
                f"candidates must be between 1 and {MAX_CANDIDATES}.", key="policy.candidates"
            )
        self.name = name
        self.refusal = refusal
        self.max_rounds = max_rounds
        self.candidates = candidates
        self.registry = registry or Registry()
        self.checks = self._with_unique_ids(
            [self._named(item) if isinstance(item, Check) else self._wrap(item) for item in checks]
        )
        self._by_stage = {
            stage: tuple(c for c in self.checks if stage in c.stages)
            for c in self.checks
            for stage in c.stages
        }
        self.constitutional = not self._by_stage.keys().isdisjoint(_CONSTITUTIONAL)
        """Whether something criticises, revises or ranks answers."""
        self.beside = tuple(c for c in self.at("pre_filter") if c.beside)
        self._groups = {
            stage: _grouped(c for c in checks if stage != "pre_filter" or not c.beside)
            for stage, checks in self._by_stage.items()
        }
        self.observers: tuple[Hooks, ...] = tuple(
            {name: c.hooks[name] for name in OBSERVING if name in c.hooks}
            for c in self.checks
            if not c.hooks.keys().isdisjoint(OBSERVING)
        )
        self.written = canonical(written if written is not None else self._describe())
        self.digest = sha256(self.written)
        self.identities = tuple(self._identify(order, c) for order, c in enumerate(self.checks))

    def _wrap(self, item: Any) -> Check:
        return Check(item, use=self.registry.name_of("check", type(item)))

    def _named(self, check: Check) -> Check:
        """Return a check under its plugin's registered name, by which a replay finds it."""
        name = None if check.named else self.registry.name_of("check", type(check.plugin))
        return check if name is None else check.with_name(name)

    @staticmethod
    def _with_unique_ids(checks: list[Check]) -> tuple[Check, ...]:
        """Number checks whose ids were made from their names.

        Two that were given the same id are refused.
        """
        taken: set[str] = set()
        for check in checks:
            if check.given_id and check.id in taken:
                raise ConfigError(
                    f"two checks have the id {check.id!r}; ids are unique.", key="policy.checks"
                )
            if check.given_id:
                taken.add(check.id)
        unique = []
        for check in checks:
            if check.given_id:
                unique.append(check)
                continue
            id, number = check.id, 1
            while id in taken:
                number += 1
                id = f"{check.id}-{number}"
            taken.add(id)
            unique.append(check if id == check.id else check.with_id(id))
        return tuple(unique)

    @classmethod
    def from_table(
        cls,
        table: Mapping[str, Any],
        *,
        file: str | None = None,
        trusted: Collection[str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Policy:
        """Build a policy from a ``[policy]`` table.

        Args:
            table: the decoded table; it is recorded as it is, apart from what its checks refer to
                outside of it, which is recorded in its place.
            file: shown in errors.
            trusted: packages whose entry points may be imported; all, unless given.
            environ: where the values come from that the table takes from the environment (see
                `isonomy.sdk.interpolation`); the process's own, unless given.

        Raises:
            ConfigError: naming file, key and the nearest valid name.
        """
        filled = table
        if "environment" in table:
            values = os.environ if environ is None else environ
            filled = interpolation.restored(table, values, file=file, key="policy")
        settings = decode(filled, PolicyTable, file=file, key="policy")
        try:
            registry = Registry(settings.plugins, trusted=trusted)
        except PluginError as error:
            raise ConfigError(str(error), file=file, key="policy.plugins") from error
        checks = [
            _check_from(row, registry, file=file, key=f"policy.checks[{index}]")
            for index, row in enumerate(settings.checks)
        ]
        table = _in_full(table, checks)
        if "environment" in table:
            for check, row in zip(checks, table["checks"] if checks else (), strict=True):
                check.written = _settings_in(row) if interpolation.any_in(row) else None
        _require_checks_at(settings.stages, checks, file=file)
        try:
            return cls(
                checks,
                name=settings.name,
                refusal=settings.refusal,
                max_rounds=settings.max_rounds,
                candidates=settings.candidates,
                registry=registry,
                written=table,
            )
        except ConfigError as error:
            raise ConfigError(error.problem, file=file, key=error.key or "policy") from None

    def at(self, stage: Stage) -> tuple[Check, ...]:
        """Return the checks asked at a stage, in order."""
        return self._by_stage.get(stage, ())

    def groups(self, stage: Stage) -> tuple[tuple[Check, ...], ...]:
        """Return the checks asked at a stage one after another, in order.

        Neighbours that only read are together: they are asked at the same time. Checks beside the
        model (`beside`) are not among them.
        """
        return self._groups.get(stage, ())

    def _describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "refusal": self.refusal,
            "max_rounds": self.max_rounds,
            # What was added later is written where it is set, so that older digests stay.
            **({"candidates": self.candidates} if self.candidates != 1 else {}),
            "plugins": list(self.registry.modules),
            "checks": [
                {
                    "use": check.use,
                    "id": check.id,
                    "stages": list(check.stages),
                    "on_error": check.on_error,
                    "timeout": check.timeout,
                    **check.given,
                    **check.settings,
                }
                for check in self.checks
            ],
        }

    def _identify(self, order: int, check: Check) -> CheckIdentity:
        if check.is_callable and check.written is not None:  # its closure may hold values
            source = provenance.of_function(self.registry.find("check", check.use))
        elif check.is_callable:
            source = provenance.of_function(check.plugin)
        else:
            source = provenance.of_plugin(check.plugin)
        settings, partial = sha256(canonical(check.settings)), source.partial
        if check.written is not None:
            # Values from the environment must not be found by trying: the policy as written has
            # their keyed digests.
            settings = sha256(canonical([check.written, self.digest]))
        elif not isinstance(check.plugin, msgspec.Struct):
            state = provenance.of_state(check.plugin)
            if state is not None:
                settings, partial = state[0], partial or state[1]
        return CheckIdentity(
            id=check.id,
            use=check.use,
            stages=check.stages,
            package=source.package,
            version=source.version,
            order=order,
            settings=settings,
            code=source.code,
            code_partial=partial,
            kind="plugin" if check.named else "callable",
        )


def _in_full(table: Mapping[str, Any], checks: Sequence[Check]) -> Mapping[str, Any]:
    """Return a policy's table with what its checks refer to in its place.

    A plugin whose settings name something outside of the policy (a file) has a method
    ``in_full(settings)``, which returns them with what it read there instead: the record then says
    what the policy was, and a replay needs nothing else.
    """
    rows = list(table["checks"]) if checks else []
    for index, check in enumerate(checks):
        in_full = getattr(type(check.plugin), "in_full", None)
        if in_full is not None:
            terms = {key: value for key, value in rows[index].items() if key in TERMS}
            rows[index] = {**terms, **in_full(check.plugin, _settings_in(rows[index]))}
    changed = any(old is not new for old, new in zip(table.get("checks", ()), rows, strict=True))
    return {**table, "checks": rows} if changed else table


def _settings_in(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TERMS}


def _require_checks_at(stages: Iterable[str], checks: Iterable[Check], *, file: str | None) -> None:
    """Refuse a policy that has no check at a stage where it declares that it has one."""
    asked = {stage for check in checks if not check.shadow for stage in check.stages}
    for index, stage in enumerate(stages):
        if stage not in STAGES:
            raise ConfigError(
                f"there is no stage {stage!r}.{nearest(stage, STAGES)}",
                file=file,
                key=f"policy.stages[{index}]",
            )
        if stage not in asked:
            raise ConfigError(
                f"the policy declares the stage {stage!r}, and no check decides there. Add a "
                "check, or take the stage out.",
                file=file,
                key=f"policy.stages[{index}]",
            )


def _check_from(row: Mapping[str, Any], registry: Registry, *, file: str | None, key: str) -> Check:
    terms = decode({k: v for k, v in row.items() if k in TERMS}, Terms, file=file, key=key)
    try:
        factory = registry.find("check", terms.use)
    except MissingExtra:
        raise
    except PluginError as error:
        raise ConfigError(str(error), file=file, key=f"{key}.use") from error
    settings = _settings_in(row)
    plugin: Any
    if isinstance(factory, type) and issubclass(factory, msgspec.Struct):
        plugin = decode(settings, factory, file=file, key=key, also=TERMS)
    else:
        try:
            plugin = factory(**settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{terms.use}: {error}", file=file, key=key) from error
    try:
        return Check(
            plugin,
            id=terms.id,
            stages=terms.stages,  # type: ignore[arg-type]
            on_error=terms.on_error,  # type: ignore[arg-type]
            timeout=terms.timeout,
            lookback=terms.lookback,
            shadow=terms.shadow,
            beside=terms.beside,
            read_only=terms.read_only,
            use=terms.use,
        )
    except ConfigError as error:
        term = (error.key or "").rpartition(".")[2]
        raise ConfigError(error.problem, file=file, key=f"{key}.{term}") from None
    except PluginError as error:
        raise ConfigError(str(error), file=file, key=f"{key}.use") from None
