"""``isonomy log export`` and ``isonomy log import``: calls out of a log, and into a new one."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from .log import log_command
from .output import json_option, log_directory, log_option, some, write_json

if TYPE_CHECKING:
    from isonomy.replay.interchange.newlog import Imported
    from isonomy.sdk.generation import Backend
    from isonomy.sdk.policy import Policy

_VERDICTS = ("allow", "flag", "replace", "retry", "ask_human", "block")
_FORMS = ("full", "calls", "otel")
_SOURCES = ("isonomy", "openai", "llm", "inspect")
_LEFT_OUT = 1
"""Exit status where something was left out; the rest is written."""


def _moment(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """Return a time written as ISO 8601."""
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no time: write 2026-01-31 or 2026-01-31T12:00:00Z.", context, parameter
        ) from None


@log_command.command("export")
@log_option
@click.option(
    "--form",
    type=click.Choice(_FORMS),
    default="full",
    help="full: all that the log holds, to be imported elsewhere; calls: what was said and decided,"
    " for notebooks; otel: OpenTelemetry spans (OTLP/JSON).",
)
@click.option("--since", callback=_moment, help="Calls begun at this time or later, ISO 8601, UTC.")
@click.option("--until", callback=_moment, help="Calls begun before this time.")
@click.option("--call", "calls", multiple=True, help="This call; again for others.")
@click.option("--subject", callback=some, help="Calls of this subject.")
@click.option("--verdict", type=click.Choice(_VERDICTS), help="Calls with this verdict.")
@click.option("--where", callback=some, help="An SQL condition over the view calls.")
@click.option("--out", "file", metavar="FILE", help="A new file, else standard output.")
@click.option("--content", is_flag=True, help="With --form otel: put what was said into the spans.")
@click.option(
    "--exporter",
    metavar="NAME",
    help="With --form otel: send the spans, by this installed exporter of OpenTelemetry's, as its "
    "environment variables configure it.",
)
@click.option("--schema", is_flag=True, help="Print the JSON schema of a line, and nothing else.")
def export_log(
    log: str | None,
    form: str,
    since: datetime | None,
    until: datetime | None,
    calls: tuple[str, ...],
    subject: str | None,
    verdict: Any,
    where: str | None,
    file: str | None,
    content: bool,
    exporter: str | None,
    schema: bool,
) -> None:
    """Write calls as JSON Lines: one a line, in the order of the log.

    Nothing is sent anywhere unless --exporter says so. On a terminal, everything beyond ASCII is
    written as JSON escapes.

    Exit status: 0; 1 where damaged calls were left out, which standard error names.
    """
    if form != "otel" and (content or exporter is not None):
        raise click.UsageError("--content and --exporter go with --form otel.")
    if exporter is not None and file is not None:
        raise click.UsageError("--exporter and --out exclude each other.")
    if schema:
        _print_schema(form)
        return
    from isonomy.replay import ReplayLog, printable
    from isonomy.replay.interchange import calls as light
    from isonomy.replay.interchange import jsonl, otel
    from isonomy.replay.interchange.selecting import Selection

    selection = Selection(
        since=since, until=until, calls=calls, subject=subject, verdict=verdict, where=where
    )
    left_out: list[str] = []

    def damaged(call_id: str, problem: str) -> None:
        left_out.append(call_id)
        click.echo(f"left out: call {printable(call_id)}: {printable(problem)}", err=True)

    with ReplayLog(log_directory(log)) as replay_log:
        if exporter is not None:
            stored = light.stored_calls(replay_log, selection, damaged=damaged)
            count = otel.send(stored, otel.exporter_named(exporter), content=content)
            click.echo(f"{count} calls sent", err=True)
        else:
            if form == "otel":
                lines = otel.export_otlp(replay_log, selection, damaged=damaged, content=content)
            elif form == "calls":
                lines = light.export_calls(replay_log, selection, damaged=damaged)
            else:
                lines = jsonl.export_lines(replay_log, selection, damaged=damaged)
            _write(lines, file)
    raise click.exceptions.Exit(_LEFT_OUT if left_out else 0)


def _print_schema(form: str) -> None:
    import msgspec

    from isonomy.replay.interchange.calls import CallSummary
    from isonomy.replay.interchange.jsonl import CallLine

    if form == "otel":
        raise click.UsageError(
            "the schema of OTLP is OpenTelemetry's: https://github.com/open-telemetry/"
            "opentelemetry-proto."
        )
    described = msgspec.json.schema(CallSummary if form == "calls" else CallLine)
    click.echo(msgspec.json.format(msgspec.json.encode(described), indent=2).decode())


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Return JSON escapes for what is not ASCII: within JSON text it stands in strings only."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be")
    made = "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
    return made, error.end


codecs.register_error("isonomy-json", _escaped)


def _write(lines: Iterable[bytes], file: str | None) -> None:
    if file is None:
        stream, terminal = sys.stdout.buffer, sys.stdout.isatty()
        for line in lines:
            # DEL is ASCII, and JSON lets it stand.
            plain = line.decode().encode("ascii", "isonomy-json").replace(b"\x7f", b"\\u007f")
            stream.write((plain if terminal else line) + b"\n")
        stream.flush()
        return
    with _new_file(file) as made:
        for line in lines:
            made.write(line + b"\n")


@contextmanager
def _new_file(file: str) -> Iterator[BinaryIO]:
    """Open a file that is there when all of it is written, and was not there before; 0600."""
    target = Path(file)
    part = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        if target.exists() or target.is_symlink():
            raise click.UsageError(f"{file} is there already. Name a new file.")
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            try:
                os.link(part, target)  # never over a file that came meanwhile
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                part.rename(target)
        finally:
            with suppress(OSError):
                part.unlink()
    except OSError as error:
        raise click.UsageError(f"{file} can't be written: {error.strerror or error}.") from None


@log_command.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--into",
    required=True,
    metavar="DIR",
    callback=some,
    help="Where the new log is to be.",
)
@click.option(
    "--from",
    "source",
    type=click.Choice(_SOURCES),
    default="isonomy",
    help="What wrote the files: isonomy log export; else traffic in OpenAI's JSON shapes (JSON "
    "Lines), a database of llm, or eval logs of Inspect.",
)
@click.option(
    "--policy",
    "policy_file",
    metavar="FILE",
    help="Judge traffic by this file's policy as it is imported; none judges it otherwise.",
)
@click.option("--provider", callback=some, help="Who answered the traffic, where it doesn't say.")
@click.option("--skip-bad", is_flag=True, help="Leave out what can't be used, and list it.")
@json_option
def import_log(
    files: tuple[str, ...],
    into: str,
    source: str,
    policy_file: str | None,
    provider: str | None,
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Make a new log of calls that were recorded elsewhere: all of them, or none.

    Traffic passes the pipeline with its recorded answers, as calls with the operation "import", so
    that it can be queried, replayed and judged by other policies.

    Exit status: 0; 1 where --skip-bad left something out, which is listed; 2 where nothing was
    written.
    """
    from isonomy.replay.interchange import jsonl

    if source == "isonomy":
        if policy_file is not None or provider is not None:
            raise click.UsageError("--policy and --provider are for traffic: say --from.")
        done = jsonl.import_lines(files, into, skip_bad=skip_bad)
    else:
        done = _import_traffic(files, into, source, policy_file, provider, skip_bad)
    _report(done, as_json)
    raise click.exceptions.Exit(_LEFT_OUT if done.skipped else 0)


def _import_traffic(
    files: tuple[str, ...],
    into: str,
    source: str,
    policy_file: str | None,
    provider: str | None,
    skip_bad: bool,
) -> Imported:
    from isonomy.replay.interchange import inspect, llm, openai
    from isonomy.replay.interchange.newlog import build
    from isonomy.replay.interchange.traffic import Judge

    named = {} if provider is None else {"provider": provider}
    if source == "openai":
        calls: Iterable[Any] = openai.past_calls(files, **named)
    else:
        read = llm.past_calls if source == "llm" else inspect.past_calls
        calls = (call for file in files for call in read(file, **named))
    policy, backends = _policy_of(policy_file)
    try:
        with Judge(policy, backends=backends) as judge:
            return build(into, judge.all(calls), skip_bad=skip_bad)
    finally:
        for each in backends.values():
            each.close()


def _policy_of(file: str | None) -> tuple[Policy | None, dict[str, Backend]]:
    """Return a file's policy, and the further backends that its checks may ask."""
    if file is None:
        return None, {}
    from isonomy.sdk import config

    settings = config.load(file)
    registry = settings.policy.registry
    backends: dict[str, Backend] = {}
    try:
        for name, table in settings.backends.items():
            backends[name] = config.open_backend(table.use, registry, **table.options)
    except BaseException:
        for each in backends.values():
            each.close()
        raise
    return settings.policy, backends


def _report(done: Imported, as_json: bool) -> None:
    import msgspec

    from isonomy.replay import printable

    if as_json:
        write_json(msgspec.to_builtins(done))
        return
    for each in done.skipped:
        where = f"{each.file}, {each.place}" if each.place else each.file
        click.echo(f"left out: {printable(where)}: {printable(each.problem)}", err=True)
    left_out = f", {len(done.skipped)} left out" if done.skipped else ""
    click.echo(f"{done.calls} calls, {done.records} records in {printable(done.path)}{left_out}")
