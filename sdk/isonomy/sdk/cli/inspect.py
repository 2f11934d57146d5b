"""``isonomy sql`` and ``isonomy log``: questions to the log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .output import json_option, log_directory, log_option, write_json, write_lines, write_table

if TYPE_CHECKING:
    from isonomy.replay import ReplayLog

_RECENT = """
select call_id, started_at, status, verdict, model, input_text, output_text
from calls order by sequence desc limit ?
"""


@click.command("sql")
@click.argument("query")
@log_option
@json_option
def sql_command(query: str, log: str | None, as_json: bool) -> None:
    """Ask the log QUERY: one SELECT over calls, events, decisions, generations, tokens.

    See the columns with: isonomy sql "select * from duckdb_columns() where not internal"
    """
    from isonomy.replay import ReplayLog

    with ReplayLog(log_directory(log)) as replay_log:
        columns, rows = _asked(replay_log, query)
    if as_json:
        write_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    write_table(columns, rows)


@click.command("log")
@log_option
@click.option("-n", "count", type=click.IntRange(1), default=20, help="How many calls.")
@json_option
def log_command(log: str | None, count: int, as_json: bool) -> None:
    """List recent calls, newest first, a line each."""
    from isonomy.replay import ReplayLog

    with ReplayLog(log_directory(log)) as replay_log:
        columns, rows = _asked(replay_log, _RECENT, [count])
    if as_json:
        write_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    if sys.stdout.isatty():
        write_lines(
            ["call", "started (UTC)", "verdict", "input", "output"],
            [
                [call_id, str(started)[:19], verdict or status, _clip(said), _clip(answer)]
                for call_id, started, status, verdict, _, said, answer in rows
            ],
            whole=3,
        )
        return
    short = [[*row[:5], *(_clip(cell) for cell in row[5:])] for row in rows]
    write_table(["call", "started (UTC)", "status", "verdict", "model", "input", "output"], short)


def _asked(
    replay_log: ReplayLog, query: str, params: list[Any] | None = None
) -> tuple[list[str], list[tuple[Any, ...]]]:
    import duckdb

    from isonomy.replay.errors import QueryRefused

    relation = replay_log.sql(query, params=params)
    try:
        return list(relation.columns), relation.fetchall()
    except duckdb.Error as error:  # some values fail only when they are computed
        raise QueryRefused(
            f"The query failed: {error}", path=replay_log.path, query=query
        ) from error


def _clip(text: str | None, width: int = 48) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= width else text[: width - 1] + "…"
