"""The chat-completions format: answers into our vocabulary, whole and in streams. Pure.

Decoded strictly where we read them and tolerantly where we don't: fields we do not know are
ignored, a field of the wrong type is an error that names its path. A stream gives the same content
as the answer in one piece.

Servers differ. Reasoning is called ``reasoning_content`` (DeepSeek, vLLM, llama.cpp, LM Studio) or
``reasoning`` (Ollama, newer vLLM, OpenRouter). Several tool calls of a stream may come with the
same index or none, told apart by their ids.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from isonomy.sdk.generation import Usage
from isonomy.sdk.vocabulary import Audio, Part, Reasoning, Text, ToolCall

from .answers import Answer, CutOff, InvalidAnswer, Refused, content_of, decoded, tool_call
from .events import Sent


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    type: str | None = "function"
    function: _Function | None = None


class _Audio(msgspec.Struct):
    data: str | None = None
    transcript: str | None = None


class _Message(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    tool_calls: list[_Call] | None = None
    audio: _Audio | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    model: str | None = None
    usage: _Usage | None = None
    error: Any = None
    system_fingerprint: str | None = None


class _Streamed(msgspec.Struct):
    delta: _Message | None = None
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Streamed] | None = None
    model: str | None = None
    usage: _Usage | None = None
    error: Any = None
    system_fingerprint: str | None = None


def answer_of(body: bytes, *, audio_format: str = "wav") -> Answer:
    """Read an answer that came in one piece.

    A refusal that the endpoint sends beside the content becomes the text, with the finish reason
    ``refusal``.

    Args:
        body: JSON.
        audio_format: of spoken answers, as it was asked for.

    Raises:
        InvalidAnswer: not JSON, not of the format, or an error in the place of an answer.
    """
    completion = decoded(body, _Completion, "a chat completion")
    if not completion.choices:
        said = _said(completion.error)
        raise InvalidAnswer(f"it holds an error: {said}" if said else "it holds no choices")
    choice = completion.choices[0]
    message = choice.message
    calls = []
    for index, call in enumerate(message.tool_calls or ()):
        if call.function is None:
            raise InvalidAnswer(
                f"a tool call of type {call.type!r}, not a function - at "
                f"`$.choices[0].message.tool_calls[{index}]`"
            )
        calls.append(
            tool_call(call.id or "", call.function.name or "", _arguments(call.function.arguments))
        )
    spoken = message.audio or _Audio()
    return _answer(
        text=_text(message.content) + (spoken.transcript or ""),
        refusal=message.refusal or "",
        reasoning=_reasoning(message),
        calls=calls,
        audio=_recording([spoken.data] if spoken.data else [], audio_format),
        finish_reason=choice.finish_reason,
        model=completion.model,
        usage=completion.usage,
        fingerprint=completion.system_fingerprint,
    )


class _Growing:
    """A tool call of a stream."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.name = ""
        self.arguments: list[str] = []


class CompletionReader:
    """Reads a streamed answer; see `isonomy.backends.remote.answers.Reader`.

    An answer is complete when its finish reason has been told, or the stream says ``[DONE]``.

    Args:
        audio_format: of spoken answers, as it was asked for.
    """

    def __init__(self, audio_format: str = "pcm16") -> None:
        self._audio_format = audio_format
        self.ended = False
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._reasoning: list[str] = []
        self._recording: list[str] = []
        self._calls: list[_Growing] = []
        self._at: dict[int, _Growing] = {}
        self._finish_reason: str | None = None
        self._model: str | None = None
        self._usage: _Usage | None = None
        self._fingerprint: str | None = None

    def push(self, event: Sent) -> str:
        """Take an event and return the text that came with it.

        Raises:
            InvalidAnswer: it is no chunk, or says more after the end.
            Refused: it is an error.
        """
        if event.data.strip() == b"[DONE]":
            self.ended = True
            return ""
        chunk = decoded(event.data, _Chunk, "a chunk of a chat completion")
        if chunk.error is not None or event.name == "error":
            code = chunk.error.get("code") if isinstance(chunk.error, dict) else None
            raise Refused(
                _said(chunk.error) or event.data.decode("utf-8", "replace"),
                status=code if isinstance(code, int) and 400 <= code < 600 else None,
            )
        self._model = chunk.model or self._model
        self._usage = chunk.usage or self._usage
        self._fingerprint = chunk.system_fingerprint or self._fingerprint
        return "".join(self._said_by(choice) for choice in chunk.choices or ())

    def _said_by(self, choice: _Streamed) -> str:
        if choice.index != 0:
            return ""
        delta = choice.delta or _Message()
        spoken = delta.audio or _Audio()
        text = _text(delta.content) + (spoken.transcript or "")
        thought = _reasoning(delta)
        says = text or thought or delta.refusal or delta.tool_calls or spoken.data
        if says and (self.ended or self._finish_reason is not None):
            raise InvalidAnswer("it goes on after its end")
        if text:
            self._text.append(text)
        if thought:
            self._reasoning.append(thought)
        if delta.refusal:
            self._refusal.append(delta.refusal)
        if spoken.data:
            self._recording.append(spoken.data)
        for call in delta.tool_calls or ():
            self._called(call)
        self._finish_reason = choice.finish_reason or self._finish_reason
        return text

    def _called(self, call: _Call) -> None:
        if call.type not in (None, "", "function"):
            raise InvalidAnswer(f"a tool call of type {call.type!r}, not a function")
        known = self._calls[-1] if self._calls else None
        if call.index is not None:
            known = self._at.get(call.index)
        if known is None or (call.id and known.id and call.id != known.id):
            known = _Growing(call.id or "")
            self._calls.append(known)
        if call.index is not None:
            self._at[call.index] = known
        known.id = known.id or call.id or ""
        function = call.function or _Function()
        # A name comes once and whole; some servers repeat it with every piece.
        known.name = known.name or function.name or ""
        known.arguments.append(_arguments(function.arguments))

    def answer(self) -> Answer:
        """Return what was said.

        Raises:
            CutOff: the stream ended before the answer did.
        """
        if self._finish_reason is None and not self.ended:
            raise CutOff
        return _answer(
            text="".join(self._text),
            refusal="".join(self._refusal),
            reasoning="".join(self._reasoning),
            calls=[tool_call(c.id, c.name, "".join(c.arguments)) for c in self._calls],
            audio=_recording(self._recording, self._audio_format),
            finish_reason=self._finish_reason,
            model=self._model,
            usage=self._usage,
            fingerprint=self._fingerprint,
        )


class _Ranked(msgspec.Struct):
    token: str
    logprob: float


class _Position(msgspec.Struct):
    top_logprobs: list[_Ranked] = []


class _Positions(msgspec.Struct):
    content: list[_Position] | None = None


class _Scored(msgspec.Struct):
    logprobs: _Positions | None = None


class _Scores(msgspec.Struct):
    choices: list[_Scored] = []


def first_logprobs(body: bytes) -> dict[str, float]:
    """Return the log-probabilities of an answer's first token, by the token's text.

    Raises:
        InvalidAnswer: not of the format.
    """
    scores = decoded(body, _Scores, "a chat completion with log-probabilities")
    told = scores.choices[0].logprobs if scores.choices else None
    positions = told.content if told is not None else None
    if not positions:
        return {}
    return {ranked.token: ranked.logprob for ranked in reversed(positions[0].top_logprobs)}


def _answer(
    *,
    text: str,
    refusal: str,
    reasoning: str,
    calls: list[ToolCall],
    audio: Audio | None,
    finish_reason: str | None,
    model: str | None,
    usage: _Usage | None,
    fingerprint: str | None,
) -> Answer:
    finish = finish_reason or "unknown"
    if not text and refusal:
        text, finish = refusal, "refusal"
    parts: list[Part] = [Reasoning(reasoning)] if reasoning else []
    parts += [Text(text), *([audio] if audio is not None else []), *calls]
    counted = usage or _Usage()
    details = {
        name: value
        for name in ("prompt_tokens_details", "completion_tokens_details")
        if (value := getattr(counted, name))
    }
    runtime: dict[str, Any] = {"usage": details} if details else {}
    if fingerprint:
        runtime["system_fingerprint"] = fingerprint
    return Answer(
        content=content_of(parts),
        finish_reason=finish,
        model=model,
        usage=Usage(counted.prompt_tokens, counted.completion_tokens),
        runtime=runtime,
    )


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    return content or ""


def _reasoning(message: _Message) -> str:
    if message.reasoning_content:
        return message.reasoning_content
    return message.reasoning if isinstance(message.reasoning, str) else ""


def _arguments(written: str | dict[str, Any] | None) -> str:
    if isinstance(written, dict):
        return msgspec.json.encode(written).decode()
    return written or ""


def _recording(data: list[str], form: str) -> Audio | None:
    if not data:
        return None
    try:
        # Each piece is base64 of its own, with padding at its end.
        joined = b"".join(base64.b64decode(piece, validate=True) for piece in data)
    except (binascii.Error, ValueError):
        raise InvalidAnswer("its audio is not base64") from None
    media_type = {"mp3": "audio/mpeg"}.get(form, f"audio/{form}")
    return Audio(
        f"data:{media_type};base64,{base64.b64encode(joined).decode()}", media_type=media_type
    )


def _said(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message")
    return str(error) if error else ""
