"""Who may use the gateway."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any

import openai
import pytest

from isonomy.sdk import ConfigError, Guard, on_output
from isonomy.sdk.gateway.keys import Keys
from isonomy.sdk.gateway.settings import Settings, keys_of, require_keys, settings_of

from .conftest import Serve, decoded
from .speaking import Speaker

SHOP = "shop-key-0123456789"
DESK = "desk-key-0123456789"


def test_every_route_but_health_needs_a_key(serve: Serve) -> None:
    served = serve(Guard(Speaker()), keys={"shop": SHOP})
    open_paths = {"/health", "/ready"}
    for route in served.server.config.loaded_app.app.routes:
        for method in route.methods - {"HEAD"}:
            answer = served.http.request(method, route.path.replace("{model:path}", "x"))
            assert (answer.status_code == 200) is (route.path in open_paths), route.path
            if route.path not in open_paths:
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert decoded(answer)["error"]["code"] == "invalid_api_key"


def test_a_key_and_its_id_in_the_log(serve: Serve, tmp_path: Path) -> None:
    guard = Guard(Speaker(), policy=[on_output(lambda text: True)], log=tmp_path / "audit")
    served = serve(guard, keys={"shop": SHOP, "desk": DESK})
    served.openai(DESK).chat.completions.create(
        model="speaker", messages=[{"role": "user", "content": "hello"}], user="somebody"
    )
    from isonomy.replay import ReplayLog

    with ReplayLog(tmp_path / "audit") as log:
        rows = log.sql("select actor, tags::json->>'user' from calls").fetchall()
    assert rows == [("desk", "somebody")]
    for file in (tmp_path / "audit").rglob("*"):
        if file.is_file():
            assert DESK.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    "sent",
    [
        "Bearer wrong-key-0123456789",
        f"Basic {SHOP}",
        SHOP,
        "Bearer",
        f"Bearer {SHOP}x",
        f"Bearer {SHOP[:-1]}",
        "Bearer \xff\xfe",
    ],
)
def test_wrong_keys(serve: Serve, sent: str) -> None:
    served = serve(Guard(Speaker()), keys={"shop": SHOP})
    answer = served.ask(headers={"authorization": sent.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.status_code == 401
    assert SHOP not in answer.text


def test_two_headers_with_keys_are_none(serve: Serve) -> None:
    served = serve(Guard(Speaker()), keys={"shop": SHOP})
    headers = [("authorization", f"Bearer {SHOP}"), ("authorization", "Bearer other")]
    assert served.http.get("/v1/models", headers=headers).status_code == 401


def test_the_client_sees_an_authentication_error(serve: Serve) -> None:
    served = serve(Guard(Speaker()), keys={"shop": SHOP})
    with pytest.raises(openai.AuthenticationError):
        served.openai("wrong").models.list()
    assert [model.id for model in served.openai(SHOP).models.list()] == ["speaker"]


def test_all_keys_are_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return real(first, second)

    monkeypatch.setattr("isonomy.sdk.gateway.keys.hmac.compare_digest", compare)
    keys = Keys({name: hashlib.sha256(name.encode()).digest() for name in "abc"})
    for presented, owner in (("a", "a"), ("c", "c"), ("x", None), ("", None)):
        compared.clear()
        assert keys.owner(presented) == owner
        assert len(compared) == 3
        assert {len(value) for pair in compared for value in pair} == {32}


def test_metrics_may_be_open(serve: Serve) -> None:
    served = serve(Guard(Speaker()), keys={"shop": SHOP}, open_metrics=True)
    assert served.http.get("/metrics").status_code == 200
    assert served.http.get("/v1/models").status_code == 401


def test_without_keys_only_requests_to_localhost(serve: Serve) -> None:
    served = serve(Guard(Speaker()), only_local=True)
    for host, status in (
        ("127.0.0.1:8080", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("", 403),
    ):
        answer = served.http.get("/v1/models", headers={"host": host})
        assert answer.status_code == status, host


# Reading keys


def read(tmp_path: Path, text: str, **variables: str) -> Keys:
    (tmp_path / "keys").write_text(text)
    table: dict[str, Any] = {"keys_file": "keys"}
    settings = settings_of(table, str(tmp_path / "isonomy.toml"))
    return keys_of(settings, file="isonomy.toml", environ=variables)[0]


def test_a_file_of_keys(tmp_path: Path) -> None:
    digest = hashlib.sha256(DESK.encode()).hexdigest()
    keys = read(tmp_path, f"# ours\n\nshop {SHOP}\n desk\tsha256:{digest} \n")
    assert keys.ids == ("shop", "desk")
    assert (keys.owner(SHOP), keys.owner(DESK), keys.owner(digest)) == ("shop", "desk", None)
    assert SHOP not in repr(vars(keys))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no keys"),
        ("# nothing", "holds no keys"),
        ("lonely", "has 1 words"),
        (f"shop {SHOP} more", "has 3 words"),
        ("shop short", "shorter than 16"),
        (f"sh/op {SHOP}", "a key's id must be"),
        (f"shop {SHOP}\nshop {DESK}", "two keys of the id"),
        ("shop sha256:abc", "64 hexadecimal"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        read(tmp_path, text)
    assert SHOP not in str(caught.value)
    assert str(tmp_path / "keys") in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    settings = settings_of({"keys_file": "nope"}, str(tmp_path / "isonomy.toml"))
    with pytest.raises(ConfigError, match="No such file"):
        keys_of(settings, file="isonomy.toml")
    (tmp_path / "nope").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        keys_of(settings, file="isonomy.toml")


def test_keys_of_the_environment() -> None:
    settings = settings_of({"keys_env": {"shop": "SHOP_KEY"}}, "isonomy.toml")
    keys, _ = keys_of(settings, file="isonomy.toml", environ={"SHOP_KEY": SHOP})
    assert keys.owner(SHOP) == "shop"
    with pytest.raises(ConfigError, match="SHOP_KEY is not set") as caught:
        keys_of(settings, file="isonomy.toml", environ={"SHOP_KEY": ""})
    assert caught.value.key == "serve.keys_env.shop"


def test_reviewers_have_keys_of_their_own() -> None:
    table = {"keys_env": {"shop": "A"}, "reviewer_keys_env": {"boss": "B"}}
    settings = settings_of(table, "isonomy.toml")
    keys, reviewers = keys_of(settings, file="f", environ={"A": SHOP, "B": DESK})
    assert (keys.owner(DESK), reviewers.owner(DESK)) == (None, "boss")
    with pytest.raises(ConfigError, match="approve their own"):
        keys_of(settings, file="f", environ={"A": SHOP, "B": SHOP})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example", "127.0.0.1.x"])
def test_no_keys_for_other_machines(host: str) -> None:
    with pytest.raises(ConfigError, match="no keys are configured"):
        require_keys(Settings(host=host), Keys(), file="isonomy.toml")
    require_keys(Settings(host=host), Keys({"a": b""}), file="isonomy.toml")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9"])
def test_no_keys_for_this_machine(host: str) -> None:
    require_keys(Settings(host=host), Keys(), file="isonomy.toml")


@pytest.mark.parametrize(
    ("table", "key", "problem"),
    [
        ({"prot": 80}, "serve.prot", "port"),
        ({"port": 70000}, "serve", "port must be from 0 to 65535"),
        ({"port": "80"}, "serve.port", "Expected `int`"),
        ({"workers": 0}, "serve", "workers must be at least 1"),
        ({"drain_seconds": 0}, "serve", "drain_seconds must be more than 0"),
        ({"call_seconds": float("nan")}, "serve", "call_seconds must be"),
    ],
)
def test_tables_that_are_wrong(table: dict[str, Any], key: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        settings_of(table, "isonomy.toml")
    assert caught.value.key == key


def test_what_is_given_wins_over_the_table(tmp_path: Path) -> None:
    file = str(tmp_path / "isonomy.toml")
    settings = settings_of({"port": 1, "keys_file": "k"}, file, port=2, host=None)
    assert (settings.port, settings.host) == (2, "127.0.0.1")
    assert settings.keys_file == str(tmp_path / "k")
    assert settings_of({"keys_file": "k"}, file, keys_file="mine").keys_file == "mine"
