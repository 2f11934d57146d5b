"""``isonomy log``: what the log holds, and what keeps it trustworthy."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from .inspect import asked
from .output import (
    json_option,
    log_directory,
    log_option,
    write_json,
    write_lines,
    write_table,
)

if TYPE_CHECKING:
    from isonomy.replay.notes import Signer

_RECENT = """
select call_id, started_at, status, verdict, model, input_text, output_text
from calls order by sequence desc limit ?
"""


class _Log(click.Group):
    """Without a command of its own it lists calls, with the options of `list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("log", cls=_Log)
def log_command() -> None:
    """List recent calls, or look after the log.

    Alone, or with the options of `isonomy log list`, it lists calls, newest first.
    """


@log_command.command("list")
@log_option
@click.option("-n", "count", type=click.IntRange(1), default=20, help="How many calls.")
@json_option
def list_calls(log: str | None, count: int, as_json: bool) -> None:
    """List recent calls, newest first, a line each."""
    from isonomy.replay import ReplayLog

    with ReplayLog(log_directory(log)) as replay_log:
        columns, rows = asked(replay_log, _RECENT, [count])
    if as_json:
        write_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    if sys.stdout.isatty():
        write_lines(
            ["call", "started (UTC)", "verdict", "input", "output"],
            [
                [call_id, str(started)[:19], verdict or status, _clip(said), _clip(answer)]
                for call_id, started, status, verdict, _, said, answer in rows
            ],
            whole=3,
        )
        return
    short = [[*row[:5], *(_clip(cell) for cell in row[5:])] for row in rows]
    write_table(["call", "started (UTC)", "status", "verdict", "model", "input", "output"], short)


@log_command.command("ingest")
@log_option
@click.option("--rebuild", is_flag=True, help="Build audit.duckdb anew from the journal.")
@json_option
def ingest_log(log: str | None, rebuild: bool, as_json: bool) -> None:
    """Bring audit.duckdb, which DuckDB clients open, up to date."""
    import msgspec

    from isonomy.replay import ReplayLog

    with ReplayLog(log_directory(log)) as replay_log:
        done = replay_log.refresh(rebuild=rebuild)
    if as_json:
        write_json(msgspec.to_builtins(done))
    else:
        click.echo(f"{done.records} records ingested, up to record {done.last}")


@log_command.command("keygen")
@click.argument("name")
@click.option("--out", "file", required=True, metavar="FILE", help="Where the private key goes.")
def make_key(name: str, file: str) -> None:
    """Make a key that signs checkpoints; print the public one, which others verify with.

    NAME says whose it is, such as example.com/support-log. Keep FILE outside of the log, and the
    public key where the log's writer can't change it.
    """
    from isonomy.replay.notes import PrivateKey

    key = PrivateKey.generate(name)
    key.write(file)
    click.echo(str(key.key))


_signing = (
    click.option(
        "--sign-with",
        "keys",
        multiple=True,
        metavar="FILE",
        help="A private key of isonomy log keygen; again for each further witness.",
    ),
    click.option(
        "--sign-command",
        "command",
        metavar="COMMAND",
        help="A command that signs: text on its standard input, the note on its output.",
    ),
    click.option("--key", "public", metavar="KEY", help="The public key of --sign-command."),
)


def with_signing(function: Any) -> Any:
    """Give a command the options that say who signs."""
    for option in reversed(_signing):
        function = option(function)
    return function


def signers_of(keys: tuple[str, ...], command: str | None, public: str | None) -> list[Signer]:
    """Return who signs, as those options say."""
    from isonomy.replay.notes import Command, Key, PrivateKey

    signers: list[Signer] = [PrivateKey.read(file) for file in keys]
    if (command is None) != (public is None):
        raise click.UsageError("--sign-command and --key go together.")
    if command is not None and public is not None:
        arguments = shlex.split(command)
        if not arguments:
            raise click.UsageError("--sign-command is empty.")
        signers.append(Command(arguments, Key.parse(public)))
    if not signers:
        raise click.UsageError("nobody signs: give --sign-with FILE, or --sign-command and --key.")
    return signers


@log_command.command("checkpoint")
@log_option
@with_signing
@click.option("--out", "place", metavar="PATH", help="A file, or a directory that collects them.")
@click.option("--to", "receiver", metavar="COMMAND", help="A command that takes it on its input.")
def checkpoint_log(
    log: str | None,
    keys: tuple[str, ...],
    command: str | None,
    public: str | None,
    place: str | None,
    receiver: str | None,
) -> None:
    """Sign what the log is now: the number of its records and their Merkle root.

    Kept outside of the log, a checkpoint shows later whether anything before it was altered,
    removed or cut off: isonomy verify --checkpoint FILE --key KEY.
    """
    from isonomy.replay import checkpoints

    note = checkpoints.take(log_directory(log), signers_of(keys, command, public))
    if place is not None:
        click.echo(str(checkpoints.keep(note, place)))
    if receiver is not None:
        checkpoints.hand_over(note, shlex.split(receiver) or [receiver])
    if place is None and receiver is None:
        click.echo(note, nl=False)


@log_command.command("prove")
@click.argument("call")
@log_option
@with_signing
@click.option("--out", "file", metavar="FILE", help="Where the bundle goes, else standard output.")
@click.option("--without-content", is_flag=True, help="Leave out what was said.")
def prove_call(
    call: str,
    log: str | None,
    keys: tuple[str, ...],
    command: str | None,
    public: str | None,
    file: str | None,
    without_content: bool,
) -> None:
    """Write a bundle that proves CALL to somebody who has nothing else of the log.

    It is checked by a script that needs Python and cryptography, and nothing of Isonomy:
    isonomy log proof-script > verify_proof.py; python verify_proof.py BUNDLE KEY
    """
    import msgspec

    from isonomy.replay import proofs

    bundle = proofs.prove(
        log_directory(log),
        call,
        signers=signers_of(keys, command, public),
        payloads=not without_content,
    )
    body = msgspec.json.format(msgspec.json.encode(bundle), indent=1)
    if file is None:
        click.echo(body.decode())
        return
    try:
        with open(file, "xb") as stream:  # noqa: PTH123
            stream.write(body + b"\n")
    except OSError as error:
        raise click.UsageError(f"{file} can't be written: {error.strerror or error}.") from None


@log_command.command("proof-script")
def print_script() -> None:
    """Print the script that checks a bundle of isonomy log prove."""
    from isonomy.replay.proofs import SCRIPT

    click.echo(SCRIPT.read_text("utf-8"), nl=False)


def _clip(text: str | None, width: int = 48) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= width else text[: width - 1] + "…"


from . import (  # noqa: E402 (they add their commands to the group above)
    exchange,  # noqa: F401
    log_erase,  # noqa: F401
    log_snapshot,  # noqa: F401
    log_status,  # noqa: F401
)
