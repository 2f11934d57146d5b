"""Calls exactly as a log holds them, as JSON Lines: out of one log and into another.

A line is a `CallLine`: the call's records, each with the bytes of its leaf and of its payloads, and
with the salts of the commitments. So a line proves itself: every payload must fit its commitment,
and every leaf its hash. (That nothing was left out or made up is for a proof bundle or a checkpoint
to show.) Bytes stand as text within JSON strings, so that no tool which rewrites JSON changes them;
those that are no UTF-8 stand as base64.

In another log the records become new leaves, with the same payloads. The tag ``imported_from`` of
the call is the id of the log that it comes from, and every record gets one payload more,
``origin/0`` (`Origin`): its number, leaf and salts there. Another import adds ``origin/1``.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Literal

import msgspec

from isonomy.sdk.canonical import canonical
from isonomy.sdk.records import Entry, Intent, Opening, Payload, Record, Result, Segment

from ..checking import Examined
from ..hashing import SALT_BYTES, SHARED_SALT, LeafContent, commitment, leaf_hash
from .errors import UnusableFile
from .lines import Line, data_of, lines_of, opened
from .newlog import Imported, build
from .selecting import EVERYTHING, Selection, examined

if TYPE_CHECKING:
    from ..reading import ReplayLog

FORMAT = "isonomy call 1"
TAG = "imported_from"
ORIGIN = "origin/"

_RECORD = msgspec.json.Decoder(Record)
_LEAF = msgspec.json.Decoder(LeafContent)


class PayloadLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A payload of a record.

    Attributes:
        name: its name in the record, as ``message/0``, ``request``, ``events``, ``output``.
        salt: of its commitment, 32 bytes in hexadecimal; zeros for content that is shared.
        text: its bytes, where they are UTF-8: JSON text, exactly as it was hashed.
        base64: its bytes, where they are not.

    Without a salt, text and base64 it was erased; its commitment is in the leaf.
    """

    name: str
    salt: str | None = None
    text: str | None = None
    base64: str | None = None


class RecordLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record of a call.

    Attributes:
        sequence: its number in the log.
        leaf: the JSON text that was hashed: the record proper, and name and commitment of each
            payload.
        leaf_hash: the RFC 6962 leaf hash, hexadecimal.
        payloads: in the order of the leaf.
    """

    sequence: int
    leaf: str
    leaf_hash: str
    payloads: tuple[PayloadLine, ...] = ()


class CallLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call, one line of an export.

    Attributes:
        format: ``isonomy call 1``.
        log: the id of the log that it comes from.
        call_id: the call's id.
        records: in the order of the log.
    """

    format: Literal["isonomy call 1"] = "isonomy call 1"
    log: str
    call_id: str
    records: tuple[RecordLine, ...]


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where an imported record comes from (its payload ``origin/N``).

    Attributes:
        log: the id of that log.
        sequence: its number there.
        leaf: the leaf there, JSON text.
        leaf_hash: its hash, hexadecimal.
        salts: by payload, hexadecimal: with them the commitments of `leaf` can be checked.
    """

    log: str
    sequence: int
    leaf: str
    leaf_hash: str
    salts: dict[str, str]


def export_lines(
    log: ReplayLog,
    selection: Selection = EVERYTHING,
    *,
    damaged: Callable[[str, str], None],
) -> Iterator[bytes]:
    """Yield selected calls as lines of JSON without line breaks, in the order of the log.

    Args:
        log: the log.
        selection: which calls.
        damaged: is told the id of a call that is left out, and what is wrong with it.
    """
    log_id = log.log_id
    for call_id, records in examined(log, selection):
        problem = problem_of(records)
        if problem is None:
            yield msgspec.json.encode(_call_line(log_id, call_id, records))
        else:
            damaged(call_id, problem)


def problem_of(records: Sequence[Examined]) -> str | None:
    """Return what is wrong with the first damaged record of a call."""
    for each in records:
        if each.problems or each.record is None:
            said = each.problems[0] if each.problems else "it can't be read"
            return f"record {each.raw.sequence}: {said}"
    return None


def _call_line(log_id: str, call_id: str, records: Sequence[Examined]) -> CallLine:
    return CallLine(log=log_id, call_id=call_id, records=tuple(map(_record_line, records)))


def _record_line(each: Examined) -> RecordLine:
    salts = {payload.position: payload.salt for payload in each.raw.payloads or ()}
    return RecordLine(
        sequence=each.raw.sequence,
        leaf=each.raw.leaf.decode(),
        leaf_hash=each.raw.leaf_hash.hex(),
        payloads=tuple(
            _payload_line(name, salts[position], each.payloads[name])
            if name in each.payloads
            else PayloadLine(name=name)
            for position, (name, _) in enumerate(each.commitments)
        ),
    )


def _payload_line(name: str, salt: bytes, body: bytes) -> PayloadLine:
    try:
        return PayloadLine(name=name, salt=salt.hex(), text=body.decode())
    except UnicodeDecodeError:
        return PayloadLine(name=name, salt=salt.hex(), base64=base64.b64encode(body).decode())


def import_lines(
    files: Iterable[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Imported:
    """Write the calls of exported files to a new log; see `build`.

    Raises:
        UnusableFile: naming file and line.
        LogError: the log can't be written.
    """
    return build(path, _calls_of(files), skip_bad=skip_bad, progress=progress)


def _calls_of(
    files: Iterable[str | os.PathLike[str]],
) -> Iterator[Sequence[Entry] | UnusableFile]:
    known: dict[str, str] = {}
    for file in files:
        name = os.fspath(file)
        with opened(file) as stream:
            yield from _entries_in(stream, name, known)


def _entries_in(
    stream: BinaryIO, file: str, known: dict[str, str]
) -> Iterator[Sequence[Entry] | UnusableFile]:
    for line in lines_of(stream, file):
        if isinstance(line, UnusableFile):
            yield line
            continue
        try:
            call = _read(line)
            if call.call_id in known:
                raise ValueError(
                    f"the call {call.call_id} was there already: {known[call.call_id]}"
                )
            entries = [_entry(call, record) for record in call.records]
        except ValueError as error:
            yield UnusableFile(f"{error}.", file=file, place=line.place)
            continue
        known[call.call_id] = f"{file}, {line.place}"
        yield entries


def _read(line: Line) -> CallLine:
    """Return a line's call, checked against its own hashes.

    Raises:
        ValueError: it is none, or damaged.
    """
    data = data_of(line.body)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(
            f"it is no object whose format is {FORMAT!r}, which isonomy log export writes. For "
            "what other tools recorded say --from"
        )
    try:
        call = msgspec.convert(data, CallLine)
    except msgspec.ValidationError as error:
        raise ValueError(f"it is damaged: {error}") from None
    if not call.records:
        raise ValueError("it is damaged: the call has no records")
    last = 0
    for record in call.records:
        if record.sequence <= last:
            raise ValueError("it is damaged: its records are out of order")
        last = record.sequence
    return call


def _entry(call: CallLine, line: RecordLine) -> Entry:
    """Return an entry that says what a record says, and where it comes from.

    Raises:
        ValueError: something does not fit its hash.
    """

    def damaged(what: str) -> ValueError:
        return ValueError(f"record {line.sequence} is damaged: {what}")

    leaf = line.leaf.encode()
    if leaf_hash(leaf).hex() != line.leaf_hash:
        raise damaged("leaf and leaf hash don't fit")
    try:
        content = _LEAF.decode(leaf)
        record = _RECORD.decode(content.record)
    except msgspec.MsgspecError as error:
        raise damaged(f"the leaf can't be read ({error})") from None
    if not isinstance(record, Opening | Intent | Segment | Result):
        # What a log says of itself (gaps, tombstones) is no other log's to say.
        raise damaged("it is no record of a call")
    if record.call_id != call.call_id:
        raise damaged("it is of another call")
    if [each.name for each in content.payloads] != [each.name for each in line.payloads]:
        raise damaged("its payloads are not those of its leaf")
    payloads: list[Payload] = []
    salts: dict[str, str] = {}
    for told, expected in zip(line.payloads, content.payloads, strict=True):
        if told.salt is None and told.text is None and told.base64 is None:
            continue  # erased
        try:
            salt, body = bytes.fromhex(told.salt or ""), _body(told)
            if len(salt) != SALT_BYTES or commitment(salt, body) != expected.commitment:
                raise ValueError("content or salt does not fit its commitment")
        except ValueError as error:
            raise damaged(f"payload {told.name}: {error}") from None
        salts[told.name] = salt.hex()
        payloads.append(Payload(told.name, body, shared=salt == SHARED_SALT))
    origin = Origin(
        log=call.log,
        sequence=line.sequence,
        leaf=line.leaf,
        leaf_hash=line.leaf_hash,
        salts=salts,
    )
    before = sum(each.name.startswith(ORIGIN) for each in line.payloads)
    if isinstance(record, Intent):
        record = msgspec.structs.replace(record, tags={**record.tags, TAG: call.log})
    return Entry(record, (*payloads, Payload(f"{ORIGIN}{before}", canonical(origin))))


def _body(told: PayloadLine) -> bytes:
    if (told.text is None) == (told.base64 is None):
        raise ValueError("it must have either text or base64")
    if told.text is not None:
        return told.text.encode()
    try:
        return base64.b64decode(told.base64 or "", validate=True)
    except binascii.Error:
        raise ValueError("it is no base64") from None
