"""A snapshot: one read-only DuckDB file with everything that a log holds now, for any client.

It is a copy of `audit.duckdb`, brought up to date first: tables, views, macros, comments. It is
written beside its place under another name and renamed, so that nobody finds half of one, and
nothing that is there already is replaced.

A snapshot holds what the log holds, personal data too. The log therefore lists its snapshots
(`snapshots.json`), and `renew` brings those that are still in their places to what the log is now,
after something was erased from it. Of copies that were made of them it knows nothing.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from . import audit
from .directory import AUDIT, LogDirectory
from .errors import LogUnwritable
from .ingest import copied, refresh

LISTED: Final = "snapshots.json"


def snapshot(directory: LogDirectory, file: str | os.PathLike[str]) -> Path:
    """Write what the log holds now to a new file, and return its path.

    Raises:
        LogError: the log can't be brought up to date.
        LogUnwritable: the file is there already, or can't be written.
    """
    target = Path(file).expanduser().absolute()
    if target.is_relative_to(directory.path):
        raise _unwritable(directory, target, "it would lie within the log itself")
    if os.path.lexists(target):
        raise _unwritable(directory, target, "it is there already, and nothing is replaced")
    refresh(directory.path)
    with directory.locked():
        former = listed(directory)
        _list(directory, [*former, target])
        try:
            _write(directory, target, replace=False)
        except BaseException:
            _list(directory, former)
            raise
    return target


def listed(directory: LogDirectory) -> list[Path]:
    """Return where snapshots of the log were written, as far as they are still there."""
    try:
        paths = msgspec.json.decode((directory.path / LISTED).read_bytes(), type=list[str])
    except (OSError, msgspec.MsgspecError):
        return []
    return [path for path in map(Path, dict.fromkeys(paths)) if path.is_file()]


def renew(directory: LogDirectory) -> list[Path]:
    """Replace every listed snapshot by one of what the log holds now; return which.

    A file that stands in the place of one, and is none of this log's, is left alone.

    The caller holds the log's lock, and `audit.duckdb` is up to date.

    Raises:
        LogUnwritable: one can't be replaced; those before it are.
    """
    ours = _log_of(directory.audit)
    there = [file for file in listed(directory) if _log_of(file) == ours]
    for file in there:
        _write(directory, file, replace=True)
    _list(directory, there)
    return there


def _log_of(file: Path) -> str | None:
    """Return the id of the log whose rows a file holds; `None` where it holds no log's."""
    import duckdb

    try:
        with duckdb.connect(str(file), read_only=True) as connection:
            return audit.state(connection).get("log")
    except (duckdb.Error, UnicodeDecodeError):
        return None


def _write(directory: LogDirectory, target: Path, *, replace: bool) -> None:
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
    try:
        try:
            copied(directory.audit, beside)
            beside.chmod(0o400)
            _flush(beside, os.O_RDONLY)
            if replace:
                beside.rename(target)
            else:
                _put(beside, target)
        finally:
            beside.unlink(missing_ok=True)
        _flush(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unwritable(directory, target, error.strerror or str(error)) from error


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(beside: Path, target: Path) -> None:
    """Give a file its name, unless another has it."""
    try:
        os.link(beside, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        beside.rename(target)


def _list(directory: LogDirectory, paths: list[Path]) -> None:
    beside = directory.path / f"{LISTED}.new"
    try:
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.encode([str(path) for path in paths]))
            stream.flush()
            os.fsync(stream.fileno())
        beside.rename(directory.path / LISTED)
    except (OSError, UnicodeEncodeError) as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise _unwritable(directory, directory.path / LISTED, str(error)) from error


def _unwritable(directory: LogDirectory, target: Path, why: str) -> LogUnwritable:
    return LogUnwritable(
        f"A snapshot of the log {directory} can't be written to {target}: {why}. Name a new file "
        f"outside of the log, where there is room for a copy of its {AUDIT}.",
        path=str(directory),
    )
