"""``isonomy chat``: one guarded call."""

from __future__ import annotations

import click
import msgspec

from .output import json_option, log_directory, log_option, some, write_json


@click.command("chat")
@click.argument("text")
@click.option(
    "--backend", metavar="SPEC", callback=some, help="local:demo, local:/path, openai:MODEL."
)
@click.option(
    "--config",
    metavar="FILE",
    callback=some,
    help="A configuration file with backend, log, policy.",
)
@click.option("--policy", metavar="NAME", callback=some, help="Which [policies.NAME] of --config.")
@log_option
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the sampling.")
@click.option(
    "--temperature", type=click.FloatRange(0.0, 100.0), help="0 takes the likeliest token."
)
@click.option("--max-tokens", type=click.IntRange(1), help="The most tokens of an answer.")
@click.option(
    "--stream", is_flag=True, help="Print the answer as it comes, as far as it is judged."
)
@json_option
def chat_command(
    text: str,
    backend: str | None,
    config: str | None,
    policy: str | None,
    log: str | None,
    seed: int | None,
    temperature: float | None,
    max_tokens: int | None,
    stream: bool,
    as_json: bool,
) -> None:
    """Ask the model TEXT, guarded by the policy of --config, and record the call.

    Without --config there is no policy: the answer is recorded but nothing judges it. TEXT that is
    just - is read from standard input. Invisible characters of the answer are spelled out; --json
    has it to the letter. With --stream each piece is printed once it is judged and recorded, and
    the time to the first one is told.
    """
    if policy is not None and config is None:
        raise click.UsageError("--policy names a policy of a file; pass --config FILE too.")
    if text == "-":
        text = _standard_input()

    from isonomy.replay import printable
    from isonomy.sdk import Guard, Sampling
    from isonomy.sdk.config import load

    sampling = Sampling(seed=seed, temperature=temperature, max_tokens=max_tokens)
    if config is None:
        guard = Guard(backend or "local:demo", log=log_directory(log))
    else:
        given = load(config, policy=policy)
        guard = Guard.from_configuration(
            given,
            backend=backend or given.backend or "local:demo",
            log=log or given.log or log_directory(None),
        )
    first: float | None = None
    with guard:
        if stream:
            with guard.stream(text, sampling=sampling) as pieces:
                for piece in pieces:
                    if not as_json:
                        click.echo(printable(piece, newlines=True), nl=False)
                reply, first = pieces.reply, pieces.first_released_s
        else:
            reply = guard.chat(text, sampling=sampling)
        judged = bool(guard.policy.checks)
    if not judged:
        click.echo("no policy: nothing judged this answer", err=True)
    if as_json:
        told = {
            "call_id": reply.call_id,
            "text": reply.text,
            "verdict": reply.verdict,
            "check": reply.check,
            "reason": reply.reason,
            "finish_reason": reply.finish_reason,
            "usage": msgspec.to_builtins(reply.usage),
        }
        if stream:
            told["first_released_ms"] = None if first is None else 1000 * first
        write_json(told)
        return
    click.echo("" if stream else printable(reply.text, newlines=True))
    note = f"[{reply.verdict}"
    if reply.check:
        note += f" by {reply.check}"
    if reply.reason:
        note += f": {reply.reason}"
    when = f", first text after {1000 * first:.0f} ms" if first is not None else ""
    click.echo(f"{printable(note)}] call {reply.call_id}{when}", err=True)


def _standard_input() -> str:
    import sys

    from isonomy.sdk.errors import InputError

    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text (byte {error.start}).") from None
