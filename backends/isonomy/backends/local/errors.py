"""Errors of the local backend: leaves of the SDK's tree, so that callers may catch either.

BackendError
├── ModelError          a checkpoint is missing or damaged (NoTemplate: has no chat template)
│   ├── NotCovered      it asks for something outside the canonical numerics; `feature` names it
│   ├── Tampered        its digest is not the one that was expected
│   └── WrongDraft      it can't guess for another model: their tokenizers differ
├── NonFinite           a step left the finite numbers; `layer` says where
├── Corrupt             memory or processor gave a wrong result, twice
├── TooLarge            the request can never fit into the engine's memory for caches
└── Overloaded          too many calls wait already; try again later
InputError
└── UnusableFormat      a response format can't be honoured; `kind` and `feature` say what
"""

from __future__ import annotations

from isonomy.sdk import errors
from isonomy.sdk.errors import BackendError, InputError, ModelError

BACKEND = "isonomy.local"
"""The name of this backend in errors and records."""


class DamagedModel(ModelError):
    """A file of a checkpoint is missing or can't be read; `path` names the file or the folder."""

    def __init__(self, path: object, message: str) -> None:
        super().__init__(f"{path}: {message}", backend=BACKEND, path=str(path))


class NoTemplate(DamagedModel):
    """A checkpoint has no chat template: its model can score texts, but not answer messages."""


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


class UnusableFormat(InputError):
    """A response format can't be honoured.

    `kind` is its type as given, `feature` the key or keyword that is refused (empty where it is the
    grammar as a whole), `problem` what is wrong.
    """

    def __init__(self, kind: str, feature: str, problem: str) -> None:
        self.kind = kind
        self.feature = feature
        self.problem = problem
        super().__init__(
            f"the response format{f' {kind}' if kind else ''} can't be honoured: "
            f"{problem.rstrip('. ')}. Change it, or leave out response_format."
        )


class Corrupt(BackendError):
    """Silent data corruption: an int8 linear was wrong, and wrong again when it was repeated.

    Nothing of the answer was returned.
    """

    def __init__(self, message: str) -> None:
        super().__init__(
            f"the machine computes wrongly: {message}. If another process does no better, its "
            "memory or processor is faulty.",
            backend=BACKEND,
        )


class TooLarge(BackendError):
    """A request needs more memory for its cache than the engine may use for all of them.

    `tokens` is prompt and answer together, `needed` and `limit` are bytes.
    """

    def __init__(self, prompt: int, answer: int, needed: int, limit: int) -> None:
        self.tokens = prompt + answer
        self.needed = needed
        self.limit = limit
        super().__init__(
            f"this request can never fit: its cache may need {needed} bytes ({prompt} tokens of "
            f"prompt and up to {answer} of answer), and cache_bytes is {limit}. Raise cache_bytes, "
            "or lower max_tokens.",
            backend=BACKEND,
        )


class Overloaded(errors.Overloaded):
    """The engine has as many calls as it may have: `running` at a time and `waiting` for them."""

    def __init__(self, running: int, waiting: int) -> None:
        self.running = running
        self.waiting = waiting
        super().__init__(
            f"the engine is overloaded: it has {running + waiting} calls (max_concurrent {running} "
            f"and max_waiting {waiting}). Try again later, or raise one of them.",
            backend=BACKEND,
        )


class WrongDraft(ModelError):
    """A draft model can't guess for this model: their tokens are not the same."""

    def __init__(self, path: object, expected: str, found: str) -> None:
        self.expected = expected
        self.found = found
        super().__init__(
            f"{path}: this model can't draft for the other, because their tokenizers differ: "
            f"{found} here, {expected} there. Use a draft model of the same family, or "
            "draft='lookup'.",
            backend=BACKEND,
            path=str(path),
        )
