"""`Pii`: the settings, the hooks, and the verdict on one text.

Bounded: a text is passed over once for each kind by RE2, and at most `limit` candidates are
examined more closely. A text with more of them is blocked (marked, where everything is only
marked): a text that was looked at in part must not pass as clean. Reasons, labels and spans name
kinds and places, never the data.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
import re2

from isonomy.sdk import (
    Block,
    Candidate,
    Flag,
    Message,
    MissingExtra,
    Replace,
    Span,
    Verdict,
    hookimpl,
)

from ..judging import ALLOW, MAX_SPANS, judge_answer, judge_messages
from ..linear import to_utf8
from .findings import KINDS, Budget, BudgetSpent, Finding, Kind, resolve
from .fold import fold
from .treatment import masked, pseudonym, redacted

if TYPE_CHECKING:
    from isonomy.sdk.context import Context

Recognizer = Callable[[str, Budget], Iterable[Finding]]
Action = Literal["redact", "mask", "hash", "block", "flag"]
_PACKAGES: dict[Kind, tuple[str, ...]] = {
    "phone": ("phonenumbers",),
    "card": ("stdnum",),
    "iban": ("stdnum",),
}
_DISTRIBUTIONS = {"phonenumbers": "phonenumbers", "stdnum": "python-stdnum"}
_FEWEST_DIGITS: dict[Kind, int] = {"email": 0, "phone": 7, "card": 12, "iban": 4, "ip": 1}
_LOOKBACK = 512
"""Characters. An e-mail address has 320 at most (RFC 5321), and a mask adds three to each."""
# Nothing can be found in a text without an at sign and without a digit.
_TRIGGER = re2.compile(r"[@\x{FF20}\p{Nd}]")


class Pii(
    msgspec.Struct, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True, dict=True
):
    """Find e-mail addresses, telephone numbers, payment cards, IBANs and IP addresses.

    Attributes:
        kinds: what to look for; everything unless set.
        action: what to do with it: ``redact``, ``mask``, ``hash``, ``block`` or ``flag`` (see
            `treatment`).
        actions: other actions for single kinds: ``{card = "block"}``.
        regions: two-letter codes of the countries whose telephone numbers are recognized without
            ``+``: ``["US", "DE"]``.
        key: the *name* of the secret that keys ``hash`` (the guard's secret source knows its
            value). Required for it: without a key, trying all telephone numbers or cards would give
            the datum back.
        limit: how many candidates of a text may be examined; a text with more is blocked. Bounds
            the time.

    Raises:
        ValueError: settings that contradict, or an unknown region.
        MissingExtra: python-stdnum or phonenumbers is not installed.
    """

    inline: ClassVar[bool] = True

    @property
    def read_only(self) -> bool:
        """Whether it never replaces."""
        return {"block", "flag"}.issuperset(self._actions.values())

    @property
    def lookback(self) -> int | Literal["all"]:
        """How much of a stream is held back: more than any of these data has, stars included."""
        actions = set(self._actions.values())
        if "hash" in actions:  # its pseudonyms come from the context
            return "all"
        return 0 if actions == {"flag"} else _LOOKBACK

    kinds: tuple[Kind, ...] = KINDS
    action: Action = "redact"
    actions: dict[Kind, Action] = {}
    regions: tuple[str, ...] = ()
    key: str = ""
    limit: int = 2000

    @property
    def packages(self) -> tuple[str, ...]:
        """The distributions of the extra `pii` that these kinds use; they count in its digest."""
        used = {package for kind in self.kinds for package in _PACKAGES.get(kind, ())}
        return tuple(sorted(_DISTRIBUTIONS[package] for package in used))

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError(f"kinds is empty; name some of: {', '.join(KINDS)}.")
        for kind in (*self.kinds, *self.actions):
            if kind not in KINDS:
                raise ValueError(f"there is no kind {kind!r}; the kinds are: {', '.join(KINDS)}.")
        for kind in self.actions:
            if kind not in self.kinds:
                raise ValueError(f"actions names {kind!r}, which is not among kinds.")
        hashes = "hash" in self._actions.values()
        if hashes and not self.key:
            raise ValueError(
                "action 'hash' needs key: the name of a secret. Without one, anybody could find "
                "the datum by "
                "hashing all telephone numbers. Set it, and give the guard the secret."
            )
        if self.key and not hashes:
            raise ValueError("key is only used with action 'hash'.")
        if not 1 <= self.limit <= 1_000_000:
            raise ValueError(f"limit must be between 1 and 1000000: {self.limit}.")
        for kind in self.kinds:
            for package in _PACKAGES.get(kind, ()):
                if importlib.util.find_spec(package) is None:
                    raise MissingExtra(
                        "the check 'pii'",
                        "pii",
                        "python-stdnum" if package == "stdnum" else package,
                    )
        if self.regions:
            if "phone" not in self.kinds:
                raise ValueError("regions is only used with the kind 'phone'.")
            from phonenumbers import SUPPORTED_REGIONS

            for region in self.regions:
                if region not in SUPPORTED_REGIONS:
                    raise ValueError(
                        f"there is no region {region!r}: "
                        "use ISO 3166 codes in capitals, such as 'US' or 'DE'."
                    )

        # Loaded now, so that the first call does not pay for it.
        _ = self._recognizers

    @cached_property
    def _actions(self) -> Mapping[Kind, Action]:
        return {kind: self.actions.get(kind, self.action) for kind in KINDS if kind in self.kinds}

    @cached_property
    def _recognizers(self) -> tuple[tuple[Kind, Recognizer], ...]:
        return tuple((kind, _recognizer(kind, self.regions)) for kind in self._actions)

    @hookimpl
    def pre_filter(self, messages: tuple[Message, ...], ctx: Context) -> Verdict | None:
        """Judge every non-system message."""
        return judge_messages(lambda text: self.judge(text, ctx), messages)

    @hookimpl
    def post_validate(self, candidate: Candidate, ctx: Context) -> Verdict | None:
        """Judge the answer's text."""
        return judge_answer(lambda text: self.judge(text, ctx), candidate)

    def judge(self, text: str, ctx: Context | None = None) -> Verdict:
        """Return the verdict on one text. `ctx` is needed for ``hash`` only: it has the key."""
        if _TRIGGER.search(to_utf8(text)) is None:
            return ALLOW
        try:
            found = self.find(text)
        except BudgetSpent:
            return self._too_many()
        if not found:
            return ALLOW
        labels: tuple[Kind, ...] = tuple(
            kind for kind in KINDS if any(f.kind == kind for f in found)
        )
        evidence: dict[str, Any] = {
            "score": 1.0,
            "spans": tuple(Span(f.start, f.end, f.kind) for f in found[:MAX_SPANS]),
            "labels": labels,
        }
        reason = _counts(found)
        actions = {self._actions[kind] for kind in labels}
        if "block" in actions:
            return Block(reason, **evidence)
        if actions == {"flag"}:
            return Flag(reason, **evidence)
        return Replace(self._treated(text, found, ctx), reason=reason, **evidence)

    def find(self, text: str) -> list[Finding]:
        """Return what is found, in order and without overlaps.

        Raises:
            BudgetSpent: more than `limit` candidates.
        """
        folded = fold(text)
        budget = Budget(self.limit)
        digits = sum(map(folded.text.count, "0123456789"))
        reports: list[Finding] = []
        for kind, recognize in self._recognizers:
            if digits < _FEWEST_DIGITS[kind]:
                continue
            for finding in recognize(folded.text, budget):
                start, end = folded.place(finding.start, finding.end)
                reports.append(Finding(start, end, kind, finding.value))
        return resolve(reports)

    def _too_many(self) -> Verdict:
        reason = (
            f"more than {self.limit} places could be personal data, the limit for one text. "
            "Split the text, or raise limit"
        )
        if set(self._actions.values()) == {"flag"}:
            return Flag(reason, score=1.0, labels=("too_many",))
        return Block(reason, score=1.0, labels=("too_many",))

    def _treated(self, text: str, found: list[Finding], ctx: Context | None) -> str:
        tags = iter(self._pseudonyms([f for f in found if self._actions[f.kind] == "hash"], ctx))
        pieces: list[str] = []
        done = 0
        for finding in found:
            action = self._actions[finding.kind]
            if action == "flag":
                continue
            if action == "hash":
                new = next(tags)
            elif action == "mask" and not finding.merged:
                new = masked(finding.kind, text[finding.start : finding.end])
            else:
                new = redacted(finding.kind)
            pieces += (text[done : finding.start], new)
            done = finding.end
        return "".join((*pieces, text[done:]))

    def _pseudonyms(self, found: list[Finding], ctx: Context | None) -> list[str]:
        """Return the tags, as a recorded effect: a replay has no secrets."""
        if not found:
            return []
        if ctx is None:
            raise TypeError("action 'hash' needs the context: pass ctx, which has the secret key.")
        key = ctx.secret(self.key)
        return ctx.effect("pseudonyms", lambda: [pseudonym(finding, key) for finding in found])


def _recognizer(kind: Kind, regions: tuple[str, ...]) -> Recognizer:
    # Imported here: each recognizer needs packages that only those who use it have.
    if kind == "email":
        from .emails import emails

        return emails
    if kind == "ip":
        from .addresses import addresses

        return addresses
    if kind == "phone":
        from .phones import phones

        return partial(phones, regions)
    from . import numbers

    return numbers.cards if kind == "card" else numbers.ibans


def _counts(found: list[Finding]) -> str:
    counts = Counter(finding.kind for finding in found)
    return "found " + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
