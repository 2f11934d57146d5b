"""A policy: the ordered checks and their terms, with a digest, recorded as it was written.

A policy comes from the ``[policy]`` table of a configuration file or from a list in code. Either
way `Policy.written` is plain data from which the same policy can be built again, as far as its
checks are registered names: a callable or an unregistered object of the application is written by
its qualified name and can be asked again only by that application.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from . import provenance
from .canonical import canonical, sha256
from .checks import Check
from .decoding import decode
from .errors import ConfigError, MissingExtra, PluginError
from .records import CheckIdentity
from .registry import Registry
from .vocabulary import Stage

REFUSAL = "I can't help with that."
_TERMS = ("id", "use", "stages", "on_error", "timeout")


class PolicyTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[policy]`` table of a configuration file."""

    name: str = "policy"
    refusal: str = REFUSAL
    max_rounds: int = 2
    plugins: tuple[str, ...] = ()
    checks: tuple[dict[str, Any], ...] = ()


class _Terms(msgspec.Struct, frozen=True, kw_only=True):
    use: str
    id: str | None = None
    stages: tuple[str, ...] | None = None
    on_error: str = "block"
    timeout: float = 10.0


class Policy:
    """Ordered checks with unique ids. Immutable."""

    def __init__(
        self,
        checks: Iterable[Any] = (),
        *,
        name: str = "policy",
        refusal: str = REFUSAL,
        max_rounds: int = 2,
        registry: Registry | None = None,
        written: Mapping[str, Any] | None = None,
    ) -> None:
        """Build a policy from checks, plugin instances and callables, in this order.

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
        self.name = name
        self.refusal = refusal
        self.max_rounds = max_rounds
        self.registry = registry or Registry()
        self.checks = self._with_unique_ids(
            [item if isinstance(item, Check) else self._wrap(item) for item in checks]
        )
        self._by_stage = {
            stage: tuple(c for c in self.checks if stage in c.stages)
            for c in self.checks
            for stage in c.stages
        }
        self.observers = tuple(c.hooks["observe"] for c in self.checks if "observe" in c.hooks)
        self.written = canonical(written if written is not None else self._describe())
        self.digest = sha256(self.written)
        self.identities = tuple(self._identify(order, c) for order, c in enumerate(self.checks))

    def _wrap(self, item: Any) -> Check:
        return Check(item, use=self.registry.name_of("check", type(item)))

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
    ) -> Policy:
        """Build a policy from a ``[policy]`` table.

        Args:
            table: the decoded table; it is recorded as it is.
            file: shown in errors.
            trusted: packages whose entry points may be imported; all, unless given.

        Raises:
            ConfigError: naming file, key and the nearest valid name.
        """
        settings = decode(table, PolicyTable, file=file, key="policy")
        try:
            registry = Registry(settings.plugins, trusted=trusted)
        except PluginError as error:
            raise ConfigError(str(error), file=file, key="policy.plugins") from error
        checks = [
            _check_from(row, registry, file=file, key=f"policy.checks[{index}]")
            for index, row in enumerate(settings.checks)
        ]
        try:
            return cls(
                checks,
                name=settings.name,
                refusal=settings.refusal,
                max_rounds=settings.max_rounds,
                registry=registry,
                written=table,
            )
        except ConfigError as error:
            raise ConfigError(error.problem, file=file, key=error.key or "policy") from None

    def at(self, stage: Stage) -> tuple[Check, ...]:
        """Return the checks asked at a stage, in order."""
        return self._by_stage.get(stage, ())

    def _describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "refusal": self.refusal,
            "max_rounds": self.max_rounds,
            "plugins": list(self.registry.modules),
            "checks": [
                {
                    "use": check.use,
                    "id": check.id,
                    "stages": list(check.stages),
                    "on_error": check.on_error,
                    "timeout": check.timeout,
                    **check.settings,
                }
                for check in self.checks
            ],
        }

    def _identify(self, order: int, check: Check) -> CheckIdentity:
        if check.is_callable:
            source = provenance.of_function(check.plugin)
        else:
            source = provenance.of_plugin(check.plugin)
        settings, partial = sha256(canonical(check.settings)), source.partial
        if not isinstance(check.plugin, msgspec.Struct):
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


def _check_from(row: Mapping[str, Any], registry: Registry, *, file: str | None, key: str) -> Check:
    terms = decode({k: v for k, v in row.items() if k in _TERMS}, _Terms, file=file, key=key)
    try:
        factory = registry.find("check", terms.use)
    except MissingExtra:
        raise
    except PluginError as error:
        raise ConfigError(str(error), file=file, key=f"{key}.use") from error
    settings = {k: v for k, v in row.items() if k not in _TERMS}
    plugin: Any
    if isinstance(factory, type) and issubclass(factory, msgspec.Struct):
        plugin = decode(settings, factory, file=file, key=key, also=_TERMS)
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
            use=terms.use,
        )
    except ConfigError as error:
        term = (error.key or "").rpartition(".")[2]
        raise ConfigError(error.problem, file=file, key=f"{key}.{term}") from None
    except PluginError as error:
        raise ConfigError(str(error), file=file, key=f"{key}.use") from None
