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
    from isonomy.replay.query import Parameters

_T = TypeVar("_T")


@click.command("sql")
@click.argument("query", required=False)
@click.option("--question", metavar="NAME", help="Ask a documented question instead of QUERY.")
@click.option(
    "--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of --question."
)
@click.option("--questions", "listed", is_flag=True, help="List the documented questions.")
@log_option
@json_option
def sql_command(
    query: str | None,
    question: str | None,
    params: tuple[str, ...],
    listed: bool,
    log: str | None,
    as_json: bool,
) -> None:
    """Ask the log QUERY: one SELECT over its views. Or a documented question.

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
    gaps         when calls were not recorded; damaged: records that can't be read

    \b
    first_divergence(a, b)  the first event and token in which two calls differ
    tokens_beside(a, b)     the tokens of two calls side by side
    timeline(call)          everything recorded of a call, in sequence
    verdicts_by_policy()    how often each policy came to each verdict

    Their columns, each explained: isonomy sql "select table_name, column_name, comment from
    duckdb_columns() where schema_name = 'main'"

    Times are UTC. With --json the answer is a list of objects: a column whose name was there before
    is called name_2, name_3; bytes are hexadecimal; numbers that JSON lacks are the strings "NaN",
    "Infinity" and "-Infinity".
    """  # noqa: D301
    from isonomy.replay import ReplayLog
    from isonomy.replay.questions import QUESTIONS
    from isonomy.replay.questions import question as named

    values: dict[str, str] | None = None
    if listed:
        names = ["question", "parameters", "asks"]
        rows = [(name, " ".join(each.parameters), each.asks) for name, each in QUESTIONS.items()]
        if as_json:
            write_json([dict(zip(names, row, strict=True)) for row in rows])
        else:
            write_table(names, rows)
        return
    if question is not None:
        if query is not None:
            raise click.UsageError("give QUERY or --question, not both.")
        given = dict(_parameter(each) for each in params)
        chosen = named(question)
        query, values = chosen.sql, chosen.bind(question, given) or None
    elif params:
        raise click.UsageError("--param belongs to --question.")
    if query is None:
        raise click.UsageError("nothing is asked: give QUERY, or --question NAME.")
    with ReplayLog(log_directory(log)) as replay_log:
        columns, rows = asked(replay_log, query, values)
    if as_json:
        names = unique(columns)
        write_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    write_table(columns, rows)


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--param takes NAME=VALUE, not {text!r}.")
    return name, value


def asked(
    replay_log: ReplayLog, query: str, params: Parameters | None = None
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
