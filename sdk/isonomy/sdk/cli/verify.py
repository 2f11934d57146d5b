"""``isonomy verify``: the integrity of a log."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import json_option, log_directory, log_option, write_json

if TYPE_CHECKING:
    from isonomy.replay import ReplayLog, Report
    from isonomy.replay.checkpoints import Checked


@click.command("verify")
@log_option
@click.option(
    "--checkpoint",
    "places",
    multiple=True,
    metavar="PATH",
    help="A checkpoint kept outside of the log, or a directory of them; may be given again.",
)
@click.option(
    "--key", "keys", multiple=True, metavar="KEY", help="A public key that may have signed it."
)
@json_option
def verify_command(
    log: str | None, places: tuple[str, ...], keys: tuple[str, ...], as_json: bool
) -> None:
    """Re-derive every hash of the log from its stored bytes, and every column from those.

    With checkpoints, also that the log still begins with the records that were signed. Which keys
    to trust is yours to say, never the log's.

    Exit status: 0 intact, 1 damaged; the damaged records are named.
    """
    import msgspec

    from isonomy.replay import ReplayLog

    checked = _checkpoints(places, keys)
    with ReplayLog(log_directory(log)) as replay_log:
        report = with_progress(replay_log, checked)
    if as_json:
        write_json({**msgspec.to_builtins(report), "intact": report.intact})
    else:
        write_report(report)
    raise click.exceptions.Exit(0 if report.intact else 1)


def _checkpoints(places: tuple[str, ...], keys: tuple[str, ...]) -> list[Checked]:
    if bool(places) != bool(keys):
        raise click.UsageError("--checkpoint and --key go together.")
    if not places:
        return []
    from isonomy.replay import checkpoints, notes

    trusted = [notes.Key.parse(key) for key in keys]
    return [
        checkpoints.open_checkpoint(note, trusted) for _, note in checkpoints.read_notes(places)
    ]


def with_progress(replay_log: ReplayLog, checkpoints: Sequence[Checked] = ()) -> Report:
    """Verify, with a progress bar on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        return replay_log.verify(checkpoints=checkpoints)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("verifying", total=None)
        return replay_log.verify(
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
            checkpoints=checkpoints,
        )


def write_report(report: Report, *, indent: str = "", notes: bool = True) -> None:
    """Print what a verification found."""
    from isonomy.replay import printable

    for finding in report.findings:
        click.echo(f"{indent}DAMAGED  {printable(str(finding))}")
    state = "intact" if report.intact else f"damaged: {len(report.findings)} findings"
    audit = (
        f"{report.rows} rows of audit.duckdb compared"
        if (Path(report.path) / "audit.duckdb").exists()
        else "no audit.duckdb yet"
    )
    click.echo(f"{indent}{state}: {report.records} records, {audit}")
    for note in report.notes if notes else ():
        click.echo(f"{indent}note: {printable(note)}")
