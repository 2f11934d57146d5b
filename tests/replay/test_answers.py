"""The forms that an answer takes, and snapshots for any DuckDB client."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import duckdb
import pandas
import pyarrow
import pytest
from click.testing import CliRunner
from tests.replay import making

from isonomy.replay import FormatMissing, JournalLog, ReplayLog
from isonomy.replay.directory import LogDirectory
from isonomy.replay.errors import LogUnwritable
from isonomy.replay.snapshot import listed, renew
from isonomy.sdk.cli.log import log_command

QUERY = "select call_id, started_at, duration_ms from calls order by sequence limit 2"
ROWS = [
    ("call-finished", datetime(2023, 11, 14, 22, 13, 20), 123.456789),
    ("call-blocked", datetime(2023, 11, 14, 22, 13, 20), 123.456789),
]


def test_an_answer_is_duckdb_s_relation(filled: ReplayLog) -> None:
    answer = filled.sql(QUERY)
    assert answer.columns == ["call_id", "started_at", "duration_ms"]
    assert answer.fetchall() == ROWS
    assert isinstance(answer.relation, duckdb.DuckDBPyRelation)
    assert filled.sql(QUERY).order("call_id").fetchall() == ROWS[::-1]
    assert len(filled.sql(QUERY)) == 2
    assert "call-finished" in repr(filled.sql(QUERY))
    with pytest.raises(AttributeError, match="no_such_form"):
        _ = answer.no_such_form


def test_arrow(filled: ReplayLog) -> None:
    table = filled.sql(QUERY).arrow()
    assert isinstance(table, pyarrow.Table)
    assert [tuple(row.values()) for row in table.to_pylist()] == ROWS
    assert filled.sql("select now() as t").arrow().schema.field("t").type == pyarrow.timestamp("us")


def test_pandas(filled: ReplayLog) -> None:
    frame = filled.sql(QUERY).df()
    assert isinstance(frame, pandas.DataFrame)
    assert [tuple(row) for row in frame.itertuples(index=False)] == ROWS


@pytest.mark.skipif(find_spec("polars") is None, reason="polars is not installed")
def test_polars(filled: ReplayLog) -> None:
    assert filled.sql(QUERY).pl().rows() == ROWS


@pytest.mark.parametrize(
    ("form", "package"), [("arrow", "pyarrow"), ("df", "pandas"), ("pl", "polars")]
)
def test_a_form_that_is_not_installed(
    filled: ReplayLog, monkeypatch: pytest.MonkeyPatch, form: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FormatMissing, match=f"Run: pip install {package}$") as raised:
        getattr(filled.sql(QUERY), form)()
    assert (raised.value.package, raised.value.path) == (package, filled.path)
    assert filled.sql(QUERY).fetchall() == ROWS


def test_a_long_query_prints_nothing(filled: ReplayLog) -> None:
    """DuckDB would show its progress, on standard output, where it takes Python for a prompt."""
    assert filled.sql("select current_setting('enable_progress_bar')").fetchall() == [(False,)]
    source, rows, contents = filled._source()
    with source.connection as connection:
        source.add_tail(rows, contents, documented=False)
        with pytest.raises(duckdb.Error, match="locked"):
            connection.execute("SET enable_progress_bar = true")


def test_asking_loads_no_form(filled: ReplayLog) -> None:
    script = (
        "import sys; from isonomy.replay import ReplayLog; "
        f"ReplayLog({filled.path!r}).sql('from calls').fetchall(); "
        "print({'numpy', 'pandas', 'pyarrow', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"


# Snapshots.


def test_a_snapshot_holds_everything_up_to_now(
    filled: ReplayLog, journal: JournalLog, tmp_path: Path
) -> None:
    file = tmp_path / "snapshot.duckdb"
    assert filled.snapshot(file) == file
    assert file.stat().st_mode & 0o777 == 0o400
    journal.append(making.call("later", "x", ["y"]))
    with duckdb.connect(str(file), read_only=True) as client:
        assert client.execute("select count(*) from calls").fetchall() == [(5,)]
        assert client.execute("select count(*) from timeline('call-blocked')").fetchall() == [(5,)]
        [(comment,)] = client.execute(
            "select comment from duckdb_columns() where table_name = 'calls'"
            " and column_name = 'actor'"
        ).fetchall()
    assert "who asked" in comment
    assert {each.name for each in tmp_path.iterdir()} == {"log", "snapshot.duckdb"}
    assert filled.verify().findings == ()


def test_a_snapshot_replaces_nothing(filled: ReplayLog, path: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for file, why in (
        (taken, "there already"),
        (path / "snapshot.duckdb", "within the log itself"),
        (tmp_path / "no" / "folder", "No such file"),
    ):
        with pytest.raises(LogUnwritable, match=why):
            filled.snapshot(file)
    assert taken.read_text() == "mine"
    assert {each.name for each in tmp_path.iterdir()} == {"log", "taken"}
    assert listed(LogDirectory(path)) == []


def test_snapshots_follow_the_log_where_they_are(
    filled: ReplayLog, journal: JournalLog, path: Path, tmp_path: Path
) -> None:
    """So that what is erased from the log is erased from them."""
    directory = LogDirectory(path)
    kept, moved = filled.snapshot(tmp_path / "kept"), filled.snapshot(tmp_path / "moved")
    assert listed(directory) == [kept, moved]
    moved.rename(tmp_path / "elsewhere")
    other = filled.snapshot(tmp_path / "other")
    other.unlink()
    other.write_text("mine")
    journal.append(making.call("later", "x", ["y"]))
    filled.refresh()
    with directory.locked():
        assert renew(directory) == [kept]
    assert listed(directory) == [kept]
    assert other.read_text() == "mine"
    assert kept.read_bytes() == (path / "audit.duckdb").read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o400


def test_the_command_that_writes_a_snapshot(filled: ReplayLog, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "snapshot.duckdb"
    done = CliRunner().invoke(log_command, ["snapshot", str(file), "--log", str(path)])
    assert (done.exit_code, done.output) == (0, f"{file}\n")
    assert file.read_bytes() == (path / "audit.duckdb").read_bytes()
