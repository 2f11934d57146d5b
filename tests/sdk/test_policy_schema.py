"""The JSON schema of configuration files says what the loader says, and TOML is written right."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isonomy.sdk import ConfigError, config, interpolation, policyfile, tomlfile
from isonomy.sdk.cli import demo
from isonomy.sdk.config import load
from isonomy.sdk.policyschema import schema

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def validator() -> Any:
    made = schema()
    jsonschema.Draft7Validator.check_schema(made)
    return jsonschema.Draft7Validator(made)


def shipped() -> list[tuple[str, str]]:
    """Every configuration file that documents and code show."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]
    texts = [(str(file.relative_to(ROOT)), file.read_text()) for file in documents]
    texts += [(m.__name__, m.__doc__ or "") for m in (config, policyfile, interpolation)]
    files = [("demo", demo.POLICY)]
    for name, text in texts:
        files += [(name, found) for found in re.findall(r"```toml\n(.*?)```", text, re.S)]
    known = set(config.FileTables.__struct_fields__)
    return [(name, t) for name, t in files if known & set(tomllib.loads(t))]


@pytest.mark.parametrize(("name", "text"), shipped())
def test_shipped_files_are_valid(validator: Any, name: str, text: str) -> None:
    validator.validate(tomllib.loads(text))


def test_there_are_shipped_files() -> None:
    assert len(shipped()) >= 6


GOOD = """
[backend]
use = "local:demo"
temperature = 0.5
[backends.judge]
use = "other:x"
anything = 1
[environment]
allow = ["A"]
[policy]
extends = "x.toml"
stages = ["pre_filter"]
[[policy.checks]]
use = "length"
max = 5
action = "${A}"
lookback = "all"
[[policy.checks]]
use = "of-a-plugin"
words = [1]
[policies.strict]
candidates = 2
"""

BAD = [
    ("[polcy]", "'polcy' was unexpected"),
    ("[policy]\nrefusl = 'x'", "'refusl' was unexpected"),
    ("[policy]\nmax_rounds = 'x'", "'x' is not of type 'integer'"),
    ("[policy]\nstages = ['rnk']", "'rnk' is not one of"),
    ("[policies.a]\nrefusl = 'x'", "'refusl' was unexpected"),
    ("[[policy.checks]]\nmax = 5", "not valid under any"),
    ("[[policy.checks]]\nuse = 'length'\nmx = 5", "not valid under any"),
    ("[[policy.checks]]\nuse = 'length'\naction = 'blok'", "not valid under any"),
    ("[[policy.checks]]\nuse = 'length'\nlookback = 'some'", "not valid under any"),
    ("[[policy.checks]]\nuse = 'length'\ntimeout = 'x'", "not valid under any"),
    ("[backend]\nuse = 'local:demo'\nvoice = 1", "not valid under any"),
    ("[backends.x]\nuse = 'openai:x'\ntop_p = 1", "not valid under any"),
    ("[log]\npth = 'x'", "'pth' was unexpected"),
    ("[environment]\nallow = 'x'", "'x' is not of type 'array'"),
]


def test_a_good_file_is_valid(validator: Any) -> None:
    validator.validate(tomllib.loads(GOOD))


@pytest.mark.parametrize(("text", "said"), BAD)
def test_a_bad_file_is_not(validator: Any, text: str, said: str) -> None:
    errors = [error.message for error in validator.iter_errors(tomllib.loads(text))]
    assert any(said in message for message in errors), errors


@pytest.mark.parametrize(("text", "said"), BAD)
def test_the_loader_refuses_the_same(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "isonomy.toml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load(file, policy="a" if "policies.a" in text else None)


def test_editors_are_told_what_settings_mean(validator: Any) -> None:
    checks = {
        branch["title"]: branch for branch in validator.schema["definitions"]["check"]["oneOf"]
    }
    said = checks["length"]["properties"]
    assert "largest size allowed" in said["max"]["description"]
    assert (
        "must be asked"
        in validator.schema["definitions"]["policy"]["properties"]["stages"]["description"]
    )
    assert said["use"] == {"const": "length"}
    assert "seconds" in said["timeout"]["description"]


KEYS = st.text(min_size=1, max_size=8)
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.one_of(
        TEXT,
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_what_is_written_reads_back(table: dict[str, Any]) -> None:
    assert tomllib.loads(tomlfile.written(table)) == table
