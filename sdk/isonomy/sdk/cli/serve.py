"""``isonomy serve``: the gateway."""

from __future__ import annotations

import click

from .output import some

_PATH = click.Path(dir_okay=False)


@click.command("serve")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--host", callback=some, help="Where to listen.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0 takes a free one.  [default: 8080]")
@click.option("--workers", type=click.IntRange(1), help="Processes that answer.  [default: 1]")
@click.option("--keys-file", type=_PATH, callback=some, help="API keys, a line 'ID KEY' each.")
@click.option(
    "--reviewer-keys-file",
    type=_PATH,
    callback=some,
    help="Keys of those who may resume calls that wait for a person.",
)
@click.option("--no-auth", is_flag=True, help="Serve other machines without keys.")
@click.option("--policy", metavar="NAME", callback=some, help="Which policy of the file.")
@click.option("--log", metavar="DIR", callback=some, help="The log, in place of the file's.")
@click.option(
    "--drain-seconds",
    type=click.FloatRange(0, min_open=True),
    help="How long running requests may go on when the server stops.  [default: 30]",
)
def serve_command(
    file: str,
    host: str | None,
    port: int | None,
    workers: int | None,
    keys_file: str | None,
    reviewer_keys_file: str | None,
    no_auth: bool,
    policy: str | None,
    log: str | None,
    drain_seconds: float | None,
) -> int:
    """Answer OpenAI's clients over HTTP, with backend, log and policy of the configuration FILE.

    Programs need only another base URL: http://HOST:PORT/v1. Options win over the file's [serve]
    table, which has more of them. Diagnostics are JSON lines on standard error.
    """
    from isonomy.sdk.errors import MissingExtra

    try:
        from isonomy.sdk.gateway.serving import Plan, serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "isonomy":
            raise
        raise MissingExtra("isonomy serve", "serve", error.name) from None
    given = {
        "host": host,
        "port": port,
        "workers": workers,
        "keys_file": keys_file,
        "reviewer_keys_file": reviewer_keys_file,
        "drain_seconds": drain_seconds,
    }
    return serve(Plan(file=file, policy=policy, log=log, given=given, auth=not no_auth))
