"""``isonomy plugins``: what can be named in specs and policies, and who provides it."""

from __future__ import annotations

import click

from .output import json_option, write_json, write_table


@click.command("plugins")
@click.option("--plugins", "modules", multiple=True, metavar="MODULE", help="Load this module too.")
@json_option
def plugins_command(modules: tuple[str, ...], as_json: bool) -> None:
    """List checks, backends and logs by name. Listing imports none of them, --plugins apart."""
    from isonomy.sdk.registry import Registry

    rows = Registry(modules).listing()
    if as_json:
        write_json([row._asdict() for row in rows])
        return
    write_table(("kind", "name", "package", "version", "from"), rows)
