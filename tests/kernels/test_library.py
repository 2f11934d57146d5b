"""Loading, forcing a path, thread counts, and errors for everything that does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import blake3
import numpy as np
import pytest

import isonomy.kernels
from isonomy import kernels
from isonomy.kernels import library

PROBE = """
import hashlib, numpy as np
from isonomy import kernels
rng = np.random.default_rng(0)
x, w = rng.standard_normal((5, 300), np.float32), rng.standard_normal((99, 300), np.float32)
y = kernels.softmax(kernels.silu(kernels.linear(x, kernels.PackedLinear(w))))
print(kernels.info().isa, kernels.info().threads, hashlib.sha256(y.tobytes()).hexdigest())
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ISONOMY_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_info_says_what_computes() -> None:
    info = kernels.info()
    assert info.numerics_version == kernels.NUMERICS_VERSION == 1
    assert info.isa in info.isas
    assert info.isas[0] == "scalar"
    assert info.threads >= 1
    digest = blake3.blake3(library.find().read_bytes()).hexdigest()
    assert info.library_digest == f"blake3:{digest}"
    text = (Path(__file__).parents[2] / "kernels" / "NUMERICS.md").read_text("utf-8")
    assert text.startswith(f"# Canonical numerics, version {info.numerics_version}\n")


def test_the_environment_forces_path_and_threads(isa: str) -> None:
    result = run(PROBE, ISONOMY_ISA=isa, ISONOMY_THREADS="2")
    name, threads, digest = result.stdout.split()
    assert (name, threads) == (isa, "2"), result.stderr
    plain = run(PROBE).stdout.split()
    assert plain[0] == kernels.info().isas[-1]
    assert plain[2] == digest


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ISONOMY_ISA": "avx9"}, "UnsupportedError: instruction set 'avx9' is not supported; "),
        ({"ISONOMY_THREADS": "many"}, "ArgumentError: ISONOMY_THREADS must be a number from 1"),
        ({"ISONOMY_THREADS": "0"}, "ArgumentError: ISONOMY_THREADS must be a number from 1"),
    ],
)
def test_a_wrong_environment_is_refused(environment: dict[str, str], message: str) -> None:
    result = run("from isonomy import kernels; kernels.info()", **environment)
    assert result.returncode == 1
    assert message in result.stderr


def test_importing_needs_numpy_and_no_framework() -> None:
    code = "import sys, isonomy.kernels; print({'torch', 'duckdb', 'scipy'} & set(sys.modules))"
    assert run(code).stdout.strip() == "set()"


def test_a_missing_library_says_where_it_was_sought(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(isonomy.kernels, "__path__", [str(tmp_path)])
    with pytest.raises(kernels.LibraryError, match="install isonomy with pip") as caught:
        library.find()
    assert caught.value.path == str(tmp_path)


def test_a_damaged_library_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / library.FILE_NAME).write_bytes(b"not a library")
    monkeypatch.setattr(isonomy.kernels, "__path__", [str(tmp_path)])
    with pytest.raises(kernels.LibraryError, match="cannot be loaded"):
        library.load.__wrapped__()


def test_a_library_of_another_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI", 99)
    with pytest.raises(kernels.LibraryError, match="this package needs 99: reinstall"):
        library.load.__wrapped__()


def test_threads_and_paths_out_of_range() -> None:
    for threads in (0, -1, 1025):
        with pytest.raises(kernels.ArgumentError, match="between 1 and 1024"):
            kernels.set_threads(threads)
    with (
        pytest.raises(kernels.UnsupportedError, match="instruction set 'mmx'"),
        kernels.using_isa("mmx"),
    ):
        pass


X = np.zeros((2, 8), np.float32)
W = np.zeros(8, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kernels.exp(X.astype(np.float64)), kernels.DtypeError, "x: expected a float32"),
        (lambda: kernels.add(X, X[:1]), kernels.ShapeError, r"b: expected shape \(2, 8\)"),
        (lambda: kernels.rms_norm(X, W[:7], 1e-5), kernels.ShapeError, r"w: expected shape \(8,\)"),
        (lambda: kernels.rms_norm(W, W, 1e-5), kernels.ShapeError, "x: expected shape of 2 dim"),
        (lambda: kernels.softmax(X[:, :0]), kernels.ArgumentError, "at least one column"),
        (lambda: kernels.PackedLinear(X.astype(np.int8)), kernels.DtypeError, "bfloat16 bits"),
        (lambda: kernels.PackedLinear(X[:0]), kernels.ShapeError, "at least one row"),
        (lambda: kernels.PackedLinear(X * np.inf), kernels.NonFiniteError, "NaN or infinity"),
        (
            lambda: kernels.PackedLinear(np.full((2, 2), 0x7F80, np.uint16)),
            kernels.NonFiniteError,
            "NaN or infinity",
        ),
        (
            lambda: kernels.linear(X[:, :7], kernels.PackedLinear(X)),
            kernels.ShapeError,
            r"x: expected shape \(rows, 8\)",
        ),
        (lambda: kernels.embedding([2], X), kernels.ArgumentError, "id 2 is outside the table"),
        (lambda: kernels.embedding([-1], X), kernels.ArgumentError, "id -1 is outside"),
        (lambda: kernels.embedding([0.5], X), kernels.DtypeError, "expected integers"),
        (lambda: kernels.embedding([2**40], X), kernels.ArgumentError, "fit into int32"),
        (
            lambda: kernels.rope(X[None], X[:, :2], X[:, :2], [2]),
            kernels.ArgumentError,
            "position 2 is outside the tables of 2",
        ),
        (
            lambda: kernels.rope(X[None], X, X, [0]),
            kernels.ArgumentError,
            "more dimensions than a head",
        ),
        (
            lambda: kernels.attention(X[None], X[None], X[None], [1], scale=1.0),
            kernels.ArgumentError,
            "position 1 is outside the 1 keys",
        ),
        (
            lambda: kernels.attention(X[None], X[None], X[None] * np.nan, [0], scale=1.0),
            kernels.NonFiniteError,
            "values hold NaN",
        ),
        (
            lambda: kernels.attention(X[None], X[None], X[None], [0], scale=np.inf),
            kernels.ArgumentError,
            "scale and softcap must be finite",
        ),
        (
            lambda: kernels.attention(X[None, :1], X[None], X[None], [0], scale=1.0),
            kernels.ArgumentError,
            "multiple of kv_heads",
        ),
        (
            lambda: kernels.rope_frequencies(8, 1e4, {"rope_type": "dynamic"}),
            kernels.UnsupportedError,
            "rope type 'dynamic' is not supported; available: default, linear, llama3, yarn",
        ),
        (
            lambda: kernels.rope_frequencies(8, 1e4, {"type": "linear"}),
            kernels.ArgumentError,
            "factor must be a positive number",
        ),
        (lambda: kernels.rope_frequencies(7, 1e4), kernels.ArgumentError, "must be even"),
        (lambda: kernels.chain(b"", bytes(32)), kernels.ArgumentError, "32 bytes"),
        (
            lambda: kernels.sample(W * np.nan, kernels.GREEDY, position=0),
            kernels.NonFiniteError,
            "logits hold NaN",
        ),
        (
            lambda: kernels.sample(W, kernels.SamplingParams(temperature=-1.0), position=0),
            kernels.ArgumentError,
            "temperature must be",
        ),
        (
            lambda: kernels.sample(W, kernels.SamplingParams(top_p=0.0), position=0),
            kernels.ArgumentError,
            "top_p must be",
        ),
        (
            lambda: kernels.sample(W, kernels.SamplingParams(min_p=np.nan), position=0),
            kernels.ArgumentError,
            "min_p must be",
        ),
        (
            lambda: kernels.sample(W, kernels.SamplingParams(top_k=-1), position=0),
            kernels.ArgumentError,
            "top_k must not be negative",
        ),
        (
            lambda: kernels.sample(W, kernels.SamplingParams(seed=-1), position=0),
            kernels.ArgumentError,
            "seed must be",
        ),
        (
            lambda: kernels.sample(
                W, kernels.SamplingParams(repetition_penalty=2.0), position=0, history=[8]
            ),
            kernels.ArgumentError,
            "history holds id 8",
        ),
        (
            lambda: kernels.sample(
                W + np.float32(9), kernels.SamplingParams(temperature=1e-38), position=0
            ),
            kernels.ArgumentError,
            "makes a logit overflow",
        ),
        (lambda: kernels.top_logprobs(W, 9), kernels.ArgumentError, "between 0 and 8"),
        (lambda: kernels.logprobs(X, [0, 8]), kernels.ArgumentError, "id 8 has no logit"),
    ],
)
def test_arguments_that_do_not_fit(call: object, error: type[Exception], message: str) -> None:
    assert callable(call)
    with np.errstate(all="ignore"), pytest.raises(error, match=message):
        call()


def test_strided_arrays_are_read_as_they_stand() -> None:
    x = np.arange(60, dtype=np.float32).reshape(6, 10)
    assert kernels.add(x.T, x.T).tobytes() == (x.T + x.T).tobytes()
    assert kernels.row_sum(x[:, ::2]).tobytes() == x[:, ::2].sum(axis=1).tobytes()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_blake3_of_every_tree_shape(extra: int) -> None:
    rng = np.random.default_rng(1)
    chunks = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 100, 192, 255, 256, 257, 512, 777]
    for size in [c * 1024 + extra for c in chunks] + [b + extra for b in (2, 64, 128, 960)]:
        if size >= 0:
            data = rng.bytes(size)
            assert kernels.blake3(data) == blake3.blake3(data).digest()


def test_chain_and_step_digests() -> None:
    logits = np.random.default_rng(2).standard_normal((3, 5000), np.float32)
    digests = kernels.step_digests(logits)
    assert digests == [blake3.blake3(row.tobytes()).digest() for row in logits]
    link = kernels.chain(kernels.CHAIN_START, digests[0])
    assert link == blake3.blake3(bytes(32) + digests[0]).digest()
    assert kernels.step_digests(logits[:0]) == []


def test_philox_known_answers() -> None:
    """Of Random123's known-answer tests (kat_vectors, philox4x32 10)."""
    ones = 2**32 - 1
    assert kernels.philox4x32_10(0, (0, 0, 0, 0)) == (
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    )
    assert kernels.philox4x32_10(2**64 - 1, (ones, ones, ones, ones)) == (
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    )
    assert kernels.philox4x32_10(
        0xA4093822 | 0x299F31D0 << 32, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    ) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)
