"""The DuckDB log: its tables, its documented views and macros, and moving rows into it.

Base tables live in the schema `stored`, views and macros in `main`; a query that adds the journal's
tail builds the same views over the union of both. No definition depends on where it stands, so
verification can compare a log's catalogue with a fresh one, text for text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from .macros import MACROS
from .projection import CONTENTS, TABLES, Projection, Row
from .views import COMMENTS, VIEWS

if TYPE_CHECKING:
    import duckdb

AUDIT_SCHEMA: Final = 5
"""Version of tables, views and macros; a log of another version is rebuilt from the journal."""

ALL_TABLES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {**TABLES, "contents": CONTENTS}
STATE: Final = (("name", "VARCHAR"), ("value", "VARCHAR"))


def literal(text: str) -> str:
    """Return `text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def create_tables(connection: duckdb.DuckDBPyConnection, schema: str = "stored") -> None:
    """Create the base tables."""
    connection.execute(f"CREATE SCHEMA {schema}")
    for name, columns in (*ALL_TABLES.items(), ("state", STATE)):
        listed = ", ".join(f'"{column}" {type_}' for column, type_ in columns)
        connection.execute(f"CREATE TABLE {schema}.{name} ({listed})")


def create_views(connection: duckdb.DuckDBPyConnection, *, documented: bool = True) -> None:
    """Create views and macros, with comments on them and on columns if `documented`."""
    statements: list[str] = []
    for name, view in VIEWS.items():
        statements.append(f"CREATE VIEW main.{name} AS {view.sql}")
        if not documented:
            continue
        statements.append(f"COMMENT ON VIEW main.{name} IS {literal(view.comment)}")
        statements += (
            f'COMMENT ON COLUMN main.{name}."{column}" IS {literal(COMMENTS[name, column])}'
            for column in view.columns
        )
    for name, macro in MACROS.items():
        parameters = ", ".join(macro.parameters)
        statements.append(f"CREATE MACRO main.{name}({parameters}) AS TABLE {macro.sql}")
        if documented:
            statements.append(f"COMMENT ON MACRO TABLE main.{name} IS {literal(macro.comment)}")
    connection.execute(";".join(statements))


def create_unions(connection: duckdb.DuckDBPyConnection, sources: Sequence[str]) -> None:
    """Create the schema `stored` as views over the union of tables in `sources`."""
    connection.execute("CREATE SCHEMA stored")
    for name in ALL_TABLES:
        union = " UNION ALL ".join(f"SELECT * FROM {source}.{name}" for source in sources)
        connection.execute(f"CREATE VIEW stored.{name} AS {union}")


def insert(
    connection: duckdb.DuckDBPyConnection,
    rows: Projection,
    contents: Iterable[Row],
    schema: str = "stored",
) -> int:
    """Insert rows, a statement a table, and return how many."""
    total = 0
    for name, columns in ALL_TABLES.items():
        batch = list(contents) if name == "contents" else rows[name]
        if not batch:
            continue
        total += len(batch)
        listed = ", ".join(f"unnest(?::{type_}[])" for _, type_ in columns)
        connection.execute(
            f"INSERT INTO {schema}.{name} SELECT {listed}",
            [list(column) for column in zip(*batch, strict=True)],
        )
    return total


def state(connection: duckdb.DuckDBPyConnection, catalog: str = "") -> dict[str, str]:
    """Return what the log knows of itself: ``schema``, ``log``, ``records``, ``contents``.

    `records` and `contents` are the high-water marks: the last record and row of contents taken
    from the journal.
    """
    prefix = f"{catalog}." if catalog else ""
    return dict(connection.execute(f"SELECT name, value FROM {prefix}stored.state").fetchall())


def set_state(connection: duckdb.DuckDBPyConnection, values: Mapping[str, Any]) -> None:
    """Store the state; to be called in the transaction of the rows it speaks of."""
    connection.execute("DELETE FROM stored.state")
    connection.execute(
        "INSERT INTO stored.state SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[])",
        [list(values), [str(value) for value in values.values()]],
    )


def catalogue(connection: duckdb.DuckDBPyConnection, database: str) -> list[tuple[Any, ...]]:
    """Return everything that a database defines, as comparable rows: kind, name, definition.

    Tables and views with their SQL and comments, columns with types and comments, and whatever
    else could change what a query means (macros, types, indexes, sequences, triggers, schemas).
    """
    queries = (
        "SELECT 'schema', schema_name, comment FROM duckdb_schemas() WHERE NOT internal",
        "SELECT 'table', schema_name || '.' || table_name, sql || coalesce(comment, '')"
        " FROM duckdb_tables() WHERE NOT internal",
        "SELECT 'view', schema_name || '.' || view_name, sql || coalesce(comment, '')"
        " FROM duckdb_views() WHERE NOT internal",
        "SELECT 'column', schema_name || '.' || table_name || '.' || column_name,"
        " data_type || coalesce(comment, '') FROM duckdb_columns() WHERE NOT internal",
        "SELECT 'function', schema_name || '.' || function_name, function_type ||"
        " parameters::VARCHAR || coalesce(macro_definition, '') || coalesce(comment, '')"
        " FROM duckdb_functions() WHERE NOT internal",
        "SELECT 'type', schema_name || '.' || type_name, logical_type FROM duckdb_types()"
        " WHERE NOT internal",
        "SELECT 'index', schema_name || '.' || index_name, sql FROM duckdb_indexes()",
        "SELECT 'sequence', schema_name || '.' || sequence_name, sql FROM duckdb_sequences()",
        "SELECT 'constraint', schema_name || '.' || table_name, constraint_text"
        " FROM duckdb_constraints()",
    )
    found: list[tuple[Any, ...]] = []
    for query in queries:
        join = "AND" if "WHERE" in query else "WHERE"
        found += connection.execute(f"{query} {join} database_name = ?", [database]).fetchall()
    return sorted(found, key=repr)
