from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from isonomy.sdk import PluginError
from isonomy.sdk.registry import Registry, nearest

CHECKS = "from isonomy.sdk import hookimpl\n@hookimpl\ndef isonomy_checks():\n    return {}\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(tmp_path))
    names: list[str] = []

    def module(body: str) -> str:
        name = f"module_{abs(hash(tmp_path))}_{len(names)}"
        (tmp_path / f"{name}.py").write_text(body, "utf-8")
        names.append(name)
        return name

    yield module
    for name in names:
        sys.modules.pop(name, None)


def registering(kind: str, value: str) -> str:
    return (
        f"from isonomy.sdk import hookimpl\n@hookimpl\ndef isonomy_{kind}():\n    return {value}\n"
    )


def test_a_module_adds_names(module: Any) -> None:
    name = module(
        registering("checks", "{'my-check': len}") + registering("backends", "{'b': max}")
    )
    registry = Registry([name, name])
    assert registry.modules == (name,)
    assert registry.find("check", "my-check") is len
    assert registry.find("backend", "b") is max
    assert "my-check" in registry.names("check")
    assert registry.name_of("check", len) == "my-check"
    assert registry.name_of("check", max) is None
    assert ("check", "my-check", name, "", "loaded explicitly") in registry.listing()
    assert "my-check" not in Registry().names("check")


def test_the_built_in_checks_take_the_same_route_as_third_parties() -> None:
    registry = Registry()
    assert {"length", "patterns", "pii"} <= set(registry.names("check"))
    length = registry.find("check", "length")
    assert registry.name_of("check", length) == "length"
    rows = {(row.kind, row.name): row for row in registry.listing()}
    assert (rows["check", "length"].package, rows["check", "length"].source) == (
        "isonomy",
        "isonomy.plugins:Length",
    )


def test_listing_imports_nothing() -> None:
    import subprocess

    program = (
        "import sys; from isonomy.sdk.registry import Registry; r = Registry(); r.listing();"
        "r.names('check'); print([m for m in sys.modules if m.startswith('isonomy.plugins')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"no check named 'lenght'. Did you mean 'length'\?") as c:
        Registry().find("check", "lenght")
    assert c.value.plugin == "lenght"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import no_such_thing", "can't be imported: ModuleNotFoundError"),
        ("raise RuntimeError('at import')", "can't be imported: RuntimeError: at import"),
        ("import sys; sys.exit('bye')", "can't be imported: SystemExit: bye"),
        (registering("checks", "__import__('sys').exit(1)"), "raised SystemExit"),
        (registering("checks", "None"), "must return a dictionary.*not NoneType"),
        (registering("checks", "1 / 0"), "raised ZeroDivisionError"),
        (registering("checks", "{'length': len}"), "registers the check 'length', which is taken"),
        (CHECKS.replace("()", "(surprise)", 1), "does not fit the hooks.*surprise"),
    ],
)
def test_a_module_that_breaks_the_contract_is_named(module: Any, body: str, said: str) -> None:
    name = module(body)
    with pytest.raises(PluginError, match=f"(?s){said}") as caught:
        Registry([name])
    assert name in str(caught.value)
    assert caught.value.plugin == name


def test_two_modules_that_claim_a_name_are_refused(module: Any) -> None:
    names = [module(registering("backends", "{'b': max}")) for _ in range(2)]
    with pytest.raises(PluginError, match="registers the backend 'b', which is taken"):
        Registry(names)


def test_a_package_that_is_not_trusted_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from isonomy.sdk import registry

    point = EntryPoint("theirs", "isonomy_theirs.checks:Theirs", "isonomy.checks")
    monkeypatch.setattr(registry, "_installed", lambda kind: {"theirs": point})
    with pytest.raises(PluginError, match=r"'isonomy_theirs', which is not trusted.*--plugins"):
        Registry(trusted=()).find("check", "theirs")
    with pytest.raises(PluginError, match="can't be imported: ModuleNotFoundError"):
        Registry(trusted=("isonomy_theirs",)).find("check", "theirs")


@pytest.mark.parametrize(
    ("name", "names", "said"),
    [
        ("pi", ["pii", "length"], " Did you mean 'pii'?"),
        ("zzz", ["pii", "length"], " Known: length, pii."),
        ("zzz", [], ""),
    ],
)
def test_nearest(name: str, names: list[str], said: str) -> None:
    assert nearest(name, names) == said
