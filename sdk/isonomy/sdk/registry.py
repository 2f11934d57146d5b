"""Finding plugins by name: entry points of installed packages, and modules loaded explicitly.

Entry points are listed without importing anything; the code behind a name is imported only when the
name is used. Modules named explicitly (``plugins = [...]`` in a policy, `Guard(plugins=[...])`,
``--plugins``) are imported at once and may register names through the hooks of
`isonomy.sdk.hooks.Registration`. A name that two packages claim is refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pluggy

from .errors import MissingExtra, PluginError
from .hooks import PROJECT, Registration

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUPS = {"check": "isonomy.checks", "backend": "isonomy.backends", "log": "isonomy.logs"}


class Registered(NamedTuple):
    """A name that can be used, who provides it, and where from.

    Nothing is imported yet for entry points.
    """

    kind: str
    name: str
    package: str
    version: str
    source: str


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` with the nearest of `names`, or the list of them."""
    import difflib

    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""


@cache
def _installed(kind: str) -> Mapping[str, EntryPoint]:
    from importlib.metadata import entry_points  # a fifth of the import time, were it at the top

    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUPS[kind]):
        other = found.get(point.name)
        if other is not None and other.value != point.value:
            raise PluginError(
                f"two installed packages claim the {kind} name {point.name!r}: {other.value} and "
                f"{point.value}. Uninstall one of them.",
                plugin=point.name,
            )
        found[point.name] = point
    return found


class Registry:
    """Names of checks and backends: those of installed packages plus those of `modules`.

    Args:
        modules: plugin modules to import now. trusted: top-level packages whose entry points may be
        imported, besides Isonomy's own; `None`
            trusts every installed package. A replay passes what its user allowed.
    """

    def __init__(
        self, modules: Iterable[str] = (), *, trusted: Collection[str] | None = None
    ) -> None:
        self._trusted = trusted
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Registration)
        self.modules = tuple(dict.fromkeys(modules))
        for name in self.modules:
            self._load(name)
        self._explicit: dict[str, dict[str, tuple[Any, str]]] = {"check": {}, "backend": {}}
        self._collect("check", "isonomy_checks")
        self._collect("backend", "isonomy_backends")

    def _load(self, name: str) -> None:
        try:
            module = importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit at import, too
            raise PluginError(
                f"the plugin module {name!r} can't be imported: {type(error).__name__}: {error}. "
                "Check the name, and that the package is installed in this environment.",
                plugin=name,
            ) from error
        try:
            self._manager.register(module, name)
        except pluggy.PluginValidationError as error:
            raise PluginError(
                f"the plugin module {name!r} does not fit the hooks: {error}. "
                "See isonomy.sdk.hooks.Registration for their names and arguments.",
                plugin=name,
            ) from None

    def _collect(self, kind: str, hook: str) -> None:
        for impl in getattr(self._manager.hook, hook).get_hookimpls():
            for name, factory in self._said_by(impl, hook).items():
                if name in self._explicit[kind] or name in _installed(kind):
                    raise PluginError(
                        f"the plugin module {impl.plugin_name!r} registers the {kind} {name!r}, "
                        "which is taken. Rename it.",
                        plugin=impl.plugin_name,
                    )
                self._explicit[kind][name] = (factory, impl.plugin_name)

    @staticmethod
    def _said_by(impl: pluggy.HookImpl, hook: str) -> Mapping[str, Any]:
        try:
            said = impl.function()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(
                f"{hook} of the plugin module {impl.plugin_name!r} raised "
                f"{type(error).__name__}: {error}.",
                plugin=impl.plugin_name,
            ) from error
        if not isinstance(said, Mapping):
            raise PluginError(
                f"{hook} of the plugin module {impl.plugin_name!r} must return a dictionary of "
                f"names and factories, not {type(said).__name__}.",
                plugin=impl.plugin_name,
            )
        return said

    def names(self, kind: str) -> list[str]:
        """Return the known names of a kind (check, backend, log), sorted."""
        return sorted({*_installed(kind), *self._explicit.get(kind, {})})

    def commands(self) -> list[Any]:
        """Return the click commands that loaded modules add."""
        return [
            command for commands in self._manager.hook.isonomy_commands() for command in commands
        ]

    def find(self, kind: str, name: str) -> Any:
        """Return what a name stands for, importing it if need be.

        Raises:
            PluginError: unknown name (the nearest is proposed), or its code can't be imported.
        """
        if name in self._explicit.get(kind, {}):
            return self._explicit[kind][name][0]
        point = _installed(kind).get(name)
        if point is None:
            raise PluginError(
                f"there is no {kind} named {name!r}.{nearest(name, self.names(kind))}", plugin=name
            )
        package = point.module.partition(".")[0]
        if self._trusted is not None and package not in {"isonomy", *self._trusted}:
            raise PluginError(
                f"the {kind} {name!r} is of the package {package!r}, which is not trusted here. If "
                f"you trust it, pass --plugins {package}.",
                plugin=name,
            )
        try:
            return point.load()
        except (MissingExtra, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise PluginError(
                f"the {kind} {name!r} ({point.value}) can't be imported: "
                f"{type(error).__name__}: {error}.",
                plugin=name,
            ) from error

    def name_of(self, kind: str, thing: Any) -> str | None:
        """Return the registered name of a class or factory, or `None`.

        Imports only packages already in use.
        """
        for name, (factory, _) in self._explicit.get(kind, {}).items():
            if factory is thing:
                return name
        for name, point in _installed(kind).items():
            if (
                thing.__module__.startswith(point.module.partition(":")[0])
                and point.load() is thing
            ):
                return name
        return None

    def listing(self) -> list[Registered]:
        """Return everything that can be named, for people."""
        rows = []
        for kind in GROUPS:
            for name, point in _installed(kind).items():
                dist = point.dist
                rows.append(
                    Registered(
                        kind,
                        name,
                        dist.name if dist else "?",
                        dist.version if dist else "?",
                        point.value,
                    )
                )
            for name, (_, module) in self._explicit.get(kind, {}).items():
                rows.append(Registered(kind, name, module, "", "loaded explicitly"))
        return sorted(rows)
