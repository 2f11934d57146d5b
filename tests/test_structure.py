"""The shape of the repository: a namespace package, who may import whom, and a light SDK.

Arrows: `kernels` imports no other part; `sdk` none at module level; `plugins`, `backends` and
`replay` import `sdk`; `backends.local` and `backends.reference` import `kernels`; nothing imports
`plugins`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("sdk", "plugins", "backends", "kernels", "replay")
FOLDERS = {part: ROOT / part / "isonomy" / part for part in PARTS}
ALLOWED: dict[str, set[str]] = {
    "sdk": set(),
    "plugins": {"sdk"},
    "backends": {"sdk"},
    "backends.local": {"sdk", "kernels"},
    "backends.reference": {"sdk", "kernels"},
    "kernels": set(),
    "replay": {"sdk"},
}


def modules() -> list[tuple[str, Path]]:
    return [
        (part, file) for part, folder in FOLDERS.items() for file in sorted(folder.rglob("*.py"))
    ]


def place_of(part: str, file: Path) -> str:
    """The part that the arrows name: what computes in ``backends`` stands apart from the rest."""
    inner = file.relative_to(FOLDERS[part]).parts
    place = f"{part}.{inner[0]}"
    return place if place in ALLOWED else part


def imports(body: list[ast.stmt], *, nested: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports of a module: those that run when it is imported, or with `nested` all that can run.

    What stands under ``if TYPE_CHECKING`` never runs.
    """
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from imports(statement.orelse, nested=nested)
        elif nested or not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from imports(getattr(statement, field, []), nested=nested)
            for handler in [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]:
                yield from imports(handler.body, nested=nested)


def parts_of(statement: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> set[str]:
    """The parts of Isonomy that an import statement names; `package` is where it stands."""
    names: list[str]
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    else:
        base = ".".join(package[: len(package) - statement.level + 1]) if statement.level else ""
        module = ".".join(name for name in (base, statement.module) if name)
        names = [f"{module}.{alias.name}" for alias in statement.names]
    found = set()
    for name in names:
        pieces = name.split(".")
        if pieces[0] == "isonomy" and len(pieces) > 1:
            found.add(pieces[1])
    return found


def imported(part: str, file: Path, *, nested: bool) -> set[str]:
    package = ("isonomy", part, *file.relative_to(FOLDERS[part]).parts[:-1])
    tree = ast.parse(file.read_text("utf-8"))
    return {
        name
        for statement in imports(tree.body, nested=nested)
        for name in parts_of(statement, package)
    } - {part}


def test_the_reader_of_imports_sees_every_form() -> None:
    source = """
import isonomy.kernels.library
from isonomy import plugins
from isonomy.sdk import Guard
from ...replay import journal
from ..remote import x
try:
    import isonomy.one
except ImportError:
    import isonomy.two
else:
    from isonomy.three import y
if TYPE_CHECKING:
    import isonomy.never
class A:
    import isonomy.four
with x:
    import isonomy.five
def f():
    import isonomy.later
    match x:
        case 1:
            import isonomy.latest
"""
    body, package = ast.parse(source).body, ("isonomy", "backends", "local")
    found = [
        {
            name
            for statement in imports(body, nested=nested)
            for name in parts_of(statement, package)
        }
        for nested in (False, True)
    ]
    once = {"kernels", "plugins", "sdk", "replay", "backends"}
    assert found[0] == once | {"one", "two", "three", "four", "five"}
    assert found[1] == found[0] | {"later", "latest"}
    assert parts_of(body[4], ("isonomy", "backends", "local")) == {"backends"}
    assert parts_of(body[4], ("isonomy", "sdk")) == {"remote"}


def test_every_part_has_modules() -> None:
    found = {part for part, _ in modules()}
    assert found == set(PARTS)


def test_isonomy_is_a_namespace_package() -> None:
    assert [part for part in PARTS if (ROOT / part / "isonomy" / "__init__.py").exists()] == []
    assert [part for part in PARTS if (ROOT / part / "__init__.py").exists()] == []
    assert not (ROOT / "isonomy").exists()
    for part in PARTS:
        inside = [entry.name for entry in (ROOT / part / "isonomy").iterdir()]
        assert [name for name in inside if name != "__pycache__"] == [part]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_typed(part: str) -> None:
    assert (FOLDERS[part] / "py.typed").is_file()
    assert (FOLDERS[part] / "__init__.py").is_file()


@pytest.mark.parametrize("part", PARTS)
def test_arrows_at_module_level(part: str) -> None:
    wrong = {
        str(file.relative_to(ROOT)): sorted(beyond)
        for name, file in modules()
        if name == part
        and (beyond := imported(part, file, nested=False) - ALLOWED[place_of(part, file)])
    }
    assert wrong == {}


def test_nothing_imports_plugins_not_even_later() -> None:
    wrong = [
        str(file.relative_to(ROOT))
        for part, file in modules()
        if part != "plugins" and "plugins" in imported(part, file, nested=True)
    ]
    assert wrong == []


def test_kernels_import_no_other_part_not_even_later() -> None:
    wrong = [
        str(file.relative_to(ROOT))
        for part, file in modules()
        if part == "kernels" and imported(part, file, nested=True)
    ]
    assert wrong == []


@pytest.mark.parametrize("part", PARTS)
def test_every_package_folder_has_an_init(part: str) -> None:
    folders = {file.parent for name, file in modules() if name == part}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "helpers", "common", "manager", "misc"}
    assert [str(file) for _, file in modules() if file.stem in drawers] == []


HEAVY = (
    "torch",
    "transformers",
    "duckdb",
    "numpy",
    "re2",
    "openai",
    "structlog",
    "sqlite3",
    "asyncio",
)


def test_importing_the_sdk_loads_nothing_heavy() -> None:
    program = (
        "import sys; import isonomy.sdk; "
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), "
        "sorted(m for m in sys.modules if m.startswith('isonomy.') and '.sdk' not in m))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[] []\n", "")


def test_importing_the_sdk_loads_few_modules() -> None:
    """What an import costs is measured in bench/; it grows with this number."""
    program = (
        "import sys; before = set(sys.modules); import isonomy.sdk; "
        "print(len(sys.modules) - len(before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 145
