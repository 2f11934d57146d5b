"""The properties that the conformance kit examines: one function each (see `conformance`).

A function returns `None` where its property holds, or what is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from .. import tomlfile
from ..canonical import canonical
from ..checks import Check
from ..events import Critiqued, Failed, Judged
from ..performing import Reply
from ..provenance import of_state
from ..vocabulary import Allow, Document, Message, Replace, Stage, Text, Verdict, text_of
from . import elsewhere as child
from .asking import Panel, Question, Told, failures
from .conformance import Case, Held, Outcome, shrunk
from .growth import linear
from .streaming import streams
from .watching import effects, timeouts

__all__ = [
    "determinism",
    "effects",
    "elsewhere",
    "hostile",
    "linear",
    "parity",
    "settings",
    "settles",
    "state",
    "streams",
    "timeouts",
    "well_formed",
]


def well_formed(case: Case) -> Held:
    """Every return is a verdict, with a reason, and spans inside of the text."""
    with Panel(case.subject.fresh(), case.world) as panel:

        def problem(question: Question) -> str | None:
            return _malformed(panel.reply(question), question)

        for question in case.questions((*case.texts, *case.hostile.values())):
            found = problem(question)
            if found is not None:
                small = _smallest(question, lambda q: problem(q) is not None)
                said = problem(question._replace(text=small)) or found
                return Outcome("well_formed", "failed", f"at {question.stage} {said}", small)
    return None


def _smallest(question: Question, fails: Callable[[Question], bool]) -> str:
    return shrunk(question.text, lambda text: fails(question._replace(text=text)))


def _malformed(reply: Reply, question: Question) -> str | None:
    for failed in failures(reply):
        if failed.kind == "invalid":
            return f"it returned what is no answer: {failed.message.rstrip('.')}."
    for event in reply.events:
        if isinstance(event, Critiqued):
            for critique in event.critiques:
                if not 0 <= critique.score <= 1:
                    return (
                        f"it scored {critique.principle!r} with {critique.score:g}. Scores of "
                        "critiques go from 0, a breach, to 1, full compliance."
                    )
        if isinstance(event, Judged) and event.verdict is not None:
            found = _malformed_verdict(event.verdict, question)
            if found is not None:
                return found
    return None


def _malformed_verdict(verdict: Verdict, question: Question) -> str | None:
    if not isinstance(verdict, Allow | Replace):
        said = getattr(verdict, "feedback", None) or getattr(verdict, "reason", None)
        if not said or not said.strip():
            return (
                f"it gave the verdict {verdict.name} without saying why. Say it: whoever reads the "
                "log wants to know."
            )
    for span in verdict.spans:
        if not 0 <= span.start <= span.end <= len(question.text):
            return (
                f"it marked the characters {span.start} to {span.end} of a text of "
                f"{len(question.text)}. A span counts characters of the judged text."
            )
    return None


def hostile(case: Case) -> Held:
    """Nothing that a text can hold makes it raise."""
    everything = {**{text: text for text in case.texts}, **case.hostile}
    with Panel(case.subject.fresh(), case.world) as panel:
        for name, text in everything.items():
            for question in case.questions([text]):
                failed = _raised(panel.reply(question))
                if failed is None:
                    continue
                small = _smallest(question, lambda q: _raised(panel.reply(q)) is not None)
                known = name if text in case.hostile.values() else "an ordinary text"
                return Outcome(
                    "hostile",
                    "failed",
                    f"at {question.stage} it raised {failed.error}: {failed.message.rstrip('.')} "
                    f"({known}). Expect any text, and say with a verdict what is wrong with it.",
                    small,
                )
    return None


def _raised(reply: Reply) -> Failed | None:
    return next((failed for failed in failures(reply) if failed.kind == "error"), None)


def determinism(case: Case) -> Held:
    """A fresh instance says the same about the same text."""
    questions = case.questions((*case.texts, *case.hostile.values()))
    first = _fresh_answers(case, questions)
    for _ in range(2):
        again = _fresh_answers(case, questions)
        for question, one, other in zip(questions, first, again, strict=True):
            if one != other:
                return Outcome(
                    "determinism",
                    "failed",
                    f"a fresh instance, asked at {question.stage} about the same text, said "
                    f"{_both(one, other)}. Take time and chance through ctx (ctx.now(), ctx.rng), "
                    "and keep nothing outside of the instance.",
                    _smallest_difference(case, question),
                )
    return None


def _fresh_answers(case: Case, questions: Sequence[Question]) -> list[Told]:
    with Panel(case.subject.fresh(), case.world) as panel:
        return [panel.ask(question) for question in questions]


def _smallest_difference(case: Case, question: Question) -> str:
    def differs(text: str) -> bool:
        asked = [question._replace(text=text)]
        one = _fresh_answers(case, asked)
        return any(_fresh_answers(case, asked) != one for _ in range(3))

    return shrunk(question.text, differs, tries=30)


def _both(one: Told, other: Told) -> str:
    effect = _differing_effect(one, other)
    if effect is not None:
        return (
            f"{one.short!r}, then {other.short!r}, for its effect {effect!r} came to other values. "
            f"Say what it comes to: effects={{{effect!r}: ...}}"
        )
    if one.short != other.short:
        return f"{one.short!r}, then {other.short!r}"
    if one.text != other.text:
        return f"{one.short!r} both times, with other texts: {one.text!r}, then {other.text!r}"
    return f"{one.short!r} both times, with other particulars (reason, spans, score, effects)"


def _differing_effect(one: Told, other: Told) -> str | None:
    """Return the name of the effect with which two tellings part, if it is an effect."""
    for body, twin in zip(one.said, other.said, strict=False):
        if body != twin:
            event, second = msgspec.json.decode(body), msgspec.json.decode(twin)
            same = event["type"] == second["type"] == "effect" and event["name"] == second["name"]
            return str(event["name"]) if same else None
    return None


def elsewhere(case: Case) -> Held:
    """One in another process, with another hash seed, says the same."""
    questions = case.questions((*case.texts, *case.hostile.values()))
    told_there = child.ask_elsewhere(case.subject.check, case.world, questions)
    if isinstance(told_there, str):
        return Outcome("elsewhere", "skipped", told_there)
    here = _fresh_answers(case, questions)
    for question, one, other in zip(questions, here, told_there, strict=True):
        if one != other:
            return Outcome(
                "elsewhere",
                "failed",
                f"in another process, with another hash seed, it said at {question.stage} "
                f"{_both(one, other)}. Don't rely on the order of a set, on hash(), on id() or on "
                "what this process did before.",
                question.text,
            )
    return None


def state(case: Case) -> Held:
    """What it says depends neither on earlier questions nor on questions at the same time."""
    questions = case.questions()
    fresh = {}
    for question in questions:
        fresh[question] = _fresh_answers(case, [question])[0]
    with Panel(case.subject.fresh(), case.world) as panel:
        for order in (questions, questions[::-1], questions):
            for question in order:
                said = panel.ask(question)
                if said != fresh[question]:
                    return Outcome(
                        "state",
                        "failed",
                        f"asked at {question.stage} after other texts, it said "
                        f"{_both(fresh[question], said)}. A check keeps nothing between calls: "
                        "what must be counted is counted through ctx.effect.",
                        question.text,
                    )
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(panel.ask, questions * 3))
        for question, said in zip(questions * 3, together, strict=True):
            if said != fresh[question]:
                return Outcome(
                    "state",
                    "failed",
                    f"asked at {question.stage} while other threads asked it too, it said "
                    f"{_both(fresh[question], said)}. Keep what belongs to one question in local "
                    "variables, not in the instance.",
                    question.text,
                )
    return None


def parity(case: Case) -> Held:
    """Sync and async callers get the same."""
    questions = case.questions()
    with Panel(case.subject.fresh(), case.world) as panel:
        sync = [panel.ask(question) for question in questions]

        async def in_loop() -> tuple[list[Told], list[Told]]:
            awaited = [await panel.aask(question) for question in questions]
            return awaited, [panel.ask(question) for question in questions]

        for way, answers in zip(
            ("an async caller", "a sync caller inside of a running event loop"),
            _run(in_loop()),
            strict=True,
        ):
            for question, one, other in zip(questions, sync, answers, strict=True):
                if one != other:
                    return Outcome(
                        "parity",
                        "failed",
                        f"at {question.stage} {way} got something else than a sync caller: "
                        f"{_both(one, other)}. Don't ask which event loop runs, nor start one.",
                        question.text,
                    )
    return None


def _run(coroutine: object) -> tuple[list[Told], list[Told]]:
    """Run a coroutine in a thread of its own: the test's may have a running loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()  # type: ignore[arg-type]


def settles(case: Case) -> Held:
    """It does not change again what it has changed."""
    stages: set[Stage] = {"pre_filter", "post_validate", "retrieved"}
    with Panel(case.subject.fresh(), case.world) as panel:

        def after(question: Question) -> str | None:
            return _replaced_by(panel.reply(question))

        def unsettled(question: Question) -> bool:
            once = after(question)
            return once is not None and after(question._replace(text=once)) not in (None, once)

        for question in case.questions((*case.texts, *case.hostile.values())):
            if question.stage not in stages or not unsettled(question):
                continue
            small = _smallest(question, unsettled)
            once = after(question._replace(text=small)) or ""
            twice = after(question._replace(text=once))
            return Outcome(
                "settles",
                "failed",
                f"at {question.stage} it replaced the text by {once!r}, and that by {twice!r}: a "
                "policy that asks it again never ends. What it made must pass.",
                small,
            )
    return None


def _replaced_by(reply: Reply) -> str | None:
    """Return the text that the check put in the place of the one that it was asked about."""
    for event in reply.events:
        if isinstance(event, Judged) and isinstance(event.verdict, Replace):
            content = event.verdict.content
            if isinstance(content, str):
                return content
            first = content[0] if content else Text("")
            if isinstance(first, Message | Document):  # the question's own; what follows is ours
                return first.text
            return text_of(part for part in content if not isinstance(part, Message | Document))
    return None


def settings(case: Case) -> Held:
    """Its settings are data: read from a policy file, the check is the same."""
    check = case.subject.check
    plugin = case.subject.plugin
    if not isinstance(plugin, msgspec.Struct):
        state_of = None if check.is_callable else of_state(plugin)
        if state_of is not None and state_of[1]:
            return Outcome(
                "settings",
                "failed",
                "what the instance was given can't be told from the record: an attribute of it is "
                "no data. Make the class a frozen msgspec.Struct whose fields are the settings.",
            )
        return Outcome("settings", "skipped", "it is no msgspec.Struct: no file can set it.")
    return _through_a_file(case, check, plugin)


def _through_a_file(case: Case, check: Check, plugin: msgspec.Struct) -> Held:
    import tomllib

    from ..policy import TERMS

    taken = [name for name in plugin.__struct_fields__ if name in TERMS]
    if taken:
        return Outcome(
            "settings",
            "failed",
            f"its setting {taken[0]!r} is the name of a term, so a policy file can't set it. "
            "Rename it.",
        )
    try:
        written = tomlfile.written(check.settings)
        again = msgspec.convert(tomllib.loads(written), type(plugin))
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        return Outcome(
            "settings",
            "failed",
            f"its settings can't be written to a policy file and read again: {error}. Use text, "
            "numbers, booleans, tuples, dictionaries with text as keys, and structs of these.",
        )
    if msgspec.json.decode(canonical(again)) != msgspec.json.decode(canonical(plugin)):
        return Outcome(
            "settings",
            "failed",
            f"read again from a policy file, its settings are {msgspec.to_builtins(again)}, not "
            f"{check.settings}. A field that may be None must be None unless it is given.",
        )
    if not plugin.__struct_config__.frozen:
        return Outcome(
            "settings", "failed", "it can be changed after the policy was made. Make it frozen."
        )
    questions = case.questions()
    with (
        Panel(case.subject.fresh(), case.world) as panel,
        Panel(case.subject.around(again), case.world) as other,
    ):
        for question in questions:
            one, two = panel.ask(question), other.ask(question)
            if one != two:
                return Outcome(
                    "settings",
                    "failed",
                    f"read again from a policy file, it said at {question.stage} "
                    f"{_both(one, two)}.",
                    question.text,
                )
    return None
