"""``isonomy perplexity``: how well a model predicts a text."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import json_option, some, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


weights_option = click.option(
    "--weights",
    type=click.Choice(["int8"]),
    help="Quantise the weights when the model is loaded.",
)


@click.command("perplexity")
@click.argument("model", callback=some)
@click.argument("file", callback=some)
@click.option(
    "--window",
    type=click.IntRange(2),
    help="Tokens seen at once; else the model's context, up to 2048.",
)
@click.option(
    "--stride", type=click.IntRange(1), help="New tokens in each window; else half a window."
)
@click.option("--begin", is_flag=True, help="Put the model's begin token before every window.")
@weights_option
@json_option
def perplexity_command(
    model: str,
    file: str,
    window: int | None,
    stride: int | None,
    begin: bool,
    weights: str | None,
    as_json: bool,
) -> None:
    """Print MODEL's perplexity of the text in FILE (- is standard input).

    MODEL is demo, or the folder of a checkpoint. The text is UTF-8, taken as it is: no chat
    template, no added token. Every token but the first is scored once, after the older tokens in
    its window. The sum over all tokens is exact, so the same model, text, window and stride give
    the same figures everywhere.
    """
    text = read_text(file)

    from isonomy.sdk.errors import ConfigError

    spec = model if model.startswith("local:") else f"local:{model}"
    with opened(spec, weights=weights) as backend, bar("scoring") as progress:
        if not hasattr(backend, "perplexity"):
            raise ConfigError(f"the backend {spec!r} does not tell how probable tokens are.")
        found = backend.perplexity(
            text, window=window, stride=stride, begin=begin, progress=progress
        )
    if as_json:
        import msgspec

        write_json(msgspec.to_builtins(found))
        return
    click.echo(
        f"{found.perplexity:.6g} perplexity a token, {found.bits_per_byte:.6g} bits a byte\n"
        f"{found.mean:.9g} nats a token: {found.nats:.17g} over {found.scored} scored of "
        f"{found.tokens} tokens, {found.bytes} bytes\n"
        f"windows of {found.window} tokens every {found.stride}"
        f"{', each with a begin token' if found.begin else ''}\n"
        f"model {found.model}, weights {found.weights}"
    )


AS_IT_IS = "{{ messages[-1]['content'] }}"
"""The chat template that adds nothing."""


@contextmanager
def opened(spec: str, **options: Any) -> Iterator[Any]:
    """Open a model for a command about texts, with the options that are given, and close it after.

    Such commands need no chat template; a model that has none gets one that adds nothing.
    """
    from isonomy.backends.local.errors import NoTemplate
    from isonomy.sdk.config import open_backend

    chosen = {name: value for name, value in options.items() if value is not None}
    try:
        backend = open_backend(spec, **chosen)
    except NoTemplate:
        backend = open_backend(spec, chat_template=AS_IT_IS, **chosen)
    try:
        yield backend
    finally:
        backend.close()


def read_text(file: str) -> str:
    """Return the text of a file, or of standard input where it is -."""
    from isonomy.sdk.errors import InputError

    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the text {file!r} can't be read: {reason}.") from None
    name = "standard input" if file == "-" else file
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}).") from None
    if not text:
        raise InputError(f"{name} is empty. Pass some text.")
    return text


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show progress on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
