"""Pytest fixtures for tests of checks; pytest finds them wherever Isonomy is installed.

This module imports nothing but pytest, for it is loaded at each start of pytest. What the fixtures
give is imported when a test uses one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .guarding import FakeGuard
    from .model import ScriptedModel


@pytest.fixture
def fake_guard() -> Iterator[Callable[..., FakeGuard]]:
    """Make guards around scripted models (`FakeGuard`); they are closed behind the test."""
    from .guarding import FakeGuard

    with ExitStack() as opened:

        def make(*given: Any, **options: Any) -> FakeGuard:
            return opened.enter_context(FakeGuard(*given, **options))

        yield make


@pytest.fixture
def scripted_model() -> Callable[..., ScriptedModel]:
    """Make backends that answer as told (`ScriptedModel`)."""
    from .model import ScriptedModel

    return ScriptedModel


@pytest.fixture
def isonomy_log(tmp_path: Path) -> Path:
    """Return the path of a log of this test's own: ``fake_guard(..., log=isonomy_log)``."""
    return tmp_path / "isonomy-log"
