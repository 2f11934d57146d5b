"""Makes `backends/demo_model/` importable as `demo_model` before the tests here are."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parents[2] / "backends/demo_model"


def _make_importable() -> None:
    """Registers the folder as the package `demo_model`, leaving `sys.path` as it is."""
    if "demo_model" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "demo_model", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["demo_model"] = package
    spec.loader.exec_module(package)


_make_importable()
