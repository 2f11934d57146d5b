"""`Length`: bounds on how long a text may be, in characters, bytes or lines.

Linear, and without state. A text is within bounds when ``min <= size <= max``.
"""

from __future__ import annotations

import unicodedata
from typing import ClassVar, Literal

import msgspec

from isonomy.sdk import Block, Candidate, Flag, Message, Replace, Retry, Verdict, hookimpl

from .judging import ALLOW, judge_answer, judge_messages

Unit = Literal["characters", "bytes", "lines"]
_JOINERS = {"\u200d", "\ufe0e", "\ufe0f"}


class Length(
    msgspec.Struct, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True, dict=True
):
    """Refuse, cut or mark texts that are too long or too short.

    Attributes:
        max: largest size allowed, or `None` for no upper bound.
        min: smallest size allowed.
        unit: what is counted. Characters are code points of the Python string, bytes are UTF-8,
            lines are one more than the line feeds (an empty text has none).
        action: ``block``; ``truncate`` cuts a text that is too long, and blocks one that is too
            short; ``retry`` asks the model again (at the input: blocks); ``flag`` only marks.
        ending: put at the end of a text that was cut, within `max`: ``" [...]"``.
        feedback: what the model is told on ``retry``, instead of the built-in sentence.

    Raises:
        ValueError: no bound, or bounds that contradict each other.
    """

    inline: ClassVar[bool] = True

    @property
    def read_only(self) -> bool:
        """Whether it never replaces."""
        return self.action != "truncate"

    @property
    def lookback(self) -> int | Literal["all"]:
        """How much of a stream is held back: where a cut may still take something away, that."""
        if self.action == "flag":
            return 0
        if self.action != "truncate" or self.min:
            return "all"
        return 0 if self.unit == "lines" else len(self.ending.encode("utf-8", "replace")) + 34

    max: int | None = None
    min: int = 0
    unit: Unit = "characters"
    action: Literal["block", "truncate", "retry", "flag"] = "block"
    ending: str = ""
    feedback: str = ""

    def __post_init__(self) -> None:
        if self.max is None and self.min == 0:
            raise ValueError("a length check needs a bound: set max, min or both.")
        if self.min < 0:
            raise ValueError(f"min must not be negative: {self.min}.")
        if self.max is not None and self.max < max(self.min, 1):
            raise ValueError(f"max must be at least 1 and at least min: {self.max}.")
        if self.action == "truncate":
            if self.max is None:
                raise ValueError("action 'truncate' needs max: the size to cut to.")
            if self._size(self.ending) > self.max or (self.unit == "lines" and "\n" in self.ending):
                raise ValueError(
                    "ending must fit into max, and be one line where lines are counted."
                )
        elif self.ending:
            raise ValueError("ending is only used with action = 'truncate'.")
        if self.feedback and self.action != "retry":
            raise ValueError("feedback is only used with action = 'retry'.")

    @hookimpl
    def pre_filter(self, messages: tuple[Message, ...]) -> Verdict | None:
        """Judge every non-system message."""
        return judge_messages(self.judge, messages)

    @hookimpl
    def post_validate(self, candidate: Candidate) -> Verdict | None:
        """Judge the answer's text."""
        return judge_answer(self.judge, candidate)

    def judge(self, text: str) -> Verdict:
        """Return the verdict on one text."""
        size = self._size(text)
        if size < self.min:
            # There is nothing to cut from a short text, so `truncate` can only refuse it.
            return self._objection(
                f"{size} {self.unit}, fewer than the {self.min} required", "too_short"
            )
        if self.max is None or size <= self.max:
            return ALLOW
        reason = f"{size} {self.unit}, more than the {self.max} allowed"
        if self.action == "truncate":
            new = self._cut(text)
            return Replace(new, reason=f"cut: {reason}", score=1.0, labels=("too_long",))
        return self._objection(reason, "too_long")

    def _objection(self, reason: str, label: str) -> Verdict:
        if self.action == "flag":
            return Flag(reason, score=1.0, labels=(label,))
        if self.action == "retry":
            feedback = (
                self.feedback or f"The text has {reason}. Write it again within these bounds."
            )
            return Retry(feedback, score=1.0, labels=(label,))
        return Block(reason, score=1.0, labels=(label,))

    def _size(self, text: str) -> int:
        if self.unit == "characters":
            return len(text)
        if self.unit == "bytes":
            return len(text.encode("utf-8", "replace"))
        return text.count("\n") + 1 if text else 0

    def _cut(self, text: str) -> str:
        assert self.max is not None
        if self.unit == "lines":
            # The ending stands on the last line that is kept.
            return "\n".join(text.split("\n", self.max)[: self.max]) + self.ending
        room = self.max - self._size(self.ending)
        if self.unit == "bytes":
            end = len(text.encode("utf-8", "replace")[:room].decode("utf-8", "ignore"))
        else:
            end = room
        return text[: _whole(text, end)] + self.ending


def _whole(text: str, end: int) -> int:
    """Move a cut back, 32 characters at most, so that no letter or emoji is parted."""
    for back in range(min(32, end)):
        at = end - back
        if at >= len(text) or not (
            unicodedata.combining(text[at]) or text[at] in _JOINERS or text[at - 1] == "\u200d"
        ):
            return at
    return end
