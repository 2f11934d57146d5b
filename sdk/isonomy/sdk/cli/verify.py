"""``isonomy verify``: the integrity of a log."""

from __future__ import annotations

import click

from .output import json_option, log_directory, log_option, write_json


@click.command("verify")
@log_option
@json_option
def verify_command(log: str | None, as_json: bool) -> None:
    """Re-derive every hash of the log from its stored bytes, and every column from those.

    Exit status: 0 intact, 1 damaged; the damaged records are named.
    """
    import msgspec

    from isonomy.replay import ReplayLog, printable

    with ReplayLog(log_directory(log)) as replay_log:
        report = replay_log.verify()
    if as_json:
        write_json({**msgspec.to_builtins(report), "intact": report.intact})
    else:
        for line in report.lines():
            click.echo(printable(line))
    raise click.exceptions.Exit(0 if report.intact else 1)
