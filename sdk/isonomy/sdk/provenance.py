"""Which code judged: digests of plugins and functions, for the record.

For a plugin class: every ``.py`` file of the package that its module belongs to, with the versions
of the distribution's direct dependencies. For a function: its compiled code (names, constants,
nested code), defaults and closure. What an instance that is no struct was given (its attributes)
counts among its settings. Where something can't be digested (a closure over an arbitrary object, a
builtin), the digest is marked partial. It identifies; it does not authenticate: who can change the
code can also change what it reports.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple


class Provenance(NamedTuple):
    """Where code comes from.

    Distribution, its version, digest of the code, and whether that is partial.
    """

    package: str | None
    version: str | None
    code: str
    partial: bool


@cache
def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, or `None`."""
    from importlib import metadata  # not needed to import the SDK, and slow

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@cache
def _distribution_of(module: str) -> str | None:
    if module.partition(".")[0] == "isonomy":
        return "isonomy"
    names = _distributions().get(module.partition(".")[0])
    return names[0] if names else None


@cache
def _distributions() -> Mapping[str, list[str]]:
    from importlib import metadata

    return metadata.packages_distributions()


@cache
def _dependencies(distribution: str, extras: frozenset[str]) -> tuple[str, ...]:
    """Return a distribution's direct dependencies with their versions, each ``name==version``.

    Those of extras count only where `extras` names them: what else happens to be installed must not
    change the digest.
    """
    from importlib import metadata

    lines = []
    for requirement in metadata.requires(distribution) or ():
        name = re.split(r"[\s;\[<>=!~(]", requirement, maxsplit=1)[0]
        if "extra ==" not in requirement or name in extras:
            lines.append(f"{name}=={version_of(name)}")
    return tuple(sorted(set(lines)))


@cache
def _package_digest(module_name: str, extras: frozenset[str]) -> tuple[str, bool]:
    module = sys.modules.get(module_name)
    file = getattr(module, "__file__", None)
    if file is None:
        return _finish(hashlib.sha256(b"no file")), True
    is_package = Path(file).name == "__init__.py"
    in_package = is_package or "." in module_name
    root = Path(file).parent
    files = sorted(root.rglob("*.py")) if in_package else [Path(file)]
    hasher = hashlib.sha256()
    for path in files:
        body = path.read_bytes()
        hasher.update(f"{path.relative_to(root).as_posix()}\0{len(body)}\0".encode())
        hasher.update(body)
    distribution = _distribution_of(module_name)
    if distribution is not None:
        hasher.update("\n".join(_dependencies(distribution, extras)).encode())
    return _finish(hasher), distribution is None and in_package


def _finish(hasher: Any) -> str:
    return f"sha256:{hasher.hexdigest()}"


def of_plugin(plugin: object) -> Provenance:
    """Return the provenance of a plugin: an instance of a class, or a module."""
    name = plugin.__name__ if isinstance(plugin, types.ModuleType) else type(plugin).__module__
    distribution = _distribution_of(name)
    if name == "__main__" or distribution is None:
        cls = plugin if isinstance(plugin, types.ModuleType) else type(plugin)
        digest, partial = _code_of_namespace(cls)
        return Provenance(None, None, digest, partial)
    extras = frozenset(getattr(plugin, "packages", ()))
    digest, partial = _package_digest(name, extras)
    return Provenance(distribution, version_of(distribution), digest, partial)


def _code_of_namespace(cls: Any) -> tuple[str, bool]:
    """Digest functions and constants of a class (and of the application's classes above it).

    Or of a module, that lives in the application (a script, a notebook).
    """
    hasher = hashlib.sha256()
    for namespace in (cls, *_application_bases(cls)):
        for name, member in sorted(vars(namespace).items()):
            for part in _parts_of_member(name, member):
                hasher.update(name.encode())
                for piece, _ in _pieces(part, ()):
                    hasher.update(piece)
    return _finish(hasher), True


def _application_bases(cls: Any) -> list[type]:
    if isinstance(cls, types.ModuleType):
        return []
    modules = ((base, base.__module__.partition(".")[0]) for base in cls.__mro__[1:])
    return [
        base
        for base, module in modules
        if module not in sys.stdlib_module_names or module == "__main__"
        if _distribution_of(module) is None
    ]


def _parts_of_member(name: str, member: Any) -> list[Any]:
    """Return the functions and constants that a member of a class or module stands for."""
    if isinstance(member, staticmethod | classmethod):
        return [member.__func__]
    if isinstance(member, property):
        return [accessor for accessor in (member.fget, member.fset) if accessor is not None]
    if isinstance(member, types.FunctionType):
        return [member]
    constant = isinstance(member, _PLAIN | tuple | list | dict | set | frozenset | re.Pattern)
    return [member] if constant and not name.startswith("__") else []


def of_state(plugin: object) -> tuple[str, bool] | None:
    """Return the digest of an instance's own attributes, and whether it is partial.

    `None` for what has none of its own: functions, classes, modules, instances without attributes.
    """
    if isinstance(plugin, (type, types.ModuleType, types.MethodType, *_FUNCTIONS)):
        return None
    state = _state(plugin)
    if not state:
        return None
    hasher = hashlib.sha256()
    partial = False
    for piece, exact in _pieces(state, (id(plugin),)):
        hasher.update(len(piece).to_bytes(8, "little"))
        hasher.update(piece)
        partial = partial or not exact
    return _finish(hasher), partial


def _state(instance: object) -> dict[str, Any]:
    """Return an instance's attributes, those in slots included."""
    state: dict[str, Any] = {}
    for cls in type(instance).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            found = vars(cls).get(_mangled(name, cls))
            if isinstance(found, types.MemberDescriptorType):
                with suppress(AttributeError):  # not set
                    state[name] = found.__get__(instance)
    with suppress(AttributeError):
        state.update(object.__getattribute__(instance, "__dict__"))
    return state


def _mangled(name: str, cls: type) -> str:
    private = name.startswith("__") and not name.endswith("__")
    return f"_{cls.__name__.lstrip('_')}{name}" if private else name


def of_function(function: Callable[..., Any]) -> Provenance:
    """Return the provenance of a callable of the application."""
    hasher = hashlib.sha256()
    partial = False
    for piece, exact in _pieces(function, ()):
        hasher.update(len(piece).to_bytes(8, "little"))
        hasher.update(piece)
        partial = partial or not exact
    name = getattr(function, "__module__", None) or type(function).__module__
    distribution = None if name == "__main__" else _distribution_of(name)
    version = version_of(distribution) if distribution else None
    return Provenance(distribution, version, _finish(hasher), partial)


_WRITTEN_WHOLE = (date, datetime, time, timedelta, Decimal, PurePath)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, functools.partial)
_PLAIN = bool | int | float | complex | str | bytes | None | types.EllipsisType


def _pieces(value: Any, within: tuple[int, ...]) -> Iterator[tuple[bytes, bool]]:
    """Yield bytes that identify a value, each with whether it is exact.

    `within` are the ids of the values that this one is part of, so that a cycle ends. Values met
    before but not around this one are written again: whether two equal constants are one object is
    up to the interpreter, and must not show.
    """
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__}:{value!r}".encode("utf-8", "backslashreplace"), True
        return
    if id(value) in within:
        yield b"cycle", True
        return
    within = (*within, id(value))
    if isinstance(value, types.CodeType):
        yield value.co_code, True
        yield " ".join((*value.co_names, *value.co_varnames)).encode(), True
        for constant in value.co_consts:
            yield from _pieces(constant, within)
    elif isinstance(value, types.FunctionType):
        yield from _pieces(value.__code__, within)
        yield from _pieces(value.__defaults__, within)
        yield from _pieces(value.__kwdefaults__, within)
        for cell in value.__closure__ or ():
            try:
                yield from _pieces(cell.cell_contents, within)
            except ValueError:
                yield b"empty cell", True
        # What a function reaches through globals can change without its code changing.
        if any(
            name in value.__globals__ and not isinstance(value.__globals__[name], types.ModuleType)
            for name in _names_in(value.__code__)
        ):
            yield b"globals", False
    elif isinstance(value, types.MethodType):
        yield from _pieces(value.__func__, within)
        yield b"bound", False
        if not isinstance(value.__self__, type):
            yield from _pieces(_state(value.__self__), (*within, id(value.__self__)))
    elif isinstance(value, functools.partial):
        yield b"partial", True
        yield from _pieces((value.func, value.args, value.keywords), within)
    elif isinstance(value, tuple | list):
        yield f"{type(value).__name__}:{len(value)}".encode(), True
        for item in value:
            yield from _pieces(item, within)
    elif isinstance(value, frozenset | set):
        members = [tuple(_pieces(item, within)) for item in value]
        yield f"{type(value).__name__}:{len(value)}".encode(), True
        for pieces in sorted(members):
            yield from pieces
    elif isinstance(value, dict):
        yield f"dict:{len(value)}".encode(), True
        for key in sorted(value, key=repr):
            yield from _pieces(key, within)
            yield from _pieces(value[key], within)
    elif isinstance(value, re.Pattern):
        yield b"pattern", True
        yield from _pieces((value.pattern, value.flags), within)
    elif isinstance(value, _WRITTEN_WHOLE):
        yield f"{type(value).__name__}:{value!r}".encode("utf-8", "backslashreplace"), True
    elif callable(value) and inspect.isfunction(getattr(type(value), "__call__", None)):  # noqa: B004
        yield from _pieces(type(value).__call__, within)
        yield b"instance", False
        yield from _pieces(_state(value), within)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield f"dataclass:{type(value).__qualname__}".encode(), True
        yield from _pieces(_state(value), within)
    else:
        named = value if hasattr(value, "__qualname__") else type(value)
        module = getattr(named, "__module__", "builtins")
        yield f"{type(value).__qualname__} {module}.{named.__qualname__}".encode(), False


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Yield the names that code may look up, nested functions and comprehensions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)
