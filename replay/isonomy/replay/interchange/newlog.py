"""A new log from what is imported: whole, or not at all.

The log is written beside its place, in a directory whose name begins with a dot and holds
``.importing-``, and takes its place by one rename when all of it is durable. Whatever ends an
import before, no log is there; a directory that a killed import left can be deleted.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from isonomy.sdk.errors import LogError
from isonomy.sdk.records import Entry

from ..errors import LogUnwritable
from ..journal import JournalLog
from .errors import UnusableFile

_BATCH_ENTRIES = 500
_BATCH_BYTES = 4 << 20


class Skipped(msgspec.Struct, frozen=True):
    """What was left out: where it stands, and why."""

    file: str
    place: str | None
    problem: str


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What an import wrote."""

    path: str
    calls: int
    records: int
    skipped: tuple[Skipped, ...] = ()


def build(
    path: str | os.PathLike[str],
    calls: Iterable[Sequence[Entry] | UnusableFile],
    *,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Imported:
    """Write calls to a new log.

    Args:
        path: where it is to be; nothing may be there, or an empty directory.
        calls: the entries of each call; or, in its place, why it can't be used.
        skip_bad: leave out what can't be used, and list it.
        progress: is told the number of calls so far.

    Raises:
        UnusableFile: a call can't be used, and `skip_bad` was not given; there is no log then.
        LogError: the log can't be written.
    """
    written = records = 0
    skipped: list[Skipped] = []
    waiting: list[Entry] = []
    size = 0
    with _new_log(path) as log:
        for entries in calls:
            if isinstance(entries, UnusableFile):
                if not skip_bad:
                    raise entries
                skipped.append(Skipped(entries.file, entries.place, entries.problem))
                continue
            waiting.extend(entries)
            size += sum(len(payload.body) for entry in entries for payload in entry.payloads)
            written, records = written + 1, records + len(entries)
            if len(waiting) >= _BATCH_ENTRIES or size >= _BATCH_BYTES:
                log.append(waiting)
                waiting, size = [], 0
                if progress is not None:
                    progress(written)
        log.append(waiting)
    return Imported(path=str(path), calls=written, records=records, skipped=tuple(skipped))


@contextmanager
def _new_log(path: str | os.PathLike[str]) -> Iterator[JournalLog]:
    place = Path(path).expanduser().absolute()
    building = place.with_name(f".{place.name}.importing-{secrets.token_hex(6)}")
    try:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise LogError(
                f"{place} is there already. An import makes a new log: name a directory that is "
                "not there, and read several logs side by side.",
                path=str(place),
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with JournalLog(building) as log:
                yield log
            if place.exists():
                place.rmdir()
            building.rename(place)
            _flush(place.parent)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    except OSError as error:
        raise LogUnwritable(
            f"The log {place} can't be made: {error.strerror or error}. Check the path, the "
            "rights of its directory, and that the disk has room.",
            path=str(place),
        ) from error


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
