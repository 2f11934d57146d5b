"""Masking: what a log is told not to hold is taken out before the log is given it.

A `Mask` says where to look. What it finds in a record's content is replaced by `MARKER`, there and
in every other payload of that call which is recorded from then on, wherever the same text stands by
itself or within other text (a prompt, an event, a provider's raw response); the record says in
which fields. What only a model's tokens would tell (their ids, pieces, digests, the raw response)
is left out where the text was masked, and digests of content become keyed by a key that nobody
keeps: a short text could be guessed from its digest.

It fails closed. Where a check that masks objected without saying where, failed, or was never asked
about a message or an answer, the whole of that text is masked. A stream's segments may cut a text
in two, so their text is withheld as long as a mask could concern it; the result holds all of it,
masked.

Not reached: what stands in a record itself (subject, session, actor, tags), another spelling of the
same thing, and what a program derives from it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .canonical import canonical
from .contents import Question, text_in
from .errors import InputError
from .events import Event, Generated, Judged, Revised, Scored
from .log import Mask
from .records import Masked, Output, Payload, Pending, RequestContent
from .vocabulary import (
    Allow,
    Candidate,
    Document,
    Message,
    Part,
    Reasoning,
    Replace,
    Text,
    ToolCall,
    ToolResult,
    text_of,
)

if TYPE_CHECKING:
    from .asking import Answer
    from .policy import Policy

MARKER: Final = "[masked]"
_MATCHES: Final = 1000
"""Matches of a pattern in one text; a text with more is masked as a whole."""
_SPANS: Final = 256
"""A check that lists so many spans may have left out more: the whole text is masked."""
_FIXED: Final = frozenset(("stage", "check", "kind", "became", "purpose", "role", "decision"))
"""Fields that hold no content, and must read as they are."""
_DIGESTS: Final = frozenset(("before", "after"))
_LATER: Final = ("events", "output", "text", "pending")
"""Payloads that hold what the model says."""
_KINDS: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    "message": msgspec.json.Decoder(Message),
    "request": msgspec.json.Decoder(RequestContent),
    "events": msgspec.json.Decoder(tuple[Event, ...]),
    "output": msgspec.json.Decoder(Output),
    "pending": msgspec.json.Decoder(Pending),
    "text": msgspec.json.Decoder(str),
}


class Masks:
    """The masks of a guard, checked and compiled. Immutable."""

    def __init__(self, masks: Iterable[Mask | Mapping[str, Any]], policy: Policy) -> None:
        """Compile masks for the calls that `policy` judges.

        Raises:
            InputError: a mask can't be used; says which, and why.
        """
        self.checks: dict[str, tuple[str, ...]] = {}
        """Ids of checks that mask, and at which stages each is asked."""
        self.rules: list[tuple[Mask, list[str], Any]] = []
        known = {check.id: check for check in policy.checks}
        for place, given in enumerate(masks):
            try:
                mask = given if isinstance(given, Mask) else msgspec.convert(given, Mask)
                if mask.check is None:
                    self.rules.append((mask, _steps(mask.pointer), _compiled(mask.pattern)))
                    continue
                check = known.get(mask.check)
                if check is None:
                    raise ValueError(f"the policy has no check {mask.check!r}.")
                if check.beside:
                    raise ValueError(
                        f"the check {mask.check!r} runs beside the model, when the input is "
                        "recorded already. Set beside = false."
                    )
                self.checks[check.id] = tuple(check.stages)
            except (ValueError, TypeError, msgspec.ValidationError) as error:
                raise InputError(f"mask {place}: {error}") from None
        self.later = bool(self.checks) or any(
            fnmatch.fnmatchcase(name, mask.payload) for mask, _, _ in self.rules for name in _LATER
        )
        """Whether what the model says may have to be masked."""

    def masking(self) -> Masking:
        """Return what masks the records of one call."""
        return Masking(self)


class Masking:
    """The masking of one call: what was found so far, and who has looked at what."""

    def __init__(self, masks: Masks) -> None:
        self._masks = masks
        self._values: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self._seen: dict[str, set[str]] = {check: set() for check in masks.checks}
        self._inputs: set[int] = set()
        self._key = os.urandom(32)
        self._touched: list[str] = []

    @property
    def withholds(self) -> bool:
        """Whether a stream's segments must not hold text."""
        return self._masks.later or bool(self._values)

    def mark(self, check: str, question: Question, answer: Answer) -> None:
        """Take note of what a check said about a text."""
        seen = self._seen.get(check)
        if seen is None:
            return
        texts = list(_asked_about(question))
        seen.update(text for _, text in texts)
        verdict = answer.value
        if isinstance(verdict, Replace):  # what it made itself, it need not see
            seen.update(_texts_of(verdict.content))
        spans = getattr(verdict, "spans", ())
        passed = answer.failure is None and (verdict is None or isinstance(verdict, Allow))
        if len(spans) >= _SPANS or not (passed or spans) or answer.failure is not None:
            # What it said may quote what it does not mark.
            said = (getattr(verdict, name, "") for name in ("reason", "feedback"))
            self._add((*(text for _, text in texts), *said, answer.message))
        for span in spans:
            place = span.label.split(" ", 1)[0]
            here = [text for where, text in texts if where == place]
            for text in here or [text for _, text in texts]:
                self._add([text[max(span.start, 0) : max(span.end, 0)]])

    def masked(
        self, payloads: Iterable[Payload], own: Iterable[int] = ()
    ) -> tuple[tuple[Payload, ...], tuple[Masked, ...]]:
        """Return payloads with what is to be masked taken out, and where that was.

        Args:
            payloads: of one record, in the order in which they are to be recorded.
            own: numbers of messages that a check at `pre_filter` should have been asked about.

        Raises:
            msgspec.MsgspecError: a payload does not read back.
        """
        payloads = tuple(payloads)
        read = {
            payload.name: _KINDS[payload.name.split("/", 1)[0]].decode(payload.body)
            for payload in payloads
            if not payload.shared
        }
        for name, value in read.items():
            self._look(name, value)
        self._require_seen(read, frozenset(own))
        if not self._values:
            return payloads, ()
        places: list[Masked] = []
        masked: list[Payload] = []
        for payload in payloads:  # messages stand before the events that name them
            if payload.shared:
                masked.append(payload)
                continue
            self._touched = []
            body = canonical(self._walk(read[payload.name], ""))
            masked.append(Payload(payload.name, body))
            places += (Masked(payload.name, where) for where in dict.fromkeys(self._touched))
            if self._touched and payload.name.startswith("message/"):
                self._inputs.add(int(payload.name.removeprefix("message/")))
        return tuple(masked), tuple(places)

    def withheld(self) -> tuple[bytes, tuple[Masked, ...]]:
        """Return what stands for the text of a segment, and that it was masked."""
        return canonical(MARKER), (Masked("text", ""),)

    # What is to be masked

    def _add(self, values: Iterable[str]) -> None:
        for value in values:
            if value.strip():
                self._values.add(value)
                self._pattern = None

    def _look(self, name: str, value: Any) -> None:
        """Apply the masks that name places."""
        for mask, steps, pattern in self._masks.rules:
            if fnmatch.fnmatchcase(name, mask.payload):
                for text in _found(value, steps):
                    self._add([text] if pattern is None else _matches(pattern, text))

    def _require_seen(self, read: Mapping[str, Any], own: frozenset[int]) -> None:
        """Mask as a whole what a check that masks should have been asked about, and was not."""
        for name, value in read.items():
            if isinstance(value, Message) and int(name.removeprefix("message/")) not in own:
                continue
            for stage, by, texts in _to_be_seen(value):
                for check, stages in self._masks.checks.items():
                    if stage in stages and by != check:
                        seen = self._seen[check]
                        self._add(t for t in texts if not any(t in known for known in seen))
            if isinstance(value, Output) and value.error is not None and self._masks.later:
                self._add((value.text or "",))  # it was cut off, maybe in what is to be masked

    # Taking it out

    def _text(self, text: str) -> str:
        """Return text without what is masked."""
        if self._pattern is None:
            forms = set(self._values)
            for value in self._values:  # JSON inside of text
                forms.update(json.dumps(value, ensure_ascii=pure)[1:-1] for pure in (True, False))
            longest = sorted(forms, key=lambda form: (-len(form), form))
            self._pattern = re.compile("|".join(map(re.escape, longest)))
        return self._pattern.sub(MARKER, text)

    def _walk(self, value: Any, where: str) -> Any:
        if isinstance(value, str):
            new = self._text(value)
            if new != value:
                self._touched.append(where)
            return new
        if isinstance(value, msgspec.Struct):
            return self._struct(value, where)
        if isinstance(value, tuple):
            return self._items(value, where)
        if isinstance(value, list | dict):
            return self._plain(value, where)
        return value

    def _struct(self, value: msgspec.Struct, where: str) -> msgspec.Struct:
        before = len(self._touched)
        clean: dict[str, Any] = {}
        for name in value.__struct_fields__:
            held = getattr(value, name)
            if name in _DIGESTS and isinstance(held, str):
                clean[name] = self._digest(held, f"{where}/{name}")
            elif name not in _FIXED:
                clean[name] = self._walk(held, f"{where}/{name}")
        new = msgspec.structs.replace(value, **clean)
        if isinstance(new, Generated):
            return self._generated(new, where, touched=len(self._touched) > before)
        if isinstance(new, Reasoning) and new.opaque and len(self._touched) > before:
            self._touched.append(f"{where}/opaque")
            return msgspec.structs.replace(new, opaque="")
        if isinstance(new, Scored) and new.logprobs is not None and self._of_masked(new.messages):
            self._touched.append(f"{where}/logprobs")
            return msgspec.structs.replace(new, logprobs=None)
        return new

    def _generated(self, event: Generated, where: str, *, touched: bool) -> Generated:
        """Leave out what tells the masked text in another form."""
        asked = self._of_masked(event.messages)
        if not touched and not asked:
            return event
        left_out = ["tokens", "prompt_ids", "raw", *(["prompt"] if asked else [])]
        left_out = [name for name in left_out if getattr(event.generation, name) is not None]
        self._touched += (f"{where}/generation/{name}" for name in left_out)
        generation = msgspec.structs.replace(event.generation, **dict.fromkeys(left_out))
        if "received" in generation.runtime:  # the raw response where it was no UTF-8
            self._touched.append(f"{where}/generation/runtime")
            runtime = {k: v for k, v in generation.runtime.items() if k != "received"}
            generation = msgspec.structs.replace(generation, runtime=runtime)
        return msgspec.structs.replace(event, generation=generation)

    def _of_masked(self, messages: Iterable[int]) -> bool:
        return not self._inputs.isdisjoint(messages)

    def _items(self, items: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        new = tuple([self._walk(item, f"{where}/{place}") for place, item in enumerate(items)])
        if sum(isinstance(item, Text) for item in items) < 2:
            return new
        joined = self._text(text_of(items))
        if joined == text_of(new):
            return new
        self._touched.append(where)  # what is masked stands in two parts
        return (Text(joined), *(item for item in new if not isinstance(item, Text)))

    def _plain(self, value: Any, where: str) -> Any:
        """Mask plain data. Its keys are content, so the place is that of the whole."""
        if isinstance(value, dict):
            return {self._walk(k, where): self._plain(v, where) for k, v in value.items()}
        if isinstance(value, list):
            return [self._plain(item, where) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            written = msgspec.json.encode(value).decode()
            return value if self._text(written) == written else self._walk(written, where)
        return self._walk(value, where)

    def _digest(self, digest: str, where: str) -> str:
        self._touched.append(where)
        keyed = hmac.new(self._key, digest.encode(), hashlib.sha256).hexdigest()
        return f"masked:{keyed}"


def _steps(pointer: str | None) -> list[str]:
    if not pointer:
        return []
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer[1:].split("/")]


def _compiled(pattern: str | None) -> Any:
    if pattern is None:
        return None
    import re2

    options: Any = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
        raise ValueError(f"pattern is not one that RE2 can run: {reason}.") from None


def _matches(pattern: Any, text: str) -> Iterator[str]:
    for count, match in enumerate(pattern.finditer(text)):
        if count == _MATCHES:
            yield text
            return
        yield match.group(0)


def _found(value: Any, steps: list[str]) -> Iterator[str]:
    """Yield every text that a pointer names, or that stands below what it names.

    Texts that stand in several parts are given joined, too.
    """
    if isinstance(value, str):
        if not steps:
            yield value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            if name not in _FIXED and name not in _DIGESTS and _names(steps, name):
                yield from _found(getattr(value, name), steps[1:])
    elif isinstance(value, tuple):
        if steps in ([], ["*"], ["*", "text"]):
            yield text_of(value)
        for place, each in enumerate(value):
            if _names(steps, str(place)):
                yield from _found(each, steps[1:])
    else:
        yield from _found_in_data(value, steps)


def _found_in_data(value: Any, steps: list[str]) -> Iterator[str]:
    """Yield texts and numbers of plain data, as `_found` does."""
    entries: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = ((str(place), each) for place, each in enumerate(value))
    elif isinstance(value, str) and not steps:
        yield value
    for name, each in entries:
        if not _names(steps, name):
            continue
        if isinstance(each, int | float) and not isinstance(each, bool) and len(steps) < 2:
            yield msgspec.json.encode(each).decode()
        else:
            yield from _found_in_data(each, steps[1:])


def _names(steps: list[str], name: str) -> bool:
    return not steps or steps[0] in ("*", name)


def _texts(parts: Iterable[Part]) -> list[str]:
    parts = tuple(parts)
    texts = [text_of(parts), *map(text_in, parts)]
    return [text for text in texts if text]


def _to_be_seen(value: Any) -> Iterator[tuple[str, str | None, list[str]]]:
    """Yield texts of a payload that checks at a stage should have been asked about.

    With each comes the check that made it, if one did.
    """
    if isinstance(value, Message):
        if value.role != "system":
            yield "pre_filter", None, _texts(value.content)
    elif isinstance(value, RequestContent):
        yield "pre_filter", None, [document.text for document in value.documents]
        if value.resumption is not None:
            edited = value.resumption.edited
            yield "pre_filter", None, _texts_of(edited)
            yield "post_validate", None, _texts_of(edited)
    elif isinstance(value, Output):
        if not value.refusal:
            yield "post_validate", None, [*_texts(value.content), *filter(None, [value.text])]
    elif isinstance(value, Pending):
        yield "pre_filter", None, [document.text for document in value.documents]
        if value.candidate is not None:
            yield "post_validate", None, _texts(value.candidate.content)
    elif isinstance(value, tuple):
        for event in value:
            if isinstance(event, Generated) and event.purpose == "answer":
                yield "post_validate", None, _texts(event.generation.content)
            elif isinstance(event, Revised):
                yield "post_validate", event.check, [event.text]
            elif isinstance(event, Judged) and isinstance(event.verdict, Replace):
                yield event.stage, event.check, _texts_of(event.verdict.content)


def _texts_of(content: Any) -> list[str]:
    """Return the texts of what a check, or a person, put in place of something."""
    if not isinstance(content, tuple):
        return [content] if content else []
    texts = _texts(each for each in content if not isinstance(each, Message | Document))
    for each in content:
        if isinstance(each, Message):
            texts += _texts(each.content)
        elif isinstance(each, Document):
            texts.append(each.text)
    return texts


def _asked_about(question: Question) -> Iterator[tuple[str, str]]:
    """Yield each text that a question shows a check, and its place as checks name it in spans."""
    for value in question.arguments.values():
        if isinstance(value, str):
            yield question.target, value
        elif isinstance(value, Candidate):
            yield from ((question.target, text) for text in _texts(value.content))
        elif isinstance(value, ToolCall):
            yield question.target, canonical(value.arguments).decode()
        elif isinstance(value, ToolResult):
            yield question.target, value.content
        elif isinstance(value, tuple):
            for place, each in enumerate(value):
                if isinstance(each, Message):
                    yield from ((f"message/{place}", text) for text in _texts(each.content))
                elif isinstance(each, Document):
                    yield f"document/{each.id}", each.text
