"""Traffic that Inspect logged (inspect_ai): its eval logs, ``.json`` or ``.eval``.

Every call of a model in a sample's events becomes a call; a sample without such events (they can be
left out of a log) becomes one of its input and output. The format:
https://inspect.aisi.org.uk/eval-logs.html; read are versions 1 and later, with attachments and
pooled messages put back in their places. An ``.eval`` file is a ZIP archive with a file for each
sample; where its compression can't be read here (zstd, as newer versions write), convert it:
``inspect log convert FILE --to json --output-dir DIR``.

Calls of one sample and epoch are a session. Tags name task, sample and epoch; scores whose value is
short stand in ``inspect_score_NAME``.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from isonomy.sdk.canonical import canonical
from isonomy.sdk.errors import InputError
from isonomy.sdk.generation import Generation, Sampling, Usage
from isonomy.sdk.vocabulary import (
    Audio,
    Image,
    Json,
    Message,
    Part,
    Reasoning,
    Role,
    Text,
    ToolCall,
    ToolResult,
)

from .errors import UnusableFile
from .lines import data_of, opened
from .traffic import PastCall, nanoseconds

SOURCE = "inspect"
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_tokens",
    "stop_seqs": "stop",
    "seed": "seed",
}
_ATTACHMENT = "attachment://"
_FINISH = {"max_tokens": "length", "model_length": "length"}
"""Reasons that have another name here; the others have the same."""
_LONGEST_SCORE = 32
_LARGEST_SAMPLE = 1 << 30


class _Log(msgspec.Struct):
    """An eval log, its samples not decoded yet."""

    eval: dict[str, Any]
    version: int = 1
    samples: list[msgspec.Raw] | None = None


def past_calls(
    file: str | os.PathLike[str], *, provider: str | None = None
) -> Iterator[PastCall | UnusableFile]:
    """Yield the calls of an eval log, by sample; in place of one that can't be used, why.

    Args:
        file: its path.
        provider: who answered; what precedes the slash in the model's name, unless given.

    Raises:
        UnusableFile: the file can't be read, or is no eval log.
    """
    name = os.fspath(file)
    with opened(file) as stream:
        packed = stream.read(4) == b"PK\x03\x04"
    samples = _packed(name) if packed else _plain(name)
    for place, task, body in samples:
        if isinstance(body, UnusableFile):
            yield body
            continue
        try:
            sample = data_of(body, constants=True)
            if not isinstance(sample, dict):
                raise ValueError("a sample must be an object")
            yield from _Sample(name, place, task, sample, provider).calls()
        except (ValueError, InputError, msgspec.MsgspecError) as error:
            yield UnusableFile(f"{str(error).rstrip('.')}.", file=name, place=place)


def _plain(file: str) -> Iterator[tuple[str, dict[str, Any], bytes | UnusableFile]]:
    with opened(file) as stream:
        body = stream.read()
    try:
        log = _decoded(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UnusableFile(
            f"it is no eval log of Inspect ({error}): expected is an object with eval and samples.",
            file=file,
        ) from None
    if log.samples is None:
        raise UnusableFile(
            "it is the header of an eval log, without samples. Log samples (--log-samples).",
            file=file,
        )
    for index, sample in enumerate(log.samples):
        yield f"sample {index + 1}", log.eval, bytes(sample)


def _decoded(body: bytes) -> _Log:
    try:
        return msgspec.json.decode(body, type=_Log)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:  # Inspect writes NaN, which is no JSON
        data = data_of(body, constants=True)
        if isinstance(data, dict) and isinstance(data.get("samples"), list):
            data["samples"] = [msgspec.Raw(canonical(sample)) for sample in data["samples"]]
        return msgspec.convert(data, _Log)


def _packed(file: str) -> Iterator[tuple[str, dict[str, Any], bytes | UnusableFile]]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            header = next((n for n in ("header.json", "_journal/start.json") if n in names), None)
            if header is None:
                raise UnusableFile(
                    "it is an archive, but no eval log of Inspect: it has no header.json.",
                    file=file,
                )
            told = data_of(archive.read(header), constants=True)
            task = told.get("eval") if isinstance(told, dict) else None
            for name in sorted(n for n in names if n.startswith("samples/")):
                if archive.getinfo(name).file_size > _LARGEST_SAMPLE:
                    problem = f"it is larger than {_LARGEST_SAMPLE} bytes."
                    yield name, {}, UnusableFile(problem, file=file, place=name)
                    continue
                yield name, task if isinstance(task, dict) else {}, archive.read(name)
    except NotImplementedError:
        raise UnusableFile(
            "its compression can't be read here. Convert it: inspect log convert FILE --to json "
            "--output-dir DIR.",
            file=file,
        ) from None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise UnusableFile(f"it is no eval log of Inspect: {error}.", file=file) from None


class _Sample:
    """A sample of an eval log."""

    def __init__(
        self,
        file: str,
        place: str,
        task: Mapping[str, Any],
        sample: dict[str, Any],
        provider: str | None,
    ) -> None:
        self._file = file
        self._place = place
        self._task = task
        self._sample = sample
        self._provider = provider
        attachments = sample.get("attachments")
        self._attachments = attachments if isinstance(attachments, dict) else {}
        pooled = sample.get("events_data")
        pooled = pooled.get("messages") if isinstance(pooled, dict) else None
        self._pool = pooled or sample.get("message_pool") or []
        id, epoch = sample.get("id"), sample.get("epoch", 1)
        run = task.get("eval_id") or task.get("run_id") or "eval"
        self._session = f"inspect-{run}-{id}-{epoch}"
        named = {
            "inspect_task": task.get("task"),
            "inspect_sample": id,
            "inspect_epoch": epoch,
            "inspect_eval": run,
            **_scores(sample.get("scores")),
        }
        self._tags = {name: str(value) for name, value in named.items() if value is not None}

    def calls(self) -> Iterator[PastCall | UnusableFile]:
        events = self._sample.get("events")
        found = False
        for index, event in enumerate(events if isinstance(events, list) else ()):
            if not isinstance(event, dict) or event.get("event") != "model" or event.get("pending"):
                continue
            found = True
            place = f"{self._place}, event {index + 1}"
            try:
                yield self._of_event(event, place, index)
            except (ValueError, InputError, msgspec.MsgspecError) as error:
                yield UnusableFile(f"{str(error).rstrip('.')}.", file=self._file, place=place)
        if not found:
            yield self._of_sample()

    def _of_event(self, event: dict[str, Any], place: str, index: int) -> PastCall:
        asked = event.get("input") or []
        if not asked and (refs := event.get("input_refs")) is not None:
            asked = self._pooled(refs)
        role = event.get("role")
        return self._call(
            place,
            id=str(event.get("uuid") or f"{self._session}-{index}"),
            asked=asked,
            output=event.get("output"),
            model=event.get("model"),
            config=event.get("config"),
            tools=event.get("tools"),
            began=event.get("timestamp"),
            failed=event.get("error"),
            tags={"inspect_role": role} if isinstance(role, str) else {},
        )

    def _of_sample(self) -> PastCall:
        sample = self._sample
        asked = sample.get("input")
        if isinstance(asked, str):
            asked = [{"role": "user", "content": asked}]
        failed = sample.get("error")
        return self._call(
            self._place,
            id=str(sample.get("uuid") or self._session),
            asked=asked,
            output=sample.get("output"),
            model=self._task.get("model"),
            config=self._task.get("model_generate_config"),
            tools=None,
            began=sample.get("started_at") or self._task.get("created"),
            failed=failed.get("message") if isinstance(failed, dict) else failed,
            tags={},
        )

    def _call(
        self,
        place: str,
        *,
        id: str,
        asked: Any,
        output: Any,
        model: Any,
        config: Any,
        tools: Any,
        began: Any,
        failed: Any,
        tags: dict[str, str],
    ) -> PastCall:
        if not isinstance(asked, list) or not asked:
            raise ValueError("its input must be text or a list of messages")
        if not isinstance(output, dict):
            raise ValueError("it has no output of a model")
        named = str(output.get("model") or model or "unknown")
        asked_for = str(model or named)
        provider, slash, _ = asked_for.partition("/")
        choices = output.get("choices") or []
        failed = failed or (output.get("error") if not choices else None)
        if not choices and not failed:
            raise ValueError("its output has no choices and no error")
        took = output.get("time")
        sampling, extra = _config(config)
        return PastCall(
            file=self._file,
            place=place,
            source=SOURCE,
            id=id,
            messages=tuple(self._message(item, f"input[{at}]") for at, item in enumerate(asked)),
            answers=() if failed else self._answers(choices, output, named),
            error=str(failed) if failed else None,
            provider=self._provider or (provider if slash else "inspect"),
            model=asked_for,
            sampling=sampling,
            tools=_tools(tools),
            extra=extra,
            started_ns=nanoseconds(began),
            duration_ns=int(took * 1e9) if isinstance(took, int | float) and took >= 0 else None,
            session=self._session,
            tags={**self._tags, **tags},
        )

    def _pooled(self, refs: Any) -> list[Any]:
        found: list[Any] = []
        for ref in refs if isinstance(refs, list) else ():
            if (
                not isinstance(ref, list)
                or len(ref) != 2
                or not all(type(number) is int for number in ref)
                or not 0 <= ref[0] <= ref[1] <= len(self._pool)
            ):
                raise ValueError("its input_refs name messages that are not in the sample's pool")
            found += self._pool[ref[0] : ref[1]]
        return found

    def _answers(self, choices: Any, output: dict[str, Any], model: str) -> tuple[Generation, ...]:
        usage = output.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        told = [counts.get(name) for name in ("input_tokens", "output_tokens")]
        used = Usage(*(count if type(count) is int else None for count in told))
        written = canonical(output).decode()
        made = []
        for index, choice in enumerate(choices):
            where = f"choices[{index}].message"
            if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
                raise ValueError(f"{where} must be an object")
            said = self._message({**choice["message"], "role": "assistant"}, where)
            reason = str(choice.get("stop_reason") or "unknown")
            made.append(
                Generation(
                    content=said.content or (Text(""),),
                    finish_reason=_FINISH.get(reason, reason),
                    model=model,
                    usage=Usage(0, 0) if index else used,
                    raw=written,
                )
            )
        return tuple(made)

    # Messages

    def _message(self, item: Any, where: str) -> Message:
        if not isinstance(item, dict) or item.get("role") not in _ROLES:
            raise ValueError(f"{where} must be a message with the role {', '.join(_ROLES)}")
        parts = self._parts(item.get("content"), where)
        role = _ROLES[item["role"]]
        if role == "tool":
            error = item.get("error")
            text = "".join(part.text for part in parts if isinstance(part, Text))
            if isinstance(error, dict) and not text:
                text = str(error.get("message") or "")
            result: Part = ToolResult(str(item.get("tool_call_id") or ""), text)
            return Message(role, (result, *(p for p in parts if not isinstance(p, Text))))
        if isinstance(thought := item.get("reasoning"), str) and thought:
            parts = (Reasoning(thought), *parts)
        calls = item.get("tool_calls")
        if role == "assistant" and isinstance(calls, list):
            made = (_tool_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(calls))
            kept = tuple(part for part in parts if not isinstance(part, Text) or part.text)
            parts = (*(kept if calls else parts), *made)
        return Message(role, parts)

    def _parts(self, content: Any, where: str) -> tuple[Part, ...]:
        if isinstance(content, str):
            return (Text(self._attached(content)),)
        if not isinstance(content, list):
            raise ValueError(f"{where}.content must be text or a list of parts")
        return tuple(self._part(part, f"{where}.content[{at}]") for at, part in enumerate(content))

    def _part(self, part: Any, where: str) -> Part:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return Text(self._attached(part["text"]))
        if kind == "reasoning" and isinstance(part.get("reasoning"), str):
            return Reasoning(self._attached(part["reasoning"]), str(part.get("signature") or ""))
        if kind == "image" and isinstance(part.get("image"), str):
            return Image(self._attached(part["image"]))
        if kind == "audio" and isinstance(part.get("audio"), str):
            return Audio(self._attached(part["audio"]), f"audio/{part.get('format', '*')}")
        if isinstance(kind, str):
            return Json(part)
        raise ValueError(f"{where} must be an object with a type")

    def _attached(self, text: str) -> str:
        """Return a text, or the attachment that it stands for."""
        if not text.startswith(_ATTACHMENT):
            return text
        found = self._attachments.get(text.removeprefix(_ATTACHMENT))
        return found if isinstance(found, str) else text


def _tool_call(call: Any, where: str) -> ToolCall:
    name = call.get("function") if isinstance(call, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{where} must name its function")
    arguments = call.get("arguments")
    if isinstance(arguments, dict) and not call.get("parse_error"):
        return ToolCall(str(call.get("id") or ""), name, arguments)
    written = arguments if isinstance(arguments, str) else canonical(arguments).decode()
    return ToolCall(str(call.get("id") or ""), name, {}, written)


def _tools(tools: Any) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "type": "function",
            "function": {
                name: tool[name] for name in ("name", "description", "parameters") if name in tool
            },
        }
        for tool in (tools if isinstance(tools, Sequence) else ())
        if isinstance(tool, dict)
    )


def _config(config: Any) -> tuple[Sampling, dict[str, Any]]:
    """Part a GenerateConfig into sampling and others."""
    taken: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in config.items() if isinstance(config, dict) else ():
        field = _SAMPLING.get(name)
        if value is None:
            continue
        try:
            if field is None:
                raise msgspec.ValidationError
            taken[field] = getattr(msgspec.convert({field: value}, Sampling), field)
        except msgspec.ValidationError:
            rest[name] = value
    return Sampling(**taken), rest


def _scores(scores: Any) -> dict[str, Any]:
    """Return scores whose value is short: tags outlive the erasure of content."""
    found = {}
    for name, score in scores.items() if isinstance(scores, dict) else ():
        value = score.get("value") if isinstance(score, dict) else None
        if isinstance(value, str | int | float) and len(str(value)) <= _LONGEST_SCORE:
            found[f"inspect_score_{name}"] = value
    return found
