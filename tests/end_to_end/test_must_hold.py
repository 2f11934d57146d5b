"""One recorded call, replayed to the same bits however and wherever it runs.

Temperature above 0, the demo model, a guard with checks; nothing below may matter: threads,
instruction set, how the prompt is fed, what else runs, which process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from isonomy import kernels
from isonomy.backends.local import Local
from isonomy.replay import ReplayLog, StoredCall, replay_separately
from isonomy.replay.replaying import replay_call
from isonomy.sdk import Guard, Message, Request, Sampling
from isonomy.sdk.events import Generated

ISONOMY = Path(sys.executable).with_name("isonomy")
POLICY = """
[backend]
use = "local:demo"
temperature = 0.9
seed = 20260101
max_tokens = 48
[log]
path = "log"
[[policy.checks]]
use = "length"
id = "short"
stages = ["pre_filter"]
max = 4000
[[policy.checks]]
use = "patterns"
id = "no-keys"
stages = ["post_validate"]
deny = ["sk-demo-[0-9a-z]+"]
"""
CONVERSATION = [
    Message.of("user", "Hello"),
    Message.of("assistant", "Hello! How can I help you today?"),
    Message.of("user", "Where is my order 4821?"),
    Message.of("assistant", "Order 4821 is on its way and should arrive on Thursday."),
    Message.of("user", "How do I reset my password?"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("must-hold")
    (folder / "isonomy.toml").write_text(POLICY)
    with Guard.from_file(folder / "isonomy.toml") as guard:
        guard.chat(CONVERSATION)
    return folder


@pytest.fixture(scope="module")
def call(folder: Path) -> StoredCall:
    with ReplayLog(folder / "log") as log:
        (call,) = log.calls()
    assert call.intent is not None
    assert call.intent.sampling.temperature == 0.9
    return call


def generated(call: StoredCall) -> Generated:
    (event,) = [event for event in call.events if isinstance(event, Generated)]
    return event


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_instruction_sets_and_threads(
    folder: Path, call: StoredCall, isa: str, threads: str
) -> None:
    if isa not in kernels.info().isas:
        pytest.skip(f"this machine lacks {isa}")
    done = subprocess.run(
        [ISONOMY, "replay", call.call_id, "--log", folder / "log", "--json"],
        env={**os.environ, "ISONOMY_ISA": isa, "ISONOMY_THREADS": threads},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    result = json.loads(done.stdout)
    assert (result["status"], result["reexecuted"], result["stand_ins"]) == ("verified", 1, 0)
    assert result["steps"] == len(generated(call).generation.tokens.ids) > 5


def test_the_switches_reach_the_replaying_process(
    call: StoredCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the test above would show nothing."""
    monkeypatch.setenv("ISONOMY_ISA", "abacus")
    result = replay_separately(call)
    assert result.status == "refused"
    assert "abacus" in result.sentence()


@pytest.mark.parametrize("chunk", [1, 7, 31, None])
def test_prompts_in_chunks(folder: Path, call: StoredCall, chunk: int | None) -> None:
    with (
        Local("demo", temperature=0.9, seed=20260101, max_tokens=48, prompt_chunk=chunk) as local,
        Guard.from_file(folder / "isonomy.toml", backend=local) as guard,
    ):
        assert len(generated(call).generation.prompt_ids) > 31
        result = guard.replay(call.call_id)
    assert (result.status, result.reexecuted) == ("verified", 1), result.sentence()


def test_beside_other_calls(folder: Path, call: StoredCall) -> None:
    """Replays between live calls of other lengths and seeds, all on one backend."""
    with (
        Local("demo") as local,
        Guard.from_file(folder / "isonomy.toml", backend=local) as guard,
        ThreadPoolExecutor(6) as threads,
    ):
        others = [
            threads.submit(
                local.generate,
                Request(
                    messages=(Message.of("user", "Thank you! " * (1 + number)),),
                    sampling=Sampling(temperature=1.0, seed=number, max_tokens=40),
                ),
            )
            for number in range(6)
        ]
        replays = [threads.submit(guard.replay, call.call_id) for _ in range(4)]
        results = [future.result() for future in replays]
        assert all(future.result().tokens for future in others)
    assert [result.status for result in results] == ["verified"] * 4


def test_again_and_again(call: StoredCall) -> None:
    assert [replay_call(call).status for _ in range(2)] == ["verified"] * 2


def test_a_live_call_repeats(folder: Path, call: StoredCall, tmp_path: Path) -> None:
    """Not by replay: the same request of another guard gives the same bytes."""
    with Guard.from_file(folder / "isonomy.toml", log=tmp_path / "log") as guard:
        reply = guard.chat(CONVERSATION)
    (event,) = [event for event in reply.events if isinstance(event, Generated)]
    old, new = generated(call).generation, event.generation
    assert (new.tokens, new.prompt_ids, new.content) == (old.tokens, old.prompt_ids, old.content)


def test_another_seed_differs(folder: Path, call: StoredCall, tmp_path: Path) -> None:
    """The calls above could agree because nothing is sampled; this one shows that it is."""
    said: set[Any] = set()
    with Guard.from_file(folder / "isonomy.toml", log=tmp_path / "log") as guard:
        for seed in range(6):
            sampling = Sampling(temperature=3.0, seed=seed)
            reply = guard.chat(CONVERSATION, sampling=sampling)
            said.add(reply.text)
    assert len(said) > 1
