"""Each path uses its own instructions only, and nothing comes from the platform's libm."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from functools import cache

import pytest

from isonomy import kernels
from isonomy.kernels import library

PATH_OF_SYMBOL = re.compile(r"^_ZN.*?3iso(?:6(scalar)|4(avx2)|6(avx512)|10(avx512vnni))")
BEYOND_AVX2 = re.compile(r"%zmm|%[xy]mm(?:1[6-9]|2\d|3[01])|%k[0-7]")
# What SSE2 lacks, among the instructions that compilers like to use.
BEYOND_SSE2 = re.compile(
    r"^(?:v\w+|h(?:add|sub)p[sd]|addsubp[sd]|mov(?:ddup|shdup|sldup)|lddqu|pshufb|palignr|pabs\w|ph(?:add|sub)\w+|"
    r"pmul(?:ld|dq|hrsw)|blend\w+|pblend\w+|round[sp][sd]|dpp[sd]|pm(?:in|ax)(?:s[bd]|u[wd])|"
    r"pmov[sz]x\w+|pextr[bdq]|pinsr[bdq]|ptest|packusdw|pcmp(?:eqq|gtq)|crc32\w*|popcnt|"
    r"lzcnt|tzcnt|andn|bextr|mulx|rorx|sarx|shlx|shrx|movbe)$"
)


def tool(*command: str) -> str:
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} (binutils) is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def code() -> dict[str, list[tuple[str, str, str]]]:
    """Instructions by path ("" for what no path owns): function, mnemonic, operands."""
    listing = tool("objdump", "-d", "--no-show-raw-insn", "-w", str(library.find()))
    result: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    function = path = ""
    for line in listing.splitlines():
        if header := re.match(r"^[0-9a-f]+ <(.+)>:$", line):
            function = header[1]
            owner = PATH_OF_SYMBOL.match(function)
            path = next(filter(None, owner.groups())) if owner else ""
        elif instruction := re.match(
            r"^\s+[0-9a-f]+:\t(?:(?:lock|rep\w*|bnd|data16|cs|notrack) )*(\S+)\s*(.*)$", line
        ):
            result[path].append((function, instruction[1], instruction[2]))
    return result


def need_x86() -> None:
    if "avx2" not in library.load().iso_isas_built().decode():
        pytest.skip("this build has the scalar path only")


def test_the_library_keeps_its_symbols() -> None:
    need_x86()
    assert {"", "scalar", "avx2", "avx512", "avx512vnni"} <= set(code())
    for path in ("scalar", "avx2", "avx512"):
        functions = {function for function, _, _ in code()[path]}
        for kernel in (
            "linear_panel",
            "linear_int8_panel",
            "attention_tile",
            "rms_norm",
            "blake3",
            "noisy_argmax",
        ):
            assert any(kernel in function for function in functions), (path, kernel)


@pytest.mark.parametrize("path", ["", "scalar"])
def test_baseline_code_stays_within_sse2(path: str) -> None:
    need_x86()
    foreign = [line for line in code()[path] if BEYOND_SSE2.match(line[1]) or "%ymm" in line[2]]
    # CPUID's question whether the system saves the registers is the one exception of its kind.
    assert not [line for line in foreign if "cpu_indicator" not in line[0]]


def test_avx2_code_has_no_evex_and_does_use_avx2() -> None:
    need_x86()
    assert not [line for line in code()["avx2"] if BEYOND_AVX2.search(line[2])]
    assert any("%ymm" in operands for _, _, operands in code()["avx2"])
    assert any(mnemonic.startswith("vfmadd") for _, mnemonic, _ in code()["avx2"])


def test_int8_products_never_saturate() -> None:
    """Only the path that is for it has VNNI's instruction, and nothing has the saturating ones."""
    need_x86()
    dots = {path: {m for _, m, _ in code()[path] if m.startswith("vpdp")} for path in code()}
    assert {path for path, found in dots.items() if found} == {"avx512vnni"}
    assert dots["avx512vnni"] == {"vpdpbusd"}
    assert any(m == "vpdpbusd" and "%zmm" in operands for _, m, operands in code()["avx512vnni"])


def test_avx512_code_uses_wide_registers() -> None:
    need_x86()
    assert any(
        mnemonic.startswith("vfmadd") and "%zmm" in operands
        for _, mnemonic, operands in code()["avx512"]
    )


@pytest.mark.parametrize("path", ["avx2", "avx512"])
def test_fma_stands_in_linear_and_attention_only(path: str) -> None:
    """Nothing is contracted: fused instructions belong to the two chains."""
    need_x86()
    fused = {
        function for function, mnemonic, _ in code()[path] if mnemonic.startswith(("vfm", "vfnm"))
    }
    assert fused
    assert not [
        f for f in fused if not re.search("linear|panel_of|totals_of|tile|chains|scores_of", f)
    ]


def test_no_mathematical_function_is_imported() -> None:
    symbols = tool("nm", "-D", "--undefined-only", str(library.find()))
    names = {line.split()[-1].split("@")[0] for line in symbols.splitlines() if line.strip()}
    mathematical = re.compile(
        r"^(?:exp|log|tanh|erf|sin|cos|pow|sqrt|fma|rint|round|floor|ceil|trunc)\w*$"
    )
    assert not [name for name in names if mathematical.match(name)]
    assert "memcpy" in names
    needed = tool("objdump", "-p", str(library.find()))
    assert kernels.info().isa
    assert "libmvec" not in needed
