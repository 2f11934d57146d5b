"""The JSON schema of the configuration file, for editors.

Made from the structs that decode the file, and from the settings of the checks and backends that
are installed here, so it can't say anything else than they do. Draft 7, which is what editors for
TOML (taplo, "Even Better TOML") understand. It describes the form only: `isonomy policy check` says
more.

A text may hold ``${NAME}``, so wherever a setting admits certain words only, a text with ``${`` is
admitted too. Names that are not known here (of modules in ``plugins``) take any settings.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any, get_args

import msgspec

from .checks import STAGES, OnError
from .config import FileTables, keywords_of, sampling_fields
from .errors import PluginError
from .generation import Sampling
from .policy import TERMS, Terms
from .policyfile import WrittenTable
from .registry import Registry

Schema = dict[str, Any]
_HERE = "#/definitions/"
_TEXT_WITH_NAMES = {"type": "string", "pattern": r"\$\{"}


def schema(modules: Iterable[str] = ()) -> Schema:
    """Return the JSON schema (draft 7) of a configuration file.

    Args:
        modules: plugin modules to import, whose checks and backends are described too.

    Raises:
        PluginError: a module can't be imported.
    """
    registry = Registry(modules)
    defined: Schema = {}
    policy = _of_struct(WrittenTable, defined)
    policy["properties"]["stages"]["items"] = {"enum": list(STAGES)}
    policy["properties"]["checks"]["items"] = {"$ref": f"{_HERE}check"}
    defined["policy"] = policy
    defined["check"] = _named(_terms(), registry, "check", _settings_of, defined)
    defined["backend"] = _backend(registry, defined, _sampling())
    defined["further_backend"] = _backend(registry, defined, {})
    whole = _of_struct(FileTables, defined)
    properties = whole["properties"]
    properties["policy"] = {"$ref": f"{_HERE}policy"}
    properties["policies"] = _tables("policy", "Policies to choose by name.")
    properties["backend"] = {"$ref": f"{_HERE}backend"}
    properties["backends"] = _tables("further_backend", "Backends that plugins ask by name.")
    properties["serve"] = _serve(defined)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Isonomy's configuration file",
        **whole,
        "definitions": dict(sorted(defined.items())),
    }


def _tables(name: str, description: str) -> Schema:
    return {
        "type": "object",
        "description": description,
        "additionalProperties": {"$ref": f"{_HERE}{name}"},
    }


def _terms() -> Schema:
    properties: Schema = _of_struct(Terms, {})["properties"]
    properties["stages"]["items"] = {"enum": list(STAGES)}
    properties["lookback"]["anyOf"] = [{"type": "integer"}, {"const": "all"}]
    properties["on_error"]["enum"] = list(get_args(OnError))
    return properties


def _sampling() -> Schema:
    properties = _of_struct(Sampling, {})["properties"]
    return {name: said for name, said in properties.items() if name in sampling_fields()}


def _named(
    terms: Schema,
    registry: Registry,
    kind: str,
    settings_of: Callable[[Any, Schema], Schema],
    defined: Schema,
) -> Schema:
    """Return the schema of a table whose ``use`` decides what else it takes."""
    branches: list[Schema] = []
    described: list[str] = []
    for name in registry.names(kind):
        try:
            made = settings_of(registry.find(kind, name), defined)
        except (PluginError, NameError, TypeError):
            continue  # an extra that is not installed, or annotations that can't be told
        described.append(name)
        branches.append(
            {
                "title": name,
                "description": made.get("description", ""),
                "type": "object",
                "properties": {**terms, **made["properties"], "use": {"const": name}},
                "required": ["use", *made.get("required", ())],
                "additionalProperties": made.get("additionalProperties", False),
            }
        )
    branches.append(
        {
            "title": f"a {kind} that is not installed where this schema was made",
            "type": "object",
            "properties": {**terms, "use": {"type": "string", "not": {"enum": described}}},
            "required": ["use"],
        }
    )
    return {"oneOf": branches}


def _backend(registry: Registry, defined: Schema, sampling: Schema) -> Schema:
    whole = _named(sampling, registry, "backend", _keywords_in, defined)
    *known, other = whole["oneOf"]
    patterns = []
    for branch in known:
        pattern = f"^{re.escape(branch['title'])}(:|$)"
        patterns.append(pattern)
        description = f"{branch['title']}:MODEL"
        branch["properties"]["use"] = {
            "type": "string",
            "pattern": pattern,
            "description": description,
        }
    other["properties"]["use"] = {
        "type": "string",
        "not": {"anyOf": [{"pattern": pattern} for pattern in patterns]},
    }
    return whole


def _settings_of(factory: Any, defined: Schema) -> Schema:
    """Return the schema of a check's own settings."""
    if isinstance(factory, type) and issubclass(factory, msgspec.Struct):
        made = _of_struct(factory, defined)
        clash = sorted(set(made["properties"]) & set(TERMS))
        return {**made, "properties": {k: v for k, v in made["properties"].items()
                                       if k not in clash}}  # fmt: skip
    return _parameters(factory, defined, lambda kind: kind is not inspect.Parameter.VAR_POSITIONAL)


def _keywords_in(factory: Any, defined: Schema) -> Schema:
    made = _parameters(factory, defined, lambda kind: kind is inspect.Parameter.KEYWORD_ONLY)
    known = keywords_of(factory)
    properties = {name: said for name, said in made["properties"].items() if name in known}
    return {**made, "properties": properties, "required": []}


def _parameters(factory: Any, defined: Schema, wanted: Callable[[Any], bool]) -> Schema:
    function = vars(factory).get("__init__", factory) if isinstance(factory, type) else factory
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        hints = {}
    properties: Schema = {}
    required, free = [], False
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            free = True
        elif wanted(parameter.kind):
            properties[name] = _of_type(hints.get(name, Any), defined)
            if parameter.default is inspect.Parameter.empty:
                required.append(name)
            elif isinstance(parameter.default, str | int | float):
                properties[name].setdefault("default", parameter.default)
    _describe(properties, inspect.getdoc(factory))
    return {
        "properties": properties,
        "required": required,
        "description": _summary(inspect.getdoc(factory)),
        "additionalProperties": free,
    }


def _serve(defined: Schema) -> Schema:
    try:
        from .gateway.settings import Settings
    except ImportError:  # the extra is not installed
        return {"type": "object", "description": "Settings of `isonomy serve`."}
    return _of_struct(Settings, defined)


def _of_struct(struct: type[msgspec.Struct], defined: Schema) -> Schema:
    """Return the schema of a struct; structs inside of it go to the definitions."""
    (reference,), inner = msgspec.json.schema_components([struct], ref_template=_HERE + "{name}")
    name = reference["$ref"].removeprefix(_HERE)
    own: Schema = _plain(inner.pop(name))
    _define(inner, defined)
    own["description"] = _summary(inspect.getdoc(struct))
    own["additionalProperties"] = False
    for each in struct.__mro__[: struct.__mro__.index(msgspec.Struct)]:
        _describe(own["properties"], inspect.getdoc(each))
    return own


def _of_type(annotation: Any, defined: Schema) -> Schema:
    try:
        (made,), inner = msgspec.json.schema_components([annotation], ref_template=_HERE + "{name}")
    except (TypeError, msgspec.MsgspecError):
        return {}
    _define(inner, defined)
    plain: Schema = _plain(made)
    return plain


def _define(inner: Schema, defined: Schema) -> None:
    for name, said in inner.items():
        plain = _plain(said)
        text = inspect.cleandoc(plain.get("description", ""))
        _describe(plain.get("properties", {}), text)
        defined[name] = {**plain, "description": _summary(text)} if text else plain


def _plain(said: Any) -> Any:
    """Return a schema with ``${NAME}`` admitted among certain words, and without null.

    TOML has none: what is not set is left out.
    """
    if isinstance(said, list):
        return [_plain(each) for each in said]
    if not isinstance(said, dict):
        return said
    plain = {key: _plain(value) if key not in ("enum", "default") else value
             for key, value in said.items()}  # fmt: skip
    if "anyOf" in plain:
        kinds = [kind for kind in plain.pop("anyOf") if kind != {"type": "null"}]
        plain = {**plain, **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})}
        if "default" in plain and plain["default"] is None:
            del plain["default"]
    if any(isinstance(word, str) for word in plain.get("enum", ())):
        words = {"enum": plain.pop("enum")}
        return {**plain, "anyOf": [words, dict(_TEXT_WITH_NAMES)]}
    return plain


def _summary(documentation: str | None) -> str:
    return " ".join((documentation or "").partition("\n\n")[0].split())


def _describe(properties: Schema, documentation: str | None) -> None:
    """Add to properties what a docstring says of them, in a list ``name: text``."""
    text = documentation or ""
    for names, said in re.findall(
        r"^ *((?:\w+, )*\w+): (\S.*(?:\n(?! *(?:\w+, )*\w+: )(?! *\n) +.*)*)", text, re.M
    ):
        for name in names.split(", "):
            if name in properties:
                properties[name].setdefault("description", " ".join(said.split()))
