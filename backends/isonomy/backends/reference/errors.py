"""Errors of the second opinion, leaves of the SDK's tree.

BackendError
└── OpinionError
    ├── OperationRefused   the graph uses a tensor operation that is not covered
    └── GraphRefused       a checkpoint, mask, rope or attention that the numerics don't describe
"""

from __future__ import annotations

from isonomy.sdk.errors import BackendError

BACKEND = "isonomy.reference"
"""The name of the second opinion in errors."""


class OpinionError(BackendError):
    """There is no second opinion on this checkpoint."""


class OperationRefused(OpinionError):
    """A tensor operation is not covered.

    Attributes:
        operation: its name, such as ``aten.logsumexp.default``.
        module: where the graph uses it, such as ``model.layers.0.mlp (LlamaMLP)``.
        reason: why it is refused.
    """

    def __init__(self, operation: str, module: str, reason: str) -> None:
        self.operation, self.module, self.reason = operation, module, reason
        super().__init__(
            f"{operation} in {module}: {reason}. A second opinion needs every operation to be "
            "canonical: use a model that does without it, or add it to the numerics first.",
            backend=BACKEND,
        )


class GraphRefused(OpinionError):
    """Something larger than an operation is not covered.

    Attributes:
        feature: what it is, such as ``rope type: dynamic``.
        where: the file or module that asks for it.
    """

    def __init__(self, feature: str, where: str, message: str) -> None:
        self.feature, self.where = feature, where
        super().__init__(f"{where}: {message}", backend=BACKEND)
