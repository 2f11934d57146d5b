"""``isonomy sql``: questions to the log."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .output import json_option, log_directory, log_option, unique, write_json, write_table

if TYPE_CHECKING:
    from isonomy.replay import ReplayLog

_T = TypeVar("_T")


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
    critiques    how candidates were judged by principles; rankings: their order
    generations  what the model was asked and answered
    attempts     every try at a remote endpoint
    segments     what left as a stream, piece by piece
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
        columns, rows = asked(replay_log, query)
    if as_json:
        names = unique(columns)
        write_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    write_table(columns, rows)


def asked(
    replay_log: ReplayLog, query: str, params: list[Any] | None = None
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return columns and rows of a query's answer."""
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
