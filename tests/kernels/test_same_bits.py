"""The bits of every operation on fixed inputs are those of every other machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from isonomy.kernels import library

KERNELS = Path(__file__).parents[2] / "kernels"


def test_every_path_has_the_bits_of_the_recorded_machines(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    program, found = tmp_path / "same_bits", library.find()
    source = KERNELS / "verify" / "same_bits.cpp"
    include = f"-I{KERNELS / 'src'}"
    build = [compiler, "-std=c++17", "-O1", include, str(source), str(found), "-o", str(program)]
    subprocess.run([*build, f"-Wl,-rpath,{Path(found).parent}"], check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == (KERNELS / "verify" / "same_bits.txt").read_text()
