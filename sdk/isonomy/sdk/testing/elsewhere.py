"""Asking a check in another process, with another hash seed.

The child imports the module of the check by name, or reads it from its file, makes an instance with
the same settings, and answers the same questions. Run as
``python -m isonomy.sdk.testing.elsewhere``; `ask_elsewhere` does so.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..canonical import canonical
from ..checks import Check
from ..errors import InputError
from .asking import Panel, Question, Told, World

_SECONDS = 120


class _Task(msgspec.Struct, frozen=True, kw_only=True):
    module: str
    file: str | None
    name: str
    settings: Any
    id: str
    terms: dict[str, Any]
    world: World
    questions: tuple[tuple[str, str], ...]
    path: tuple[str, ...]


def ask_elsewhere(check: Check, world: World, questions: Sequence[Question]) -> list[Told] | str:
    """Return what the check says in another process, or why it can't be asked there."""
    plugin = check.plugin
    named = plugin if hasattr(plugin, "__qualname__") else type(plugin)
    module = sys.modules.get(named.__module__)
    name = named.__qualname__
    if named.__module__ == "__main__":
        return "it stands in a program, not in a module that another process can import."
    if "<" in name:
        return "it is made inside of a function, where another process can't find it."
    if not isinstance(plugin, msgspec.Struct) and named is not plugin and vars(plugin):
        return "it is no msgspec.Struct, so another process can't make one with its settings."
    file = getattr(module, "__file__", None)
    try:
        task = _Task(
            module=named.__module__,
            file=str(Path(file).resolve()) if file else None,
            name=name,
            settings=check.settings if named is not plugin else None,
            id=check.id,
            terms={"stages": check.stages or None, "timeout": check.timeout, **check.given},
            world=world,
            questions=tuple(questions),
            path=tuple(sys.path),
        )
        body = canonical(task)
    except InputError:
        return "what the test gives it (judge, effects) is no data, so it can't be handed over."
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "isonomy.sdk.testing.elsewhere"],
            input=body,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the other process did not end within {_SECONDS} s."
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return f"the other process could not ask it: {lines[-1] if lines else 'no message'}"
    return [
        Told(tuple(body.encode() for body in said), verdict, text)
        for said, verdict, text in msgspec.json.decode(
            done.stdout, type=list[tuple[list[str], str, str]]
        )
    ]


def _found(task: _Task) -> Any:
    try:
        module = importlib.import_module(task.module)
    except ImportError:
        if task.file is None:
            raise
        spec = importlib.util.spec_from_file_location(task.module, task.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[task.module] = module
        spec.loader.exec_module(module)
    thing: Any = module
    for step in task.name.split("."):
        thing = getattr(thing, step)
    return thing


def main() -> None:
    """Answer the questions on standard input."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=_Task)
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a check prints is no result
    sys.path[:] = task.path
    thing = _found(task)
    if task.settings is not None:
        struct = inspect.isclass(thing) and issubclass(thing, msgspec.Struct)
        thing = msgspec.convert(task.settings, thing) if struct else thing()
    given = Check(thing, id=task.id, **task.terms)
    with Panel(given, task.world) as panel:
        answers = [panel.ask(Question(stage, text)) for stage, text in task.questions]  # type: ignore[arg-type]
    plain = [([body.decode() for body in told.said], told.verdict, told.text) for told in answers]
    results.write(msgspec.json.encode(plain))
    results.flush()


if __name__ == "__main__":
    main()
