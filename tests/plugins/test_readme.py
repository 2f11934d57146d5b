"""The examples of plugins/README.md are run, and its tables hold what the code has."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from isonomy.plugins import Constitution, Length, Patterns, Pii
from isonomy.sdk import Replace
from isonomy.sdk.config import load

README = Path(__file__).parents[2].joinpath("plugins", "README.md").read_text("utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TOML = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_examples_run(number: int) -> None:
    exec(compile(PYTHON[number], f"example {number}", "exec"), {"__name__": "example"})


def test_the_policy_loads(tmp_path: Path) -> None:
    file = tmp_path / "isonomy.toml"
    file.write_text(TOML[0], "utf-8")
    checks = load(file).policy.checks
    assert [type(check.plugin) for check in checks] == [Length, Pii, Patterns]
    assert all(check.inline for check in checks)
    assert [check.stages for check in checks] == [
        ("pre_filter",),
        ("pre_filter", "post_validate"),
        ("post_validate",),
    ]


@pytest.mark.parametrize("check", [Patterns, Pii, Length, Constitution])
def test_every_setting_is_described(check: Any) -> None:
    section = README.split(f"\n## {check.__name__.lower()}\n")[1].split("\n## ")[0]
    described = re.findall(r"^\| `(\w+)` +\| ", section, re.MULTILINE)
    names = [field.name for field in msgspec.structs.fields(check)]
    assert [name for name in described if name in names] == names
    assert [name for name in names if f"\n        {name}: " not in check.__doc__] == []


def test_the_table_of_actions() -> None:
    rows = re.findall(r"^\| `(redact|mask)` (.*)\|$", README, re.MULTILINE)
    header = re.search(r"^\| action +\|(.*)\|$", README, re.MULTILINE)
    assert header is not None
    data = [cell.strip() for cell in header.group(1).split("|")]
    for action, cells in rows[:2]:
        shown = [cell.strip(" `") for cell in cells.strip("| ").split("|")]
        for datum, expected in zip(data, shown, strict=True):
            verdict = Pii(action=action).judge(datum)
            assert isinstance(verdict, Replace)
            assert verdict.content == expected
