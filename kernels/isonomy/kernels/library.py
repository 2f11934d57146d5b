"""Finds and loads the compiled library, once; types its functions; turns its codes into errors.

The library is searched in every folder of `isonomy.kernels.__path__` (an editable installation
keeps it in site-packages). `ISONOMY_ISA` and `ISONOMY_THREADS` are read when it is loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

import msgspec

from isonomy.kernels.errors import (
    ArgumentError,
    CapacityError,
    CorruptionError,
    KernelError,
    LibraryError,
    NonFiniteError,
    OutOfMemoryError,
    UnsupportedError,
)

ABI = 4
NUMERICS_VERSION = 1
FILE_NAME = "libisonomy_kernels" + (".dylib" if sys.platform == "darwin" else ".so")

_LAYER_OUTPUT = -2


class Sampling(ctypes.Structure):
    """`iso_sampling` of isonomy.h."""

    _fields_ = (
        ("temperature", c_double),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
        ("seed", c_uint64),
        ("candidate", c_uint32),
        ("position", c_uint32),
        ("top_k", c_int64),
    )


class RopeKind(ctypes.Structure):
    """`iso_rope_kind` of isonomy.h."""

    _fields_ = (("frequencies", c_void_p), ("count", c_int32), ("attention_factor", c_double))


class Config(ctypes.Structure):
    """`iso_decoder_config` of isonomy.h."""

    _fields_ = (
        *((name, c_int32) for name in ("vocab", "hidden", "layers", "heads", "kv_heads")),
        *((name, c_int32) for name in ("head_dim", "intermediate", "max_positions")),
        *((name, c_int32) for name in ("experts", "experts_per_token", "expert_intermediate")),
        *((name, c_int32) for name in ("normalise_experts", "layer_norm", "norm_offset")),
        *((name, c_int32) for name in ("pre_norm", "post_norm", "qk_norm", "gated", "activation")),
        *((name, c_int32) for name in ("learned_positions", "tied", "qkv_bias", "o_bias")),
        *((name, c_int32) for name in ("mlp_bias", "output_bias", "int8", "checksums")),
        ("rope_kinds", c_int32),
        *((name, c_double) for name in ("eps", "scale", "embedding_multiplier")),
        *((name, c_double) for name in ("residual_multiplier", "logit_divisor")),
        *((name, c_double) for name in ("attention_softcap", "logit_softcap")),
        *((name, c_void_p) for name in ("ropes", "windows", "rope_of", "sparse")),
    )


_P, _N, _I = c_void_p, c_size_t, c_int
_SAMPLING = POINTER(Sampling)
_HANDLE = POINTER(c_void_p)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {  # result, arguments
    "iso_abi": (c_int, ()),
    "iso_numerics_version": (c_int, ()),
    "iso_compiler": (c_char_p, ()),
    "iso_last_error": (c_char_p, ()),
    "iso_error_layer": (c_int, ()),
    "iso_isas": (c_char_p, ()),
    "iso_isas_built": (c_char_p, ()),
    "iso_isa": (c_char_p, ()),
    "iso_set_isa": (c_int, (c_char_p,)),
    "iso_threads": (c_int, ()),
    "iso_set_threads": (c_int, (_I,)),
    "iso_float_state": (c_uint64, ()),
    "iso_set_float_state": (None, (c_uint64,)),
    "iso_function": (c_int, (_I, _P, _P, _N)),
    "iso_binary": (c_int, (_I, _P, _P, _P, _N)),
    "iso_softmax": (c_int, (_P, _P, _N, _N)),
    "iso_row_sum": (c_int, (_P, _P, _N, _N)),
    "iso_rms_norm": (c_int, (_P, _P, _P, _N, _N, c_double, _I)),
    "iso_layer_norm": (c_int, (_P, _P, _P, _P, _N, _N, c_double)),
    "iso_embedding": (c_int, (_P, _N, _P, _I, _N, _N, _P)),
    "iso_rope_tables": (c_int, (_P, _N, _N, c_double, _P, _P)),
    "iso_rope": (c_int, (_P, _P, _P, _N, _N, _P, _N, _N, _N, _P)),
    "iso_attention": (c_int, (_P, _P, _P, _P, _N, _N, _N, _N, _N, c_double, c_int64, c_double, _P)),
    "iso_linear_new": (c_int, (_P, _I, _P, _N, _N, _P, _I, _I, _HANDLE)),
    "iso_linear_free": (None, (_P,)),
    "iso_linear_apply": (c_int, (_P, _P, _N, _P)),
    "iso_quantise": (c_int, (_P, _I, _N, _N, _P, _P)),
    "iso_faults": (c_size_t, (_P, _N)),
    "iso_faults_waiting": (c_size_t, ()),
    "iso_inject_linear": (c_int, (_I, c_char_p, _N, _N, _I, _I)),
    "iso_inject_linear_end": (c_int, ()),
    "iso_blake3": (c_int, (_P, _N, _P)),
    "iso_step_digests": (c_int, (_P, _N, _N, _P)),
    "iso_philox": (c_int, (c_uint64, POINTER(c_uint32), POINTER(c_uint32))),
    "iso_sample": (c_int, (_P, _N, _SAMPLING, _P, _N, _P, _P, _P)),
    "iso_top_logprobs": (c_int, (_P, _N, _N, _P, _P)),
    "iso_logprobs": (c_int, (_P, _N, _N, _P, _P)),
    "iso_decoder_new": (c_int, (POINTER(Config), _HANDLE)),
    "iso_decoder_load": (c_int, (_P, _I, _I, _I, _P, _I, _P, _N, _N)),
    "iso_decoder_ready": (c_int, (_P,)),
    "iso_decoder_free": (None, (_P,)),
    "iso_decoder_bytes": (c_size_t, (_P,)),
    "iso_decoder_cache_bytes": (c_size_t, (_P, _N)),
    "iso_decoder_cache_in_use": (c_size_t, (_P,)),
    "iso_decoder_step": (c_int, (_P, _P, _N)),
    "iso_session_new": (c_int, (_P, _N, _HANDLE)),
    "iso_session_fork": (c_int, (_P, _N, _N, _HANDLE)),
    "iso_session_free": (None, (_P,)),
    "iso_session_length": (c_size_t, (_P,)),
    "iso_session_cache_bytes": (c_size_t, (_P,)),
    "iso_session_truncate": (c_int, (_P, _N)),
    "iso_inject": (c_int, (_I, _I, _N, _N, _I)),
    "iso_inject_clear": (None, ()),
}


class KernelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What computes here. Everything but `numerics_version` may change without changing a bit.

    Attributes:
        numerics_version: of kernels/NUMERICS.md.
        isa: the instruction-set path in use.
        isas: the paths that this machine and this build can run, best last.
        threads: the size of the pool, the caller included.
        library_digest: "blake3:" and the hexadecimal BLAKE3 of the library file.
        compiler: what built it.
        abi: version of the C interface.
    """

    numerics_version: int
    isa: str
    isas: tuple[str, ...]
    threads: int
    library_digest: str
    compiler: str
    abi: int


def find() -> Path:
    """The library file.

    Raises:
        LibraryError: there is none.
    """
    import isonomy.kernels

    folders = [Path(folder) for folder in isonomy.kernels.__path__]
    for folder in folders:
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    raise LibraryError(
        f"{FILE_NAME} is in none of {', '.join(map(str, folders))}: install isonomy with pip, "
        "which compiles it (a C++17 compiler is needed)",
        path=os.pathsep.join(map(str, folders)),
    )


def _default_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 1024)
    return min(os.cpu_count() or 1, 1024)


def _threads_from_environment() -> int:
    text = os.environ.get("ISONOMY_THREADS", "").strip()
    if not text:
        return _default_threads()
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ArgumentError(f"ISONOMY_THREADS must be a number from 1 to 1024, not {text!r}")
    return int(text)


@functools.cache
def load() -> ctypes.CDLL:
    """The loaded library with typed functions; the environment is read now.

    Raises:
        LibraryError: the library is missing, of another version, or cannot be loaded.
        UnsupportedError: `ISONOMY_ISA` names a path that cannot run here.
        ArgumentError: `ISONOMY_THREADS` is not a number from 1 to 1024.
    """
    path = find()
    try:
        library = ctypes.CDLL(str(path))
        abi = library.iso_abi()
    except (OSError, AttributeError) as error:
        raise LibraryError(f"{path} cannot be loaded: {error}", path=str(path)) from error
    if abi != ABI:
        raise LibraryError(
            f"{path} has interface version {abi}, this package needs {ABI}: reinstall isonomy",
            path=str(path),
        )
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise LibraryError(f"{path} lacks {name}: reinstall isonomy", path=str(path)) from error
        function.restype = result
        function.argtypes = arguments
    threads = _threads_from_environment()
    isa = os.environ.get("ISONOMY_ISA", "").strip()
    if isa:
        _set_isa(library, isa)
    _check(library, library.iso_set_threads(threads))
    return library


def _set_isa(library: ctypes.CDLL, name: str) -> None:
    if library.iso_set_isa(name.encode()):
        raise UnsupportedError("instruction set", name, _names(library.iso_isas()))


def _names(text: bytes) -> tuple[str, ...]:
    return tuple(text.decode().split(","))


def error_of(code: int, message: str, layer: int) -> KernelError:
    """The error that a result code of the library stands for."""
    if code == 4:
        if layer >= 0:
            return NonFiniteError(message, layer=layer, where=f"layer {layer}")
        return NonFiniteError(message, where="output" if layer == _LAYER_OUTPUT else "")
    errors: dict[int, type[KernelError]] = {
        1: ArgumentError,
        2: OutOfMemoryError,
        5: CapacityError,
        8: CorruptionError,
    }
    return errors.get(code, KernelError)(message)


def _check(library: ctypes.CDLL, code: int) -> None:
    if code:
        message = library.iso_last_error().decode(errors="replace")
        raise error_of(code, message, library.iso_error_layer())


def check(code: int) -> None:
    """Raise the error that a result code of the library stands for; 0 is none."""
    if code:
        _check(load(), code)


@functools.cache
def _library_digest() -> str:
    data = find().read_bytes()
    digest = ctypes.create_string_buffer(32)
    check(load().iso_blake3(data, len(data), ctypes.addressof(digest)))
    return "blake3:" + digest.raw.hex()


def info() -> KernelInfo:
    """The library in use, its path and its threads."""
    library = load()
    return KernelInfo(
        numerics_version=library.iso_numerics_version(),
        isa=library.iso_isa().decode(),
        isas=_names(library.iso_isas()),
        threads=library.iso_threads(),
        library_digest=_library_digest(),
        compiler=library.iso_compiler().decode(),
        abi=library.iso_abi(),
    )


def set_threads(threads: int) -> None:
    """Use this many threads from now on, the calling one included (1 to 1024)."""
    if not 1 <= threads <= 1024:
        raise ArgumentError(f"threads must be between 1 and 1024, not {threads}")
    check(load().iso_set_threads(threads))


@contextlib.contextmanager
def using_isa(name: str) -> Iterator[None]:
    """Run the block on another path, in the whole process: for tests and measurements.

    Args:
        name: "scalar", "avx2", "avx512" or "avx512vnni"; see `info().isas`.

    Raises:
        UnsupportedError: this machine or build lacks it.
    """
    library = load()
    before = library.iso_isa().decode()
    _set_isa(library, name)
    try:
        yield
    finally:
        _set_isa(library, before)
