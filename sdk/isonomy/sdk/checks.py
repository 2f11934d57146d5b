"""Checks: plugin instances and plain callables, with the terms on which they are asked.

A `Check` is a plugin plus its unique id, the stages at which it is asked, what its failure means
(`on_error`) and how long it may take (`timeout`). A plain callable becomes a check that is asked
with each non-system input text and then with the final text; it returns True to pass, False to
block, or a verdict, and nothing else: a match object or `None` is a failure that says so, never a
silent pass.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, get_args

import msgspec
import pluggy

from .canonical import require_declared, require_finite
from .errors import ConfigError, InputError, PluginError
from .hooks import OBSERVING, PROJECT, Stages
from .registry import nearest
from .vocabulary import VERDICTS, Allow, Block, Stage, Verdict

OnError = Literal["block", "allow", "flag"]
Lookback = int | Literal["all"]
STAGES: tuple[Stage, ...] = get_args(Stage)
_CALLABLE_STAGES: tuple[Stage, ...] = ("pre_filter", "post_validate")
_CALLABLE_ALSO: tuple[Stage, ...] = ("retrieved", "tool_call", "tool_result")
"""Where a callable is asked only if it is given the stage."""
_OURS = "isonomy.plugins."
_HOOKS = {name for name in vars(Stages) if not name.startswith("_")}


class Check:
    """One check of a policy.

    Make it with `check`, `on_input` or `on_output`, or let the policy make it.
    """

    def __init__(
        self,
        plugin: Any,
        *,
        id: str | None = None,
        stages: Iterable[Stage] | None = None,
        on_error: OnError = "block",
        timeout: float | None = None,
        lookback: Lookback | None = None,
        shadow: bool | None = None,
        beside: bool | None = None,
        read_only: bool | None = None,
        use: str | None = None,
    ) -> None:
        self.plugin = plugin
        self.hooks = _hooks_of(plugin)
        self.is_callable = not self.hooks and callable(plugin)
        self.use = use or _qualified_name(plugin)
        self.named = use is not None
        self.given_id = id is not None
        self.written: dict[str, Any] | None = None  # its settings, where they hold `${NAME}`
        self.id = id or _default_id(plugin, use)
        self.on_error: OnError = on_error
        self.timeout: float = _declared(plugin, "timeout") if timeout is None else timeout
        self.asynchronous = frozenset(n for n, (f, _) in self.hooks.items() if is_async(f))
        """Its hooks that are coroutines."""
        self.ours = type(plugin).__module__.startswith(_OURS)
        """Whether it is Isonomy's own, which leaves what it is shown as it is: it needs no copy."""
        self.inline = bool(getattr(plugin, "inline", False)) and not self.is_callable
        # Where nothing is said here, what the plugin says of itself.
        said: dict[str, Any] = {
            "lookback": lookback,
            "shadow": shadow,
            "beside": beside,
            "read_only": read_only,
        }
        terms: dict[str, Any] = {
            name: _declared(plugin, name) if s is None else s for name, s in said.items()
        }
        self.lookback: Lookback = terms["lookback"]
        self.shadow: bool = terms["shadow"]
        self.beside: bool = terms["beside"]
        self.read_only: bool = terms["read_only"]
        self.given = {n: s for n, s in said.items() if s is not None and s != _declared(plugin, n)}
        self._validate(on_error, self.timeout)
        self.stages = self._resolve_stages(stages)
        self._validate_terms()
        self.at_once = {
            stage: self.inline and stage not in self.asynchronous and not self.shadow
            for stage in self.stages
        }
        """Where it answers in its caller's thread, and what it says counts."""

    def _validate(self, on_error: str, timeout: float) -> None:
        if not self.hooks and not self.is_callable:
            raise PluginError(
                f"{self.use} is no check: it has no method marked @hookimpl and can't be called. "
                f"Pass a function, or an object with hooks ({', '.join(sorted(_HOOKS))}).",
                plugin=self.use,
            )
        if inspect.isclass(self.plugin):
            raise PluginError(
                f"{self.use} is a class; a check is an instance: {self.plugin.__name__}(...).",
                plugin=self.use,
            )
        if on_error not in get_args(OnError):
            raise ConfigError(
                f"on_error must be block, allow or flag, not {on_error!r}.",
                key=f"{self.id}.on_error",
            )
        for name in OBSERVING:
            if name not in self.hooks or not inspect.iscoroutinefunction(self.hooks[name][0]):
                continue
            raise PluginError(
                f"{self.use}.{name} is async, and observers are called in the thread that the "
                "event happens in. Write a plain function that hands the event on.",
                plugin=self.use,
            )
        number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if not number or not 0 < timeout < 86_400:
            raise ConfigError(
                f"timeout must be seconds between 0 and 86400, not {timeout!r}.",
                key=f"{self.id}.timeout",
            )

    def _validate_terms(self) -> None:
        back = self.lookback
        counted = isinstance(back, int) and not isinstance(back, bool) and 0 <= back <= 1 << 30
        if not counted and back != "all":
            raise ConfigError(
                f'lookback must be a number of characters, or "all", not {back!r}.',
                key=f"{self.id}.lookback",
            )
        for name in ("shadow", "beside", "read_only"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(
                    f"{name} must be true or false, not {value!r}.", key=f"{self.id}.{name}"
                )
        if self.beside and "pre_filter" not in self.stages:
            raise ConfigError(
                "beside is for checks of pre_filter: they are asked while the model answers. This "
                f"one acts at: {', '.join(self.stages) or 'no stage'}.",
                key=f"{self.id}.beside",
            )

    def _resolve_stages(self, stages: Iterable[Stage] | None) -> tuple[Stage, ...]:
        able: tuple[str, ...] = (
            _CALLABLE_STAGES if self.is_callable else tuple(s for s in STAGES if s in self.hooks)
        )
        if stages is None:
            return tuple(s for s in STAGES if s in able)
        wanted = tuple(stages)
        for stage in wanted:
            if stage not in STAGES:
                raise ConfigError(
                    f"there is no stage {stage!r}.{nearest(stage, STAGES)}", key=f"{self.id}.stages"
                )
            if stage not in able and not (self.is_callable and stage in _CALLABLE_ALSO):
                raise ConfigError(
                    f"{self.use} has nothing to say at {stage!r}; it acts at: {', '.join(able)}.",
                    key=f"{self.id}.stages",
                )
        if not wanted and able:  # an observer has none, and its record says so
            raise ConfigError("a check needs at least one stage.", key=f"{self.id}.stages")
        return tuple(s for s in STAGES if s in wanted)

    def with_id(self, id: str) -> Check:
        """Return the same check under another id."""
        same = copy.copy(self)
        same.id = id
        return same

    def with_name(self, name: str) -> Check:
        """Return the same check, known to be the plugin that is registered under a name."""
        same = copy.copy(self)
        same.use, same.named = name, True
        return same

    @property
    def settings(self) -> Any:
        """The plugin's settings as plain data; an empty table where it has none that are data."""
        if isinstance(self.plugin, msgspec.Struct):
            return msgspec.to_builtins(self.plugin)
        return {}


def check(
    plugin: Any,
    *,
    id: str | None = None,
    stages: Iterable[Stage] | None = None,
    on_error: OnError = "block",
    timeout: float | None = None,
    lookback: Lookback | None = None,
    shadow: bool | None = None,
    beside: bool | None = None,
    read_only: bool | None = None,
) -> Check:
    """Set the terms of a check. A plugin may have the last five as attributes; these win.

    Args:
        plugin: an object with hooks, or a callable `text -> bool | Verdict` (async too).
        id: unique name in the policy and the log; made from the plugin's name unless given.
        stages: where to ask it; everywhere it can act unless given.
        on_error: what an exception, a missed deadline or a nonsensical return counts as.
        timeout: seconds; 10 unless the plugin says otherwise.
        lookback: declares that the check may act in the middle of a stream: how many characters at
            the end of its output may still change, or its verdict depend on, while more text comes;
            ``"all"`` (unless said otherwise) where it must see the whole answer. For a text t cut
            at any n: what it makes of t[:n], without the last `lookback` characters, begins what it
            makes of every longer text, and what it lets pass of t[:n - lookback] it lets pass
            whatever follows. Such a check is a function of the candidate's text alone.
        shadow: ask and record it, and let it change nothing.
        beside: at `pre_filter`, ask it while the model answers; the answer waits for it. It can't
            replace.
        read_only: it never replaces; neighbours of this kind are asked at the same time.

    Raises:
        PluginError: `plugin` is no check.
        ConfigError: a term is wrong.
    """
    return Check(
        plugin,
        id=id,
        stages=stages,
        on_error=on_error,
        timeout=timeout,
        lookback=lookback,
        shadow=shadow,
        beside=beside,
        read_only=read_only,
    )


def on_input(function: Callable[[str], Any], **terms: Any) -> Check:
    """Ask a callable about each non-system input text only. `terms` as for `check`."""
    return check(function, stages=("pre_filter",), **terms)


def on_output(function: Callable[[str], Any], **terms: Any) -> Check:
    """Ask a callable about the final text only. `terms` as for `check`."""
    return check(function, stages=("post_validate",), **terms)


_ALLOW = Allow()
_DEFAULTS: dict[str, Any] = {
    "timeout": 10.0,
    "lookback": "all",
    "shadow": False,
    "beside": False,
    "read_only": False,
}


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether calling a function gives a coroutine."""
    while isinstance(function, partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _declared(plugin: Any, name: str) -> Any:
    """Return what a plugin says of itself, as an attribute or a property."""
    default = _DEFAULTS[name]
    if inspect.isclass(plugin) or not hasattr(type(plugin), name):
        # A module or an instance may set it; whatever `__getattr__` makes up is no declaration.
        return getattr(plugin, "__dict__", {}).get(name, default)
    return getattr(plugin, name)


def verdict_of_callable(value: Any) -> Verdict:
    """Turn what a plain callable returned into a verdict.

    Raises:
        TypeError: it is neither a bool nor a verdict; the message says what to do.
    """
    if value is True:
        return _ALLOW
    if value is False:
        return Block("the check returned False")
    if isinstance(value, VERDICTS):
        return _checked(value)
    hint = ""
    if value is None:
        hint = " It returned nothing: does every path end in a return?"
    elif hasattr(value, "group") and hasattr(value, "span"):
        hint = (
            " A match object is truthy when the pattern was found: write `... is None` to pass "
            "text without it."
        )
    raise TypeError(
        f"a callable check must return True (pass), False (block) or a verdict, not "
        f"{type(value).__name__}.{hint}"
    )


def verdict_of_hook(value: Any) -> Verdict | None:
    """Return a hook's verdict, or `None` for an abstention.

    Raises:
        TypeError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, VERDICTS):
        return _checked(value)
    raise TypeError(f"a hook must return a verdict or None, not {type(value).__name__}.")


def _checked(verdict: Verdict) -> Verdict:
    """Return a copy of a verdict; the check may still hold the one that it gave.

    Constructors do not check the types of fields, so that is done here.
    """
    if type(verdict) is Allow and not verdict.spans and not verdict.labels:  # what most checks say
        score = verdict.score
        if score is None:
            return _ALLOW
        if type(score) is float and math.isfinite(score):
            return Allow(score=score)
    try:
        require_finite(verdict.score, "a verdict's score")
        return require_declared(verdict, Verdict)
    except (InputError, TypeError) as error:
        raise TypeError(f"the {verdict.name} verdict is malformed: {error}") from None


def _hooks_of(plugin: Any) -> dict[str, tuple[Callable[..., Any], tuple[str, ...]]]:
    """Return the plugin's marked hooks: name to function and the arguments it takes.

    Raises:
        PluginError: a marked method is no hook, or takes an argument that the hook does not have.
    """
    if inspect.isclass(plugin):
        return {}
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Stages)
    name = _qualified_name(plugin)
    try:
        manager.register(_Identical(plugin), name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(
            f"{name} does not fit the hooks: {error}.{_nearest_hook(plugin)} "
            "See isonomy.sdk.hooks for their names and arguments.",
            plugin=name,
        ) from None
    found = {}
    for hook in sorted(_HOOKS):
        for impl in getattr(manager.hook, hook).get_hookimpls():
            found[hook] = (impl.function, tuple(impl.argnames))
    return found


def _nearest_hook(plugin: Any) -> str:
    for name in dir(plugin):
        if hasattr(getattr(plugin, name, None), "isonomy_impl") and name not in _HOOKS:
            return nearest(name, _HOOKS)
    return ""


class _Identical:
    """Shows a plugin's hooks to pluggy under an identity of its own.

    Equal plugins are different checks.
    """

    def __init__(self, plugin: Any) -> None:
        for name in dir(plugin):
            member = getattr(plugin, name, None)
            if callable(member) and hasattr(member, "isonomy_impl"):
                setattr(self, name, member)


def _qualified_name(plugin: Any) -> str:
    named = plugin if hasattr(plugin, "__qualname__") else type(plugin)
    module = getattr(named, "__module__", None) or "builtins"
    return f"{module}:{named.__qualname__}"


def _default_id(plugin: Any, use: str | None) -> str:
    if use is not None:
        return use
    name = getattr(plugin, "__name__", None) or type(plugin).__name__
    return "check" if name == "<lambda>" else str(name)
