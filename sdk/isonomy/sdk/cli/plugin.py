"""``isonomy plugin``: the beginning of a package of checks."""

from __future__ import annotations

import click

from .output import some


@click.group("plugin")
def plugin_command() -> None:
    """Begin a package of checks of your own."""


@plugin_command.command("new")
@click.argument("name", metavar="NAME", callback=some)
@click.option(
    "--directory",
    metavar="DIR",
    callback=some,
    help="Where the package's folder is made; the working directory, unless given.",
)
def new_command(name: str, directory: str | None) -> None:
    """Make a new folder isonomy-NAME: a check, its tests, and what makes it a package.

    NAME is what policies will use: small letters, digits and underscores, as in no_shouting. The
    check is found through its entry point once the package is installed; its tests pass at once,
    installed or not.
    """
    from isonomy.sdk.scaffold import create

    folder = create(name, directory or ".")
    click.echo(f"made {folder}: a check named {name!r}, its tests and its package")
    click.echo(f"next: cd {folder} && python -m pip install -e . && python -m pytest")
