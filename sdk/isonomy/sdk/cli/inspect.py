"""``isonomy sql`` and ``isonomy log``: questions to the log."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .output import (
    json_option,
    log_directory,
    log_option,
    unique,
    write_json,
    write_lines,
    write_table,
)

if TYPE_CHECKING:
    from isonomy.replay import ReplayLog

_T = TypeVar("_T")

_RECENT = """
select call_id, started_at, status, verdict, model, input_text, output_text
from calls order by sequence desc limit ?
"""


@click.command("sql")
@click.argument("query")
@log_option
@json_option
def sql_command(query: str, log: str | None, as_json: bool) -> None:
    """Ask the log QUERY: one SELECT over its views.

    \b
    calls        a row a call: model, verdict, input, output, duration
    events       a row an event of a call, in sequence
    decisions    what each check said
    generations  what the model was asked and answered
    tokens       a row a generated token, with its log-probability
    checks       which checks a call had, in which version
    records      the hashed records; payloads: their contents
    damaged      records that can't be read

    Their columns, each explained: isonomy sql "select table_name, column_name, comment from
    duckdb_columns() where schema_name = 'main'"

    Times are UTC. With --json the answer is a list of objects: a column whose name was there before
    is called name_2, name_3; bytes are hexadecimal; numbers that JSON lacks are the strings "NaN",
    "Infinity" and "-Infinity".
    """  # noqa: D301
    from isonomy.replay import ReplayLog

    with ReplayLog(log_directory(log)) as replay_log:
        columns, rows = _asked(replay_log, query)
    if as_json:
        names = unique(columns)
        write_json([dict(zip(names, row, strict=True)) for row in rows])
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

    from isonomy.replay.query import failed

    def ask() -> tuple[list[str], list[tuple[Any, ...]]]:
        relation = replay_log.sql(query, params=params)
        return list(relation.columns), relation.fetchall()

    try:
        return _interruptible(ask)
    except (duckdb.Error, OverflowError, ValueError) as error:  # computed, or converted, only now
        raise failed(replay_log.path, query, error) from error


def _interruptible(ask: Callable[[], _T]) -> _T:
    """Return `ask()`, which Ctrl-C ends at once.

    DuckDB looks for signals between its tasks only, and one of them can take minutes. So it works
    in a thread of its own, and an interrupt ends the process without waiting for that: a query
    only reads, and holds nothing that would have to be put in order.
    """
    answers: list[_T] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            failures.append(error)

    worker = threading.Thread(target=work, daemon=True)
    try:
        worker.start()
        worker.join()
    except KeyboardInterrupt:
        click.echo("aborted", err=True)
        os._exit(130)
    if failures:
        raise failures[0]
    return answers[0]


def _clip(text: str | None, width: int = 48) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= width else text[: width - 1] + "…"
