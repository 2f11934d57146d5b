"""``isonomy log erase``: content is taken out of the log, and every proof still holds."""

from __future__ import annotations

import os

import click

from .log import log_command, signers_of, with_signing
from .output import json_option, log_directory, log_option, write_json


@log_command.command("erase")
@log_option
@click.option("--subject", metavar="SUBJECT", help="All content of a subject, as in its records.")
@click.option("--call", "call", metavar="CALL", help="The content of one call, by its whole id.")
@click.option("--by", required=True, metavar="WHO", help="Who wants it; an opaque id. It stays.")
@click.option("--reason", required=True, metavar="TEXT", help="Why, without content. It stays.")
@click.option("--certificate", "file", metavar="FILE", help="Where a certificate goes.")
@with_signing
@json_option
def erase_content(
    log: str | None,
    subject: str | None,
    call: str | None,
    by: str,
    reason: str,
    file: str | None,
    keys: tuple[str, ...],
    command: str | None,
    public: str | None,
    as_json: bool,
) -> None:
    """Erase what a call, or a subject, said and was told; for good.

    Records stay, without content, so every proof still holds; a tombstone says what was erased, by
    whom and why. Backups and other copies of the log's files are not reached. An erasure that was
    broken off is ended by the same command. The journal is rewritten, which takes its time and as
    much room again as it has.
    """
    import msgspec

    from isonomy.replay import certify, erase

    signers = signers_of(keys, command, public) if keys or command or public else []
    if signers and file is None:
        raise click.UsageError("a signature is for a certificate: give --certificate FILE, too.")
    directory = log_directory(log)
    if file is not None:
        try:
            with open(file, "x", encoding="utf-8"):  # noqa: PTH123 (before anything is gone)
                pass
        except OSError as error:
            raise click.UsageError(f"{file} can't be written: {error.strerror or error}.") from None
    try:
        done = erase(directory, call=call, subject=subject, by=by, reason=reason)
    except BaseException:
        if file is not None:
            os.unlink(file)  # noqa: PTH108
        raise
    if file is not None:
        body = msgspec.json.encode(certify(directory, done, signers=signers))
        with open(file, "wb") as stream:  # noqa: PTH123
            stream.write(msgspec.json.format(body, indent=1) + b"\n")
    if as_json:
        write_json(msgspec.to_builtins(done))
        return
    click.echo(
        f"{done.payloads} payloads of {len(done.erased)} records are erased; record "
        f"{done.tombstone} says so"
    )
    for each in done.kept:
        click.echo(
            f"kept, as other calls of the subject hold the same: record {each.sequence}, "
            f"{', '.join(each.payloads)}"
        )
