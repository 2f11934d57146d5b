"""What the machine can do at this moment: read bandwidth, fma and int8 dot-product peaks.

On a shared machine these change within minutes, so they are measured right before and after what is
compared with them, and only shares are reported. The probe is a C++ program, compiled when needed.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("probes.cpp")


class Probes:
    """A running probe; without a compiler or AVX-512 it knows nothing."""

    def __init__(self, threads: int = 2) -> None:
        self._process: subprocess.Popen[str] | None = None
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None or platform.machine() != "x86_64":
            return
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "probes"
            built = subprocess.run(
                [compiler, "-O3", "-march=native", "-std=c++17", "-pthread", SOURCE, "-o", program],
                capture_output=True,
                check=False,
            )
            if built.returncode:
                return
            self._process = subprocess.Popen(
                [program, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self._ask("fma")  # started, and no longer in need of its file

    def read(self) -> float | None:
        """Return bytes read a second, by all threads together."""
        return self._ask("read")

    def fma(self) -> float | None:
        """Return float32 operations a second: an fma is two a lane."""
        return self._ask("fma")

    def vnni(self) -> float | None:
        """Return int8 operations a second: a product and its addition are two."""
        return self._ask("vnni")

    def _ask(self, probe: str) -> float | None:
        if self._process is None:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(probe + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline()) or None

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.communicate()

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
