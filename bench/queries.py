"""How long the documented questions take on a long log, and what answering them holds in memory.

    python -m bench.queries [--calls 1000000] [--keep DIR] [QUESTION ...]

The calls are laid down as rows of the DuckDB log, since writing and ingesting millions of them
would take hours: two checks, three events, a generation of four tokens, an attempt where the model
is remote, three segments where it was a stream; one call in 100 refused, one in 500 sent to a
person, one in 1,000 without a result. Texts are short, leaves shorter than they are; a question
reads only the columns it names.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .measuring import machine, table

if TYPE_CHECKING:
    import duckdb

    from isonomy.replay import ReplayLog

SLICE: Final = 250_000
"""Calls that one statement lays down: it bounds the memory that it takes."""

_CALLS: Final = """
create or replace temp table c as select i, 2 * i + 1 as intent, 2 * i + 2 as result,
  format('{:08x}-{:04x}-7{}-a{}-{}', (1700000000000 + i * 500) >> 16,
    (1700000000000 + i * 500) & 65535, h[1:3], h[4:6], h[7:18]) as id,
  h, 1700000000000000000 + i * 500000000 as ns,
  i % 2 = 0 as remote, i % 10 = 0 as streamed, i % 100 = 3 as refused, i % 500 = 7 as asked,
  i % 1000 = 8 as resumed, i % 1000 = 10 as killed, hash(i)::ubigint as noise,
  'sha256:' || repeat(printf('%02x', i // greatest(total // 5, 1)), 32) as policy
from (select i, md5(i::varchar) as h, {total} as total from range({first}, {last}) r(i))
"""

_ROWS: Final = {
    "records": """
select intent, id, 'intent', '{"call":"' || id || '"}', h || h from c union all
select result, id, 'result', '{"call":"' || id || '"}', h || h from c where not killed
""",
    "payloads": """
select intent, id_position, name, h || h, -((intent * (1 << 20)) + id_position)
from c, (values (0, 'policy'), (1, 'message/0'), (2, 'request')) p(id_position, name) union all
select result, 0, 'output', h || h, -(result * (1 << 20)) from c where not killed
""",
    "contents": """
select -((intent * (1 << 20)) + 1),
  encode('{"content":"Where is order ' || i || '? ' || h || '"}') from c union all
select -(result * (1 << 20)), encode('{"text":"It is on its way. ' || h || '"}') from c
where not killed
""",
    "intents": """
select intent, id, ns, 'session-' || (i // 8), 'subject-' || (i // 8), 'actor-' || (noise % 1000),
  case when resumed then 'resume' when streamed then 'stream' else 'chat' end,
  case when resumed then lag(id) over (order by i) end, h, null, '{}',
  'host-' || (noise % 4), 4000 + noise % 16, if(remote, 'openai', 'local'),
  if(remote, 'gpt-5', 'demo'), if(remote, 'openai:gpt-5', 'local:demo'), not remote, '{}', '{}',
  '{}', if(remote, null, 'sha256:33'), if(remote, null, '1'), 'house rules', policy, '{}',
  '{}', 'Where is order ' || i || '?'
from c
""",
    "checks": """
select intent, id, position, check_id, plugin, ['pre_filter', 'post_validate'], 'isonomy', '0.1.0',
  'sha256:11', 'sha256:' || (i // 3000000), false, 'plugin'
from c, (values (0, 'secrets', 'patterns'), (1, 'privacy', 'pii')) k(position, check_id, plugin)
""",
    "results": """
select result, id, ns + 300000000,
  case when refused then 'block' when asked then 'ask_human' else 'allow' end, 'stop',
  20 + noise % 50, 4 + noise % 100, 1, 200000000 + (noise % 4000000000),
  if(streamed, 50000000 + noise % 200000000, null), null, if(asked, h, null),
  if(i % 2000 = 1, 'BackendError', null), if(i % 2000 = 1, 'no answer', null),
  'It is on its way. ' || h[1:8], refused, if(refused, 'privacy', null),
  if(refused, 'an e-mail address', null)
from c where not killed
""",
    "segments": """
select intent, id, ns + n * 1000000, n, n * 10, 'on its way' from c, range(3) s(n) where streamed
""",
    "events": """
select * from (
select intent, id, 0, 'judged', 'pre_filter', 'secrets', 'message/0', 0, 'allow', false, null, null,
  []::varchar[], h || h, null, null, null, null, null, null, null, null, 1000 + noise % 1000000,
  '{}' from c union all
select result, id, 1, 'generated', 'generate', null, null, 0, null, null, null, null, null, null,
  null, null, null, null, null, null, null, null, 150000000 + noise % 1000000000, null
from c where not killed union all
select result, id, 2, if(resumed, 'decided', 'judged'), 'post_validate',
  if(resumed, null, 'privacy'), 'candidate/0', 0,
  case when resumed then null when refused then 'block' when asked then 'ask_human' else 'allow'
  end, i % 50 = 0, if(refused, 'an e-mail address', null), noise % 100 / 100.0, []::varchar[],
  h || h, null, null, if(resumed, 'approve', null), if(resumed, 'person-' || (noise % 5), null),
  null, null, null, null, 2000 + noise % 5000000, '{}' from c where not killed
) order by 1, 3
""",
    "generations": """
select result, id, 1, 'answer', 0, 0, null, if(remote, 'gpt-5', 'demo'), null, 0.7, 0.9, null, null,
  null, 64, []::varchar[], noise, 'It is on its way. ' || h[1:8], 'stop', 20 + noise % 50, 4,
  if(remote, null, '<user>Where is order ' || i || '?'), if(remote, null, [1, 2, 3]), null,
  remote::integer, 150000000 + noise % 1000000000, if(remote, null, unhex(h || h)),
  if(remote, null, [5, 6, 7, noise % 1000]), if(remote, null, ['It', ' is', ' on', ' its']),
  if(remote, null, [-0.5, -0.25, -1.5, -2.0]),
  if(remote, null, unhex(repeat(h, 8))), if(remote, null, unhex(repeat(h, 8)))
from c where not killed
""",
    "attempts": """
select result, id, 1, 0, 1, null, if(i % 40 = 0, 'overloaded', 'ok'), if(i % 40 = 0, 429, 200),
  null, 150000000 + noise % 1000000000, if(i % 40 = 0, 500000000, 0)
from c where remote and not killed
""",
}

_GIVEN: Final = {
    "calls_of_actor": {"actor": "actor-7"},
    "conversation": {"session": "session-77"},
    "subject_data": {"subject": "subject-77"},
    "mentions": {"text": "order 4711?"},
}


def make(folder: Path, calls: int) -> None:
    """Lay down a log of so many calls."""
    import duckdb

    from isonomy.replay import audit, open_log

    with open_log(folder, background=False) as journal:
        assert journal._log_id is not None
        log_id = journal._log_id
    with duckdb.connect(str(folder / "audit.duckdb"), config={"threads": 2}) as connection:
        connection.execute("SET memory_limit = '3GB'")
        connection.execute("SET preserve_insertion_order = true")
        audit.create_tables(connection)
        audit.create_views(connection)
        for first in range(0, calls, SLICE):
            _lay_down(connection, first, min(first + SLICE, calls), calls)
        audit.set_state(
            connection,
            {"schema": audit.AUDIT_SCHEMA, "log": log_id, "records": 2 * calls, "contents": 0},
        )
        connection.execute("CHECKPOINT")


def _lay_down(connection: duckdb.DuckDBPyConnection, first: int, last: int, total: int) -> None:
    from isonomy.replay.projection import TABLES

    calls = _CALLS
    for name, value in (("{first}", first), ("{last}", last), ("{total}", total)):
        calls = calls.replace(name, str(value))
    connection.execute(calls)
    for name, rows in _ROWS.items():
        columns = ["content", "body"] if name == "contents" else [c for c, _ in TABLES[name]]
        named = ", ".join(f'"{column}"' for column in columns[: _width(connection, rows)])
        connection.execute(f"INSERT INTO stored.{name} ({named}) {rows}")


def _width(connection: duckdb.DuckDBPyConnection, rows: str) -> int:
    return len(connection.sql(rows).columns)


def ask(folder: Path, name: str) -> tuple[float, int, int]:
    """Return how long a question takes, how many rows it has, and the process's peak, in bytes.

    In a process of its own, with the log's pages in the system's cache if they fit.
    """
    script = (
        "import re, sys, time; from isonomy.replay import ReplayLog\n"
        "from bench.queries import given\n"
        "log = ReplayLog(sys.argv[1]); parameters = given(log, sys.argv[2])\n"
        "began = time.perf_counter(); rows = log.ask(sys.argv[2], **parameters).fetchall()\n"
        "print(time.perf_counter() - began, len(rows),"
        " int(re.search('VmHWM:\\s*([0-9]+)', open('/proc/self/status').read())[1]) * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), name],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
    took, rows, peak = done.stdout.split()
    return float(took), int(rows), int(peak)


def given(log: ReplayLog, name: str) -> dict[str, str]:
    """Return parameters for a question: calls from the middle of the log."""
    from isonomy.replay.questions import QUESTIONS

    if name in _GIVEN:
        return _GIVEN[name]
    wanted = [key for key, each in QUESTIONS[name].parameters.items() if each.default is None]
    if not wanted:
        return {}
    found = log.sql(
        "select call_id from generations where deterministic and record > "
        "(select max(record) // 2 from generations) limit 2"
    ).fetchall()
    return dict(zip(wanted, (call_id for (call_id,) in found), strict=False))


def main() -> None:
    """Make a log, ask it all questions or those that are named, and print a Markdown table."""
    from isonomy.replay.questions import QUESTIONS

    parser = argparse.ArgumentParser(prog="python -m bench.queries", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="QUESTION")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--keep", metavar="DIR", help="make the log there, or use the one there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary) / f"log-{arguments.calls}"
        if not (folder / "audit.duckdb").exists():
            began = time.perf_counter()
            make(folder, arguments.calls)
            print(f"made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        size = (folder / "audit.duckdb").stat().st_size
        print(f"{arguments.calls} calls, {size / 1e9:.2f} GB, on {machine()}\n", flush=True)
        rows = []
        for name in arguments.names or QUESTIONS:
            took, count, peak = ask(folder, name)
            rows.append([name, f"{took:.2f}", count, f"{peak / 1e6:.0f}"])
            print(f"{name} {took:.2f} s", file=sys.stderr, flush=True)
        print(table(["question", "seconds", "rows", "peak MB"], rows))


if __name__ == "__main__":
    main()
