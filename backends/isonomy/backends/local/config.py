"""From ``config.json`` to an `Architecture`: what the model computes, or why it is refused.

Every key of ``config.json`` is one of four things: a field of its family's struct (understood), in
the tables of `config_keys` as harmless, or as covered at one value only, or refused by name.
Defaults of absent keys are those of transformers' configuration classes; a test holds them
together. Nothing here reads a file or needs the extra `local`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .architecture import Architecture
from .config_keys import FIXED, FOREIGN, HARMLESS
from .errors import DamagedModel, NotCovered
from .families import FAMILIES, Family

MAX_POSITIONS = 1 << 20
"""The longest table of rope angles that is built; callers must limit a longer context."""


def architecture(data: bytes, path: object, context: int | None = None) -> Architecture:
    """Read the bytes of a ``config.json``.

    Args:
        data: The file's bytes.
        path: Where they come from, for errors.
        context: The longest sequence that will be asked for, if less than the model's own: some
            kinds of rope are covered up to a length only.

    Raises:
        DamagedModel: it is not JSON, a key is missing, or values contradict each other.
        NotCovered: it asks for something outside the canonical numerics, which the error names.
    """
    raw = _object(data, path)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise NotCovered(
            path,
            f"model_type: {kind}",
            f"the architecture {kind!r} is not covered; covered are {', '.join(sorted(FAMILIES))} "
            "(SmolLM is llama, Phi-4 is phi3). Use a checkpoint of one of these.",
        )
    family = FAMILIES[kind]
    understood = _sift(_named(raw, family, path), family, path)
    try:
        config = msgspec.convert(understood, family, strict=True)
    except msgspec.ValidationError as error:
        raise DamagedModel(path, f"{error}. Correct this key.") from None
    _require_class(config, path)
    return config.architecture(path, context)


def _object(data: bytes, path: object) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as e:
        raise DamagedModel(
            path, f"not a JSON object ({e}). Fetch the file again; it may be cut off."
        ) from None
    return raw


def _named(raw: dict[str, Any], family: type[Family], path: object) -> dict[str, Any]:
    """Give keys with several names the one that the family's struct has."""
    for other, name in family.ALIASES.items():
        if other not in raw:
            continue
        value = raw.pop(other)
        if raw.setdefault(name, value) != value:
            raise DamagedModel(
                path,
                f"{other} ({value!r}) and {name} ({raw[name]!r}) are two names of one number. "
                "Correct one of them.",
            )
    return raw


def _sift(raw: dict[str, Any], family: type[Family], path: object) -> dict[str, Any]:
    """Keep the keys that the family understands; refuse what is neither fixed nor harmless."""
    fields = set(family.__struct_fields__)
    kept: dict[str, Any] = {}
    for key, value in raw.items():
        if key in fields:
            kept[key] = value
        elif key in family.IGNORED:
            continue
        elif key in FIXED:
            allowed, meaning = FIXED[key]
            if not _among(value, allowed):
                raise NotCovered(
                    path,
                    key,
                    f"{key} asks for {meaning}, which is not covered. Use a checkpoint without it.",
                )
        elif key in FOREIGN:
            allowed = FOREIGN[key]
            if allowed and not _among(value, (*allowed, None)):
                raise NotCovered(
                    path,
                    key,
                    f"{key} = {value!r} has no meaning for {family.NAME}. Remove the key from "
                    "config.json, if the weights agree, or use a checkpoint without it.",
                )
        elif key not in HARMLESS:
            raise NotCovered(
                path,
                key,
                f"the key {key!r} is not known for {family.NAME}, so it could change the result. "
                "If it does not, remove it from config.json; otherwise use another checkpoint.",
            )
    return kept


def _among(value: Any, allowed: tuple[Any, ...]) -> bool:
    # 0 == False in Python: types must agree too.
    return any(value == one and type(value) is type(one) for one in allowed)


def _require_class(config: Family, path: object) -> None:
    """Refuse other heads, and code of the checkpoint's own that is not the family's."""
    if config.architectures is not None and config.CLASS not in config.architectures:
        raise NotCovered(
            path,
            f"architectures: {', '.join(config.architectures)}",
            f"architectures is {list(config.architectures)}, covered is {config.CLASS!r}. Use a "
            "checkpoint of the language model itself.",
        )
    # Files from before transformers knew the family name the same class; it is taken from here.
    code = (config.auto_map or {}).get("AutoModelForCausalLM", "")
    if config.auto_map and str(code).rpartition(".")[2] != config.CLASS:
        raise NotCovered(
            path,
            "auto_map",
            "auto_map asks for code of its own (remote code is never run), which is not covered. "
            "Use a checkpoint without it.",
        )


__all__ = ["FAMILIES", "MAX_POSITIONS", "Architecture", "architecture"]
