"""What checks are asked about, and what their answers may put in its place.

A `Subject` is what a stage judges: it turns the content into questions, and puts in what a check's
`Replace` gave. Functions named `as_...` read what a check returned, and raise `TypeError` with a
sentence where it is not what the stage can take.

A plugin is shown a stage's content as it is. A callable is given each text that a model, a user or
a tool wrote, one at a time: the text parts of a message joined, and by themselves a tool's result,
reasoning, and structured data as canonical JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from .canonical import canonical, require_declared, require_finite
from .checks import Check, verdict_of_callable, verdict_of_hook
from .errors import InputError
from .vocabulary import (
    Candidate,
    Critique,
    Document,
    Json,
    Message,
    Part,
    Ranking,
    Reasoning,
    Replace,
    Retry,
    Stage,
    Text,
    ToolCall,
    ToolResult,
    Verdict,
)

Read = Callable[[Any], Any]
"""Turns what a check returned into values of our own, or raises."""


class Question(msgspec.Struct, gc=False):
    """One thing to ask a check.

    About which target, with which arguments, and what content that is.
    """

    target: str
    arguments: dict[str, Any]
    seen: Any


class Subject(NamedTuple):
    """What a stage judges.

    `questions` are what to ask a check about a content, in order. `replaced` gives the content with
    what a verdict on a question put in, and what stands there now; it raises `TypeError` where the
    verdict does not fit.
    """

    stage: Stage
    questions: Callable[[Check, Any], list[Question]]
    replaced: Callable[[Any, Question, Replace], tuple[Any, Any]]


# Messages.


def _about_messages(check: Check, content: tuple[Message, ...]) -> list[Question]:
    if not check.is_callable:
        return [Question("messages", {"messages": content}, content)]
    asked = []
    for index, message in enumerate(content):
        if message.role == "system":
            continue
        text = message.text
        if text:
            asked.append(Question(f"message/{index}", {"text": text}, message))
        asked += _about_parts(f"message/{index}", message.content)
    return asked


def _new_messages(
    content: tuple[Message, ...], question: Question, verdict: Replace
) -> tuple[Any, Any]:
    if question.target == "messages":
        new = as_messages(verdict.content, content)
        return new, new
    index = int(question.target.split("/")[1])
    message, text = content[index], as_text(verdict.content)
    part: Any
    if isinstance(question.seen, Message):
        part = message = message.with_text(text)
    else:
        part = _with_text(question.seen, text)
        message = Message(message.role, _put(message.content, question.seen, part))
    return (*content[:index], message, *content[index + 1 :]), part


def _about_parts(target: str, parts: tuple[Part, ...]) -> Iterator[Question]:
    """Ask a callable about each part that is text by itself."""
    for place, part in enumerate(parts):
        if isinstance(part, Text):
            continue
        text = text_in(part)
        if text:
            yield Question(f"{target}/{place}", {"text": text}, part)


def text_in(part: Part) -> str:
    """Return what a part other than `Text` says, as text to be judged; empty where it is none."""
    if isinstance(part, ToolResult):
        return part.content
    if isinstance(part, Reasoning):
        return part.text
    if isinstance(part, Json):
        return canonical(part.value).decode()
    return ""


def _with_text(part: Any, text: str) -> Any:
    """Return a part that says something else, in the same form."""
    if isinstance(part, ToolResult):
        return ToolResult(part.id, text)
    if isinstance(part, Reasoning):
        return Reasoning(text)  # what its provider signed is no more
    return Json(_json(text))


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise TypeError(f"Replace of structured data must hold JSON text: {error}") from None


def _put(parts: tuple[Any, ...], old: Any, new: Any) -> tuple[Any, ...]:
    """Put a part in another's place, found by identity: earlier ones may have moved or be equal."""
    return tuple(new if part is old else part for part in parts)


# Answers.


def _about_answer(check: Check, content: Candidate) -> list[Question]:
    target = f"candidate/{content.index}"
    if not check.is_callable:
        return [Question(target, {"candidate": content}, content)]
    asked = []
    parts = content.content
    if not parts or any(isinstance(part, Text) for part in parts):
        asked.append(Question(target, {"text": content.text}, content))
    asked += _about_parts(target, parts)
    return asked


def _new_answer(content: Candidate, question: Question, verdict: Replace) -> tuple[Any, Any]:
    if isinstance(question.seen, Candidate):
        parts = as_parts(verdict.content, content.content)
        if any(isinstance(part, ToolCall) and part not in content.content for part in parts):
            raise TypeError(
                "Replace at post_validate can't add or change a tool call: the checks at tool_call "
                "have judged them. Replace it there"
            )
        new = content.with_content(parts)
        return new, new
    part = _with_text(question.seen, as_text(verdict.content))
    return content.with_content(_put(content.content, question.seen, part)), part


# Documents.


def _about_documents(check: Check, content: tuple[Document, ...]) -> list[Question]:
    if not check.is_callable:
        return [Question("documents", {"documents": content}, content)]
    return [Question(f"document/{each.id}", {"text": each.text}, each) for each in content]


def _new_documents(
    content: tuple[Document, ...], question: Question, verdict: Replace
) -> tuple[Any, Any]:
    if isinstance(question.seen, Document):
        part = msgspec.structs.replace(question.seen, text=as_text(verdict.content))
        return _put(content, question.seen, part), part
    new = as_documents(verdict.content)
    return new, new


def as_documents(content: Any) -> tuple[Document, ...]:
    """Return the documents that a `Replace` left."""
    if all(isinstance(item, Document) for item in content):
        return tuple(content)
    raise TypeError("Replace at retrieved must hold Documents, and nothing else")


def with_documents(
    messages: tuple[Message, ...], documents: tuple[Document, ...]
) -> tuple[Message, ...]:
    """Return the messages with the documents put before what the user asked last.

    Not as a system message: documents are a stranger's words, and every check sees them as input.
    """
    if not documents:
        return messages
    listed = "\n\n".join(f"[{document.id}]\n{document.text}" for document in documents)
    block = Text(f"Documents:\n\n{listed}\n\n")
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            asked = Message("user", (block, *messages[index].content))
            return (*messages[:index], asked, *messages[index + 1 :])
    return (*messages, Message("user", (block,)))


# Tools.


def _about_results(check: Check, content: tuple[Message, ...]) -> list[Question]:
    results = [p for m in content for p in m.content if isinstance(p, ToolResult)]
    if not results:
        return []
    if check.is_callable:
        return [Question(f"tool_result/{p.id}", {"text": p.content}, p) for p in results]
    calls = {p.id: p for m in content for p in m.content if isinstance(p, ToolCall)}
    return [
        Question(
            f"tool_result/{part.id}",
            {"tool_call": calls.get(part.id, ToolCall(part.id, "", {})), "result": part},
            part,
        )
        for part in results
    ]


def _new_result(
    content: tuple[Message, ...], question: Question, verdict: Replace
) -> tuple[Any, Any]:
    part = as_result(verdict.content, question.seen)
    return tuple(
        Message(message.role, _put(message.content, question.seen, part))
        if any(other is question.seen for other in message.content)
        else message
        for message in content
    ), part


def as_result(content: Any, old: ToolResult) -> ToolResult:
    """Return the result that a `Replace` makes of the old one; it answers the same call."""
    if isinstance(content, str):
        return ToolResult(old.id, content)
    if len(content) == 1 and isinstance(content[0], ToolResult):
        return ToolResult(old.id, content[0].content)
    raise TypeError("Replace at tool_result must hold text or one ToolResult")


def _about_calls(check: Check, content: Candidate) -> list[Question]:
    return [
        Question(
            f"tool_call/{part.id}",
            {"text": canonical(part.arguments).decode()}
            if check.is_callable
            else {"tool_call": part},
            part,
        )
        for part in content.content
        if isinstance(part, ToolCall) and not part.malformed
    ]


def _new_call(content: Candidate, question: Question, verdict: Replace) -> tuple[Any, Any]:
    part = as_tool_call(verdict.content, question.seen)
    return content.with_content(_put(content.content, question.seen, part)), part


def as_tool_call(content: Any, old: ToolCall) -> ToolCall:
    """Return the tool call that a `Replace` makes of the old one; it keeps its id.

    Text is other arguments, as JSON.
    """
    if isinstance(content, str):
        arguments = _json(content)
        if not isinstance(arguments, dict):
            raise TypeError("Replace at tool_call must hold arguments as a JSON object")
        return msgspec.structs.replace(old, arguments=arguments)
    if len(content) == 1 and isinstance(content[0], ToolCall) and not content[0].malformed:
        return msgspec.structs.replace(content[0], id=old.id)
    raise TypeError("Replace at tool_call must hold one ToolCall, or its arguments as JSON text")


def malformed_calls(content: tuple[Part, ...]) -> list[ToolCall]:
    """Return the tool calls whose arguments are no JSON object: no check can judge them."""
    return [part for part in content if isinstance(part, ToolCall) and part.malformed]


DOCUMENTS = Subject("retrieved", _about_documents, _new_documents)
RESULTS = Subject("tool_result", _about_results, _new_result)
MESSAGES = Subject("pre_filter", _about_messages, _new_messages)
CALLS = Subject("tool_call", _about_calls, _new_call)
ANSWER = Subject("post_validate", _about_answer, _new_answer)


def as_text(content: Any) -> str:
    """Return the text that a callable's `Replace` holds."""
    if isinstance(content, str):
        return content
    raise TypeError("Replace from a callable check must hold text (a str)")


def as_messages(content: Any, old: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the messages that a `Replace` makes of the old ones."""
    if isinstance(content, str):
        # Text alone replaces what was asked last.
        for index in range(len(old) - 1, -1, -1):
            if old[index].role == "user":
                return (*old[:index], old[index].with_text(content), *old[index + 1 :])
        raise TypeError("Replace with text at pre_filter needs a user message to replace")
    if content and all(isinstance(item, Message) for item in content):
        return tuple(content)
    raise TypeError(
        "Replace at pre_filter must hold text or at least one Message, and nothing else"
    )


def as_parts(content: Any, old: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return the parts that a `Replace` makes of the old ones."""
    if isinstance(content, str):
        # Reasoning about a text that was replaced would give it away.
        kept = (part for part in old if not isinstance(part, Text | Reasoning))
        return (Text(content), *kept)
    if all(isinstance(item, Part) for item in content):
        return tuple(content)
    raise TypeError("Replace at post_validate must hold text or parts, not messages")


def as_critiques(value: Any) -> tuple[Critique, ...]:
    """Return what a critique hook said."""
    if isinstance(value, str | bytes):
        raise TypeError("critique must return a list of Critiques or None, not text")
    critiques = tuple(value)
    for critique in critiques:
        if not isinstance(critique, Critique):
            raise TypeError(f"critique must return Critiques, not {type(critique).__name__}")
        require_finite(critique.score, "a critique's score")
    return tuple(require_declared(critique, Critique) for critique in critiques)


def as_candidate(value: Any) -> Candidate:
    """Return a revised candidate."""
    if not isinstance(value, Candidate):
        raise TypeError(f"revise must return a Candidate or None, not {type(value).__name__}")
    return require_declared(value, Candidate)


def as_ranking(value: Any, candidates: tuple[Candidate, ...]) -> Ranking:
    """Return an order of all the candidates."""
    if not isinstance(value, Ranking):
        raise TypeError(f"rank must return a Ranking or None, not {type(value).__name__}")
    ranking = require_declared(value, Ranking)
    if sorted(ranking.order) != sorted(candidate.index for candidate in candidates):
        raise TypeError("rank must return a Ranking that orders each candidate exactly once")
    if ranking.scores and len(ranking.scores) != len(ranking.order):
        raise TypeError("a Ranking has a score for each candidate in its order, or none at all")
    for score in ranking.scores:
        try:
            require_finite(score, "a ranking's score")
        except InputError as error:
            raise TypeError(str(error)) from None
    return ranking


def reading(check: Check, stage: Stage) -> Read:
    """Return what turns a check's answer at a stage into a verdict; it raises `TypeError`."""
    return _CALLABLES[stage] if check.is_callable else _HOOKS[stage]


_RETRIED: tuple[Stage, ...] = ("tool_call", "post_validate")


def _reading(read: Callable[[Any], Verdict | None], stage: Stage) -> Read:
    """Return how to read a verdict at a stage."""
    if stage in _RETRIED:
        return read

    def fitting(value: Any) -> Verdict | None:
        verdict = read(value)
        if isinstance(verdict, Retry):
            raise TypeError(
                "Retry makes sense at tool_call and post_validate only: there is no answer yet"
            )
        return verdict

    return fitting


_JUDGED: tuple[Stage, ...] = (
    "retrieved",
    "tool_result",
    "pre_filter",
    "tool_call",
    "post_validate",
)
_HOOKS = {stage: _reading(verdict_of_hook, stage) for stage in _JUDGED}
_CALLABLES = {stage: _reading(verdict_of_callable, stage) for stage in _JUDGED}
