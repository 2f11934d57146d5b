"""One SELECT, and nothing else: what may be asked of a log, and the connection that answers it.

A query comes from a person at a shell, from a page, or from a model that was handed the log;
reading must be harmless whoever wrote it. Three fences, each sufficient for the log's safety on its
own:

1. `require_select` parses with DuckDB's own parser and accepts exactly one statement that is a
   SELECT through and through: no other query node (WITH can hide INSERT, UPDATE, DELETE), no table
   function beyond a short list.
2. The connection is in memory; of the log it has the published file attached read-only and a copy
   of the journal's tail.
3. Access to files and network is off, extensions are neither installed nor loaded, Python variables
   are invisible, and the configuration is locked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from . import audit
from .answers import Answer
from .directory import AUDIT, LogDirectory
from .errors import DamagedLog, QueryFailed, QueryRefused
from .macros import MACROS
from .projection import Projection

if TYPE_CHECKING:
    import duckdb

    Parameters = Sequence[Any] | Mapping[str, Any]

_QUERY_NODES: Final = frozenset(
    {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
)
_TABLE_FUNCTIONS: Final = frozenset(
    [
        *MACROS,
        "duckdb_columns",
        "duckdb_functions",
        "duckdb_keywords",
        "duckdb_schemas",
        "duckdb_settings",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_views",
        "generate_series",
        "json_each",
        "json_tree",
        "pragma_table_info",
        "pragma_version",
        "range",
        "repeat",
        "repeat_row",
        "summary",
        "unnest",
    ]
)
_FUNCTIONS: Final = frozenset(
    [
        "currval",
        "nextval",
        "setseed",
        "set_config",
        "write_log",
        "getvariable",
        "json_execute_serialized_sql",
    ]
)
"""Scalar functions that are refused: they leave something behind, or are out of place here."""


def require_select(connection: duckdb.DuckDBPyConnection, query: str, path: str) -> None:
    """Check that `query` is one SELECT.

    Args:
        connection: any connection; its parser is used, nothing is run.
        query: what was asked.
        path: the log's directory, for the error.

    Raises:
        QueryRefused: it is not; the message says what it is instead.
        QueryFailed: it can't be parsed.
    """

    def refuse(reason: str) -> QueryRefused:
        return QueryRefused(
            f"This query is refused: {reason}. Ask one SELECT over the views calls, events, "
            "decisions, generations, tokens, checks, records, payloads.",
            path=path,
            query=query,
        )

    if "\x00" in query:
        raise refuse("it holds a NUL character")
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise refuse(f"it is not valid Unicode text (character {error.start + 1})") from None
    # Fetched whole: a result left open would block the connection.
    [(text,)] = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
    try:
        parsed = json.loads(text)
    except RecursionError:
        raise refuse("it is nested too deeply to be checked") from None
    if parsed["error"]:
        reason = str(parsed.get("error_message", "it can't be parsed"))
        if reason.startswith("Only SELECT"):
            raise refuse("it is not a SELECT")
        raise failed(path, query, reason)
    count = len(parsed["statements"])
    if count != 1:
        raise refuse(f"it holds {count} statements" if count else "it is empty")
    for node in _nodes(parsed["statements"][0]):
        kind = str(node.get("type", ""))
        if kind.endswith("_NODE") and kind not in _QUERY_NODES:
            raise refuse(f"it holds a {kind.removesuffix('_QUERY_NODE').removesuffix('_NODE')}")
        if kind == "TABLE_FUNCTION":
            name = _called(node.get("function"))
            if name not in _TABLE_FUNCTIONS:
                raise refuse(f"the table function {name or 'it calls'} is not for reading the log")
        if "function_name" in node and str(node["function_name"]).lower() in _FUNCTIONS:
            raise refuse(f"the function {node['function_name']} is not for reading the log")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a serialized statement; iteratively, for deeply nested queries."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)


def _called(function: Any) -> str:
    return str(function.get("function_name", "")).lower() if isinstance(function, dict) else ""


class Source:
    """What a query is answered from: the published file, if any, and the tail beyond it."""

    def __init__(self, directory: LogDirectory) -> None:
        """Open a fresh in-memory connection and attach the published file.

        Raises:
            DamagedLog: the published file can't be read.
        """
        import duckdb

        self.directory = directory
        self.connection = duckdb.connect(":memory:")
        self.marks = (0, 0)
        self.attached = False
        try:
            for setting in (
                "autoinstall_known_extensions = false",
                "autoload_known_extensions = false",
                "allow_community_extensions = false",
                "python_enable_replacements = false",
                "enable_progress_bar = false",  # it would go to standard output
                "temp_directory = ''",
                "TimeZone = 'UTC'",
            ):
                self.connection.execute(f"SET {setting}")
            if directory.audit.exists():
                self._attach()
        except BaseException:
            self.connection.close()
            raise

    def _attach(self) -> None:
        import duckdb

        try:
            self.connection.execute(
                f"ATTACH {audit.literal(str(self.directory.audit))} AS audit (READ_ONLY)"
            )
            state = audit.state(self.connection, "audit")
        except duckdb.Error as error:
            raise damaged(self.directory, error) from error
        if state.get("schema") != str(audit.AUDIT_SCHEMA):
            self.connection.execute("DETACH audit")
            return  # Of another version: everything comes from the journal until it is rebuilt.
        try:
            self.marks = (int(state["records"]), int(state["contents"]))
        except (KeyError, ValueError) as error:
            raise damaged(self.directory, error) from error
        self.attached = True

    def add_tail(
        self, rows: Projection, contents: Mapping[int, bytes], *, documented: bool
    ) -> None:
        """Add rows beyond the published file, build the views, and lock everything.

        Comments on columns take most of the time that building views takes, hence `documented`.
        """
        audit.create_tables(self.connection, "tail")
        audit.insert(self.connection, rows, contents.items(), "tail")
        audit.create_unions(
            self.connection, ["audit.stored", "tail"] if self.attached else ["tail"]
        )
        audit.create_views(self.connection, documented=documented)
        self.connection.execute("SET enable_external_access = false")
        self.connection.execute("SET lock_configuration = true")

    def run(self, query: str, params: Parameters | None) -> Answer:
        """Return the answer to a checked query.

        Raises:
            QueryRefused: not one harmless SELECT.
            QueryFailed: DuckDB can't parse or bind it.
        """
        import duckdb

        path = str(self.directory)
        require_select(self.connection, query, path)
        try:
            if params is None:
                return Answer(_in_utc(self.connection.sql(query)), path)
            return Answer(_in_utc(self.connection.sql(query, params=params)), path)
        except (duckdb.FatalException, duckdb.IOException, duckdb.SerializationException) as error:
            raise damaged(self.directory, error) from error
        except duckdb.Error as error:
            raise failed(path, query, error) from error


_ZONED: Final = "TIMESTAMP WITH TIME ZONE"


def _in_utc(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Turn times with a time zone, nested ones too, into plain ones in UTC (the session's zone).

    DuckDB hands zoned times to Python by way of the package pytz, which is not required otherwise.
    """
    types = [str(type_) for type_ in relation.types]
    if not any(_ZONED in type_ for type_ in types):
        return relation
    columns = []
    for at, (name, type_) in enumerate(zip(relation.columns, types, strict=True), 1):
        quoted = '"' + name.replace('"', '""') + '"'
        value = (
            f"CAST(#{at} AS {type_.replace(_ZONED, 'TIMESTAMP')})" if _ZONED in type_ else f"#{at}"
        )
        columns.append(f"{value} AS {quoted}")
    return relation.project(", ".join(columns))


def failed(path: str, query: str, error: Exception | str) -> QueryFailed:
    """Return the error for a SELECT that DuckDB can't answer."""
    reason = " ".join(str(error).split()).rstrip(".")
    return QueryFailed(
        f"the query failed: {reason}. Correct it; `isonomy sql --help` lists the views.",
        path=path,
        query=query,
    )


def damaged(directory: LogDirectory, error: Exception) -> DamagedLog:
    """Return the error for a published file that can't be read."""
    return DamagedLog(
        f"{AUDIT} of the log {directory} is damaged or can't be read "
        f"({' '.join(str(error).split())}). It holds nothing that the journal doesn't: run "
        f"`isonomy verify --log {directory}`, keep a copy if you need the evidence, then rebuild "
        "it with ReplayLog.refresh(rebuild=True).",
        path=str(directory),
        file=AUDIT,
    )
