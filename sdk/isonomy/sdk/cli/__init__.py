"""The command line ``isonomy``.

Results go to standard output, diagnostics (structlog) and errors to standard error. Output is rich
on a terminal and plain when piped; ``--json`` gives one JSON value. Exit status 2 means that the
command could not do its work, whatever else a command's statuses mean, and 130 that it was
interrupted. Errors are one line, unexpected ones too; ISONOMY_TRACEBACK=1 shows where those came
from.

Commands import what they need when they run, so that ``isonomy --help`` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

COMMANDS = {
    "chat": "chat",
    "demo": "demo",
    "explain": "explain",
    "log": "log",
    "perplexity": "perplexity",
    "plugin": "plugin",
    "plugins": "plugins",
    "policy": "policy",
    "quantize": "quantize",
    "replay": "replay",
    "selftest": "selftest",
    "serve": "serve",
    "sql": "inspect",
    "verify": "verify",
}
"""Where each command lives: its module in this package."""

HELP = {
    "chat": "Ask the model one question, guarded and recorded.",
    "demo": "See everything at work: guarded calls, the log, replay, tampering found.",
    "explain": "Tell the whole story of a call.",
    "log": "List recent calls, a line each; look after the log.",
    "perplexity": "Tell how well a model predicts a text.",
    "plugin": "Begin a package of checks of your own.",
    "plugins": "Show which plugins are there, and where they come from.",
    "policy": "Check a policy file, show what it comes to, describe it to editors.",
    "quantize": "Prepare a checkpoint with int8 weights, and compare the two.",
    "replay": "Re-execute a call and compare every bit.",
    "selftest": "Test that a model gives the same bits however it is computed, here.",
    "serve": "Answer OpenAI's clients over HTTP, guarded and recorded.",
    "sql": "Ask the log a question in SQL.",
    "verify": "Check the integrity of a log.",
}


class _ReaderGone(Exception):
    """Nobody reads standard output any more."""


class _Commands(click.Group):
    """A group whose commands are imported when they are run; help needs their names only."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # Click would exit with 1 here, which means "diverged" or "damaged" in some commands.
            raise _ReaderGone from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"{__name__}.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, HELP[name]) for name in COMMANDS])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            from isonomy.sdk.registry import nearest

            raise click.UsageError(
                f"there is no command {args[0]!r}.{nearest(args[0], COMMANDS)}", ctx
            )
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="isonomy", prog_name="isonomy")
def cli() -> None:
    """Guard any LLM call, log it to DuckDB, replay it bit for bit."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every error becomes one clear sentence and exit status 2."""
    import logging

    from isonomy.sdk.errors import IsonomyError

    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        # A command's exit status is what click returns when it does not exit by itself.
        status = cli.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="isonomy",
            standalone_mode=False,
        )
        sys.exit(status if isinstance(status, int) else 0)
    except (click.Abort, KeyboardInterrupt):
        click.echo("aborted", err=True)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" See {error.ctx.command_path} --help."
        _complain(error.format_message() + hint)
        sys.exit(error.exit_code)
    except IsonomyError as error:
        _complain(f"{type(error).__name__}: {error}")
        sys.exit(2)
    except _ReaderGone:
        # What is left in the buffer must not fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if os.environ.get("ISONOMY_TRACEBACK"):
            import traceback

            traceback.print_exc()
        what = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
        _complain(
            f"unexpected error: {what}. Please report it, with what ISONOMY_TRACEBACK=1 in the "
            "environment adds."
        )
        sys.exit(2)


def _complain(message: str) -> None:
    """Write one line to standard error; what it quotes from elsewhere can't act on a terminal."""
    from isonomy.replay import printable

    click.echo(f"isonomy: {printable(' '.join(message.split()))}", err=True)
