"""``isonomy quantize``: an int8 checkpoint from another one, and what that did to the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import json_option, some, write_json
from .perplexity import bar, opened, read_text

if TYPE_CHECKING:
    from isonomy.backends.local.quantised import Prepared


@click.command("quantize")
@click.argument("model", callback=some)
@click.argument("out", callback=some)
@click.option("--text", "file", callback=some, help="A UTF-8 text to compare on; else a short one.")
@click.option("--no-perplexity", is_flag=True, help="Only write the checkpoint.")
@json_option
def quantize_command(
    model: str, out: str, file: str | None, no_perplexity: bool, as_json: bool
) -> None:
    """Write MODEL with int8 weights into the new folder OUT, and compare the two.

    MODEL is demo, or the folder of a checkpoint with float32 or bfloat16 weights. The same weights
    are used by a model that is opened with weights="int8"; a folder of its own loads faster and
    takes less room. Perplexity is that of a text before and after; pass one of the kind that the
    model is for.
    """
    from isonomy.backends.local import quantised, samples, shipped
    from isonomy.sdk.errors import ConfigError

    name = model.removeprefix("local:")
    demo = name == shipped.NAME
    folder = shipped.FOLDER if demo else Path(name).expanduser()
    text = "" if no_perplexity else read_text(file) if file else samples.text(demo=demo)
    target = Path(out).expanduser()
    quantised.examine(folder, target)  # before the work
    before = None if no_perplexity else _scored("local:" + name, text)
    try:
        with bar("quantising") as progress:
            prepared = quantised.prepare(folder, target, progress=progress)
    except OSError as error:
        raise ConfigError(f"{target} can't be written: {quantised.describe(error)}") from error
    with opened(f"local:{target.absolute()}") as after:  # a folder, though its name be demo
        digest = after.identity().artefacts["model"]
        found = [] if before is None else [before, after.perplexity(text)]
    if as_json:
        write_json(_value(prepared, digest, found))
    else:
        _write(prepared, digest, found, what=file or "a short text of its own")


def _scored(spec: str, text: str) -> Any:
    with opened(spec) as backend:
        return backend.perplexity(text)


def _value(prepared: Prepared, digest: str, found: list[Any]) -> dict[str, Any]:
    value = {
        "folder": str(prepared.folder),
        "model": digest,
        "tensors": prepared.tensors,
        "bytes_before": prepared.bytes_before,
        "bytes_after": prepared.bytes_after,
    }
    if found:
        before, after = found
        value |= {
            "perplexity_before": before.perplexity,
            "perplexity_after": after.perplexity,
            "scored": after.scored,
        }
    return value


def _write(prepared: Prepared, digest: str, found: list[Any], *, what: str) -> None:
    from isonomy.replay import printable

    share = prepared.bytes_after / prepared.bytes_before
    click.echo(f"{printable(str(prepared.folder))}: {prepared.tensors} tensors are int8 now")
    click.echo(
        f"weights    {prepared.bytes_before:,} bytes before, {prepared.bytes_after:,} after "
        f"({share:.0%})"
    )
    if found:
        before, after = found
        change = after.mean - before.mean
        click.echo(
            f"perplexity {before.perplexity:.6g} before, {after.perplexity:.6g} after "
            f"({change:+.4g} nats a token) over {after.scored} tokens of {printable(what)}"
        )
    click.echo(f"model      {digest}")
