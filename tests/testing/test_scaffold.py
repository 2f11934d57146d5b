"""`isonomy plugin new`: the package that it makes is sound, and its tests pass as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import run_apart

from isonomy.sdk.errors import InputError
from isonomy.sdk.scaffold import create


def test_its_own_tests_pass(tmp_path: Path) -> None:
    said = run_apart("plugin", "new", "no_shouting", "--directory", tmp_path)
    folder = tmp_path / "isonomy-no-shouting"
    assert (said.status, said.err) == (0, "")
    assert f"made {folder}" in said.out
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_its_check_is_found_by_its_entry_point(tmp_path: Path) -> None:
    folder = create("careful", str(tmp_path))
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "isonomy-careful"
    (point,) = project["project"]["entry-points"]["isonomy.checks"].items()
    assert point == ("careful", "isonomy_careful:Careful")
    # What an installer makes of the package: its folder on the path, and its entry points.
    site = tmp_path / "site"
    info = site / "isonomy_careful-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: isonomy-careful\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[isonomy.checks]\n{point[0]} = {point[1]}\n")
    (site / "isonomy_careful").symlink_to(folder / "src" / "isonomy_careful")
    policy = tmp_path / "isonomy.toml"
    policy.write_text('[[policy.checks]]\nuse = "careful"\nwords = ["fish"]\n')
    there = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    shown = run_apart("policy", "show", policy, env=there)
    assert 'use = "careful"' in shown.out
    assert "asked at: pre_filter, post_validate" in shown.out
    assert "careful" in run_apart("plugins", env=there).out
    schema = run_apart("policy", "schema", env=there).out
    assert '"what must not occur, in whatever case."' in schema


def test_files_are_formatted_and_linted(tmp_path: Path) -> None:
    folder = create("no_shouting", str(tmp_path))
    (folder / "ruff.toml").write_text(
        'line-length = 100\n[lint]\nselect = ["E", "F", "I", "B", "UP", "SIM", "RUF", "D", "PT"]\n'
        'ignore = ["D103", "D105", "I001"]\npydocstyle = { convention = "google" }\n'
    )
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [ruff, *command, "--no-cache", "."],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["", "No", "1a", "a-b", "../x", "class", "é", "a b"])
def test_names_that_can_not_be_used(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="can't name a check"):
        create(name, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a check named 'pii' already"):
        create("pii", str(tmp_path))
    folder = create("isonomy_mine", str(tmp_path))
    assert folder.name == "isonomy-mine"
    before = (folder / "README.md").read_text()
    (folder / "README.md").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        create("mine", str(tmp_path))
    assert (folder / "README.md").read_text() == "mine" != before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        create("other", str(tmp_path / "file"))


def test_the_command_complains_in_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    said = run_apart("plugin", "new", "No")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert "can't name a check" in said.err
    assert run_apart("plugin", "new").status == 2
    assert "new" in run_apart("plugin", "--help").out
