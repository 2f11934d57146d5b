"""Which code judged: digests of plugins and functions, for the record.

For a plugin class: every ``.py`` file of the package that its module belongs to, with the versions
of the distribution's direct dependencies. For a function: its compiled code (names, constants,
nested code), defaults and closure. Where something can't be digested (a closure over an arbitrary
object, a builtin), the digest is marked partial. It identifies; it does not authenticate: who can
change the code can also change what it reports.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
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
def _dependencies(distribution: str) -> tuple[str, ...]:
    from importlib import metadata

    lines = []
    for requirement in metadata.requires(distribution) or ():
        name = re.split(r"[\s;\[<>=!~(]", requirement, maxsplit=1)[0]
        lines.append(f"{name}=={version_of(name)}")
    return tuple(sorted(set(lines)))


@cache
def _package_digest(module_name: str) -> tuple[str, bool]:
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
        hasher.update("\n".join(_dependencies(distribution)).encode())
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
    digest, partial = _package_digest(name)
    return Provenance(distribution, version_of(distribution), digest, partial)


def _code_of_namespace(cls: Any) -> tuple[str, bool]:
    """Digest the functions of a class that lives in the application (a script, a notebook)."""
    hasher = hashlib.sha256()
    for name, member in sorted(vars(cls).items()):
        if isinstance(member, types.FunctionType):
            hasher.update(name.encode())
            for piece, _ in _pieces(member, ()):
                hasher.update(piece)
    return _finish(hasher), True


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
    elif callable(value) and inspect.isfunction(vars(type(value)).get("__call__")):
        yield from _pieces(type(value).__call__, within)
        yield b"instance", False
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
