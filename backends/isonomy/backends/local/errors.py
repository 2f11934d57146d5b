"""Errors of the local backend: leaves of the SDK's tree, so that callers may catch either.

BackendError
├── ModelError          a checkpoint is missing or damaged
│   ├── NotCovered      it asks for something outside the canonical numerics; `feature` names it
│   └── Tampered        its digest is not the one that was expected
└── NonFinite           a step left the finite numbers; `layer` says where
"""

from __future__ import annotations

from isonomy.sdk.errors import BackendError, ModelError

BACKEND = "isonomy.local"
"""The name of this backend in errors and records."""


class DamagedModel(ModelError):
    """A file of a checkpoint is missing or can't be read; `path` names the file or the folder."""

    def __init__(self, path: object, message: str) -> None:
        super().__init__(f"{path}: {message}", backend=BACKEND, path=str(path))


class NotCovered(ModelError):
    """A checkpoint asks for what the canonical numerics don't specify; `feature` names it."""

    def __init__(self, path: object, feature: str, message: str) -> None:
        self.feature = feature
        super().__init__(f"{path}: {message}", backend=BACKEND, path=str(path))


class Tampered(ModelError):
    """A checkpoint is not the one that was asked for; both digests are kept."""

    def __init__(self, path: object, expected: str, found: str) -> None:
        self.expected = expected
        self.found = found
        super().__init__(
            f"{path}: this checkpoint is not the expected one: expected {expected}, found {found}. "
            "A file was changed or damaged: fetch the checkpoint again, or correct the expected "
            "digest if the change was meant.",
            backend=BACKEND,
            path=str(path),
        )


class NonFinite(BackendError):
    """A hidden state or logit became infinite or NaN.

    `layer` is the index of the decoder layer after which it was found, `None` for the output layer;
    `where` says the same in words.
    """

    def __init__(self, layer: int | None, where: str, message: str) -> None:
        self.layer = layer
        self.where = where
        super().__init__(
            f"the generation left the finite numbers at {where or 'a step'} ({message}). The "
            "weights can't be used for this prompt: check the checkpoint, or try another prompt.",
            backend=BACKEND,
        )
