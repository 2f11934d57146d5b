"""Rope as a configuration asks for it: kinds, numbers, and the two ways to write them.

transformers 5 writes `rope_parameters`, earlier versions wrote `rope_theta` and `rope_scaling`.
Both mean the same here; a key that the kind does not know is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from .architecture import Rope
from .errors import DamagedModel, NotCovered

Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e18)]
Number = Annotated[float, msgspec.Meta(gt=1e-18, lt=1e18)]
Weight = Annotated[float, msgspec.Meta(ge=0, lt=1e18)]
Length = Annotated[int, msgspec.Meta(ge=2, le=1 << 53)]


class _Plain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rope_type: str = "default"
    rope_theta: Number | None = None
    partial_rotary_factor: Number | None = None


class _Linear(_Plain, frozen=True, kw_only=True, forbid_unknown_fields=True):
    factor: Number


class _Llama3(_Linear, frozen=True, kw_only=True, forbid_unknown_fields=True):
    low_freq_factor: Number
    high_freq_factor: Number
    original_max_position_embeddings: Length | None = None


class _Yarn(_Linear, frozen=True, kw_only=True, forbid_unknown_fields=True):
    original_max_position_embeddings: Length | None = None
    attention_factor: Number | None = None
    beta_fast: Number | None = None
    beta_slow: Number | None = None
    mscale: Weight | None = None
    mscale_all_dim: Weight | None = None
    truncate: bool = True


class _Longrope(_Plain, frozen=True, kw_only=True, forbid_unknown_fields=True):
    short_factor: tuple[Number, ...]
    long_factor: tuple[Number, ...]
    original_max_position_embeddings: Length | None = None
    factor: Number | None = None
    attention_factor: Number | None = None


KINDS: dict[str, type[_Plain]] = {
    "default": _Plain,
    "linear": _Linear,
    "llama3": _Llama3,
    "yarn": _Yarn,
    "longrope": _Longrope,
}
GENERAL = ("default", "linear", "llama3", "yarn")
"""The kinds that every family with rope may have."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a family's configuration says about rope outside of the parameters themselves."""

    path: object
    head_dim: int
    positions: int
    theta: float
    where: str = "rope_parameters"
    partial: float | None = None
    partial_covered: bool = False
    kinds: tuple[str, ...] = GENERAL
    original: int | None = None
    limit: int | None = None


def given(
    scaling: dict[str, Any] | None, parameters: dict[str, Any] | None, path: object
) -> tuple[str, dict[str, Any]]:
    """Return the key that holds the parameters, and a copy of them.

    Raises:
        NotCovered: both are given.
    """
    if scaling and parameters:
        raise NotCovered(
            path,
            "rope_scaling",
            "both rope_scaling and rope_parameters are given, and may contradict each other. "
            "Remove one of them.",
        )
    where = "rope_scaling" if scaling else "rope_parameters"
    return where, dict(scaling or parameters or {})


def read(parameters: Mapping[str, Any], setting: Setting) -> Rope:
    """Read rope's parameters.

    Args:
        parameters: of one kind of layers.
        setting: the rest of the configuration, as far as it matters.

    Raises:
        NotCovered: a kind, or a key of a kind, that is not covered.
        DamagedModel: a number is missing or out of range.
    """
    kind, rope = _parse(dict(parameters), setting)
    rotary = _rotary(rope.partial_rotary_factor, setting)
    return Rope(
        theta=float(rope.rope_theta or setting.theta),
        rotary_dim=rotary,
        scaling=_scaling(kind, rope, rotary, setting),
    )


def _parse(parameters: dict[str, Any], setting: Setting) -> tuple[str, _Plain]:
    path, where = setting.path, setting.where
    old = parameters.pop("type", None)
    if old is not None:
        parameters.setdefault("rope_type", old)
    kind = parameters.setdefault("rope_type", "default")
    if not isinstance(kind, str) or kind not in setting.kinds:
        total = kind in ("dynamic", "longrope")
        why = ": its angles depend on the total length" if total else ""
        raise NotCovered(
            path,
            f"rope_type: {kind}",
            f"{where} asks for rope of kind {kind!r}, which is not covered{why}; covered are "
            f"{', '.join(setting.kinds)}. Use another checkpoint, or remove {where} if you stay "
            "within the length it was first trained for.",
        )
    unknown = sorted(set(parameters) - set(KINDS[kind].__struct_fields__))
    if unknown:
        raise NotCovered(
            path,
            f"{where}.{unknown[0]}",
            f"{where} holds {unknown[0]!r}, which is not known for rope of kind {kind!r}. If it "
            "changes nothing, remove it; otherwise use another checkpoint.",
        )
    try:
        return kind, msgspec.convert(parameters, KINDS[kind], strict=True)
    except msgspec.ValidationError as error:
        raise DamagedModel(path, f"{where}: {error}. Correct this key.") from None


def _rotary(inner: float | None, setting: Setting) -> int:
    """The rotated dimensions; the parameters' own factor goes before the configuration's."""
    factor = next((f for f in (inner, setting.partial) if f is not None), 1.0)
    if factor != 1.0 and not setting.partial_covered:
        raise NotCovered(
            setting.path,
            "partial_rotary_factor",
            f"partial_rotary_factor is {factor}: rope over a part of a head is not covered "
            "for this family. Use another checkpoint.",
        )
    rotary = int(setting.head_dim * factor)
    if rotary % 2 or not 0 < rotary <= setting.head_dim:
        what = "head_dim" if factor == 1.0 else "partial_rotary_factor"
        raise NotCovered(
            setting.path,
            what,
            f"{what} asks for rope over {rotary} of {setting.head_dim} dimensions; rope turns "
            "pairs, so covered are even numbers up to all of them. Use another checkpoint.",
        )
    return rotary


def _scaling(kind: str, rope: _Plain, rotary: int, setting: Setting) -> dict[str, Any] | None:
    """The kernels' arguments: every number is there, as a float where it is one."""
    if kind == "default":
        return None
    numbers = {
        name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in msgspec.structs.asdict(rope).items()
        if value is not None and name not in ("rope_type", "rope_theta", "partial_rotary_factor")
    }
    if kind != "linear":
        own = getattr(rope, "original_max_position_embeddings", None)
        numbers["original_max_position_embeddings"] = int(
            setting.original or own or setting.positions
        )
    if isinstance(rope, _Llama3) and rope.high_freq_factor <= rope.low_freq_factor:
        raise DamagedModel(
            setting.path,
            f"{setting.where}: high_freq_factor ({rope.high_freq_factor}) must be greater than "
            f"low_freq_factor ({rope.low_freq_factor}). Correct one of them.",
        )
    if isinstance(rope, _Yarn):
        _require_yarn(rope, setting)
    if isinstance(rope, _Longrope):
        _require_short(rope, rotary, numbers, setting)
        del numbers["long_factor"]
        numbers["short_factor"] = [float(value) for value in rope.short_factor]
        length = numbers["original_max_position_embeddings"]
        numbers.setdefault("factor", setting.positions / length)
    return {"rope_type": kind, **numbers}


def _require_yarn(rope: _Yarn, setting: Setting) -> None:
    theta = rope.rope_theta or setting.theta
    if theta <= 1:
        raise DamagedModel(
            setting.path, f"rope_theta ({theta}) must be above 1 for yarn. Correct this key."
        )


def _require_short(
    rope: _Longrope, rotary: int, numbers: Mapping[str, Any], setting: Setting
) -> None:
    """Longrope has one table up to its original length: covered where no sequence is longer."""
    for name in ("short_factor", "long_factor"):
        if len(getattr(rope, name)) != rotary // 2:
            raise DamagedModel(
                setting.path,
                f"{setting.where}: {name} has {len(getattr(rope, name))} numbers, not "
                f"{rotary // 2}, half of the rotated dimensions. Correct it.",
            )
    length = numbers["original_max_position_embeddings"]
    longest = min(setting.positions, setting.limit or setting.positions)
    if longest > length:
        raise NotCovered(
            setting.path,
            "rope_type: longrope",
            f"{setting.where} asks for rope of kind 'longrope', whose angles depend on the total "
            f"length once that is above {length}, and so are covered up to there only. Pass "
            f"context={length} (or less) to stay below.",
        )
