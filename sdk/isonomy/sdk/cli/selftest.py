"""``isonomy selftest``: does a model give the same bits however it is computed, here?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .output import json_option, some, write_json
from .perplexity import opened, weights_option

if TYPE_CHECKING:
    from isonomy.backends.local.selftest import Plan, Row, SelfTest


@click.command("selftest")
@click.argument("model", callback=some)
@click.option("--quick", is_flag=True, help="A shorter sequence, and fewer cases.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.0, min_open=True),
    help="What it may take, about: else 600, or 30 with --quick.",
)
@weights_option
@json_option
def selftest_command(
    model: str, quick: bool, seconds: float | None, weights: str | None, as_json: bool
) -> None:
    """Test on this machine that MODEL gives the same bits however it is computed.

    MODEL is demo, or the folder of a checkpoint. A random sequence is computed token by token, in
    pieces, with guesses, from a warm cache, among neighbours, with any number of threads and on
    every instruction set; all logits of all its rows are compared. What there is no time for is
    left out, and counted. With --weights int8 every linear's checksum is watched, too.

    Exit status: 0 everything that was tried held, 1 something did not.
    """
    from isonomy.sdk.errors import ConfigError

    spec = model if model.startswith("local:") else f"local:{model}"
    with opened(spec, weights=weights, checksums=weights and True) as backend:
        if not hasattr(backend, "selftest"):
            raise ConfigError(f"the backend {spec!r} has no self-test; the built-in engine does.")
        told: dict[str, Any] = {} if as_json else {"on_plan": _write_plan, "on_row": _write_row}
        found: SelfTest = backend.selftest(quick=quick, seconds=seconds, **told)
    if as_json:
        import msgspec

        plain = msgspec.to_builtins(found)
        rows = [{**row, "held": row["difference"] is None} for row in plain["rows"]]
        write_json({**plain, "rows": rows, "held": found.held, "left_out": found.left_out})
    else:
        _write_verdict(found)
    raise click.exceptions.Exit(0 if found.held else 1)


def _write_plan(plan: Plan) -> None:
    from isonomy.replay import printable

    click.echo(f"model {printable(plan.model)}, {plan.digest}")
    click.echo(
        f"numerics version {plan.numerics_version} on {plan.isa} (here: {', '.join(plan.isas)}), "
        f"{plan.threads} thread{'' if plan.threads == 1 else 's'}; library {plan.library}"
    )
    click.echo(
        f"{len(plan.rows)} rows over a prompt of {plan.prompt} random tokens and an answer of "
        f"{plan.answer}, in about {plan.seconds:g} s at most"
    )


def _write_row(row: Row) -> None:
    from isonomy.replay import printable

    cases = f"{row.cases} of {row.planned}" if row.cases < row.planned else f"{row.cases}"
    state = "held" if row.held else "FAILED"
    click.echo(
        f"{state:<6}  {row.name:<16}  {row.about:<46}  {cases:>9} cases  {row.seconds:7.1f} s"
    )
    if row.difference is not None:
        click.echo(f"        {printable(row.difference)}")


def _write_verdict(found: SelfTest) -> None:
    failed = [row.name for row in found.rows if not row.held]
    left = ""
    if found.left_out:
        left = f"; {found.left_out} cases were left out for want of time (--seconds) or memory"
    if failed:
        click.echo(f"FAILED: {len(failed)} of {len(found.rows)} rows: {', '.join(failed)}{left}")
    else:
        click.echo(f"held: all {len(found.rows)} rows, in {found.seconds:.1f} s{left}")
