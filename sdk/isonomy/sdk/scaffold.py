"""The beginning of a package of checks: what ``isonomy plugin new`` writes.

The package is named ``isonomy_NAME``, has one check with one setting, its tests use the conformance
kit, and they pass as it stands: by ``pytest`` in its folder, installed or not.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from .errors import InputError
from .registry import Registry

_NAME = re.compile(r"[a-z][a-z0-9_]*")

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "isonomy-@DASHED@"
version = "0.1.0"
description = "A check for Isonomy: @NAME@."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["isonomy"]

[project.optional-dependencies]
test = ["pytest>=8"]

# The name that policies use. Isonomy imports the class when a policy names it, and not before.
[project.entry-points."isonomy.checks"]
@NAME@ = "@PACKAGE@:@CLASS@"

[tool.setuptools.packages.find]
where = ["src"]

[tool.setuptools.package-data]
@PACKAGE@ = ["py.typed"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]
addopts = ["--import-mode=importlib"]
"""

_INIT = '''\
"""A check for Isonomy: @NAME@."""

from .check import @CLASS@

__all__ = ["@CLASS@"]
'''

_CHECK = '''\
"""`@CLASS@`: answers and questions must not hold certain words.

A check is a frozen struct. Its fields are its settings: a policy file gives them, the record names
them. It keeps nothing between calls, and takes time, chance, secrets and everything from outside
through `ctx` only; so every call can be replayed.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
from isonomy.sdk import Allow, Block, Candidate, Message, Verdict, hookimpl


class @CLASS@(msgspec.Struct, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True):
    """Block texts that hold a word.

    Attributes:
        words: what must not occur, in whatever case.
    """

    # Quick and linear in the text, and waits for nothing: needs no worker thread.
    inline: ClassVar[bool] = True

    words: tuple[str, ...] = ("swordfish",)

    def __post_init__(self) -> None:
        if not all(word.strip() for word in self.words):
            raise ValueError("words must not hold an empty one: every text would be blocked.")

    @hookimpl
    def pre_filter(self, messages: tuple[Message, ...]) -> Verdict | None:
        """Judge what the user says."""
        said = [message.text for message in messages if message.role == "user"]
        return self.judge("\\n".join(said)) if said else None

    @hookimpl
    def post_validate(self, candidate: Candidate) -> Verdict:
        """Judge the answer."""
        return self.judge(candidate.text)

    @property
    def lookback(self) -> int:
        """How much of a streamed answer is held back: a word that has begun may still end."""
        return max((len(word) for word in self.words), default=0)

    def judge(self, text: str) -> Verdict:
        """Return the verdict on one text. It does not repeat what was found."""
        small = text.lower()
        found = [number for number, word in enumerate(self.words) if word.lower() in small]
        if not found:
            return Allow()
        labels = tuple(f"words[{number}]" for number in found)
        return Block("it holds a word that is not allowed", labels=labels)
'''

_TESTS = '''\
"""What @CLASS@ finds, and that it keeps the rules of a check."""

from __future__ import annotations

import pytest
from isonomy.sdk.testing import FakeGuard, assert_conforms
from @PACKAGE@ import @CLASS@


def test_an_answer_with_the_word_is_blocked() -> None:
    with FakeGuard([@CLASS@(words=("swordfish",))], "The password is Swordfish.") as guard:
        reply = guard.chat("What is the password?")
    assert reply.blocked
    guard.assert_verdict("block", stage="post_validate", reason="a word that is not allowed")


def test_a_question_with_the_word_does_not_reach_the_model() -> None:
    with FakeGuard([@CLASS@()]) as guard:
        guard.chat("Is it swordfish?")
        guard.assert_verdict("block", stage="pre_filter")
        guard.assert_not_asked()


def test_other_texts_pass() -> None:
    with FakeGuard([@CLASS@()], "A fish with a sword.") as guard:
        assert guard.chat("What is that?").text == "A fish with a sword."
        guard.assert_verdict("allow")


def test_an_empty_word_is_refused() -> None:
    with pytest.raises(ValueError, match="must not hold an empty one"):
        @CLASS@(words=("",))


def test_it_keeps_the_rules_of_a_check() -> None:
    assert_conforms(@CLASS@(words=("swordfish",)), texts=["It is swordfish.", "Swordfish!"])
'''

_README = """\
# isonomy-@DASHED@

A check for [Isonomy](https://pypi.org/project/isonomy/): blocks texts that hold certain words.

```toml
[[policy.checks]]
use = "@NAME@"
words = ["swordfish"]
```

| setting | default         | meaning                                   |
| ------- | --------------- | ----------------------------------------- |
| `words` | `["swordfish"]` | what must not occur, in whatever case     |

To work on it:

```sh
python -m pip install -e '.[test]'
python -m pytest
```

The check is in `src/@PACKAGE@/check.py`. Its hooks, and what they are given, are documented in
`isonomy.sdk.hooks`; `assert_conforms` in the tests says what a check must not do.
"""

_FILES = {
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    ".gitignore": "__pycache__/\n*.egg-info/\n.pytest_cache/\n",
    "src/@PACKAGE@/__init__.py": _INIT,
    "src/@PACKAGE@/check.py": _CHECK,
    "src/@PACKAGE@/py.typed": "",
    "tests/test_@NAME@.py": _TESTS,
}


def create(name: str, directory: str = ".") -> Path:
    """Write a new package and return its folder, ``isonomy-NAME``.

    Args:
        name: of the check. ``isonomy_`` in front of it is left out.
        directory: where the folder is made.

    Raises:
        InputError: the name can't be used, or the folder is there already.
    """
    name = re.sub(r"^isonomy[-_]", "", name)
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise InputError(
            f"{name!r} can't name a check: use small letters, digits and underscores, and begin "
            "with a letter, as in no_shouting."
        )
    if name in Registry().names("check"):
        raise InputError(f"there is a check named {name!r} already. Choose another name.")
    folder = Path(directory) / f"isonomy-{name.replace('_', '-')}"
    words = {
        "@NAME@": name,
        "@DASHED@": name.replace("_", "-"),
        "@PACKAGE@": f"isonomy_{name}",
        "@CLASS@": "".join(part.capitalize() for part in name.split("_")),
    }
    try:
        folder.mkdir(parents=True)
        for path, text in _FILES.items():
            for mark, word in words.items():
                path, text = path.replace(mark, word), text.replace(mark, word)
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
    except FileExistsError:
        raise InputError(f"{str(folder)!r} is there already. Choose another name.") from None
    except OSError as error:
        raise InputError(f"{str(folder)!r} can't be written: {error.strerror}.") from None
    return folder
