"""`Transformers`: an ordinary causal language model, run by transformers' own `generate`.

For models that the built-in engine does not cover, and for speed on accelerators. It promises no
bits: the same seed gives the same answer as a rule, on the same machine with the same versions, and
a replay takes the recorded answer. Needs the extra ``torch``.

Invariants: nothing is fetched (local files only), weights are safetensors only, code that comes
with a checkpoint is never run, and every tensor has its place. torch has one random state a
process: it is set for each answer and put back after it, so generations of all such backends take
turns.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from isonomy.sdk import (
    BackendError,
    ConfigError,
    ContextLength,
    InputError,
    MissingExtra,
    ModelError,
)
from isonomy.sdk.canonical import digest_of
from isonomy.sdk.generation import Generation, Identity, Request, Sampling, Usage
from isonomy.sdk.vocabulary import Json, Message, Reasoning, Text

from .local.text import Detokenizer, StopStrings
from .remote.conversation import require_allowed, written

OnText = Callable[[str], None]
MAX_TOKENS = 1024
"""Longest answer where neither the request nor the checkpoint says otherwise."""
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_ALLOWED: dict[str, tuple[type, ...]] = {
    "system": (Text, Json),
    "user": (Text, Json),
    "assistant": (Text, Json, Reasoning),
    "tool": (),
}
_RANGES = (
    ("temperature", 0.0, 1e6),
    ("top_p", 1e-9, 1.0),
    ("top_k", 0, 1 << 31),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 1e-6, 1e6),
    ("max_tokens", 1, 1 << 31),
)
_TURN = threading.Lock()
"""Held while torch's random state is ours."""


class _GivenUp(Exception):
    """Nobody waits for the answer any more."""


class Transformers:
    """A checkpoint run by transformers.

    Args:
        folder: of an ordinary Hugging Face checkpoint: config.json, safetensors, tokenizer, chat
            template. Never the name of one that would have to be fetched.
        device: where torch computes: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: of the weights: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for as they are
            stored.
        chat_template: a template to use instead of the checkpoint's.

    Raises:
        MissingExtra: torch or transformers is not installed.
        ConfigError: an option can't be used.
        ModelError: there is no such checkpoint, or it is damaged, or not safe to load.
    """

    def __init__(
        self,
        folder: str,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        chat_template: str | None = None,
    ) -> None:
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtra("the backend 'transformers'", "torch", package)
        if dtype not in _DTYPES:
            raise ConfigError(
                f"it must be one of {', '.join(_DTYPES)}, not {dtype!r}.", key="dtype"
            )
        self._folder = Path(folder)
        if not (self._folder / "config.json").is_file():
            raise self._unusable(
                f"there is no config.json in {folder}. Pass the folder of a checkpoint; nothing is "
                "fetched."
            )
        self._spec = f"transformers:{folder}"
        self._model: Any
        self._tokenizer, self._model = self._loaded(device, dtype)
        if chat_template is not None:
            self._tokenizer.chat_template = chat_template
        if not self._tokenizer.chat_template:
            raise self._unusable(
                f"{folder} has no chat template, so messages can't be turned into a prompt. Use a "
                "chat model, or pass chat_template= with the template's text."
            )
        self._defaults = self._model.generation_config
        self._identity = self._known(device, dtype, chat_template)

    def __repr__(self) -> str:
        return f"Transformers({str(self._folder)!r})"

    def identity(self) -> Identity:
        """Return who answers, with the digests of the checkpoint's files."""
        return self._identity

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` with the checkpoint's defaults, and transformers' where it has none."""
        own = self._defaults
        drawn = {
            "temperature": _or(own.temperature, 1.0) if own.do_sample else 0.0,
            "top_p": _or(own.top_p, 1.0),
            "top_k": _or(own.top_k, 50),
            "max_tokens": _or(own.max_new_tokens, MAX_TOKENS),
            "repetition_penalty": own.repetition_penalty,
            "min_p": own.min_p,
        }
        filled = {n: v for n, v in drawn.items() if getattr(sampling, n) is None and v is not None}
        return msgspec.structs.replace(sampling, **filled)

    def generate(self, request: Request, *, on_text: OnText | None = None) -> Generation:
        """Answer one request; `on_text` gets whole characters, never a part of a stop string.

        Raises:
            InputError: tools, a response format, parts other than text, or an impossible setting.
            ContextLength: the prompt does not fit.
            BackendError: torch failed, or the backend was closed.
        """
        return self._answered(request, on_text, threading.Event())

    async def agenerate(self, request: Request, *, on_text: OnText | None = None) -> Generation:
        """Like `generate`, in a thread, from which `on_text` gets the pieces.

        Cancelling it ends the generation after the token that is being computed.
        """
        stopped = threading.Event()
        try:
            return await asyncio.to_thread(self._answered, request, on_text, stopped)
        finally:
            stopped.set()

    def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
        """Return how likely the model finds each label as the beginning of its answer.

        Natural logarithms; a label's tokens are those that it has by itself.

        Raises:
            InputError: a label is empty, or the request can't be made into a prompt.
            BackendError: torch failed, or the backend was closed.
        """
        import torch

        model, tokenizer = self._open()
        _, prompt = self._prompt(tokenizer, request)
        found = []
        with torch.inference_mode(), self._explained():
            for label in labels:
                ids = tokenizer(label, add_special_tokens=False)["input_ids"]
                if not ids:
                    raise InputError(f"the label {label!r} has no tokens. Pass some text.")
                self._require_room(prompt, len(ids))
                whole = torch.tensor([[*prompt, *ids]], device=model.device)
                logits = model(whole, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
                drawn = torch.log_softmax(logits, -1)
                found.append(math.fsum(drawn[i, token].item() for i, token in enumerate(ids)))
        return tuple(found)

    def close(self) -> None:
        """Let go of the weights. Calling it twice is harmless."""
        self._model = None

    def _open(self) -> tuple[Any, Any]:
        model = self._model
        if model is None:
            raise BackendError(
                f"the backend {self._spec} was closed. Open another one.", backend="transformers"
            )
        return model, self._tokenizer

    def _answered(
        self, request: Request, on_text: OnText | None, stopped: threading.Event
    ) -> Generation:
        started = time.perf_counter()
        model, tokenizer = self._open()
        if request.tools:
            raise InputError("the backend transformers takes no tools. Leave them out.")
        if request.response_format is not None and request.response_format.get("type") != "text":
            raise InputError(
                "the backend transformers can't force a response format. Use local:..., or ask for "
                "it in words."
            )
        sampling = self.resolve(request.sampling)
        text, prompt = self._prompt(tokenizer, request)
        room = self._require_room(prompt, 1)
        settings = _settings(self._defaults, sampling, room)
        watch = _Watch(tokenizer, sampling.stop, on_text, stopped)
        waiting = time.perf_counter()
        with _turn(stopped):
            begun = time.perf_counter()
            with self._explained(watch):
                ids = _generated(model, prompt, settings, watch, _seed(sampling))
        watch.finish(ids)
        ended = bool(ids) and ids[-1] in _ids_of(settings.eos_token_id)
        now = time.perf_counter()
        return Generation(
            content=(Text("".join(watch.told)),),
            finish_reason="stop" if ended or watch.stops.stopped else "length",
            model=self._folder.name,
            usage=Usage(len(prompt), len(ids)),
            prompt=text,
            prompt_ids=tuple(prompt),
            runtime=dict(self._identity.runtime),
            timings={"total": now - started, "waiting": begun - waiting, "generate": now - begun},
        )

    def _prompt(self, tokenizer: Any, request: Request) -> tuple[str, list[int]]:
        messages = [_plain(index, message) for index, message in enumerate(request.messages)]
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja's, and whatever a template raises
            raise InputError(
                f"the chat template refuses these messages: {error}. Change their order or roles."
            ) from None
        # The template writes the special tokens itself.
        return text, list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def _require_room(self, prompt: Sequence[int], more: int) -> int:
        limit = getattr(self._open()[0].config, "max_position_embeddings", None) or 1 << 40
        if len(prompt) + more > limit:
            raise ContextLength(
                f"the prompt has {len(prompt)} tokens, and the model's context is {limit}. Send "
                "less.",
                backend="transformers",
                tokens=len(prompt),
                limit=limit,
            )
        return int(limit) - len(prompt)

    @contextmanager
    def _explained(self, watch: _Watch | None = None) -> Iterator[None]:
        """Turn what torch and transformers raise into a `BackendError`."""
        try:
            yield
        except (InputError, BackendError):
            raise
        except Exception as error:
            if watch is not None and error is watch.raised:
                raise
            raise BackendError(
                f"transformers failed: {type(error).__name__}: {error}. Its traceback is the cause "
                "of this error.",
                backend="transformers",
            ) from error

    def _loaded(self, device: str, dtype: str) -> tuple[Any, Any]:
        import torch
        import transformers

        tokenizers: Any = transformers.AutoTokenizer
        models: Any = transformers.AutoModelForCausalLM
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = tokenizers.from_pretrained(str(self._folder), **safe)
            with _quiet(transformers):
                model, found = models.from_pretrained(
                    str(self._folder),
                    dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                    use_safetensors=True,
                    output_loading_info=True,
                    **safe,
                )
            # transformers fills gaps with random numbers and goes on.
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
                if names := sorted(str(name) for name in found.get(kind, ())):
                    raise ValueError(f"{kind.replace('_', ' ')}: {', '.join(names[:3])}")
            return tokenizer, model.eval().to(device)
        except Exception as error:
            raise self._unusable(
                f"transformers does not load {self._folder}: {error}. Only safetensors and classes "
                "of transformers itself are loaded; fetch the checkpoint again if it is damaged."
            ) from error

    def _unusable(self, message: str) -> ModelError:
        return ModelError(message, backend="transformers", path=str(self._folder))

    def _known(self, device: str, dtype: str, chat_template: str | None) -> Identity:
        import torch

        files = sorted(
            path
            for path in self._folder.iterdir()
            if path.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt")
        )
        artefacts = {path.name: _digest(path) for path in files}
        if chat_template is not None:
            artefacts["chat_template"] = digest_of(chat_template)
        artefacts["model"] = digest_of(artefacts)
        return Identity(
            provider="transformers",
            model=self._folder.name,
            spec=self._spec,
            deterministic=False,
            options={"device": device, "dtype": dtype},
            artefacts=artefacts,
            runtime={
                "torch": str(torch.__version__),
                "transformers": version("transformers"),
                "threads": torch.get_num_threads(),
                "dtype": str(self._model.dtype).removeprefix("torch."),
            },
        )


class _Watch:
    """Sees every token of an answer as it is drawn, and says when it is enough."""

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str],
        on_text: OnText | None,
        stopped: threading.Event,
    ) -> None:
        self.stops = StopStrings(stop)
        self.told: list[str] = []
        self.raised: BaseException | None = None
        self._pieces = Detokenizer(
            lambda ids: str(
                tokenizer.decode(
                    list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )
        )
        self._on_text = on_text
        self._stopped = stopped
        self._seen = 0

    def enough(self, ids: Sequence[int]) -> bool:
        """Take an answer's tokens so far."""
        if self._stopped.is_set():
            raise _GivenUp
        for token in ids[self._seen :]:
            self._tell(self.stops.push(self._pieces.push(token)))
        self._seen = max(self._seen, len(ids))
        return self.stops.stopped

    def finish(self, ids: Sequence[int]) -> None:
        """Take the whole answer."""
        self.enough(ids)
        self._tell(self.stops.push(self._pieces.finish()))
        self._tell(self.stops.finish())

    def _tell(self, piece: str) -> None:
        if not piece:
            return
        self.told.append(piece)
        if self._on_text is not None:
            try:
                self._on_text(piece)
            except BaseException as error:
                self.raised = error
                raise


def _generated(
    model: Any, prompt: Sequence[int], settings: Any, watch: _Watch, seed: int
) -> list[int]:
    import torch
    import transformers

    length = len(prompt)

    def enough(ids: Any, scores: Any, **_: Any) -> Any:
        done = watch.enough(ids[0, length:].tolist())
        return torch.full((ids.shape[0],), done, dtype=torch.bool, device=ids.device)

    given = torch.tensor([list(prompt)], device=model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        ids = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            generation_config=settings,
            stopping_criteria=transformers.StoppingCriteriaList([enough]),
        )
    drawn: list[int] = ids[0, length:].tolist()
    return drawn


def _settings(defaults: Any, sampling: Sampling, room: int) -> Any:
    """Return transformers' settings for a draw: the checkpoint's, with ours in their place."""
    for field, low, high in _RANGES:
        drawn = getattr(sampling, field)
        if drawn is not None and not low <= drawn <= high:
            raise InputError(f"{field} must be from {low:g} to {high:g}, not {drawn!r}.")
    settings = copy.deepcopy(defaults)
    draws = bool(sampling.temperature)
    for name, value in (
        ("do_sample", draws),
        ("temperature", sampling.temperature if draws else None),
        ("top_p", sampling.top_p if draws else None),
        ("top_k", sampling.top_k if draws else None),
        ("min_p", sampling.min_p if draws else None),
        ("repetition_penalty", sampling.repetition_penalty),
        ("max_new_tokens", min(_or(sampling.max_tokens, MAX_TOKENS), room)),
        ("max_length", None),
        ("num_beams", 1),
        ("num_return_sequences", 1),
        ("return_dict_in_generate", False),
    ):
        setattr(settings, name, value)
    ends = _ids_of(settings.eos_token_id)
    if settings.pad_token_id is None and ends:
        settings.pad_token_id = ends[0]
    return settings


def _seed(sampling: Sampling) -> int:
    """Return torch's seed: of each candidate its own, far apart."""
    digest = digest_of([sampling.seed or 0, sampling.candidate]).removeprefix("sha256:")
    return int(digest[:16], 16) >> 1


@contextmanager
def _turn(stopped: threading.Event) -> Iterator[None]:
    while not _TURN.acquire(timeout=0.1):
        if stopped.is_set():
            raise _GivenUp
    try:
        yield
    finally:
        _TURN.release()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _plain(index: int, message: Message) -> dict[str, str]:
    require_allowed(index, message, _ALLOWED)
    said = (written(part) for part in message.content if isinstance(part, Text | Json))
    return {"role": message.role, "content": "".join(said)}


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _ids_of(ids: int | Sequence[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _digest(path: Path) -> str:
    from blake3 import blake3

    return "blake3:" + str(blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest())
