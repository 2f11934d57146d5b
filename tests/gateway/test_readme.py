"""The gateway's README works as it stands: its blocks run in order, against one server."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import isonomy.sdk.gateway

README = Path(isonomy.sdk.gateway.__file__).with_name("README.md")
BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^\n]*-->\n)?```(?P<kind>python|sh|toml)\n(?P<body>.*?)```", re.S
)


def test_the_blocks_of_the_readme(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = README.read_text().replace("8080", str(port))
    blocks = [(m["kind"], m["body"]) for m in BLOCK.finditer(text) if m["skip"] is None]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "error"}
    printed = []
    try:
        for kind, body in blocks:
            if kind == "toml":
                (tmp_path / "isonomy.toml").write_text(body)
                continue
            shell = ["bash", "-euo", "pipefail", "-c", body]
            with (tmp_path / "printed").open("w+") as out:  # the server keeps what it was given
                done = subprocess.run(
                    shell if kind == "sh" else [sys.executable, "-c", body],
                    cwd=tmp_path,
                    env=environment,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    check=False,
                    timeout=60,
                )
                out.seek(0)
                printed.append(out.read())
            assert done.returncode == 0, f"{body}\n{printed[-1]}"
    finally:
        pid = tmp_path / "serve.pid"
        if pid.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGKILL)
    assert len(printed) == 4
    assert printed[1].count("your account is [EMAIL].") == 2
    assert "'verdict': 'replace'" in printed[1]
    assert "x-isonomy-verdict: allow" in printed[2]


def test_every_key_of_the_table_is_documented() -> None:
    from isonomy.sdk.gateway import Settings

    documented = Settings.__doc__ or ""
    names = [
        name for name in Settings.__struct_fields__ if not re.search(rf"\b{name}\b", documented)
    ]
    assert names == []
