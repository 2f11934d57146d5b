"""``isonomy replay``: re-execute calls and compare every bit."""

from __future__ import annotations

import click

from .output import json_option, log_directory, log_option, some, write_json


@click.command("replay")
@click.argument("call", required=False, callback=some)
@click.option("--all", "every", is_flag=True, help="Replay every call of the log.")
@click.option(
    "--plugins",
    "plugins",
    multiple=True,
    metavar="MODULE",
    help="A plugin module that may be imported; a log never decides that.",
)
@click.option(
    "--regenerate",
    is_flag=True,
    help="Let the model answer token by token: the same result, later.",
)
@click.option(
    "--deep",
    is_flag=True,
    help="Name the first layer and operation that differ.",
)
@log_option
@json_option
def replay_command(
    call: str | None,
    every: bool,
    plugins: tuple[str, ...],
    regenerate: bool,
    deep: bool,
    log: str | None,
    as_json: bool,
) -> None:
    """Replay CALL (an id, or a unique beginning of one) in a child process without network.

    On a deterministic model the recorded tokens are computed in one pass, and each is drawn again
    from its own logits. --deep compares what every layer computed: with the call's own digests
    where it recorded them (trace_layers), else between two fresh executions.

    Exit status: 0 verified, 1 diverged, 2 refused; with --all the worst of 1 and 2, 1 first.
    """
    if (call is None) == (not every):
        raise click.UsageError("name one CALL, or pass --all.")
    import msgspec

    from isonomy.replay import ReplayLog, printable, replay_separately

    results = []
    with ReplayLog(log_directory(log)) as replay_log:
        for stored in replay_log.calls() if every else [replay_log.call(call or "")]:
            result = replay_separately(stored, plugins=plugins, regenerate=regenerate, deep=deep)
            results.append(result)
            if not as_json:
                click.echo(f"{result.call_id}  {printable(result.sentence())}")
    if as_json:
        plain = [
            {**msgspec.to_builtins(result), "exit_status": result.exit_status} for result in results
        ]
        write_json(plain if every else plain[0])
    statuses = {result.status for result in results}
    raise click.exceptions.Exit(1 if "diverged" in statuses else 2 if "refused" in statuses else 0)
