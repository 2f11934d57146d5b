"""``isonomy log snapshot``: a file of what the log holds now, for any DuckDB client."""

from __future__ import annotations

import click

from .log import log_command
from .output import log_directory, log_option


@log_command.command("snapshot")
@click.argument("file")
@log_option
def write_snapshot(file: str, log: str | None) -> None:
    """Write everything up to now to FILE, new and read-only, for any DuckDB client.

    It holds what the log holds, personal data too. The log remembers where it was written.
    """
    from isonomy.replay import ReplayLog, printable

    with ReplayLog(log_directory(log)) as replay_log:
        click.echo(printable(str(replay_log.snapshot(file))))
