"""``isonomy policy``: configuration files checked, resolved, and described for editors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .output import json_option, some, write_json

if TYPE_CHECKING:
    from isonomy.sdk.config import Configuration
    from isonomy.sdk.policyfile import Assembled


@click.group("policy")
def policy_command() -> None:
    """Check, show and describe policy files."""


@policy_command.command("check")
@click.argument("file", metavar="FILE", callback=some)
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@json_option
def check_command(file: str, strict: bool, as_json: bool) -> None:
    """Tell everything that is wrong with FILE, and what in it is of no use.

    Every policy of the file is built, with what it extends; no model is opened and nothing is
    asked. Errors are what loading would refuse; warnings are checks that can never act, that repeat
    another, or stages at which nothing decides.

    Exit status: 0 nothing wrong, 1 errors (or warnings, with --strict), 2 FILE is no TOML file.
    """
    import msgspec

    from isonomy.replay import printable
    from isonomy.sdk.policycheck import examine

    examined = examine(file)
    errors, warnings = examined.count("error"), examined.count("warning")
    if as_json:
        write_json([msgspec.to_builtins(problem) for problem in examined.problems])
    else:
        for problem in examined.problems:
            click.echo(printable(str(problem)))
        told = f"{file}: {_count(errors, 'error')}, {_count(warnings, 'warning')}"
        if not errors:
            policies = examined.policies
            checks = sum(len(policy.checks) for policy in policies.values())
            told += f" in {_count(len(policies), 'policy', 'policies')}"
            told += f" with {_count(checks, 'check')}"
        click.echo(printable(told))
    raise SystemExit(1 if errors or (strict and warnings) else 0)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


@policy_command.command("show")
@click.argument("file", metavar="FILE", callback=some)
@click.option("--policy", metavar="NAME", callback=some, help="Which [policies.NAME] of FILE.")
@json_option
def show_command(file: str, policy: str | None, as_json: bool) -> None:
    """Print the policy of FILE as it is recorded: with what it extends, as one table.

    The output is TOML that can be loaded, with a remark where each check was written. Values from
    the environment are not shown; --json has the recorded form, with their keyed digests.
    """
    import msgspec

    from isonomy.replay import printable
    from isonomy.sdk import tomlfile
    from isonomy.sdk.config import load
    from isonomy.sdk.policyfile import assemble

    settings = load(file, policy=policy)
    written = msgspec.json.decode(settings.policy.written)
    if as_json:
        write_json({"digest": settings.policy.digest, "policy": written})
        return
    click.echo(
        printable(_told(settings, assemble(file, tomlfile.read(file), policy)), newlines=True)
    )


def _told(settings: Configuration, assembled: Assembled) -> str:
    from isonomy.sdk import tomlfile

    policy = settings.policy
    table = {key: value for key, value in assembled.table.items() if key != "checks"}
    lines = [
        f"# {assembled.place.file}: {assembled.place.key}, {policy.digest}\n",
        f"# {_streaming(settings)}\n[policy]\n{tomlfile.written(table, 'policy')}",
    ]
    for check, row, place in zip(
        policy.checks, assembled.table.get("checks", ()), assembled.checks, strict=True
    ):
        stages = ", ".join(check.stages) or "observes only"
        lines.append(
            f"\n# {check.id}, asked at: {stages}; from {place.file}: {place.key}\n"
            f"[[policy.checks]]\n{tomlfile.flat(row)}"
        )
    return "".join(lines).rstrip("\n")


def _streaming(settings: Configuration) -> str:
    """Return what the policy means for streams."""
    policy = settings.policy
    stages = {"post_validate", "tool_call", "critique", "revise", "rank"}
    held = {
        check.id: None
        for check in policy.checks
        if check.lookback == "all" and not check.shadow and stages & set(check.stages)
    }
    if policy.candidates > 1:
        held["candidates > 1"] = None
    if held:
        return f"streams are held back until the answer is complete, because of: {', '.join(held)}"
    return "streams are released as they are judged"


@policy_command.command("schema")
@click.option(
    "--plugins", "modules", multiple=True, metavar="MODULE", help="Describe its checks too."
)
def schema_command(modules: tuple[str, ...]) -> None:
    """Print the JSON schema of configuration files, for editors.

    It knows the settings of all checks and backends that are installed here. With taplo, and in VS
    Code with "Even Better TOML", write it beside the file and name it in the file's first line:

    \b
        isonomy policy schema > isonomy.schema.json
        #:schema ./isonomy.schema.json
    """  # noqa: D301
    import json

    from isonomy.sdk.policyschema import schema

    click.echo(json.dumps(schema(modules), indent=2))
