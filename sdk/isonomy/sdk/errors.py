"""Errors of the SDK, as a tree.

IsonomyError
├── InputError            what the caller passed in can't be used
├── ConfigError           a configuration file or a policy is wrong: file, key, what to do
├── PluginError           a plugin can't be found, loaded, or behaves outside its contract
│   └── MissingExtra      it needs packages of an extra that is not installed
├── BackendError          a backend could not answer
│   ├── ModelError        a checkpoint is missing, damaged, or not covered
│   ├── ContextLength     the prompt does not fit the model's context
│   ├── Overloaded        too many calls wait already; try again later
│   └── RemoteError       an endpoint answered with an error or not at all
├── Blocked               the policy stopped a call whose caller wanted that to raise
├── LogError              the log can't be written or read: nothing is released unrecorded
├── Cancelled             the caller went away before the call ended
└── ReplayError           a replay asked for something that the log does not have

Every error carries its context as attributes and says in its last sentence what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .generation import Attempt
    from .performing import Reply


class IsonomyError(Exception):
    """Base of every error that Isonomy raises on purpose.

    `call_id` is the call that it ended, where the call was performed: it is in the log.
    """

    call_id: str | None = None


class InputError(IsonomyError):
    """What the caller passed in can't be used."""


class ConfigError(IsonomyError):
    """A configuration is wrong; `file` and `key` say where, `problem` what."""

    def __init__(self, message: str, *, file: str | None = None, key: str | None = None) -> None:
        self.problem = message
        self.file = file
        self.key = key
        where = ": ".join(part for part in (file, key) if part)
        super().__init__(f"{where}: {message}" if where else message)


class PluginError(IsonomyError):
    """A plugin can't be found or loaded, or breaks its contract; `plugin` names it."""

    def __init__(self, message: str, *, plugin: str) -> None:
        self.plugin = plugin
        super().__init__(message)


class MissingExtra(PluginError):
    """Packages of an extra are not installed; `extra` names it."""

    def __init__(self, plugin: str, extra: str, missing: str) -> None:
        self.extra = extra
        self.missing = missing
        super().__init__(
            f"{plugin} needs the package {missing!r}, which is not installed. "
            f"Run: pip install 'isonomy[{extra}]'",
            plugin=plugin,
        )


class BackendError(IsonomyError):
    """A backend could not answer; `backend` names it."""

    def __init__(self, message: str, *, backend: str) -> None:
        self.backend = backend
        super().__init__(message)


class ModelError(BackendError):
    """A checkpoint is missing, damaged or not covered; `path` says which."""

    def __init__(self, message: str, *, backend: str, path: str) -> None:
        self.path = path
        super().__init__(message, backend=backend)


class ContextLength(BackendError):
    """The prompt does not fit: `tokens` were asked for, `limit` is the model's context."""

    def __init__(self, message: str, *, backend: str, tokens: int, limit: int) -> None:
        self.tokens = tokens
        self.limit = limit
        super().__init__(message, backend=backend)


class Overloaded(BackendError):
    """Too many calls wait for the backend already; the same call may pass later."""


class RemoteError(BackendError):
    """An endpoint answered with an error or not at all.

    `status` is the HTTP status, if there was one; `attempts` every try that was made.
    """

    def __init__(
        self,
        message: str,
        *,
        backend: str,
        status: int | None = None,
        attempts: tuple[Attempt, ...] = (),
    ) -> None:
        self.status = status
        self.attempts = attempts
        super().__init__(message, backend=backend)


class Blocked(IsonomyError):
    """The policy stopped a call; `reply` says which, at which check, and how it could go on.

    Raised where the caller wanted that instead of a refusal: ``guard.wrap(client,
    on_block="raise")``. The message holds no content.
    """

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        what = "waits for a person" if reply.verdict == "ask_human" else "was blocked"
        where = f" by the check {reply.check!r}" if reply.check else ""
        super().__init__(
            f"the call {reply.call_id} {what}{where}. See reply.reason, or: isonomy explain "
            f"{reply.call_id}"
        )


class LogError(IsonomyError):
    """The log can't be written or read; `path` says which."""

    def __init__(self, message: str, *, path: str) -> None:
        self.path = path
        super().__init__(message)


class Cancelled(IsonomyError):
    """The caller went away before the call ended: the stream was closed. The call is recorded."""


class ReplayError(IsonomyError):
    """A replay asked for something that the log does not have; `check` names who asked."""

    def __init__(self, message: str, *, check: str | None = None) -> None:
        self.check = check
        super().__init__(message)
