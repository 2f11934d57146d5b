"""Policies made in code of the built-in checks: a replay builds them from the record alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isonomy.plugins import Length, Patterns, Telemetry
from isonomy.replay import ReplayLog
from isonomy.sdk import Guard, Sampling, check


@pytest.mark.parametrize(
    "policy",
    [
        [Length(max=100)],
        [check(Length(max=100), stages=("post_validate",), timeout=2.0, shadow=True)],
        [check(Patterns(deny=("zz",)), id="no-z", stages=("pre_filter",), beside=True)],
        [Telemetry(), check(Length(min=1))],
    ],
)
def test_a_policy_of_named_checks(tmp_path: Path, policy: list[Any]) -> None:
    with Guard("local:demo", policy, tmp_path, sampling=Sampling(seed=7, max_tokens=4)) as guard:
        reply = guard.chat("Where is my order?")
    with ReplayLog(tmp_path) as log:
        replayed = log.replay(reply.call_id)
    assert replayed.status == "verified", replayed.sentence()
