"""Errors of interchange, below the SDK's `IsonomyError`.

IsonomyError (isonomy.sdk)
└── UnusableFile   a file, or a line or row of it, is not what it should be
"""

from __future__ import annotations

from isonomy.sdk.errors import IsonomyError


class UnusableFile(IsonomyError):
    """A file can't be imported; `place` says which line, row or sample, `problem` what is wrong."""

    def __init__(self, problem: str, *, file: str, place: str | None = None) -> None:
        self.problem = problem
        self.file = file
        self.place = place
        where = f"{file}, {place}" if place else file
        super().__init__(f"{where}: {problem}")
