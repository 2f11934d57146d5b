"""`Patterns`: texts that must not, or must, occur; as RE2 patterns or literal words.

Linear in the text (see `linear`): a verdict takes one pass for each pattern, and redaction at most
`limit` more. A reason names the pattern, never what it matched: what matched may be the very secret
that the pattern is there for.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import msgspec

from isonomy.sdk import Block, Candidate, Flag, Message, Replace, Retry, Span, Verdict, hookimpl

from .judging import ALLOW, MAX_SPANS, judge_answer, judge_messages
from .linear import Regexp, characters, compile_linear, escape, find_all, to_utf8
from .width import widest

# RE2's \b knows ASCII only: a word of any script ends where no letter, mark, digit or underscore
# follows.
_EDGE = r"[^\pL\pM\pN_]"
_SPACE = r"[\s\pZ]+"
_MAX_WORDS = 1_000_000
"""Longest pattern that a list of words may become, in characters: some 50,000 words."""


class _Rule(NamedTuple):
    name: str
    regexp: Regexp
    group: int


class Patterns(
    msgspec.Struct, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True, dict=True
):
    """Judge a text by patterns.

    Attributes:
        deny: patterns that must not match; a list, or a table of name to pattern. In a list,
            ``deny[0]`` is the name.
        require: patterns that must each match somewhere; list or table.
        words: literal words or phrases that must not occur as whole words; white space in them
            matches any white space.
        ignore_case: match letters of either case (words too).
        action: ``block``; ``redact`` replaces what matched by `replacement`; ``retry`` asks the
            model again (at the input: blocks); ``flag`` only marks.
        replacement: what stands for a redacted place.
        feedback: what the model is told on ``retry``, instead of the built-in sentence.
        limit: how many places a text may need redacted; a text with more is blocked. Bounds the
            time.

    Raises:
        ValueError: no pattern, a pattern that RE2 can't run or that matches the empty text, or
        settings that contradict.
    """

    inline: ClassVar[bool] = True

    @property
    def read_only(self) -> bool:
        """Whether it never replaces."""
        return self.action != "redact"

    @property
    def lookback(self) -> int | Literal["all"]:
        """How much of a stream is held back: as much as a match may take, and one to look ahead.

        All of it where a match may be of any length, something is required, or the model is asked
        again.
        """
        if self.action == "flag":
            return 0
        widths = [widest(rule) for rule in _listed(self.deny)]
        # White space within a phrase may be of any length.
        widths += [None if len(word.split()) > 1 else len(word) + 2 for word in self.words]
        if self.require or self.action == "retry" or None in widths:
            return "all"
        longest = max(width for width in widths if width is not None) + 1
        # Every one of these characters may be replaced by itself.
        return longest * max(1, len(self.replacement)) if self.action == "redact" else longest

    deny: tuple[str, ...] | dict[str, str] = ()
    require: tuple[str, ...] | dict[str, str] = ()
    words: tuple[str, ...] = ()
    ignore_case: bool = False
    action: Literal["block", "redact", "retry", "flag"] = "block"
    replacement: str = "[REDACTED]"
    feedback: str = ""
    limit: int = 1000

    def __post_init__(self) -> None:
        if not (self.deny or self.require or self.words):
            raise ValueError("a patterns check needs a pattern: set deny, require or words.")
        if self.action == "redact" and self.require:
            raise ValueError(
                "require can't be used with action = 'redact': what is missing can't be replaced. "
                "Make it a check of its own."
            )
        if self.feedback and self.action != "retry":
            raise ValueError("feedback is only used with action = 'retry'.")
        if not 1 <= self.limit <= 100_000:
            raise ValueError(f"limit must be between 1 and 100000: {self.limit}.")
        for rule in (*self._denied, *self._required):
            if rule.regexp.search(b"") is not None:
                raise ValueError(
                    f"{rule.name} matches the empty text, so it would match everywhere."
                )
        if self.action == "redact":
            for rule in self._denied:
                if rule.regexp.search(to_utf8(self.replacement)) is not None:
                    raise ValueError(
                        f"{rule.name} matches the replacement, so a redacted text would be "
                        "redacted again. "
                        "Choose another replacement."
                    )

    @cached_property
    def _denied(self) -> tuple[_Rule, ...]:
        rules = self._compiled("deny", self.deny)
        if self.words:
            rules.append(self._word_rule())
        return tuple(rules)

    @cached_property
    def _required(self) -> tuple[_Rule, ...]:
        return tuple(self._compiled("require", self.require))

    def _compiled(self, field: str, patterns: tuple[str, ...] | dict[str, str]) -> list[_Rule]:
        if isinstance(patterns, dict):
            named = list(patterns.items())
        else:
            named = [(f"{field}[{i}]", pattern) for i, pattern in enumerate(patterns)]
        return [
            _Rule(
                name,
                compile_linear(
                    pattern, what=f"the {field} pattern {name!r}", ignore_case=self.ignore_case
                ),
                0,
            )
            for name, pattern in named
        ]

    def _word_rule(self) -> _Rule:
        for i, word in enumerate(self.words):
            if not word.strip():
                raise ValueError(f"words[{i}] is empty.")
        literal = [_SPACE.join(escape(piece) for piece in word.split()) for word in self.words]
        # The longest first: RE2 prefers the first alternative, and a phrase must win over its first
        # word.
        literal.sort(key=len, reverse=True)
        # A word that begins or ends with punctuation takes edges all the same: "C++" does not stand
        # in "C++11".
        regexp = compile_linear(
            f"(?:^|{_EDGE})({'|'.join(literal)})(?:{_EDGE}|$)",
            what="the list of words",
            ignore_case=self.ignore_case,
            longest=_MAX_WORDS,
        )
        return _Rule("words", regexp, 1)

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
        data = to_utf8(text)
        hits = [rule for rule in self._denied if rule.regexp.search(data) is not None]
        missing = [rule for rule in self._required if rule.regexp.search(data) is None]
        if not hits and not missing:
            return ALLOW
        labels = tuple(rule.name for rule in (*hits, *missing))
        limit = self.limit if self.action == "redact" else min(self.limit, MAX_SPANS)
        spans, more = _spans(text, data, hits, limit)
        evidence = tuple(spans[:MAX_SPANS])
        reason = _reason(hits, missing)
        if self.action == "flag":
            return Flag(reason, score=1.0, spans=evidence, labels=labels)
        if self.action == "retry":
            feedback = self.feedback or f"Write the answer again: {reason}."
            return Retry(feedback, score=1.0, spans=evidence, labels=labels)
        if self.action == "redact" and more:
            reason = f"{reason} in more than {self.limit} places, the limit for redaction"
        elif self.action == "redact" and spans:
            new = _replaced(text, spans, self.replacement)
            return Replace(new, reason=reason, score=1.0, spans=evidence, labels=labels)
        return Block(reason, score=1.0, spans=evidence, labels=labels)


def _listed(patterns: tuple[str, ...] | dict[str, str]) -> tuple[str, ...]:
    return tuple(patterns.values()) if isinstance(patterns, dict) else patterns


def _spans(text: str, data: bytes, rules: list[_Rule], limit: int) -> tuple[list[Span], bool]:
    """Return where the rules match, in order, and whether one has more than `limit` places."""
    places: list[tuple[int, int, str]] = []
    more = False
    for rule in rules:
        found, cut = find_all(rule.regexp, data, limit=limit, group=rule.group)
        places += [(start, end, rule.name) for start, end in found]
        more = more or cut
    places.sort()
    at = characters(text, data, [offset for start, end, _ in places for offset in (start, end)])
    return [Span(at[start], at[end], name) for start, end, name in places], more


def _replaced(text: str, spans: list[Span], replacement: str) -> str:
    """Replace the spans, which are in order; places that overlap are replaced once, together."""
    merged: list[tuple[int, int]] = []
    for span in spans:
        if merged and span.start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], span.end))
        else:
            merged.append((span.start, span.end))
    pieces: list[str] = []
    done = 0
    for start, end in merged:
        pieces += (text[done:start], replacement)
        done = end
    return "".join((*pieces, text[done:]))


def _reason(hits: list[_Rule], missing: list[_Rule]) -> str:
    parts = []
    if hits:
        parts.append("it matches the denied " + ", ".join(repr(rule.name) for rule in hits))
    if missing:
        parts.append("it lacks the required " + ", ".join(repr(rule.name) for rule in missing))
    return " and ".join(parts)
