"""``isonomy chat --stream``, and what ``isonomy explain`` tells of a stream."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import NASTY, Run, run_apart
from tests.streaming.world import Pieces

from isonomy.replay import ReplayLog
from isonomy.sdk import Guard


def test_an_answer_is_printed_as_it_comes(run: Run, log: Path) -> None:
    plain = run("chat", "--log", log, "--seed", 7, "Where is order 12345?")
    said = run("chat", "--stream", "--log", log, "--seed", 7, "Where is order 12345?")
    assert (said.status, said.out) == (0, plain.out)
    assert "first text after" in said.err
    assert "first text after" not in plain.err
    with ReplayLog(log) as opened:
        newest = opened.calls(limit=1)[0]
        assert "".join(text or "" for _, text in newest.segments) + "\n" == said.out
        assert len(newest.segments) > 1
    told = run("explain", newest.call_id, "--log", log).out
    assert f"left in {len(newest.segments)} pieces, the first after " in told


def test_as_json(run: Run, log: Path) -> None:
    arguments = ("--json", "--log", log, "--seed", 7, "Where is order 12345?")
    plain = run("chat", *arguments).json
    streamed = run("chat", "--stream", *arguments).json
    assert streamed.pop("first_released_ms") > 0
    assert {**streamed, "call_id": 0} == {**plain, "call_id": 0}


def test_what_a_policy_blocks_is_followed_by_the_refusal(run: Run, log: Path) -> None:
    Path("p.toml").write_text(
        '[backend]\nuse = "local:demo"\nseed = 7\n[policy]\n[[policy.checks]]\nuse = "patterns"\n'
        'deny = ["Saturday"]\n',
        encoding="utf-8",
    )
    said = run("chat", "--stream", "--config", "p.toml", "--log", log, "Where is order 12345?")
    assert "Saturday" not in said.out
    assert said.out.endswith("I can't help with that.\n")
    assert "[block by patterns" in said.err


def test_a_closed_pipe_ends_it(log: Path) -> None:
    """As ``isonomy chat --stream ... | head -c 1`` does."""
    import subprocess

    from tests.cli.conftest import ISONOMY

    with subprocess.Popen(
        [ISONOMY, "chat", "--stream", "--log", log, "Where is order 12345?"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read().decode()
    assert "Traceback" not in error
    with ReplayLog(log) as opened:
        assert [call.status for call in opened.calls()] == ["complete"]


def test_terminal_controls_of_a_piece_are_spelled_out(
    run: Run, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isonomy.sdk.Guard", lambda *_, **options: Guard(backend, **options))
    backend = Pieces([NASTY * 3], range(0, 200, 7))
    said = run("chat", "--stream", "--log", log, "hi")
    assert "\x1b" not in said.out
    assert "\u202e" not in said.out
    assert said.out == run("chat", "--log", log, "hi").out


def test_an_unfinished_stream_is_told(run: Run, log: Path) -> None:
    from tests.replay import making

    from isonomy.replay import open_log

    with open_log(log) as journal:
        journal.append([making.intent("call-1", "hello", operation="stream")])
        journal.append(making.segments("call-1", ["so ", "far"]))
    told = run("explain", "call-1", "--log", log).out
    assert "left in 2 pieces\n" in told
    assert "left so far\n" in told
    assert "no result" in told
    assert run("explain", "call-1", "--log", log, "--json").json["segments"] == ["so ", "far"]


def test_the_help_names_it() -> None:
    assert "--stream" in run_apart("chat", "--help").out
