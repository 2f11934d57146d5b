"""The configuration file: what a guard is made of, in TOML.

```toml
[backend]
use = "local:demo"        # NAME:ARGUMENT, see `isonomy plugins`
temperature = 0.0         # any field of isonomy.sdk.Sampling
                          # and any keyword that the backend itself takes (base_url, timeout, ...)

[backends.judge]          # plugins ask it by name: ctx.generate(..., backend="judge")
use = "local:demo"

[log]
path = "audit"            # a directory; relative to this file
durability = "call"       # or "group", "relaxed": what has happened when a record is written
on_full = "fail"          # or "wait", "gap": what happens where nothing can be written
wait_seconds = 30         # how long a call waits for that
background = true         # whether it is ingested for SQL without anybody's asking

[[log.mask]]              # what the log must not hold; see isonomy.sdk.masking
pattern = 'AC-[0-9]{6}'

[environment]
allow = ["TENANT"]        # what ${TENANT} may stand for; see isonomy.sdk.interpolation

[policy]
name = "support"

[[policy.checks]]
use = "pii"
id = "no-email"
stages = ["post_validate"]
action = "redact"         # the check's own settings stand beside the terms

[policies.strict]         # another policy, by name; see isonomy.sdk.policyfile
extends = "#policy"
refusal = "No."

[serve]                   # of `isonomy serve`; see isonomy.sdk.gateway.settings
keys_file = "keys"
```

Only the policy that was chosen is the policy: it alone is digested and recorded as written.
`isonomy policy check FILE` tells everything that is wrong with a file, `isonomy policy schema` has
its JSON schema.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from . import interpolation, policyfile, tomlfile
from .decoding import decode
from .errors import ConfigError, InputError, PluginError
from .generation import Backend, Sampling
from .log import Mask
from .policy import Policy
from .policyfile import EnvironmentTable
from .registry import Registry, nearest
from .requests import checked

_NO_MODEL = "the backend {!r} names no model: write NAME:MODEL, for example local:demo."


class LogTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[log]`` table.

    `mask` says what the log must not hold (`isonomy.sdk.masking`). All but that and `path` are
    keywords of the log itself, which explains them: `isonomy.replay.durability`.
    """

    path: str
    durability: Literal["call", "group", "relaxed"] | None = None
    on_full: Literal["fail", "wait", "gap"] | None = None
    wait_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | None = None
    background: bool | None = None
    mask: tuple[Mask, ...] = ()


class BackendTable(msgspec.Struct, frozen=True, kw_only=True):
    """A ``[backends.NAME]`` table, decoded: a spec, and keywords of the backend itself."""

    use: str
    options: dict[str, Any] = {}


class FileTables(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of a configuration file."""

    backend: dict[str, Any] | None = None
    backends: dict[str, Any] = {}
    log: LogTable | None = None
    environment: EnvironmentTable = EnvironmentTable()
    policy: dict[str, Any] = {}
    policies: dict[str, Any] = {}
    serve: dict[str, Any] = {}


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded configuration file. `log` is a path, already relative to the file's folder.

    `log_options` are the log's keywords, where the file gives them;
    `serve` is as it stands: the gateway decodes it (`isonomy.sdk.gateway.settings`).
    """

    file: str
    backend: str | None
    options: dict[str, Any]
    sampling: Sampling
    log: str | None
    policy: Policy
    backends: dict[str, BackendTable] = {}
    serve: dict[str, Any] = {}
    log_options: dict[str, Any] = {}
    mask: tuple[Mask, ...] = ()


def load(
    file: str | Path, *, policy: str | None = None, environ: Mapping[str, str] | None = None
) -> Configuration:
    """Read a configuration file.

    Args:
        file: its path.
        policy: which of its ``[policies.NAME]``; ``[policy]``, unless given.
        environ: where ``${NAME}`` comes from; the process's own environment, unless given.

    Raises:
        ConfigError: it can't be read, is not TOML, or a key or value is wrong; names file, key and
            the nearest valid name.
    """
    name = str(file)
    values = os.environ if environ is None else environ
    tables = tomlfile.read(name)
    whole = decode_tables(tables, file=name)
    chosen = policyfile.assemble(name, tables, policy).build(values)
    outside = read_outside(tables, whole, chosen.registry, file=name, environ=values)
    if outside["mask"]:
        require_usable(outside["mask"], chosen, name)
    return Configuration(file=name, policy=chosen, **outside)


def require_usable(mask: tuple[Mask, ...], policy: Policy, file: str) -> None:
    """Refuse masks that can't be used with a policy.

    Raises:
        ConfigError: which one, and why.
    """
    from .masking import Masks

    try:
        Masks(mask, policy)
    except InputError as error:
        raise ConfigError(str(error), file=file, key="log.mask") from None


def decode_tables(tables: Mapping[str, Any], *, file: str) -> FileTables:
    """Return the tables of a file, each of which is a table.

    Raises:
        ConfigError: as `load`.
    """
    whole = decode(tables, FileTables, file=file, key="")
    for key, named in (("policies", whole.policies), ("backends", whole.backends)):
        for name, table in named.items():
            if not isinstance(table, dict):
                raise ConfigError(
                    f"this must be a table, not {table!r}.", file=file, key=f"{key}.{name}"
                )
    return whole


def read_outside(
    tables: Mapping[str, Any],
    whole: FileTables,
    registry: Registry,
    *,
    file: str,
    environ: Mapping[str, str],
) -> dict[str, Any]:
    """Return what a file says beside its policies, as the fields of `Configuration`.

    Args:
        tables: the file's tables.
        whole: the same, decoded.
        registry: the names of backends.
        file: its path.
        environ: where ``${NAME}`` comes from.

    Raises:
        ConfigError: as `load`.
    """
    filled = {}
    for key in ("backend", "backends", "log", "serve"):
        if key in tables:
            allow = whole.environment.allow
            interpolation.require_allowed(tables[key], allow, file=file, key=key)
            filled[key] = interpolation.filled(tables[key], environ, file=file, key=key)
    try:
        spec, options, sampling = _split_backend(filled.get("backend"), registry, file)
        backends = {
            each: _further_backend(table, registry, file, f"backends.{each}")
            for each, table in filled.get("backends", {}).items()
        }
    except ConfigError as error:
        problem = interpolation.unquoted(error.problem, tables, environ)
        raise ConfigError(problem, file=file, key=error.key) from None
    log = str(Path(file).parent / filled["log"]["path"]) if "log" in filled else None
    if log is not None and "\0" in log:
        raise ConfigError("a path can't hold a NUL character.", file=file, key="log.path")
    return {
        "backend": spec,
        "options": options,
        "sampling": sampling,
        "log": log,
        "log_options": {
            name: value
            for name, value in filled.get("log", {}).items()
            if name not in ("path", "mask")
        },
        "mask": whole.log.mask if whole.log is not None else (),
        "backends": backends,
        "serve": filled.get("serve", {}),
    }


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
    spec, accepted = _spec(table, registry, file, "backend")
    drawn = sampling_fields()
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
                f"unknown key.{nearest(key, drawn | accepted.keys() | {'use'})}",
                file=file,
                key=f"backend.{key}",
            )
    drawing = decode(sampling, Sampling, file=file, key="backend")
    try:
        return spec, options, checked(drawing)
    except InputError as error:
        raise ConfigError(str(error), file=file, key=refused_key(drawing, checked)) from None


def _further_backend(
    table: dict[str, Any], registry: Registry, file: str, key: str
) -> BackendTable:
    spec, accepted = _spec(table, registry, file, key)
    for name in table:
        if name == "use" or name in accepted:
            continue
        hint = nearest(name, {*accepted, "use"})
        if name in sampling_fields():
            hint = " How a further backend draws, the plugin says that asks it: sampling=..."
        raise ConfigError(f"unknown key.{hint}", file=file, key=f"{key}.{name}")
    return BackendTable(
        use=spec, options={name: value for name, value in table.items() if name != "use"}
    )


def _spec(
    table: dict[str, Any], registry: Registry, file: str, key: str
) -> tuple[str, dict[str, Any]]:
    """Return the spec of a backend's table, and the keywords that it takes with their types."""
    spec = table.get("use")
    if not isinstance(spec, str):
        raise ConfigError(
            'names no backend: write use = "local:demo".', file=file, key=f"{key}.use"
        )
    try:
        factory, argument = _factory(spec, registry)
    except PluginError as error:
        raise ConfigError(str(error), file=file, key=f"{key}.use") from error
    if not argument and _needs_argument(factory):
        raise ConfigError(_NO_MODEL.format(spec), file=file, key=f"{key}.use")
    return spec, keywords_of(factory)


def sampling_fields() -> set[str]:
    """Return the fields of `Sampling` that ``[backend]`` takes."""
    return {field.name for field in msgspec.structs.fields(Sampling)} - {"candidate"}


def keywords_of(factory: Any) -> dict[str, Any]:
    """Return the keywords of a backend that a file can give, with their annotations."""
    return {
        name: parameter.annotation
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and _is_data(parameter.annotation)
    }


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


def _needs_argument(factory: Any) -> bool:
    """Return whether a backend can't be named alone.

    One whose first argument is empty unless given can: a router, whose members say it all.
    """
    first = next(iter(inspect.signature(factory).parameters.values()), None)
    return first is not None and bool(first.default)  # `Parameter.empty` is a class, and so true


def open_backend(spec: str, registry: Registry | None = None, **options: Any) -> Backend:
    """Open the backend that a spec names.

    ``local:demo``, ``local:/path/to/checkpoint``, ``openai:MODEL``. A backend that opens others (a
    router) has a keyword `registry`, and gets this one.

    Raises:
        PluginError: there is no such backend.
        ConfigError: the spec has no argument, or the backend does not take an option.
        BackendError: the backend can't be opened.
    """
    registry = registry if registry is not None else Registry()
    factory, argument = _factory(spec, registry)
    if not argument and _needs_argument(factory):
        raise ConfigError(_NO_MODEL.format(spec))
    if "registry" in inspect.signature(factory).parameters:
        options = {"registry": registry, **options}
    try:
        backend: Backend = factory(*([argument] if argument else ()), **options)
    except TypeError as error:
        raise ConfigError(f"the backend {spec!r} can't be opened: {error}.") from error
    return backend
