"""Errors of the kernels. Each carries its context as attributes and says what to do.

::

    KernelError
    |-- LibraryError        the compiled library is missing, too old, or cannot be loaded
    |-- ArgumentError       a value out of its range
    |   |-- ShapeError      an array of the wrong shape
    |   `-- DtypeError      an array of the wrong type
    |-- UnsupportedError    an instruction set, a rope kind, an activation ... that is not there
    |-- WeightsError        tensors of a checkpoint that are missing, unknown or misshaped
    |-- NonFiniteError      NaN or infinity in weights, hidden states or logits
    |-- CorruptionError     an int8 linear was wrong twice: memory or processor can't be trusted
    |-- CapacityError       a session's cache is full
    `-- OutOfMemoryError    the system has no memory left
"""

from __future__ import annotations


class KernelError(Exception):
    """Root of all errors of `isonomy.kernels`."""


class LibraryError(KernelError):
    """The compiled library is missing or unusable.

    Attributes:
        path: the file or the searched folders.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ArgumentError(KernelError, ValueError):
    """A value is out of its range."""


class ShapeError(ArgumentError):
    """An array has the wrong shape.

    Attributes:
        name: the argument.
        expected: the shape in words.
        shape: what was given.
    """

    def __init__(self, name: str, expected: str, shape: tuple[int, ...]) -> None:
        super().__init__(f"{name}: expected shape {expected}, got {shape}")
        self.name, self.expected, self.shape = name, expected, shape


class DtypeError(ArgumentError, TypeError):
    """An array has the wrong element type.

    Attributes:
        name: the argument.
        expected: the accepted types in words.
        dtype: what was given.
    """

    def __init__(self, name: str, expected: str, dtype: object) -> None:
        super().__init__(f"{name}: expected {expected}, got {dtype}; convert it explicitly first")
        self.name, self.expected, self.dtype = name, expected, str(dtype)


class UnsupportedError(KernelError):
    """Something that these numerics do not cover, by name.

    Attributes:
        what: the kind of thing, such as "rope type".
        name: the one asked for.
        available: what there is.
    """

    def __init__(self, what: str, name: str, available: tuple[str, ...] = ()) -> None:
        there = f"; available: {', '.join(available)}" if available else ""
        super().__init__(f"{what} {name!r} is not supported{there}")
        self.what, self.name, self.available = what, name, available


class WeightsError(KernelError):
    """Tensors do not fit the configuration.

    Attributes:
        problem: what is wrong with them.
        names: the tensors.
    """

    def __init__(self, problem: str, names: tuple[str, ...]) -> None:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        super().__init__(f"{problem}: {shown}")
        self.problem, self.names = problem, names


class NonFiniteError(KernelError):
    """NaN or infinity where only finite numbers may be.

    Attributes:
        layer: index of the decoder layer after which they appeared; None outside of layers.
        where: "layer 3", "output", or "" where no decoder is involved.
    """

    def __init__(self, message: str, *, layer: int | None = None, where: str = "") -> None:
        super().__init__(message)
        self.layer, self.where = layer, where


class CorruptionError(KernelError):
    """Silent data corruption: the checksum of an int8 linear failed, and failed again.

    Nothing of the call was returned. Load the model again; if that does not help, the machine's
    memory or processor is faulty. `isonomy.kernels.faults()` has the particulars.
    """


class CapacityError(KernelError):
    """A session has no room for the tokens."""


class OutOfMemoryError(KernelError, MemoryError):
    """The system refused memory."""
