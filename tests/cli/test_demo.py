"""The main job, from beginning to end."""

from __future__ import annotations

import time
from pathlib import Path

from tests.cli.conftest import run_apart


def test_demo(log: Path) -> None:
    started = time.perf_counter()
    said = run_apart("demo", "--keep", log.parent / "kept", timeout=120)
    took = time.perf_counter() - started
    assert said.status == 0, (said.out[-2000:], said.err)
    assert took < 60
    assert "\x1b" not in said.out
    for verdict in ("allow", "replace by no-emails", "block by no-keys"):
        assert f"verdict    {verdict}" in said.out
    assert said.out.count("  verified: ") == 6
    assert said.out.count("bit for bit") == 6
    assert "flipped one bit of journal.sqlite" in said.out
    assert "intact: 12 records" in said.out
    assert "    DAMAGED" in said.out
    assert said.out.count("The end is unproven") == 1
    assert "stored once a conversation" in said.out
    assert said.out.index("intact") < said.out.index("DAMAGED")
    kept = log.parent / "kept" / "log"
    assert run_apart("verify", "--log", kept).status == 0
    said = run_apart("sql", "select verdict from calls order by sequence", "--json", "--log", kept)
    verdicts = [row["verdict"] for row in said.json]
    assert verdicts == ["allow", "allow", "allow", "replace", "block", "allow"]
