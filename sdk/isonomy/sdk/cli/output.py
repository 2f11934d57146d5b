"""What the commands share: options, and writing text that came from a log without letting it act.

Everything that may hold a user's or a model's text goes through `printable` before it is printed,
so that terminal escapes, Rich markup and bidirectional controls in a log stay visible text.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])


def some(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse a value that is there but empty, or that no file or record could hold."""
    if value is None:
        return None
    if not value.strip():
        raise click.BadParameter("it is empty.", context, parameter)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("it is not valid UTF-8 text.", context, parameter) from None
    return value


log_option = click.option(
    "--log",
    "log",
    metavar="DIR",
    default=None,
    callback=some,
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
    """Print one JSON value, ASCII only, so that nothing in it can act on a terminal.

    What JSON has no number for becomes a string: "NaN", "Infinity", "-Infinity".
    """
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=True, allow_nan=False)
    except (ValueError, TypeError):  # such a number, or a key that is no string
        text = json.dumps(_strict(value), ensure_ascii=True, allow_nan=False)
    click.echo(text)


def _strict(value: Any) -> Any:
    """Return `value` with nothing in it that JSON lacks."""
    if isinstance(value, dict):
        return {_name(key): _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, bool | int | float | str) else _plain(value)


def _name(key: Any) -> str:
    plain = _strict(key)
    return plain if isinstance(plain, str) else json.dumps(plain)


def unique(names: Sequence[str]) -> list[str]:
    """Return the names, those that were there before with a number: a, a_2, a_3."""
    given: dict[str, None] = {}
    taken = set(names)
    for name in names:
        number, chosen = 1, name
        while chosen in given or (number > 1 and chosen in taken):
            number += 1
            chosen = f"{name}_{number}"
        given[chosen] = None
    return list(given)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


_LEGIBLE = 16
"""Characters of a column without which a table says nothing."""


def write_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: framed on a terminal; tab-separated with a header line when piped.

    A row that does not fit into the terminal is written below itself, a line for each column.
    """
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

    screen = console()
    widest = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    if sum(min(width, _LEGIBLE) + 3 for width in widest) > screen.width:
        for number, row in enumerate(cells, 1):
            table = Table.grid(padding=(0, 2))
            table.add_row(Text(f"row {number}", style="dim"), Text(""))
            for name, cell in zip(columns, row, strict=True):
                table.add_row(Text(printable(name), style="bold"), Text(cell, overflow="fold"))
            screen.print(table)
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        table.add_column(Text(printable(name)), overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    screen.print(table)


def write_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], *, whole: int) -> None:
    """Print one line a row on a terminal: the first `whole` columns whole, the others cut."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    from isonomy.replay import printable

    screen = console()
    lines = [columns, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(line[at]) for line in lines) for at in range(whole)]
    left = screen.width - sum(width + 2 for width in widths)
    widths += [max(_LEGIBLE, left // (len(columns) - whole) - 2)] * (len(columns) - whole)

    def fitted(cell: str, width: int) -> str:
        if cell_len(cell) > width:
            return set_cell_size(cell, width - 1) + "…"
        return set_cell_size(cell, width)

    for number, line in enumerate(lines):
        text = "  ".join(fitted(cell, width) for cell, width in zip(line, widths, strict=True))
        screen.print(Text(text.rstrip(), style="" if number else "bold"), soft_wrap=True)
        if not number:
            screen.print(Text("─" * (sum(widths) + 2 * (len(widths) - 1))), soft_wrap=True)


def _cell(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, dict | list):
        return json.dumps(_strict(value))
    if hasattr(value, "isoformat"):
        return str(value.isoformat(" ") if hasattr(value, "hour") else value.isoformat())
    return str(value)
