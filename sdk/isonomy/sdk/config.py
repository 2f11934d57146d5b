"""The configuration file: TOML with the tables ``[backend]``, ``[log]``, ``[policy]``, ``[serve]``.

```toml
[backend]
use = "local:demo"        # NAME:ARGUMENT, see `isonomy plugins`
temperature = 0.0         # any field of isonomy.sdk.Sampling
                          # and any keyword that the backend itself takes (base_url, timeout, ...)
[log]
path = "audit"            # a directory; relative to this file

[policy]
name = "support"

[[policy.checks]]
use = "pii"
id = "no-email"
stages = ["post_validate"]
action = "redact"         # the check's own settings stand beside the terms

[serve]                   # of `isonomy serve`; see isonomy.sdk.gateway.settings
keys_file = "keys"
```

Only ``[policy]`` is the policy: it alone is digested and recorded as written.
"""

from __future__ import annotations

import inspect
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from .decoding import decode
from .errors import ConfigError, InputError, PluginError
from .generation import Backend, Sampling
from .policy import Policy
from .registry import Registry, nearest
from .requests import checked

_NO_MODEL = "the backend {!r} names no model: write NAME:MODEL, for example local:demo."


class LogTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[log]`` table."""

    path: str


class _File(msgspec.Struct, frozen=True, kw_only=True):
    backend: dict[str, Any] | None = None
    log: LogTable | None = None
    policy: dict[str, Any] = {}
    serve: dict[str, Any] = {}


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded configuration file. `log` is a path, already relative to the file's folder.

    `serve` is as it stands: the gateway decodes it (`isonomy.sdk.gateway.settings`).
    """

    file: str
    backend: str | None
    options: dict[str, Any]
    sampling: Sampling
    log: str | None
    policy: Policy
    serve: dict[str, Any] = {}


def load(file: str | Path) -> Configuration:
    """Read a configuration file.

    Raises:
        ConfigError: it can't be read, is not TOML, or a key or value is wrong; names file, key and
            the nearest valid name.
    """
    path = Path(file)
    name = str(file)
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise ConfigError("is not a file but a pipe or a device. Pass a file.", file=name)
        tables = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _unreadable(error, name) from None
    except RecursionError:
        raise ConfigError(
            "is nested too deeply. Flatten its lists and tables.", file=name
        ) from None
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}. Check the path.", file=name) from None
    whole = decode(tables, _File, file=name, key="")
    policy = Policy.from_table(whole.policy, file=name)
    spec, options, sampling = _split_backend(whole.backend, policy.registry, name)
    log = str(path.parent / whole.log.path) if whole.log else None
    if log is not None and "\0" in log:
        raise ConfigError("a path can't hold a NUL character.", file=name, key="log.path")
    return Configuration(
        file=name,
        backend=spec,
        options=options,
        sampling=sampling,
        log=log,
        policy=policy,
        serve=whole.serve,
    )


def _unreadable(error: ValueError, file: str) -> ConfigError:
    """Return what is wrong with a file: its text, its TOML, or (a NUL character) its name."""
    if isinstance(error, UnicodeDecodeError):
        return ConfigError(f"is not UTF-8 text (byte {error.start}).", file=file)
    if isinstance(error, tomllib.TOMLDecodeError):
        return ConfigError(f"is not valid TOML: {error}.", file=file)
    return ConfigError(f"can't be read: {error}. Check the path.", file=repr(file))


def refused_key(sampling: Sampling, validate: Callable[[Sampling], Any]) -> str:
    """Return the key of the ``[backend]`` table whose value `validate` refuses."""
    for name in msgspec.structs.asdict(sampling):
        try:
            validate(Sampling(**{name: getattr(sampling, name)}))
        except InputError:
            return f"backend.{name}"
    return "backend"


def _split_backend(
    table: dict[str, Any] | None, registry: Registry, file: str
) -> tuple[str | None, dict[str, Any], Sampling]:
    """Part the ``[backend]`` table into spec, the backend's own options and sampling."""
    if table is None:
        return None, {}, Sampling()
    spec = table.get("use")
    if not isinstance(spec, str):
        raise ConfigError(
            'names no backend: write use = "local:demo".', file=file, key="backend.use"
        )
    try:
        factory, argument = _factory(spec, registry)
    except PluginError as error:
        raise ConfigError(str(error), file=file, key="backend.use") from error
    if not argument:
        raise ConfigError(_NO_MODEL.format(spec), file=file, key="backend.use")
    drawn = {field.name for field in msgspec.structs.fields(Sampling)} - {"candidate"}
    accepted = {
        name
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and _is_data(parameter.annotation)
    }
    options, sampling = {}, {}
    for key, value in table.items():
        if key == "use":
            continue
        if key in drawn:
            sampling[key] = value
        elif key in accepted:
            options[key] = value
        else:
            raise ConfigError(
                f"unknown key.{nearest(key, drawn | accepted | {'use'})}",
                file=file,
                key=f"backend.{key}",
            )
    drawing = decode(sampling, Sampling, file=file, key="backend")
    try:
        return spec, options, checked(drawing)
    except InputError as error:
        raise ConfigError(str(error), file=file, key=refused_key(drawing, checked)) from None


def _is_data(annotation: object) -> bool:
    """Return whether a keyword's annotation admits values that a file can hold, and nothing else.

    Clocks, clients and other objects are passed in code.
    """
    # A module without `from __future__ import annotations` has types here, not their text.
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    words = set(re.findall(r"[A-Za-z_]+", re.sub(r"'[^']*'|\"[^\"]*\"", "", text)))
    return words <= {
        "str", "int", "float", "bool", "None", "dict", "list", "tuple", "Sequence", "Mapping",
        "Optional", "Union", "Literal", "PathLike", "typing", "collections", "abc", "os",
    }  # fmt: skip


def _factory(spec: str, registry: Registry) -> tuple[Any, str]:
    name, _, argument = spec.partition(":")
    return registry.find("backend", name), argument


def open_backend(spec: str, registry: Registry | None = None, **options: Any) -> Backend:
    """Open the backend that a spec names.

    ``local:demo``, ``local:/path/to/checkpoint``, ``openai:MODEL``.

    Raises:
        PluginError: there is no such backend.
        ConfigError: the spec has no argument, or the backend does not take an option.
        BackendError: the backend can't be opened.
    """
    factory, argument = _factory(spec, registry or Registry())
    if not argument:
        raise ConfigError(_NO_MODEL.format(spec))
    try:
        backend: Backend = factory(argument, **options)
    except TypeError as error:
        raise ConfigError(f"the backend {spec!r} can't be opened: {error}.") from error
    return backend
