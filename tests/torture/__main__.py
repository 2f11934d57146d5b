"""Thousands of kill -9 at random moments, under load from several processes.

    python -m tests.torture [--kills 4000] [--seed N] [--keep]

A failure names seed and log; the log is kept. Moments are random, so a seed repeats the choices and
not the outcome.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path

from .killing import Torture


def main() -> int:
    """Run rounds until enough was killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("--kills", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--keep", action="store_true", help="keep logs that were found intact")
    given = parser.parse_args()
    logging.getLogger("isonomy.replay").setLevel(logging.CRITICAL)  # It tells of every gap.
    folder = Path(tempfile.mkdtemp(prefix="isonomy-torture-"))
    print(f"seed {given.seed}, logs in {folder}", flush=True)
    torture = Torture(folder, given.seed)
    started = shown = time.monotonic()
    while sum(torture.kills.values()) < given.kills:
        torture.round()
        if sum(torture.kills.values()) % 17 == 0:
            torture.migration()
        if not given.keep:
            for intact in sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime)[:-3]:
                shutil.rmtree(intact)
        if time.monotonic() > shown + 10:
            shown = time.monotonic()
            _show(torture, started)
    _show(torture, started)
    print("no acknowledged record was lost, none doubled; every tree is consistent")
    if not given.keep:
        shutil.rmtree(folder)
    return 0


def _show(torture: Torture, started: float) -> None:
    killed = ", ".join(f"{name} {count}" for name, count in torture.kills.items())
    print(
        f"{time.monotonic() - started:.0f} s: {sum(torture.kills.values())} kills ({killed}),"
        f" {torture.logs} logs, {torture.acknowledged} records acknowledged,"
        f" {torture.gaps} gaps",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
