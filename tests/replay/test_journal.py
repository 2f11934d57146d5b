"""The journal: durable, ordered, shared, and clear about what is wrong."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import duckdb  # noqa: F401 (before privileges are dropped, which may hide it)
import msgspec
import pytest
from tests.replay import making

from isonomy.replay import (
    DamagedLog,
    JournalLog,
    LogUnwritable,
    NewerLog,
    NotALog,
    ReplayLog,
    open_log,
)
from isonomy.sdk.errors import InputError, LogError
from isonomy.sdk.log import Log
from isonomy.sdk.records import Entry, Payload


def test_it_is_a_log(journal: JournalLog) -> None:
    assert isinstance(journal, Log)


def test_sequence_numbers_count_from_one_without_gaps(journal: JournalLog, path: Path) -> None:
    assert journal.append(making.call("a", "x", ["y"])) == [1, 2]
    assert journal.append([]) == []
    assert journal.append([making.opening("b")]) == [3]
    journal.close()
    with open_log(path) as again:
        assert again.append([making.opening("c")]) == [4]


def test_directory_and_files_are_private(journal: JournalLog, path: Path) -> None:
    journal.append([making.opening("a")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}
    ReplayLog(path).refresh()
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
    assert modes.pop("audit.duckdb") == 0o400
    assert set(modes.values()) == {0o600}


def test_settings_of_the_connection(journal: JournalLog) -> None:
    connection = journal._connection
    assert connection is not None
    for pragma, value in [
        ("synchronous", 2),
        ("wal_autocheckpoint", 0),
        ("secure_delete", 1),
        ("journal_mode", "wal"),
        ("user_version", 2),
    ]:
        assert connection.execute(f"PRAGMA {pragma}").fetchone() == (value,), pragma


def test_appending_never_checkpoints(journal: JournalLog, path: Path) -> None:
    size = (path / "journal.sqlite").stat().st_size
    for number in range(120):
        journal.append(making.call(f"call-{number}", "x" * 5000 + str(number), ["y"]))
    assert (path / "journal.sqlite").stat().st_size == size
    assert (path / "journal.sqlite-wal").stat().st_size > 1 << 20


def test_a_batch_is_recorded_whole_or_not_at_all(journal: JournalLog, path: Path) -> None:
    journal.append([making.opening("a")])
    connection = journal._connection
    assert connection is not None
    # The second record's insertion fails: the first must not stay.
    connection.execute(
        "CREATE TEMP TRIGGER broken BEFORE INSERT ON records WHEN NEW.call_id = 'c'"
        " BEGIN SELECT RAISE(ABORT, 'broken'); END"
    )
    with pytest.raises(LogError):
        journal.append([making.opening("b"), making.opening("c")])
    connection.execute("DROP TRIGGER broken")
    assert [call.call_id for call in ReplayLog(path).calls()] == ["a"]
    assert journal.append([making.opening("d")]) == [2]


def test_two_payloads_of_one_name_are_refused(journal: JournalLog) -> None:
    record = making.opening("a").record
    with pytest.raises(InputError, match="two payloads"):
        journal.append([Entry(record, (Payload("x", b"1"), Payload("x", b"2")))])
    assert journal.append([making.opening("b")]) == [1]


def test_bytes_of_any_kind_and_fifty_megabytes_come_back_as_they_were(
    journal: JournalLog, path: Path
) -> None:
    bodies = {"all": bytes(range(256)), "empty": b"", "large": os.urandom(1 << 20) * 50}
    payloads = tuple(Payload(name, body) for name, body in bodies.items())
    journal.append([Entry(making.opening("a").record, payloads)])
    stored = ReplayLog(path).call("a")
    assert stored.records[0].payloads == bodies
    assert stored.damage == ()


def test_closing_twice_is_harmless_and_a_closed_log_says_so(journal: JournalLog) -> None:
    journal.close()
    journal.close()
    with pytest.raises(LogUnwritable, match="closed"):
        journal.append([making.opening("a")])


def test_threads_share_a_log(journal: JournalLog, path: Path) -> None:
    taken: list[int] = []

    def work(worker: int) -> None:
        for number in range(20):
            taken.extend(journal.append(making.call(f"call-{worker}-{number}", "x", ["y"])))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 241))
    assert ReplayLog(path).verify().findings == ()


def test_processes_create_and_share_a_log(path: Path) -> None:
    """All of them open a log that is not there yet, at the same time."""
    script = (
        "import sys; from isonomy.replay import open_log; from tests.replay import making\n"
        "log = open_log(sys.argv[1])\n"
        "for n in range(15): log.append(making.call(f'call-{sys.argv[2]}-{n}', 'x', ['y']))\n"
    )
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), str(worker)],
            cwd=root,
            stderr=subprocess.PIPE,
        )
        for worker in range(4)
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    report = ReplayLog(path).verify()
    assert (report.records, report.findings) == (4 * 15 * 2, ())


def test_a_fork_while_threads_write_leaves_both_sides_able_to_write(
    journal: JournalLog, path: Path
) -> None:
    """What the parent's threads had queued is theirs: the child must not write it, too."""
    stop = threading.Event()
    written = [0] * 4

    def work(worker: int) -> None:
        while not stop.is_set():
            journal.append([making.opening(f"parent-{worker}-{written[worker]}")])
            written[worker] += 1

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(8):
            entry = making.opening(f"child-{number}")
            _, status = os.waitpid(alone(lambda entry=entry: journal.append([entry])), 0)  # type: ignore[misc]
            assert status == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    journal.append([making.opening("after")])
    report = ReplayLog(path).verify()
    assert (report.records, report.findings) == (sum(written) + 8 + 1, ())
    ids = [call.call_id for call in ReplayLog(path).calls()]
    assert len(set(ids)) == len(ids) == report.records


def alone(work: Callable[[], object]) -> int:
    """Fork a child that does `work`; return its process id. It exits with 0 if that went well."""
    import warnings

    with warnings.catch_warnings():  # Python 3.12 warns of a fork beside threads: it is the point.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def test_multiprocessing_with_fork(journal: JournalLog, path: Path) -> None:
    journal.append([making.opening("parent")])
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=journal.append, args=([making.opening(f"child-{number}")],))
        for number in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    journal.append([making.opening("parent-again")])
    assert ReplayLog(path).verify().records == 5


def write_to(path: str, worker: int) -> None:
    """Write some records: what a process does that shares nothing with the one that started it."""
    with open_log(path) as log:
        for number in range(5):
            log.append([making.opening(f"spawned-{worker}-{number}")])


def test_multiprocessing_with_spawn(journal: JournalLog, path: Path) -> None:
    journal.append([making.opening("parent")])
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=write_to, args=(str(path), worker)) for worker in range(2)]
    for child in children:
        child.start()
    journal.append([making.opening("parent-again")])
    for child in children:
        child.join()
        assert child.exitcode == 0
    report = ReplayLog(path).verify()
    assert (report.records, report.findings) == (12, ())


# Order is sequence, never time.


def test_a_clock_that_goes_back_and_hosts_whose_clocks_are_apart(
    journal: JournalLog, path: Path
) -> None:
    for number, at in enumerate([50, 10, 90, -40_000, 60]):
        entry = making.intent(f"call-{number}", "x", at=at)
        record = msgspec.structs.replace(entry.record, host=f"host-{number % 2}")
        journal.append([msgspec.structs.replace(entry, record=record)])
        journal.append([making.result(f"call-{number}", ["y"], at=at - 5)])
    expected = [f"call-{number}" for number in range(5)]
    log = ReplayLog(path)
    assert [call.call_id for call in log.calls()] == expected[::-1]
    for _ in range(2):
        rows = log.sql("select call_id, host from calls order by sequence").fetchall()
        assert rows == [(name, f"host-{at % 2}") for at, name in enumerate(expected)]
        log.refresh()
    assert log.verify().findings == ()


# What is not a log, or can't be written.


def test_nothing_there(path: Path) -> None:
    with pytest.raises(NotALog, match="no log at") as raised:
        ReplayLog(path)
    assert raised.value.path == str(path)


def test_a_file_is_not_a_log(path: Path) -> None:
    path.write_text("notes")
    for opened in (open_log, ReplayLog):
        with pytest.raises(NotALog, match="a log is a directory"):
            opened(path)


def test_a_directory_with_other_files_is_left_alone(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)
    (path / "notes.txt").write_text("mine")
    for opened in (open_log, ReplayLog):
        with pytest.raises(NotALog, match=r"not a log"):
            opened(path)
    assert [file.name for file in path.iterdir()] == ["notes.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_an_empty_directory_becomes_a_log(path: Path) -> None:
    path.mkdir()
    with open_log(path) as log:
        assert log.append([making.opening("a")]) == [1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_log_that_lost_its_journal_is_not_begun_anew(journal: JournalLog, path: Path) -> None:
    journal.append([making.opening("a")])
    journal.close()
    for file in path.glob("journal.sqlite*"):
        file.unlink()
    for opened in (open_log, ReplayLog):
        with pytest.raises(DamagedLog, match="journal was removed") as raised:
            opened(path)
        assert raised.value.file == "journal.sqlite"


def test_a_journal_that_lost_its_end_is_not_written_on(journal: JournalLog, path: Path) -> None:
    journal.append([making.opening("a")])
    journal.close()
    before = (path / "journal.sqlite").read_bytes()
    with open_log(path) as again:
        again.append([making.opening("b")])
    for file in path.glob("journal.sqlite*"):
        file.unlink()
    (path / "journal.sqlite").write_bytes(before)
    with pytest.raises(DamagedLog, match=r"ends at record 1.*there were 2"):
        open_log(path)
    findings = ReplayLog(path).verify().findings
    assert any(f.sequence == 2 and "missing" in f.problem for f in findings)


def test_an_sqlite_file_that_is_no_journal(path: Path) -> None:
    path.mkdir()
    with closing(sqlite3.connect(path / "journal.sqlite")) as connection:
        connection.execute("CREATE TABLE t (a)")
    for use in (open_log, lambda where: ReplayLog(where).calls()):
        with pytest.raises(NotALog, match="not the journal of a log"):
            use(path)


def test_a_file_of_noise_in_the_journals_place(path: Path) -> None:
    path.mkdir()
    (path / "journal.sqlite").write_bytes(os.urandom(8192))
    for use in (open_log, lambda where: ReplayLog(where).calls()):
        with pytest.raises(DamagedLog, match="damaged"):
            use(path)
    report = ReplayLog(path).verify()
    assert [f.file for f in report.findings if f.file != "leaves"] == ["journal.sqlite"]


def test_a_newer_log_is_read_but_not_written(filled: ReplayLog, path: Path) -> None:
    with closing(sqlite3.connect(path / "journal.sqlite", isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET value = '3' WHERE name = 'schema'")
        connection.execute("PRAGMA user_version = 3")
    with pytest.raises(NewerLog, match="upgrade") as raised:
        open_log(path)
    assert raised.value.version == 3
    assert filled.call("call-finished").status == "complete"
    assert filled.sql("select count(*) from calls").fetchall() == [(5,)]
    assert [finding.problem[:12] for finding in filled.verify().findings] == ["it has schem"]


def test_a_full_disk(journal: JournalLog, path: Path) -> None:
    connection = journal._connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    with pytest.raises(LogUnwritable, match=r"disk is full.*nothing of this batch") as raised:
        journal.append([making.intent("a", "x" * 100_000)])
    assert raised.value.path == str(path)
    assert journal.append([making.opening("b")]) == [1]
    assert [call.call_id for call in ReplayLog(path).calls()] == ["b"]


def test_a_file_size_limit_behaves_like_a_full_disk(path: Path) -> None:
    """The system itself refuses to write on: a real error, in the middle of a commit."""
    script = (
        "import resource, signal, sys\n"
        "from isonomy.replay import LogUnwritable, open_log\n"
        "from tests.replay import making\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "log = open_log(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "for number in range(100):\n"
        "    try: log.append([making.intent(f'call-{number}', 'x' * 5000 + str(number))])\n"
        "    except LogUnwritable as error: print(number); break\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = ReplayLog(path).verify()
    assert (report.records, report.findings) == (int(done.stdout), ())
    with open_log(path) as log:
        assert log.append([making.opening("after")]) == [report.records + 1]


def test_a_locked_journal(journal: JournalLog, path: Path) -> None:
    with (
        JournalLog(path, wait_seconds=0.05) as other,
        closing(sqlite3.connect(path / "journal.sqlite", isolation_level=None)) as holder,
    ):
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnwritable, match="lock"):
            other.append([making.opening("a")])
        holder.execute("ROLLBACK")
        assert other.append([making.opening("b")]) == [1]


def test_a_log_that_is_moved_away_is_not_written_into_the_void(
    journal: JournalLog, path: Path
) -> None:
    journal.append([making.opening("a")])
    moved = path.with_name("moved")
    path.rename(moved)
    for _ in range(2):
        with pytest.raises(LogUnwritable, match="moved or deleted"):
            journal.append([making.opening("b")])
    assert not path.exists()
    moved.rename(path)
    assert journal.append([making.opening("c")]) == [2]


@contextmanager
def without_privileges() -> Iterator[None]:
    """Be somebody whom permissions stop."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A log's path that an unprivileged user can reach, unlike pytest's own folders."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="isonomy-test-"))
    folder.chmod(0o755)
    yield folder / "log"
    shutil.rmtree(folder)


def test_a_read_only_log(open_path: Path) -> None:
    with open_log(open_path) as log:
        log.append(making.call("a", "x", ["y"]))
        # Left open: the write-ahead log and its index stay, as beside a running writer.
        for file in open_path.iterdir():
            file.chmod(0o444)
        open_path.chmod(0o555)
        with without_privileges():
            with pytest.raises(LogUnwritable, match="writable"):
                open_log(open_path)
            replay_log = ReplayLog(open_path)
            assert replay_log.call("a").status == "complete"
            assert replay_log.sql("select call_id from calls").fetchall() == [("a",)]
            assert replay_log.verify().findings == ()
            with pytest.raises(LogError):
                replay_log.refresh()
        open_path.chmod(0o700)


def test_a_read_only_log_at_rest(open_path: Path) -> None:
    with open_log(open_path) as log:
        log.append(making.call("a", "x", ["y"]))
    ReplayLog(open_path).refresh()
    for file in open_path.iterdir():
        file.chmod(0o444)
    for left in open_path.glob("journal.sqlite-*"):
        left.unlink()
    open_path.chmod(0o555)
    with without_privileges():
        replay_log = ReplayLog(open_path)
        assert replay_log.call("a").status == "complete"
        assert replay_log.verify().findings == ()
    open_path.chmod(0o700)


def test_no_permission_at_all(open_path: Path) -> None:
    with open_log(open_path):
        pass
    if os.geteuid() == 0:
        for opened in (open_log, lambda where: ReplayLog(where).calls()):
            with without_privileges(), pytest.raises(LogError) as raised:
                opened(open_path)
            assert raised.value.path == str(open_path)


def test_a_place_where_nothing_can_be_created(open_path: Path) -> None:
    open_path.parent.chmod(0o555)
    with without_privileges(), pytest.raises(LogUnwritable, match="can't be created"):
        open_log(open_path)
    open_path.parent.chmod(0o755)


def test_importing_and_writing_load_nothing_heavy(path: Path) -> None:
    script = (
        "import sys; from isonomy.replay import open_log, ReplayLog\n"
        "from tests.replay import making\n"
        "open_log(sys.argv[1]).append(making.call('a', 'x', ['y']))\n"
        "assert ReplayLog(sys.argv[1]).call('a').status == 'complete'\n"
        "print([name for name in ('duckdb', 'numpy', 'torch', 'pyarrow') if name in sys.modules])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=root, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
