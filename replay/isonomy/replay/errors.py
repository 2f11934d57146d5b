"""Errors of the replay log, below the SDK's `LogError`.

LogError (isonomy.sdk)
├── NotALog        the path is a file, holds foreign files, or holds nothing
├── NewerLog       written by a later Isonomy: readable where its tables allow, never written
├── LogUnwritable  read-only, full, locked, moved away, or without permission
├── DamagedLog     stored bytes are not what was written; `file` names where
├── NoSuchCall     no call of this id, or an ambiguous prefix; `nearest` lists what comes close
├── QueryRefused   not exactly one harmless SELECT; `query` is the text
├── QueryFailed    a SELECT that DuckDB can't parse, bind or run; `query` is the text
└── FormatMissing  an answer was asked for in the form of a `package` that is not installed

Every one carries `path`, the log's directory, and says in its last sentence what to do.
"""

from __future__ import annotations

from isonomy.sdk.errors import LogError


class NotALog(LogError):
    """The path is not a log directory."""


class NewerLog(LogError):
    """The log was written by a later version; `version` is its schema."""

    def __init__(self, message: str, *, path: str, version: int) -> None:
        self.version = version
        super().__init__(message, path=path)


class LogUnwritable(LogError):
    """The journal can't be written now; nothing of the batch was recorded.

    `passes` says whether it may pass by itself or by an operator's hand, with the log as it is: a
    full disk, lost rights, a lock.
    """

    def __init__(self, message: str, *, path: str, passes: bool = False) -> None:
        self.passes = passes
        super().__init__(message, path=path)


class DamagedLog(LogError):
    """A file of the log is damaged; `file` is its name within the directory."""

    def __init__(self, message: str, *, path: str, file: str) -> None:
        self.file = file
        super().__init__(message, path=path)


class NoSuchCall(LogError):
    """The log has no such call, or several; `nearest` lists call ids that come close."""

    def __init__(self, message: str, *, path: str, nearest: tuple[str, ...]) -> None:
        self.nearest = nearest
        super().__init__(message, path=path)


class QueryRefused(LogError):
    """A query is not one harmless SELECT; `query` is its text."""

    def __init__(self, message: str, *, path: str, query: str) -> None:
        self.query = query
        super().__init__(message, path=path)


class QueryFailed(LogError):
    """A SELECT can't be parsed, bound or run; `query` is its text."""

    def __init__(self, message: str, *, path: str, query: str) -> None:
        self.query = query
        super().__init__(message, path=path)


class FormatMissing(LogError):
    """An answer can't be given in a form: `package` is not installed."""

    def __init__(self, message: str, *, path: str, package: str) -> None:
        self.package = package
        super().__init__(message, path=path)
