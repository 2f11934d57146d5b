"""``isonomy demo``: the whole of Isonomy in one run, on the built-in model, without network.

Everything shown is real: the model answers, the checks judge, the log is written, DuckDB is asked,
every call is re-executed in a process of its own, and the altered byte is found by the ordinary
`verify`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from isonomy.replay import StoredCall
    from isonomy.sdk import Reply

POLICY = """\
[backend]
use = "local:demo"
max_tokens = 64

[log]
path = "log"

[policy]
name = "support-desk"
refusal = "I'm sorry, I can't share that."

[[policy.checks]]
use = "length"
id = "short-questions"
stages = ["pre_filter"]
max = 2000

[[policy.checks]]
use = "pii"
id = "no-emails"
stages = ["post_validate"]
kinds = ["email"]
action = "redact"

[[policy.checks]]
use = "patterns"
id = "no-keys"
stages = ["post_validate"]
deny = { "an API key" = "sk-demo-[0-9a-z]+" }
action = "block"
"""

CONVERSATIONS: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("answered freely", 0.0, ("Hello", "Where is my order 4821?", "Thank you!")),
    ("rewritten by a check", 0.0, ("What is the e-mail on my account? I'm Mia Berg",)),
    ("blocked by a check", 0.0, ("What is my API key?",)),
    ("sampled at temperature 0.8", 0.8, ("How do I reset my password?",)),
)

QUESTION = """\
select check_id, verdict, count(*) as times
from decisions group by all order by all"""


@click.command("demo")
@click.option("--keep", metavar="DIR", help="Keep configuration and log in this new directory.")
def demo_command(keep: str | None) -> None:
    """Guard real conversations, log them, ask the log, replay them bit for bit, find tampering."""
    if keep is not None:
        folder = Path(keep)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise click.UsageError(f"{keep!r} exists already; name a new directory.") from None
        _run(folder)
        click.echo(f"\nKept in {folder}: isonomy.toml and log/.")
        return
    with tempfile.TemporaryDirectory(prefix="isonomy-demo-") as folder_name:
        _run(Path(folder_name))


def _run(folder: Path) -> None:
    from isonomy.replay import ReplayLog

    started = time.perf_counter()
    _title("1", "A guard from a policy file, around the built-in model")
    file = folder / "isonomy.toml"
    file.write_text(POLICY)
    click.echo(_indented(POLICY))
    _converse(file)
    log = folder / "log"
    with ReplayLog(log) as replay_log:
        _title("3", "The log, asked in SQL (DuckDB)")
        click.echo(_indented(QUESTION) + "\n")
        with _busy("filling the DuckDB log"):
            replay_log.refresh()
        for row in replay_log.sql(QUESTION).fetchall():
            click.echo("    {:<18} {:<10} {}".format(*(str(cell) for cell in row)))
        calls = replay_log.calls()
    _replay(calls)
    _tamper(log, folder / "altered-copy", calls)
    click.echo(f"\nAll of it took {time.perf_counter() - started:.1f} s.")
    click.echo('Next: isonomy chat "Hello"; isonomy log; isonomy explain CALL; the README.')


def _converse(file: Path) -> None:
    from isonomy.sdk import Guard, Message, Sampling

    with _busy("loading the demo model"):
        guard = Guard.from_file(file)
    with guard:
        identity = guard.backend.identity()
        runtime = identity.runtime
        click.echo(f"  model    {identity.artefacts['model']}")
        click.echo(f"  kernels  {runtime.get('isa')}, {runtime.get('threads')} threads")
        _title("2", "Guarded conversations, each recorded before its answer is released")
        for number, (name, temperature, questions) in enumerate(CONVERSATIONS, 1):
            click.secho(f"  {name}", bold=True)
            history: list[Message] = []
            for question in questions:
                history.append(Message.of("user", question))
                sampling = Sampling(temperature=temperature, seed=number)
                reply = guard.chat(history, session=f"demo-{number}", sampling=sampling)
                _show(question, reply)
                history.append(Message.of("assistant", reply.text))


def _show(question: str, reply: Reply) -> None:
    from isonomy.replay import printable

    click.echo(f"    user       {question}")
    click.echo(f"    assistant  {printable(reply.text)}")
    colour = {"allow": "green", "replace": "yellow", "block": "red"}.get(reply.verdict)
    by = f" by {reply.check}: {reply.reason}" if reply.check else ""
    click.secho(f"    verdict    {reply.verdict}{printable(by)}\n", fg=colour)


def _replay(calls: list[StoredCall]) -> None:
    from isonomy.replay import printable, replay_separately

    _title("4", "Every call replayed in a process without network, and its bits compared")
    for stored in reversed(calls):
        with _busy("replaying"):
            result = replay_separately(stored)
        colour = {"verified": "green", "diverged": "red", "refused": "yellow"}[result.status]
        click.secho(f"    {stored.call_id[-12:]}  {printable(result.sentence())}", fg=colour)
        if result.status != "verified":
            raise click.ClickException("a replay of the demo did not verify; please report this.")


def _tamper(log: Path, copy: Path, calls: list[StoredCall]) -> None:
    from isonomy.replay import ReplayLog

    from .verify import write_report

    _title("5", "One byte altered in a copy of the log, and found")
    shutil.copytree(log, copy)
    output = calls[-1].output
    assert output is not None
    text = (output.text or "").encode()
    file, place = _find(copy, text)
    _flip(file, place)
    click.echo(f"    flipped one bit of {file.name}, byte {place}, inside an answer's text")
    click.echo("    (a text is stored once a conversation: the next call, which has it in its")
    click.echo("    history, shares these bytes and is damaged too)\n")
    for name, directory in (("the log", log), ("the altered copy", copy)):
        with _busy("verifying"), ReplayLog(directory) as replay_log:
            report = replay_log.verify()
        click.secho(f"  {name}", bold=True)
        write_report(report, indent="    ", notes=directory == copy)
        if report.intact != (directory == log):
            raise click.ClickException("the alteration was not found; please report this.")


def _find(directory: Path, text: bytes) -> tuple[Path, int]:
    """Return the first journal file that holds a text, and where."""
    for file in sorted(directory.glob("journal.sqlite*")):
        place = file.read_bytes().find(text)
        if place >= 0:
            return file, place
    raise click.ClickException("the answer is not in the journal; please report this.")


def _flip(file: Path, place: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))


def _title(number: str, text: str) -> None:
    click.secho(f"\n{number}. {text}\n", bold=True)


def _indented(text: str) -> str:
    return "".join(f"    {line}" for line in text.splitlines(keepends=True))


@contextmanager
def _busy(what: str) -> Iterator[None]:
    """Show that something is under way, on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ..."):
        yield
