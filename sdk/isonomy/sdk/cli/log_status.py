"""``isonomy log status``: how a log is doing."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from .log import log_command
from .output import json_option, log_directory, log_option, write_json


@log_command.command("status")
@log_option
@json_option
def show_status(log: str | None, as_json: bool) -> None:
    """Tell what the log holds, how far it is ingested for SQL, and what it takes on disk.

    What is not ingested yet is in the journal, and in the answer of every query.
    """
    import msgspec

    from isonomy.replay import ReplayLog, printable

    with ReplayLog(log_directory(log)) as replay_log:
        status = replay_log.status()
    if as_json:
        write_json({**msgspec.to_builtins(status), "behind": status.behind})
        return
    last = status.last_ingestion
    click.echo(f"{printable(status.path)}: {status.records} records")
    if not last.ended_ns:
        click.echo("not ingested yet")
    else:
        when = datetime.fromtimestamp(last.ended_ns // 10**9, UTC).isoformat(" ")[:19]
        click.echo(f"ingested up to record {status.ingested}, {status.behind} to come")
        click.echo(f"last ingestion: {when} UTC, {last.records} records in {last.seconds:.1f} s")
    if last.problem:
        click.echo(f"it failed: {printable(last.problem)}")
    for name, size in status.sizes.items():
        click.echo(f"{size / 1e6:10.3f} MB  {printable(name)}")
