"""The same request gives the same bits: however it is run, wherever, and beside whatever else."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from isonomy.backends.local import Local
from isonomy.sdk.generation import Generation, Request, Sampling
from isonomy.sdk.vocabulary import Message

kernels = pytest.importorskip("isonomy.kernels")

QUESTION = "Where is my order 12345? Please write to support@example.com. " * 2
REQUEST = Request(
    messages=(Message.of("system", "Be brief."), Message.of("user", QUESTION)),
    sampling=Sampling(
        temperature=0.9,
        top_p=0.95,
        top_k=200,
        min_p=0.001,
        repetition_penalty=1.1,
        max_tokens=24,
        seed=0xFEDCBA9876543210,
        candidate=2,
    ),
)
SCRIPT = """
import sys, msgspec
from isonomy.backends.local import Local
from isonomy.sdk.generation import Request
request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
generation = Local(sys.argv[1]).generate(request)
sys.stdout.buffer.write(msgspec.json.encode(generation))
"""


def bits(generation: Generation) -> Generation:
    """All of a generation but what may differ."""
    return msgspec.structs.replace(generation, runtime={}, timings={})


@pytest.fixture(scope="module", params=["f32", "bf16"])
def folder(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    build: SimpleNamespace,
) -> Path:
    # Sizes that leave a rest at every width the kernels know.
    config = build.config(
        hidden_size=72, intermediate_size=280, num_attention_heads=3, num_key_value_heads=1
    ) | {"head_dim": 22, "sliding_window": 50, "model_type": "mistral"}
    for key in ("attention_bias", "mlp_bias", "architectures"):
        del config[key]
    path: Path = build.checkpoint(
        tmp_path_factory.mktemp("bits") / "model", config, bf16=request.param == "bf16"
    )
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> Generation:
    generation = bits(Local(folder).generate(REQUEST))
    assert generation.prompt_ids is not None
    assert len(generation.prompt_ids) > 62
    assert generation.tokens is not None
    assert len(set(generation.tokens.ids)) > 5
    assert len(generation.tokens.digests) == 32 * len(generation.tokens.ids)
    assert len(generation.tokens.logprobs) == 4 * len(generation.tokens.ids)
    return generation


def test_again_and_from_a_fresh_load(folder: Path, expected: Generation) -> None:
    backend = Local(folder)
    assert bits(backend.generate(REQUEST)) == expected
    assert bits(backend.generate(REQUEST)) == expected


@pytest.mark.parametrize("chunk", [1, 2, 7, 31, 64, 10_000])
def test_prompt_chunks(folder: Path, expected: Generation, chunk: int) -> None:
    assert bits(Local(folder, prompt_chunk=chunk).generate(REQUEST)) == expected


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_threads_and_instruction_sets(
    folder: Path, expected: Generation, isa: str, threads: int
) -> None:
    if isa not in kernels.info().isas:
        pytest.skip(f"this machine has no {isa}")
    before = kernels.info().threads
    backend = Local(folder, prompt_chunk=7)
    try:
        kernels.set_threads(threads)
        with kernels.using_isa(isa):
            generation = backend.generate(REQUEST)
            assert generation.runtime["isa"] == isa
            assert generation.runtime["threads"] == threads
            assert bits(Local(folder).generate(REQUEST)) == expected
        assert bits(generation) == expected
    finally:
        kernels.set_threads(before)


def test_a_new_process(folder: Path, expected: Generation) -> None:
    environment = os.environ | {"ISONOMY_ISA": "scalar", "ISONOMY_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        input=msgspec.json.encode(REQUEST),
        capture_output=True,
        env=environment,
        check=True,
    )
    generation = msgspec.json.decode(done.stdout, type=Generation)
    assert generation.runtime["isa"] == "scalar"
    assert bits(generation) == expected


def test_beside_other_requests(folder: Path, expected: Generation) -> None:
    backend = Local(folder)
    others = [
        Request(messages=(Message.of("user", "x" * n),), sampling=Sampling(max_tokens=9, seed=n))
        for n in range(1, 6)
    ]
    alone = [bits(backend.generate(other)) for other in others]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(backend.generate, [REQUEST, *others, REQUEST]))
    assert [bits(generation) for generation in together] == [expected, *alone, expected]


def test_what_matters_does_matter(folder: Path, expected: Generation) -> None:
    """The comparisons above can fail: another seed, candidate or prompt gives other bits."""
    backend = Local(folder)
    for change in ({"seed": 1}, {"candidate": 0}):
        sampling = msgspec.structs.replace(REQUEST.sampling, **change)
        other = backend.generate(msgspec.structs.replace(REQUEST, sampling=sampling))
        assert other.tokens is not None
        assert expected.tokens is not None
        assert other.tokens.ids != expected.tokens.ids
        assert other.tokens.digests[:32] == expected.tokens.digests[:32]
        assert other.tokens.chain != expected.tokens.chain


def test_evidence_follows_from_the_logits(folder: Path, expected: Generation) -> None:
    """Digests, chain and log-probabilities of the trace, computed again from all logits at once."""
    assert expected.tokens is not None
    assert expected.prompt_ids is not None
    trace, prompt = expected.tokens, expected.prompt_ids
    from isonomy.backends.local.checkpoint import load

    loaded = load(folder)
    ids = [*prompt, *trace.ids[:-1]]
    logits = loaded.decoder.session(len(ids)).feed(ids, all_logits=True)[len(prompt) - 1 :]
    digests = kernels.step_digests(logits)
    assert b"".join(digests) == trace.digests
    chain = bytes(32)
    for digest in digests:
        chain = kernels.chain(chain, digest)
    assert chain == trace.chain
    assert kernels.logprobs(logits, list(trace.ids)).tobytes() == trace.logprobs
