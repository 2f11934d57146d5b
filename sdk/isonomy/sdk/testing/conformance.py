"""The conformance kit: does a check keep the rules that the pipeline and replays rely on?

`assert_conforms` asks a check many questions through a real guard, in many ways, and compares what
it says. Each property that does not hold gives one sentence with the smallest example found.

- `well_formed`: every return is a verdict (or `None`), with reasons, and spans inside of the text.
- `hostile`: nothing that a text can hold makes it raise.
- `determinism`: a fresh instance says the same about the same text.
- `elsewhere`: so does one in another process, with another hash seed.
- `state`: what it says does not depend on what it was asked before, or by whom at the same time.
- `parity`: sync and async callers get the same verdicts and events.
- `settles`: it does not change again what it has changed.
- `streams`: its declared lookback is enough, wherever an answer is cut; streams end as `chat` does.
- `linear`: its time grows with the length of the text, not faster, and no short text takes long.
- `timeouts`: it answers within its timeout, and, where it is async, does not block the loop.
- `effects`: clock, chance, files, network, processes and the environment come through its context.
- `settings`: its settings are data: written to a policy file and read again, the check is the same.

The world is a `FakeGuard`'s: the clock stands, chance repeats, effects come to what the test says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

import msgspec

from . import samples
from .asking import Question, Subject, World

Status = Literal["held", "failed", "skipped"]
PROPERTIES = (
    "well_formed",
    "hostile",
    "determinism",
    "elsewhere",
    "state",
    "parity",
    "settles",
    "streams",
    "linear",
    "timeouts",
    "effects",
    "settings",
)


class Outcome(msgspec.Struct, frozen=True):
    """What came of one property.

    `sentence` says what is wrong and what to do, or why it was skipped; `example` is the smallest
    text found that shows it.
    """

    property: str
    status: Status
    sentence: str = ""
    example: str | None = None

    def __str__(self) -> str:
        line = f"{self.property}: {self.status}"
        if self.sentence:
            line += f": {self.sentence}"
        if self.example is not None:
            line += f" Smallest example: {_shown(self.example)}."
        return line


class Report(msgspec.Struct, frozen=True):
    """What came of all properties of one check. `questions` is how many it was asked at least."""

    check: str
    outcomes: tuple[Outcome, ...]
    questions: int

    @property
    def ok(self) -> bool:
        """Whether no property failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The properties that do not hold."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    def of(self, property: str) -> Outcome:
        """Return what came of one property.

        Raises:
            KeyError: there is no such property.
        """
        for outcome in self.outcomes:
            if outcome.property == property:
                return outcome
        raise KeyError(property)

    def __str__(self) -> str:
        return "\n".join((f"{self.check}:", *(f"  {outcome}" for outcome in self.outcomes)))


class NotConformant(AssertionError):
    """A check does not keep the rules; `report` says which ones."""

    def __init__(self, report: Report) -> None:
        self.report = report
        lines = "\n".join(f"  {outcome}" for outcome in report.failed)
        super().__init__(f"{report.check} does not conform:\n{lines}")


class Case(msgspec.Struct, frozen=True):
    """What a property is examined on."""

    subject: Subject
    world: World
    texts: tuple[str, ...]
    hostile: Mapping[str, str]

    def questions(self, texts: Iterable[str] | None = None) -> list[Question]:
        """Return each text at each stage of the check."""
        asked = self.texts if texts is None else texts
        return [Question(stage, text) for stage in self.subject.stages for text in asked]


Held = Outcome | None
Property = Callable[[Case], Held]


def examine(
    plugin: Any,
    *,
    texts: Iterable[str] = (),
    judge: Any = "yes",
    effects: Mapping[str, Any] | None = None,
    secrets: Mapping[str, str] | None = None,
    backends: Mapping[str, Any] | None = None,
    skip: Collection[str] = (),
) -> Report:
    """Examine a check and return what came of every property.

    Args:
        plugin: an instance with hooks, a callable, or a `Check` (made by `check(...)`), whose terms
            count then: its id, stages, timeout, lookback.
        texts: what it is for: some that it lets pass, and some that it does not. They are asked
            beside the kit's own.
        judge: what it is answered where it asks the guard's backend; a text, or a function of the
            messages.
        effects: what its effects come to, by name; those that are not named here are really done.
        secrets: by name.
        backends: answers of the further backends that it asks, by name.
        skip: properties that are left out.

    Raises:
        PluginError: it is no check.
        ValueError: there is no property of a name in `skip`.
    """
    from . import properties

    unknown = set(skip) - set(PROPERTIES)
    if unknown:
        raise ValueError(
            f"there is no property {sorted(unknown)[0]!r}; there are: {', '.join(PROPERTIES)}."
        )
    subject = Subject(plugin)
    case = Case(
        subject,
        World(
            judge=judge,
            effects=dict(effects or {}),
            secrets=dict(secrets or {}),
            backends=dict(backends or {}),
        ),
        tuple(dict.fromkeys((*texts, *samples.ORDINARY))),
        samples.HOSTILE,
    )
    outcomes = []
    for name in PROPERTIES:
        if name in skip:
            outcomes.append(Outcome(name, "skipped", "left out by the caller."))
            continue
        found = getattr(properties, name)(case)
        outcomes.append(found if found is not None else Outcome(name, "held"))
    return Report(subject.check.use, tuple(outcomes), len(case.questions()) + len(case.hostile))


def assert_conforms(
    plugin: Any,
    *,
    texts: Iterable[str] = (),
    judge: Any = "yes",
    effects: Mapping[str, Any] | None = None,
    secrets: Mapping[str, str] | None = None,
    backends: Mapping[str, Any] | None = None,
    skip: Collection[str] = (),
) -> Report:
    """Assert that a check keeps all rules; arguments as for `examine`.

    Raises:
        NotConformant: it does not; an `AssertionError` that says what is wrong, a line for each
            property.
    """
    report = examine(
        plugin,
        texts=texts,
        judge=judge,
        effects=effects,
        secrets=secrets,
        backends=backends,
        skip=skip,
    )
    if not report.ok:
        raise NotConformant(report)
    return report


def shrunk(text: str, fails: Callable[[str], bool], *, tries: int = 150) -> str:
    """Return a text as short as can be found for which `fails` still holds.

    Pieces are taken out, half of the text first, then smaller ones.
    """
    size = max(len(text) // 2, 1)
    while size and tries > 0:
        start, smaller = 0, False
        while start < len(text) and tries > 0:
            shorter = text[:start] + text[start + size :]
            tries -= 1
            if fails(shorter):
                text, smaller = shorter, True
            else:
                start += size
        if not smaller or size > len(text):
            size //= 2
    return text


def _shown(text: str, width: int = 120) -> str:
    shown = ascii(text) if not text.isprintable() else repr(text)
    if len(shown) > width:
        return f"{shown[:width]}... ({len(text)} characters)"
    return shown
