"""Weights of a checkpoint: safetensors only, every tensor accounted for, hashed as it is read.

A header is validated by the safetensors library (sizes, overlaps, a file cut off) before any of it
is used; tensors are then read one at a time with plain reads, so that a file cut off later is an
error and not a signal. What is hashed is exactly what was handed to the kernels: the digest of the
weights is over names, types, shapes and the BLAKE3 of each tensor's bytes, in the order of names,
whichever files they lie in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from isonomy.sdk.canonical import canonical

from . import packages
from .errors import DamagedModel, NotCovered

if TYPE_CHECKING:
    import numpy as np

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
STORED = {"F32": ("float32", 4), "BF16": ("uint16", 2)}
"""Covered types of stored weights: numpy's type of the bits, and bytes an element."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"
"""Buffers of old checkpoints; transformers ignores them too."""


_RECENT = 3
"""Tensors kept in memory after they were read: the most that the kernels pack together."""


class Tensor(msgspec.Struct, frozen=True):
    """Where a tensor lies: file, byte offset and size, stored type, shape."""

    file: Path
    offset: int
    size: int
    dtype: str
    shape: tuple[int, ...]


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class Weights(Mapping[str, "np.ndarray[Any, Any]"]):
    """The tensors of a checkpoint, read from disk when asked for, each hashed when it is read.

    Values are C-contiguous: float32, or uint16 holding bf16 bits. For one thread only.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(sorted(tensors.items()))
        self._digests: dict[str, str] = {}
        # Tensors that are packed together are asked for several times in a row.
        self._recent: dict[str, np.ndarray[Any, Any]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """Read one tensor.

        Raises:
            KeyError: there is none of that name.
            DamagedModel: the file ends before the tensor does.
        """
        if name not in self._recent:
            while len(self._recent) >= _RECENT:
                del self._recent[next(iter(self._recent))]
            self._recent[name] = self._read(name)
        return self._recent[name]

    def _read(self, name: str) -> np.ndarray[Any, Any]:
        numpy = packages.load("numpy")
        tensor = self._tensors[name]
        array: np.ndarray[Any, Any] = numpy.empty(tensor.shape, dtype=STORED[tensor.dtype][0])
        view = array.reshape(-1).view(numpy.uint8).data
        try:
            with tensor.file.open("rb", buffering=0) as file:
                file.seek(tensor.offset)
                filled = 0
                while filled < tensor.size:
                    count = file.readinto(view[filled:])
                    if not count:
                        raise DamagedModel(
                            tensor.file,
                            f"ends inside tensor {name}. Fetch the file again; it is cut off.",
                        )
                    filled += count
        except OSError as error:
            raise DamagedModel(tensor.file, f"can't be read: {error}. Fetch it again.") from None
        hasher = blake3(max_threads=blake3.AUTO)
        self._digests[name] = "blake3:" + hasher.update(view).hexdigest()
        return array

    @property
    def stored(self) -> str:
        """The stored types in use, sorted: ``f32``, ``bf16`` or ``bf16+f32``."""
        return "+".join(sorted({tensor.dtype.lower() for tensor in self._tensors.values()}))

    def digest(self) -> str:
        """Return the digest of all weights; reads those that were not read yet."""
        for name in self._tensors:
            if name not in self._digests:
                self._read(name)
        self._recent.clear()
        listing = [
            [name, tensor.dtype, list(tensor.shape), self._digests[name]]
            for name, tensor in self._tensors.items()
        ]
        return "blake3:" + str(blake3(canonical(listing)).hexdigest())


def find(folder: Path, expected: Mapping[str, tuple[int, ...]], *, tied: bool) -> Weights:
    """Find the tensors of a checkpoint and check them against what its configuration asks for.

    Args:
        folder: The checkpoint.
        expected: Name and shape of every tensor, from `Architecture.tensors`.
        tied: The output layer is the embedding; a copy of it under the output's name must be equal.

    Raises:
        DamagedModel: a file is missing or damaged, or tensors are missing, unknown or misshaped.
        NotCovered: weights of another type than f32 and bf16, or in no safetensors file at all.
    """
    tensors = _all(folder)
    for name in [name for name in tensors if name.endswith(_IGNORED_SUFFIX)]:
        del tensors[name]
    copy = tensors.pop("lm_head.weight", None) if tied else None
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise DamagedModel(
            folder,
            f"{_some(missing)} missing from the weights. Fetch the checkpoint again, or correct "
            "config.json.",
        )
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise DamagedModel(
            folder,
            f"{_some(extra)} in the weights, but config.json has no place for it. Use the "
            "config.json that belongs to these weights.",
        )
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.dtype not in STORED:
            raise NotCovered(
                tensor.file,
                f"weights: {tensor.dtype}",
                f"tensor {name} is stored as {tensor.dtype}; covered are F32 and BF16. Convert the "
                "checkpoint, for instance with model.to(torch.bfloat16).save_pretrained(folder).",
            )
        if tensor.shape != shape:
            raise DamagedModel(
                tensor.file,
                f"tensor {name} has shape {list(tensor.shape)}, config.json asks for "
                f"{list(shape)}. Use the config.json that belongs to these weights.",
            )
    if copy is not None:
        _require_equal(copy, tensors["model.embed_tokens.weight"])
    return Weights(tensors)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {shown}{more}"


def _require_equal(copy: Tensor, original: Tensor) -> None:
    pair = Weights({"lm_head.weight": copy, "model.embed_tokens.weight": original})
    same = copy.dtype == original.dtype and copy.shape == original.shape
    if not same or pair["lm_head.weight"].tobytes() != pair["model.embed_tokens.weight"].tobytes():
        raise DamagedModel(
            copy.file,
            "config.json ties the output layer to the embedding, but lm_head.weight differs from "
            "model.embed_tokens.weight. Set tie_word_embeddings to false if lm_head is meant.",
        )


def _all(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return _header(folder / SINGLE)
    if index.is_file():
        return _sharded(folder, index)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise NotCovered(
            folder,
            "weights: pickle",
            f"holds weights as pickle only ({pickles[0]}), which can run code and is never read. "
            "Convert them to safetensors: model.save_pretrained(folder, safe_serialization=True).",
        )
    raise DamagedModel(
        folder, f"holds neither {SINGLE} nor {INDEX}. Fetch the checkpoint again, with its weights."
    )


def _sharded(folder: Path, index: Path) -> dict[str, Tensor]:
    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, OSError) as error:
        raise DamagedModel(index, f"not an index of weights ({error}). Fetch it again.") from None
    shards: dict[str, dict[str, Tensor]] = {}
    for file in sorted(set(weight_map.values())):
        # A file of this folder and nothing else: no path leads out of it.
        if file != Path(file).name or not file.endswith(".safetensors"):
            raise DamagedModel(
                index,
                f"names {file!r}, which is not a safetensors file of this folder. The index was "
                "tampered with or damaged: fetch the checkpoint again.",
            )
        if not (folder / file).is_file():
            raise DamagedModel(
                index, f"names {file}, which is not there. Fetch the checkpoint again, complete."
            )
        shards[file] = _header(folder / file)
    tensors: dict[str, Tensor] = {}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise DamagedModel(
                index, f"says that {file} holds tensor {name}, but it does not. Fetch both again."
            )
        tensors[name] = shards[file].pop(name)
    for file, rest in shards.items():
        if rest:
            raise DamagedModel(
                folder / file,
                f"holds {_some(sorted(rest))}, which {INDEX} does not list. Fetch both again.",
            )
    return tensors


def _header(path: Path) -> dict[str, Tensor]:
    safetensors = packages.load("safetensors")
    try:
        with safetensors.safe_open(str(path), framework="numpy"):
            pass  # opening validates the header against the file's size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            text = file.read(length)
    except (safetensors.SafetensorError, OSError, struct.error) as error:
        raise DamagedModel(
            path, f"not a complete safetensors file ({error}). Fetch it again; it may be cut off."
        ) from None
    try:
        raw = msgspec.json.decode(text, type=dict[str, Any])
        raw.pop("__metadata__", None)
        entries = msgspec.convert(raw, dict[str, _Entry])
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise DamagedModel(path, f"its header can't be read ({error}). Fetch it again.") from None
    tensors: dict[str, Tensor] = {}
    for name, entry in entries.items():
        start, end = entry.data_offsets
        tensors[name] = Tensor(path, 8 + length + start, end - start, entry.dtype, entry.shape)
    return tensors
