"""`Recorded`: answers from a file or a log, for tests, demonstrations and offline evaluation.

A file has one JSON object a line (JSON Lines, UTF-8; empty lines are passed over):

```json
{"prompt": "Where is my order?", "text": "It left on Monday."}
{"question": "sha256:...", "generation": {"content": [...], "finish_reason": "stop", "model": "m"}}
{"text": "What comes next, whatever was asked."}
{"error": "the model is down"}
```

A line's answer is ``text``, a whole ``generation`` (`isonomy.sdk.Generation` as it stands in
records), or an ``error`` that is raised as a `BackendError`. What it answers is ``question`` (the
digest of all messages, `question_of`), or ``prompt`` (the text of the last user message); a line
with neither answers whatever is asked next. They are looked for in this order. Lines for the same
question or prompt take turns; lines for none are used once, in order, or with `repeat` over and
over.

A log (a directory that a guard wrote) answers each of its calls' requests, and what plugins asked
of the model, by their messages.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from isonomy.sdk import BackendError, ConfigError
from isonomy.sdk.canonical import digest_of, sha256
from isonomy.sdk.events import Generated
from isonomy.sdk.generation import Generation, Identity, Request, Sampling
from isonomy.sdk.vocabulary import Message, Text

OnText = Callable[[str], None]


class Line(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """A line of a file of answers; exactly one of `text`, `generation` and `error` is there."""

    question: str | None = None
    prompt: str | None = None
    text: str | None = None
    generation: Generation | None = None
    error: str | None = None


class _Answers:
    """Answers to one question, given in turn."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.next = 0


class Recorded:
    """Answers that were given before.

    Args:
        file: a file of answers, or the directory of a log.
        repeat: begin again with the lines for no question when all of them were used.
        piece: how many characters `on_text` gets at a time; the whole text unless given.

    Raises:
        ConfigError: it can't be read, or a line is not as it should be; names file and line.
        LogError: the log can't be read.
    """

    def __init__(
        self, file: str | os.PathLike[str], *, repeat: bool = False, piece: int | None = None
    ) -> None:
        if piece is not None and (not isinstance(piece, int) or piece < 1):
            raise ConfigError(f"it must be a number from 1, not {piece!r}.", key="piece")
        self._file = os.fspath(file)
        self._repeat = repeat
        self._piece = piece
        self._lock = threading.Lock()
        self._closed = False
        self._known: dict[tuple[str, str], _Answers] = {}
        self._open = _Answers()
        path = Path(self._file)
        artefacts = {}
        if path.is_dir():
            self._read_log(path)
        else:
            body = _bytes_of(path, self._file)
            artefacts = {"answers": sha256(body)}
            self._read_lines(body)
        self._identity = Identity(
            provider="recorded",
            model=path.name,
            spec=f"recorded:{self._file}",
            options={"repeat": True} if repeat else {},
            artefacts=artefacts,
        )

    def __repr__(self) -> str:
        return f"Recorded({self._file!r})"

    def identity(self) -> Identity:
        """Return the file, with the digest of its content."""
        return self._identity

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` as it is: answers are what they are."""
        return sampling

    def generate(self, request: Request, *, on_text: OnText | None = None) -> Generation:
        """Give the recorded answer.

        Raises:
            BackendError: there is none, or it is an error.
        """
        line = self._next(request)
        if line.error is not None:
            raise BackendError(line.error, backend="recorded")
        generation = line.generation or Generation(
            content=(Text(line.text or ""),), finish_reason="stop", model=self._identity.model
        )
        if on_text is not None:
            text = generation.text
            size = self._piece or len(text)
            for start in range(0, len(text), size or 1):
                on_text(text[start : start + size])
        return generation

    async def agenerate(self, request: Request, *, on_text: OnText | None = None) -> Generation:
        """Like `generate`."""
        return self.generate(request, on_text=on_text)

    def close(self) -> None:
        """Answer nothing any more."""
        self._closed = True

    def _next(self, request: Request) -> Line:
        asked = _prompt_of(request.messages)
        with self._lock:
            if self._closed:
                raise BackendError(
                    f"the backend recorded:{self._file} was closed. Open another one.",
                    backend="recorded",
                )
            for key in (("question", question_of(request.messages)), ("prompt", asked)):
                answers = self._known.get(key)
                if answers is not None:
                    line = answers.lines[answers.next]
                    answers.next = (answers.next + 1) % len(answers.lines)
                    return line
            answers = self._open
            if self._repeat and answers.next == len(answers.lines):
                answers.next = 0
            if answers.next < len(answers.lines):
                answers.next += 1
                return answers.lines[answers.next - 1]
        used = f", and all {len(answers.lines)} lines for any were used" if answers.lines else ""
        raise BackendError(
            f"{self._file} has no answer to {asked[:80]!r} "
            f"({question_of(request.messages)}){used}. Add a line with that prompt or question.",
            backend="recorded",
        )

    def _read_lines(self, body: bytes) -> None:
        for number, written in enumerate(body.splitlines(), start=1):
            if not written.strip():
                continue
            try:
                line = msgspec.json.decode(written, type=Line)
                if sum(x is not None for x in (line.text, line.generation, line.error)) != 1:
                    raise msgspec.ValidationError(
                        "it must have exactly one of text, generation and error"
                    )
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise ConfigError(
                    f"{error}. See isonomy.backends.recorded for the format.",
                    file=self._file,
                    key=f"line {number}",
                ) from None
            self._enter(line)

    def _read_log(self, path: Path) -> None:
        from isonomy.replay import ReplayLog

        with ReplayLog(path) as log:
            calls = log.calls()
        for call in reversed(calls):  # the oldest first
            messages = call.messages
            for event in call.events:
                if isinstance(event, Generated) and all(n in messages for n in event.messages):
                    asked = tuple(messages[number] for number in event.messages)
                    self._enter(Line(question=question_of(asked), generation=event.generation))

    def _enter(self, line: Line) -> None:
        answers = self._open
        for kind, value in (("question", line.question), ("prompt", line.prompt)):
            if value is not None:
                answers = self._known.setdefault((kind, value), _Answers())
                break
        answers.lines.append(line)


def question_of(messages: tuple[Message, ...]) -> str:
    """Return the digest by which a line names the messages that it answers."""
    return digest_of(messages)


def line_of(request: Request, generation: Generation) -> bytes:
    """Return a line for a file of answers, with its line break: this answer to these messages."""
    line = Line(question=question_of(request.messages), generation=generation)
    return msgspec.json.encode(line) + b"\n"


def _prompt_of(messages: tuple[Message, ...]) -> str:
    return next((message.text for message in reversed(messages) if message.role == "user"), "")


def _bytes_of(path: Path, file: str) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"can't be read: {problem}. Check the path.", file=file) from None
