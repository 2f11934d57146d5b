"""Calls that wait for a person, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isonomy.sdk import AskHuman, Guard, hookimpl

from .conftest import Serve, Served, decoded
from .speaking import Speaker

CLIENT, BOSS = "client-key-0123456789", "boss--key-0123456789"
REVIEWED = {"authorization": f"Bearer {BOSS}"}


class AsksAboutMoney:
    @hookimpl
    def post_validate(self, candidate: Any) -> Any:
        return AskHuman("money") if "money" in candidate.text else None


def served_with(serve: Serve, tmp_path: Path, **options: Any) -> Served:
    guard = Guard(Speaker(), policy=[AsksAboutMoney()], log=tmp_path / "audit")
    return serve(guard, **options)


def waiting(served: Served, key: str = "", **more: Any) -> str:
    headers = {"authorization": f"Bearer {key}"} if key else None
    answer = served.ask("send money", headers=headers, **more)
    body = decoded(answer)
    assert answer.headers["x-isonomy-verdict"] == "ask_human"
    assert body["choices"][0]["finish_reason"] == "content_filter"
    assert "money" not in body["choices"][0]["message"]["content"]
    token = answer.headers["x-isonomy-token"]
    assert body["isonomy"]["token"] == token
    return str(token)


def resume(served: Served, headers: Any = None, **body: Any) -> Any:
    return served.http.post("/v1/isonomy/resume", json=body, headers=headers)


def test_approved(serve: Serve, tmp_path: Path) -> None:
    served = served_with(serve, tmp_path)
    token = waiting(served)
    answer = resume(served, token=token, decision="approve", by="mia", reason="known customer")
    body = decoded(answer)
    assert answer.status_code == 200
    assert body["choices"][0]["message"]["content"] == "You said: send money"
    assert body["object"] == "chat.completion"
    assert body["model"] == "speaker"
    again = resume(served, token=token, decision="approve")
    assert again.status_code == 400
    assert "no call waits for this token" in decoded(again)["error"]["message"]


def test_edited_and_rejected(serve: Serve, tmp_path: Path) -> None:
    served = served_with(serve, tmp_path)
    edited = resume(served, token=waiting(served), decision="edit", edited="Ask in the branch.")
    assert decoded(edited)["choices"][0]["message"]["content"] == "Ask in the branch."
    rejected = resume(served, token=waiting(served), decision="reject")
    assert decoded(rejected)["choices"][0]["finish_reason"] == "content_filter"
    assert rejected.headers["x-isonomy-verdict"] == "block"


def test_a_stream_tells_the_token_too(serve: Serve, tmp_path: Path) -> None:
    served = served_with(serve, tmp_path)
    with served.openai().chat.completions.create(
        model="speaker", messages=[{"role": "user", "content": "send money"}], stream=True
    ) as stream:
        last = list(stream)[-1]
    assert last.model_extra is not None
    token = last.model_extra["isonomy"]["token"]
    assert resume(served, token=token, decision="approve").status_code == 200


def test_only_reviewers_may_where_there_are_some(serve: Serve, tmp_path: Path) -> None:
    served = served_with(serve, tmp_path, keys={"app": CLIENT}, reviewers={"boss": BOSS})
    token = waiting(served, CLIENT)
    for headers in (None, {"authorization": f"Bearer {CLIENT}"}):
        assert resume(served, headers, token=token, decision="approve").status_code == 401
    assert served.ask("hello", headers=REVIEWED).status_code == 401
    answer = resume(served, REVIEWED, token=token, decision="approve", by="somebody else")
    assert answer.status_code == 200
    from isonomy.replay import ReplayLog

    with ReplayLog(tmp_path / "audit") as log:
        [decision] = log.sql("select content->>'by' from events where type = 'decided'").fetchall()
    assert decision == ("boss",)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"token": "x"}, None),
        ({"token": 1, "decision": "approve"}, "token"),
        ({"token": "x", "decision": "perhaps"}, "decision"),
        ({"token": "x", "decision": "approve", "more": 1}, None),
        ({"token": "x", "decision": "approve"}, None),
        ({"token": "x" * 100, "decision": "approve", "edited": "y"}, None),
        ({"token": "x", "decision": "edit"}, None),
        ({"token": "x", "decision": "edit", "edited": [1]}, "messages[0]"),
    ],
)
def test_bodies_that_are_wrong(
    serve: Serve, tmp_path: Path, body: dict[str, Any], param: str | None
) -> None:
    answer = resume(served_with(serve, tmp_path), **body)
    assert answer.status_code == 400
    assert decoded(answer)["error"]["param"] == param
