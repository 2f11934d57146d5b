"""The replaying process: what it may import, what it may touch, and what it is not told.

Plugins are made as installed packages, with entry points, and as plain modules, in a folder that
the processes of the test find through PYTHONPATH.
"""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.replay import calls

from isonomy.replay import StoredCall, replay_separately
from isonomy.replay.replaying import replay_call
from isonomy.sdk import Guard

HEAD = """
import os, socket, subprocess, sys
from pathlib import Path

from isonomy.sdk import Allow, Flag, hookimpl

LIVE = bool(os.environ.get("LIVE"))
if LIVE:
    Path(__file__).with_name("imported").touch()

print("printed while importing")
os.write(1, b"written to file descriptor 1")


class Reaches:
    @hookimpl
    def post_validate(self, ctx):
        print("printed by a check")
        self.reach(ctx)
        return Allow()

    def reach(self, ctx):
        pass


@hookimpl
def isonomy_checks():
    return {"reaches": Reaches}
"""
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calls.tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that can be imported here and by processes started from here on."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("LIVE", "1")  # not passed on to the replaying process
    return folder


def isonomy(*arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("isonomy"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout


def chat(tmp_path: Path, model: Path, policy: str, *, apart: bool = False) -> StoredCall:
    """A call; with `apart` in a process of its own, so that this one does not import plugins."""
    file = calls.policy_file(tmp_path, model, policy)
    if apart:
        isonomy("chat", "hello", "--config", str(file))
    else:
        with Guard.from_file(file) as guard:
            guard.chat("hello")
    return calls.newest(tmp_path / "log")


def recorded(
    tmp_path: Path, model: Path, site: Path, reach: str, *, apart: bool = False
) -> tuple[StoredCall, str]:
    """A call judged by a plugin that does what `reach` says, and the plugin's module."""
    module = f"tripwire_{next(NUMBERS)}"
    lines = "\n".join("        " + line for line in reach.strip().splitlines())
    (site / f"{module}.py").write_text(HEAD.replace("        pass\n", f"{lines}\n"))
    policy = f'plugins = ["{module}"]\n[[policy.checks]]\nuse = "reaches"\nid = "reaching"\n'
    return chat(tmp_path, model, policy, apart=apart), module


def test_a_built_in_policy(tmp_path: Path, model: Path) -> None:
    policy = '[[policy.checks]]\nuse = "length"\nid = "short"\nmax = 1000\n'
    call = chat(tmp_path, model, policy)
    result = replay_separately(call)
    assert (result.status, result.reexecuted, result.stand_ins) == ("verified", 1, 0)
    assert result == replay_call(call)


def test_a_log_does_not_decide_what_is_imported(tmp_path: Path, model: Path, site: Path) -> None:
    call, module = recorded(tmp_path, model, site, "pass", apart=True)
    told = site / "imported"
    told.unlink()
    for result in (
        replay_separately(call),
        replay_call(call),
        replay_call(call, plugins=["another", "os"]),
    ):
        assert result.status == "refused"
        assert result.reason is not None
        assert f"pass --plugins {module}" in result.reason
    assert not told.exists(), "the log had a module imported"
    assert module not in sys.modules
    # Allowed, it is imported, and what it prints is not taken for the result.
    said = isonomy(
        "replay", call.call_id, "--log", str(tmp_path / "log"), "--plugins", module, "--json"
    )
    assert json.loads(said)["status"] == "verified"


def test_an_installed_package(tmp_path: Path, model: Path, site: Path) -> None:
    """Its entry point makes a name known; only the user makes it importable in a replay."""
    (site / "isonomy_courtesy").mkdir()
    (site / "isonomy_courtesy" / "__init__.py").write_text(
        "from isonomy.sdk import Allow, hookimpl\n"
        "class Polite:\n"
        "    @hookimpl\n"
        "    async def post_validate(self, ctx):\n"
        "        async def look(): return 7\n"
        "        assert await ctx.aeffect('look', look) == 7\n"
        "        return Allow()\n"
    )
    info = site / "isonomy_courtesy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: isonomy-courtesy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[isonomy.checks]\npolite = isonomy_courtesy:Polite\n")
    (info / "top_level.txt").write_text("isonomy_courtesy\n")
    call = chat(tmp_path, model, '[[policy.checks]]\nuse = "polite"\n', apart=True)
    result = replay_separately(call)
    assert result.status == "refused"
    assert result.reason is not None
    assert "is not trusted here" in result.reason
    assert "--plugins isonomy_courtesy" in result.reason
    assert replay_separately(call, plugins=["isonomy_courtesy"]).status == "verified"


REACHES = {
    "socket": "socket.socket(socket.AF_INET).close()",
    "connection": "socket.socket(socket.AF_UNIX).connect(f'{folder}/unix')",
    "name lookup": "socket.getaddrinfo('localhost', 80)",
    "event loop": "asyncio.new_event_loop().close()",
    "subprocess": "subprocess.run(['true'])",
    "system": "os.system('true')",
    "fork": "os.waitpid(os.fork() or os._exit(0), 0)",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "signal": "os.kill(os.getpid(), 0)",
    "write": "Path(f'{folder}/written').write_text('x')",
    "append": "open(f'{folder}/written', 'a').close()",
    "update": "open(f'{folder}/old', 'r+').close()",
    "low-level write": "os.close(os.open(f'{folder}/written', os.O_WRONLY | os.O_CREAT))",
    "low-level creation": "os.close(os.open(f'{folder}/written', os.O_RDONLY | os.O_CREAT))",
    "temporary file": "tempfile.NamedTemporaryFile(dir=folder).close()",
    "folder": "os.mkdir(f'{folder}/made')",
    "rename": "os.rename(f'{folder}/old', f'{folder}/new')",
    "removal": "os.remove(f'{folder}/old')",
    "touch": "os.utime(f'{folder}/old')",
    "mode": "os.chmod(f'{folder}/old', 0o600)",
    "database": "sqlite3.connect(f'{folder}/db').close()",
    "read": "open(f'{folder}/old').close()",
    "nothing": "open(os.devnull, 'w').close()",
}
ALLOWED = {"event loop", "read", "nothing"}
TRY = """
import asyncio, json, os, socket, sqlite3, subprocess, sys, tempfile
from pathlib import Path
from isonomy.replay import child

reaches, folder = json.loads(sys.argv[1]), sys.argv[2]
sys.addaudithook(child._deny)
came = {}
for name, code in reaches.items():
    try:
        exec(code)
        came[name] = "allowed"
    except child.Denied as error:
        came[name] = "denied"
        assert "a replay may not" in str(error)
    except Exception as error:
        came[name] = repr(error)
print(json.dumps(came))
"""


def test_what_strays_is_caught(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("as it was")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "unix"))
        server.listen()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", TRY, json.dumps(REACHES), str(tmp_path)],
            capture_output=True,
            check=True,
        )
    came = json.loads(done.stdout)
    assert came == {name: "allowed" if name in ALLOWED else "denied" for name in REACHES}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "unix"]
    assert (tmp_path / "old").read_text() == "as it was"


def test_a_check_that_strays(tmp_path: Path, model: Path, site: Path) -> None:
    reach = """
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except ConnectionRefusedError:
    pass
"""
    call, module = recorded(tmp_path, model, site, reach)
    result = replay_separately(call, plugins=[module])
    assert (result.status, result.exit_status) == ("diverged", 1)
    assert result.difference is not None
    assert result.difference.check == "reaching"
    assert "Denied: a replay may not" in result.difference.replayed


def test_secrets_stay_in_their_process(
    tmp_path: Path, model: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what Python needs, and our own switches, are passed on."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("ISONOMY_THREADS", "1")
    reach = """
if not LIVE:
    raise RuntimeError(f"environment: {' '.join(os.environ)}")
"""
    call, module = recorded(tmp_path, model, site, reach)
    result = replay_separately(call, plugins=[module])
    assert result.difference is not None
    assert "environment: " in result.difference.replayed
    names = set(result.difference.replayed.partition("environment: ")[2].split())
    assert "ISONOMY_THREADS" in names
    assert not {"OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "LIVE"} & names


def test_the_working_directory_is_not_imported_from(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = chat(tmp_path, model, "")
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("msgspec", "isonomy", "json", "blake3"):
        (trap / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(trap)
    assert replay_separately(call).status == "verified"


@pytest.mark.parametrize(
    ("reach", "reason"),
    [("os._exit(0)", "ended without a result"), ("os._exit(3)", "the replaying process failed")],
)
def test_a_process_that_ends(
    tmp_path: Path, model: Path, site: Path, reach: str, reason: str
) -> None:
    call, module = recorded(tmp_path, model, site, f"if not LIVE: {reach}")
    result = replay_separately(call, plugins=[module])
    assert result.status == "refused"
    assert reason in result.sentence()


def test_a_process_that_hangs(tmp_path: Path, model: Path, site: Path) -> None:
    call, module = recorded(tmp_path, model, site, "import time\nif not LIVE: time.sleep(60)")
    result = replay_separately(call, plugins=[module], timeout=2.0)
    assert result.sentence() == "refused: the replay did not end within 2 s."
