"""The packages of the extra `local`, imported when a model is loaded and not before.

`isonomy.backends.local` can be imported where numpy, tokenizers, safetensors, jinja2 or the
compiled kernels are absent; what is missing is then named, with the command that installs it.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from isonomy.sdk.errors import MissingExtra

NEEDED = ("numpy", "safetensors", "tokenizers", "jinja2")
"""Imported when a model is loaded."""

LATER = ("llguidance",)
"""Imported by the first request that asks for a response format."""


def load(name: str) -> ModuleType:
    """Import one package of the extra.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        root = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        raise MissingExtra("the local backend", "local", root) from error


def require() -> None:
    """Import all packages of the extra, in the order of `NEEDED`.

    Raises:
        MissingExtra: naming the first that is not installed.
    """
    for name in NEEDED:
        load(name)
