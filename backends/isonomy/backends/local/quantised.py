"""Checkpoints whose linears are int8: how they are told, laid out, and prepared from others.

A prepared checkpoint is an ordinary folder. Its `config.json` has the key `KEY`; its weights lie in
one safetensors file under the canonical names (`layout.shapes`): each linear but routers as
``NAME.weight`` (I8, outputs by inputs) and ``NAME.weight_scale`` (F32, one an output), all else as
it was stored. Integers and scales are those of kernels/NUMERICS.md, section 2, so that a prepared
checkpoint computes the same bits as the original one quantised at load.

A folder appears complete or not at all: it is written under another name beside its place.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from isonomy.sdk.errors import InputError

from . import layout, packages, weights
from .architecture import Architecture
from .config import architecture
from .errors import DamagedModel, NotCovered

if TYPE_CHECKING:
    import numpy as np

KEY = "isonomy_quantization"
CONFIG = "config.json"
SCHEME = "int8-row"
VERSION = 1

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
_CODES = {"F32": 4, "BF16": 2, "I8": 1}


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a checkpoint.

    Attributes:
        folder: where the new one is.
        tensors: how many became int8.
        bytes_before: of all weights, as they were stored.
        bytes_after: of all weights, scales included.
    """

    folder: Path
    tensors: int
    bytes_before: int
    bytes_after: int


class _Scheme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    scheme: str
    version: int


def is_prepared(config: bytes, path: object) -> bool:
    """Whether the bytes of a ``config.json`` say that the weights are int8.

    Raises:
        NotCovered: they are quantised in a way that is not known.
    """
    try:
        raw = msgspec.json.decode(config, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        return False  # said better by `config.architecture`
    if KEY not in raw:
        return False
    try:
        found = msgspec.convert(raw[KEY], _Scheme)
    except msgspec.ValidationError as error:
        raise DamagedModel(path, f"{KEY}: {error}. Prepare the checkpoint again.") from None
    if (found.scheme, found.version) != (SCHEME, VERSION):
        raise NotCovered(
            path,
            f"{KEY}: {found.scheme} {found.version}",
            f"the weights are quantised as {found.scheme!r}, version {found.version}; covered is "
            f"{SCHEME!r}, version {VERSION}. Prepare the checkpoint again with this version.",
        )
    return True


def arrange(model: Architecture) -> layout.Layout:
    """Return the layout of a prepared checkpoint."""
    shapes = layout.shapes(model)
    linears = _linears(model, shapes)
    scales = {name + weights.SCALE: shapes[name][:1] for name in linears}
    return layout.Layout(
        sources={name: layout.Source(name) for name in shapes},
        stored={**shapes, **scales},
        int8=frozenset(linears),
    )


def examine(folder: Path, out: Path) -> bytes:
    """Return the bytes of a checkpoint's ``config.json``, if `prepare` could begin.

    Raises:
        InputError: `out` exists, or the checkpoint is int8 already.
        ModelError: it is not a checkpoint.
    """
    data = _config(folder)
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists, and nothing is overwritten. Give another folder.")
    if is_prepared(data, folder / CONFIG):
        raise InputError(f"{folder} has int8 weights already. Use it as it is.")
    return data


def prepare(
    folder: Path, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> Prepared:
    """Write the int8 checkpoint of another one.

    Args:
        folder: a checkpoint that `Local` loads, with f32 or bf16 weights.
        out: a folder that does not exist yet.
        progress: called with the number of tensors written and of all.

    Raises:
        InputError: `out` exists, or the checkpoint is int8 already.
        ModelError: the checkpoint is missing, damaged or not covered, or a weight is not finite.
        MissingExtra: packages of the extra `local` are not installed.
        OSError: the new folder can't be written; nothing of it is left.
    """
    packages.require()
    data = examine(folder, out)
    model = architecture(data, folder / CONFIG)
    listing = weights.listing(folder)
    found = weights.find(folder, listing, layout.arrange(model, listing))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        done = _write(folder, found, model, temporary, progress)
        (temporary / CONFIG).write_bytes(_marked(data))
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name != CONFIG and not _is_weights(path.name):
                shutil.copyfile(path, temporary / path.name)
        temporary.chmod(0o777 & ~_umask())
        _sync(temporary)
        if out.exists():  # made by somebody else meanwhile; an empty folder would be replaced
            raise InputError(f"{out} exists by now, and nothing is overwritten. Try again.")
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return msgspec.structs.replace(done, folder=out)


def _config(folder: Path) -> bytes:
    try:
        return (folder / CONFIG).read_bytes()
    except OSError as error:
        raise DamagedModel(
            folder,
            f"not a checkpoint: its {CONFIG} can't be read ({error.strerror}). Give the folder of "
            "a complete checkpoint.",
        ) from None


def _linears(model: Architecture, shapes: Mapping[str, layout.Shape]) -> list[str]:
    is_linear = packages.load("isonomy.kernels.quantised").is_linear
    return [name for name in shapes if is_linear(name, tied=model.tied)]


def _marked(config: bytes) -> bytes:
    raw = msgspec.json.decode(config, type=dict[str, Any])
    raw[KEY] = {"scheme": SCHEME, "version": VERSION}
    return msgspec.json.format(msgspec.json.encode(raw), indent=2) + b"\n"


def _is_weights(name: str) -> bool:
    return name.endswith((*_WEIGHTS, ".index.json"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _write(
    folder: Path,
    found: weights.Weights,
    model: Architecture,
    out: Path,
    progress: Callable[[int, int], None] | None,
) -> Prepared:
    """Write the weights, a tensor in memory at a time, and say how much they were and are."""
    shapes = layout.shapes(model)
    linears = set(_linears(model, shapes))
    codes = {name: "I8" if name in linears else found.dtype(name) for name in shapes}
    names = list(shapes)
    codes |= {name + weights.SCALE: "F32" for name in linears}
    sizes = {**shapes, **{name + weights.SCALE: shapes[name][:1] for name in linears}}
    places, total = _places(sizes, codes)
    before = sum(_count(shapes[name]) * _CODES[found.dtype(name)] for name in names)
    with (out / weights.SINGLE).open("wb") as file:
        start = _header(file, sizes, codes, places)
        for number, name in enumerate(names):
            for key, values in _stored(folder, found, name, quantise=name in linears):
                file.seek(start + places[key])
                file.write(values.reshape(-1).view("uint8").data)
            if progress is not None:
                progress(number + 1, len(names))
        file.truncate(start + total)
    return Prepared(folder=out, tensors=len(linears), bytes_before=before, bytes_after=total)


def _stored(
    folder: Path, found: weights.Weights, name: str, *, quantise: bool
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    kernels = packages.load("isonomy.kernels")
    values = found.array(name)
    if not quantise:
        yield name, values
        return
    try:
        quantised = kernels.quantise_rows(values)
    except kernels.NonFiniteError as error:
        raise DamagedModel(
            folder,
            f"tensor {name} holds NaN or infinity ({error}). Such weights are of no use: fetch the "
            "checkpoint again.",
        ) from error
    yield name, quantised.q
    yield name + weights.SCALE, quantised.scales


def _count(shape: layout.Shape) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _places(
    shapes: Mapping[str, layout.Shape], codes: Mapping[str, str]
) -> tuple[dict[str, int], int]:
    """Offsets without gaps, the wider types first, so that all are aligned; and the end."""
    places: dict[str, int] = {}
    at = 0
    for name in sorted(shapes, key=lambda name: (-_CODES[codes[name]], name)):
        places[name] = at
        at += _count(shapes[name]) * _CODES[codes[name]]
    return places, at


def _header(
    file: IO[bytes],
    shapes: Mapping[str, layout.Shape],
    codes: Mapping[str, str],
    places: Mapping[str, int],
) -> int:
    """Write the header of a safetensors file; returns where the tensors begin.

    The format: https://github.com/huggingface/safetensors#format
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, start in places.items():
        end = start + _count(shapes[name]) * _CODES[codes[name]]
        entries[name] = {
            "dtype": codes[name],
            "shape": shapes[name],
            "data_offsets": (start, end),
        }
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    return 8 + len(text)


def describe(error: OSError) -> str:
    """Say why a folder could not be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "there is no space left on the disk. Make room, or give a folder on another disk."
    return f"{error.strerror or error}. Give a folder that can be written."
