from collections.abc import Callable
from typing import Any

import pytest


class Effects:
    """The part of a context that the built-in checks use, with what they asked of it."""

    def __init__(self, secrets: dict[str, str], recorded: list[Any] | None = None) -> None:
        self.secrets = secrets
        self.recorded = recorded
        self.asked: list[tuple[str, str, Any]] = []

    def secret(self, name: str) -> str:
        self.asked.append(("secret", name, None))
        return f"[secret {name}]" if self.recorded is not None else self.secrets[name]

    def effect(self, name: str, function: Callable[[], Any]) -> Any:
        value = self.recorded.pop(0) if self.recorded is not None else function()
        self.asked.append(("effect", name, value))
        return value


@pytest.fixture
def effects() -> type[Effects]:
    return Effects
