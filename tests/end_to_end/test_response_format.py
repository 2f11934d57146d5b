"""Answers of an asked-for form, from the guard to the replay, with the demo model."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.replay import calls

from isonomy.backends.local import Local
from isonomy.backends.local.errors import UnusableFormat
from isonomy.replay import replay_separately
from isonomy.replay.replaying import replay_call
from isonomy.sdk import Guard, Message, Request, Sampling
from isonomy.sdk.canonical import canonical
from isonomy.sdk.generation import Generation
from isonomy.sdk.records import Intent, RequestContent

SCHEMA = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["shipped", "waiting", "lost"]},
        "parcels": {"type": "integer", "minimum": 1, "maximum": 20},
        "note": {"type": "string", "maxLength": 12},
    },
    "required": ["verdict", "parcels", "note"],
    "additionalProperties": False,
}
AS_JSON = {"type": "json_schema", "json_schema": {"name": "order", "schema": SCHEMA}}
AS_CODE = {"type": "regex", "regex": "[A-Z]{2}-[0-9]{4}"}
WARM = Sampling(temperature=1.0, seed=5, max_tokens=100)


def valid(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == SCHEMA["required"]
        and value["verdict"] in ("shipped", "waiting", "lost")
        and 1 <= value["parcels"] <= 20
        and len(value["note"]) <= 12
    )


def request(response_format: dict[str, Any] | None, seed: int = 5) -> Request:
    return Request(
        messages=(Message.of("user", "Where is my order 4821?"),),
        sampling=msgspec.structs.replace(WARM, seed=seed),
        response_format=response_format,
    )


def told(generation: Generation) -> Any:
    return (generation.text, generation.finish_reason, generation.tokens)


@pytest.fixture(scope="module")
def backend() -> Local:
    return Local("demo")


def test_every_answer_has_the_form(backend: Local) -> None:
    for seed in range(20):
        generation = backend.generate(request(AS_JSON, seed))
        assert generation.finish_reason == "stop"
        assert valid(generation.text), generation.text
        code = backend.generate(request(AS_CODE, seed))
        assert re.fullmatch(AS_CODE["regex"], code.text), code.text
    assert not valid_or_not(backend.generate(request(None)).text)


def valid_or_not(text: str) -> bool:
    try:
        return valid(text)
    except ValueError:
        return False


@pytest.mark.parametrize("response_format", [AS_JSON, AS_CODE], ids=["json", "regex"])
def test_a_call_is_recorded_and_replayed_to_the_same_bits(
    tmp_path: Path, response_format: dict[str, Any]
) -> None:
    with Guard("local:demo", log=tmp_path / "log") as guard:
        reply, call = calls.chat(guard, sampling=WARM, response_format=response_format)
    if response_format is AS_JSON:
        assert valid(reply.text or "")
    for regenerate in (False, True):
        result = replay_call(call, regenerate=regenerate)
        assert (result.status, result.reexecuted) == ("verified", 1), result
        assert result.steps > 5
    assert replay_separately(call).status == "verified"


def test_a_replay_without_the_format_diverges(tmp_path: Path) -> None:
    with Guard("local:demo", log=tmp_path / "log") as guard:
        _, call = calls.chat(guard, sampling=WARM, response_format=AS_JSON)
    records = []
    for record in call.records:
        if isinstance(record.record, Intent):
            content = msgspec.json.decode(record.payloads["request"], type=RequestContent)
            freed = canonical(msgspec.structs.replace(content, response_format=None))
            payloads = {**record.payloads, "request": freed}
            record = msgspec.structs.replace(record, payloads=payloads)
        records.append(record)
    changed = msgspec.structs.replace(call, records=tuple(records))
    for regenerate in (False, True):
        assert replay_call(changed, regenerate=regenerate).status == "diverged"


def test_neighbours_guesses_and_chunks_change_no_bit(backend: Local) -> None:
    alone = [
        told(backend.generate(request(form, seed)))
        for form in (AS_JSON, AS_CODE, None)
        for seed in range(4)
    ]
    with (
        Local("demo", draft="lookup", prompt_chunk=3, max_concurrent=5) as other,
        ThreadPoolExecutor(12) as pool,
    ):
        asked = [request(form, seed) for form in (AS_JSON, AS_CODE, None) for seed in range(4)]
        assert [told(g) for g in pool.map(other.generate, asked)] == alone

        async def together() -> list[Generation]:
            return await asyncio.gather(*(other.agenerate(one) for one in asked))

        assert [told(g) for g in asyncio.run(together())] == alone
        for one, expected in zip(asked, alone, strict=True):
            answer = backend.generate(one)
            assert told(other.generate(one, recorded=answer)) == expected


def test_a_form_that_cannot_be_had_ends_its_own_call_only(backend: Local, tmp_path: Path) -> None:
    expected = told(backend.generate(request(AS_JSON)))
    wrong = {"type": "json_schema", "json_schema": {"schema": {"uniqueItems": True}}}
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(backend.generate, request(AS_JSON)) for _ in range(3)]
        bad = pool.submit(backend.generate, request(wrong))
        with pytest.raises(UnusableFormat, match="uniqueItems"):
            bad.result()
        assert [told(future.result()) for future in good] == [expected] * 3
    with Guard("local:demo", log=tmp_path / "log") as guard:
        with pytest.raises(UnusableFormat, match="uniqueItems"):
            guard.chat("hello", response_format=wrong)
        call = calls.newest(tmp_path / "log")
    assert call.request is not None
    assert call.request.response_format == wrong
