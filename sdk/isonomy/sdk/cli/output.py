"""What the commands share: options, and writing text that came from a log without letting it act.

Everything that may hold a user's or a model's text goes through `printable` before it is printed,
so that terminal escapes, Rich markup and bidirectional controls in a log stay visible text.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

log_option = click.option(
    "--log",
    "log",
    metavar="DIR",
    default=None,
    help="The log's directory; else $ISONOMY_LOG, else ./isonomy-log.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")


def log_directory(given: str | None) -> str:
    """Return the log to use: as given, else from the environment, else the default."""
    return given or os.environ.get("ISONOMY_LOG") or "isonomy-log"


def console() -> Console:
    """Return a console on standard output: rich on a terminal, plain when piped."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def write_json(value: Any) -> None:
    """Print one JSON value, ASCII only, so that nothing in it can act on a terminal."""
    click.echo(json.dumps(value, default=_plain, ensure_ascii=True))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


def write_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: framed on a terminal; tab-separated with a header line when piped."""
    from isonomy.replay import printable

    cells = [["" if cell is None else printable(_cell(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        click.echo("\t".join(printable(name) for name in columns))
        for row in cells:
            click.echo("\t".join(row))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(Text(printable(name)), overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, dict | list):
        return json.dumps(value, default=_plain)
    if hasattr(value, "isoformat"):
        return str(value.isoformat(" ") if hasattr(value, "hour") else value.isoformat())
    return str(value)
