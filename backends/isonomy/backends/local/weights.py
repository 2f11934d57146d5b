"""Weights of a checkpoint: safetensors only, every tensor accounted for, hashed as it is read.

A header is validated by the safetensors library (sizes, overlaps, a file cut off) before any of it
is used; tensors are then read one at a time with plain reads, so that a file cut off later is an
error and not a signal. What is hashed is exactly what was handed to the kernels: the digest of the
weights is over names, types, shapes and the BLAKE3 of each tensor's bytes, in the order of names,
whichever files they lie in. A tensor that holds several of the model's is read and hashed once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from isonomy.sdk.canonical import canonical

from . import packages
from .errors import DamagedModel, NotCovered
from .layout import Layout, Source

if TYPE_CHECKING:
    import numpy as np

    from isonomy.kernels import Quantised

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
STORED = {"F32": ("float32", 4), "BF16": ("uint16", 2), "I8": ("int8", 1)}
"""Covered types of stored weights: numpy's type of the bits, and bytes an element."""

SCALE = "_scale"
"""What the name of an int8 tensor's scales ends in, after the tensor's own name."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_RECENT = 3
"""Tensors kept in memory after they were read: the most that the kernels pack together."""
_WHOLE = 2
"""Stored tensors kept of which only a part was asked for: the experts' are two."""


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


class Weights(Mapping[str, "np.ndarray[Any, Any] | Quantised"]):
    """The tensors of a model by their canonical names, read from disk when asked for.

    Each stored tensor is hashed when it is read. Values are C-contiguous: float32, uint16 holding
    bf16 bits, or int8 with its scales. For one thread only.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        sources: Mapping[str, Source],
        int8: frozenset[str] = frozenset(),
    ) -> None:
        self._int8 = int8
        self._tensors = dict(sorted(tensors.items()))
        self._sources = dict(sources)
        self._digests: dict[str, str] = {}
        # Tensors that are packed together are asked for several times in a row; those that are
        # parts of one stored tensor one after the other.
        self._recent = _Recent(_RECENT)
        self._whole = _Recent(_WHOLE)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __getitem__(self, name: str) -> np.ndarray[Any, Any] | Quantised:
        """Read one tensor.

        Raises:
            KeyError: there is none of that name.
            DamagedModel: the file ends before the tensor does.
        """
        values = self.array(name)
        if name not in self._int8:
            return values
        quantised: Quantised = packages.load("isonomy.kernels").Quantised(
            values, self._whole.get(name + SCALE, self._read)
        )
        return quantised

    def dtype(self, name: str) -> str:
        """The stored type of a tensor, as safetensors names it."""
        return self._tensors[self._sources[name].tensor].dtype

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """Read one tensor, of int8 without its scales; see `__getitem__`."""
        return self._recent.get(name, self._part)

    def _part(self, name: str) -> np.ndarray[Any, Any]:
        source = self._sources[name]
        alone = source.entry is None and source.rows is None
        array = self._read(source.tensor) if alone else self._whole.get(source.tensor, self._read)
        if source.entry is not None:
            array = array[source.entry]
        if source.transposed:
            array = array.T
        if source.rows is not None:
            array = array[source.rows[0] : source.rows[1]]
        contiguous: np.ndarray[Any, Any] = packages.load("numpy").ascontiguousarray(array)
        return contiguous

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
        """The stored types in use, sorted: ``f32``, ``bf16`` or ``bf16+f32``; or ``int8``."""
        return (
            "int8"
            if self._int8
            else "+".join(sorted({tensor.dtype.lower() for tensor in self._tensors.values()}))
        )

    def digest(self) -> str:
        """Return the digest of all weights; reads those that were not read yet."""
        for name in self._tensors:
            if name not in self._digests:
                self._read(name)
        self._recent.clear()
        self._whole.clear()
        listing = [
            [name, tensor.dtype, list(tensor.shape), self._digests[name]]
            for name, tensor in self._tensors.items()
        ]
        return "blake3:" + str(blake3(canonical(listing)).hexdigest())


class _Recent:
    """The arrays that were asked for last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}

    def get(self, name: str, make: Callable[[str], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        if name not in self._arrays:
            while len(self._arrays) >= self._most:
                del self._arrays[next(iter(self._arrays))]
            self._arrays[name] = make(name)
        return self._arrays[name]

    def clear(self) -> None:
        self._arrays.clear()


def find(folder: Path, listing: Mapping[str, Tensor], layout: Layout) -> Weights:
    """Check the tensors of a checkpoint against what its configuration asks for.

    Args:
        folder: The checkpoint, for errors.
        listing: Its tensors, from `listing`.
        layout: What it must hold; where the output layer is tied, a copy must equal the embedding.

    Raises:
        DamagedModel: a file is missing or damaged, or tensors are missing, unknown or misshaped.
        NotCovered: weights of another type than the layout's.
    """
    tensors = {name: t for name, t in listing.items() if not name.endswith(layout.ignored)}
    expected = layout.stored
    copy = tensors.pop(layout.copy[0], None) if layout.copy else None
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
        if name in layout.int8 or name.removesuffix(SCALE) in layout.int8:
            wanted = "I8" if name in layout.int8 else "F32"
            if tensor.dtype != wanted:
                raise DamagedModel(
                    tensor.file,
                    f"tensor {name} is stored as {tensor.dtype}, not {wanted}, though config.json "
                    "says that the weights are int8. Prepare the checkpoint again.",
                )
        elif tensor.dtype not in ("F32", "BF16"):
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
    if copy is not None and layout.copy is not None:
        _require_equal(copy, tensors[layout.copy[1]], layout.copy)
    return Weights(tensors, layout.sources, layout.int8)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {shown}{more}"


def _require_equal(copy: Tensor, original: Tensor, names: tuple[str, str]) -> None:
    pair = Weights(
        {"copy": copy, "original": original}, {n: Source(n) for n in ("copy", "original")}
    )
    same = copy.dtype == original.dtype and copy.shape == original.shape
    if not same or pair.array("copy").tobytes() != pair.array("original").tobytes():
        raise DamagedModel(
            copy.file,
            f"config.json ties the output layer to the embedding, but {names[0]} differs from "
            f"{names[1]}. Set tie_word_embeddings to false if {names[0]} is meant.",
        )


def listing(folder: Path) -> dict[str, Tensor]:
    """List the tensors of a checkpoint, with the names that its files give them.

    Raises:
        DamagedModel: a file is missing or damaged.
        NotCovered: the weights are in no safetensors file.
    """
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
