"""The commands and programs of the documents work as they stand there.

Every ```python, ```sh and ```toml block of a document runs, in order, in one empty directory:
Python blocks in one interpreter each, shell blocks in bash with this environment's programs first
on the path, and TOML blocks are written to ``isonomy.toml``. A block behind a line ``<!-- not run:
REASON -->`` is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "sdk/README.md",
    "plugins/README.md",
    "plugins/COOKBOOK.md",
    "backends/README.md",
    "kernels/README.md",
    "replay/README.md",
)
BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^\n]*-->\n)?```(?P<kind>python|sh|toml)\n(?P<body>.*?)```", re.S
)
SETUP = ("make ", "cmake ", "pip ")
"""Commands that set up a checkout; continuous integration runs them by their own names."""


def blocks(document: str) -> list[tuple[str, str]]:
    text = (ROOT / document).read_text()
    return [(m["kind"], m["body"]) for m in BLOCK.finditer(text) if m["skip"] is None]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_of_a_document(document: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "error"}
    environment["OPENAI_API_KEY"] = "never-sent"
    ran = 0
    for kind, body in blocks(document):
        if kind == "toml":
            (tmp_path / "isonomy.toml").write_text(body)
            continue
        if kind == "sh":
            lines = [line for line in body.splitlines() if not line.startswith(SETUP)]
            command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
        else:
            command = [sys.executable, "-c", body]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{body}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran > 0


def test_every_component_has_a_document() -> None:
    for folder in ("sdk", "plugins", "backends", "kernels", "replay"):
        assert (ROOT / folder / "README.md").stat().st_size > 500, folder


def test_make_targets_of_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for document in (
        "README.md",
        *(f"{d}/README.md" for d in ("sdk", "plugins", "kernels", "replay")),
    ):
        for name in re.findall(r"`make ([a-z-]+)`", (ROOT / document).read_text()):
            assert name in targets, f"{document}: make {name}"
