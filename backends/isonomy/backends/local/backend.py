"""`Local`: the built-in deterministic engine as a backend.

The same `Request` gives the same `Generation` bit for bit, on every machine, apart from `runtime`
and `timings`. Requests may come from several threads; each has its own session. Importing this
module loads none of the engine's packages; building a `Local` does.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from isonomy.sdk.errors import BackendError, InputError
from isonomy.sdk.generation import Generation, Identity, Request, Sampling, Usage
from isonomy.sdk.requests import as_messages
from isonomy.sdk.vocabulary import Message, Text

from . import defaults, packages, perplexity, scoring, shipped, steps
from .checkpoint import Checkpoint, load
from .errors import BACKEND


class Local:
    """A Hugging Face checkpoint, run by the canonical kernels.

    Args:
        model: ``demo`` for the model that ships with the package, or the folder of a checkpoint
            (config.json, safetensors, tokenizer.json, chat template).
        temperature: Default of `Sampling.temperature`, as for the following; what none of request,
            options and the checkpoint's generation_config.json say is as in transformers, the
            longest answer 1024 tokens; the seed stays open (the guard draws one a call, a bare
            backend takes 0).
        top_p: See `temperature`.
        top_k: See `temperature`.
        min_p: See `temperature`.
        repetition_penalty: See `temperature`.
        max_tokens: See `temperature`.
        seed: See `temperature`.
        stop: See `temperature`.
        prompt_chunk: Feed prompts in pieces of so many tokens, which bounds memory; `None`: whole.
            It never changes a bit.
        context: Limit of prompt and answer together, below the model's own.
        chat_template: A jinja template to use instead of the checkpoint's.
        expect: The model digest (``blake3:...``, as in `identity().artefacts["model"]`) that the
            checkpoint must have.
        clock: Seconds, for `Generation.timings`.

    Raises:
        ModelError: the checkpoint is missing, damaged, not covered, or not the expected one.
        MissingExtra: packages of the extra `local` are not installed.
        InputError: an option is out of its range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = shipped.NAME,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        prompt_chunk: int | None = None,
        context: int | None = None,
        chat_template: str | None = None,
        expect: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        options = Sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            max_tokens=max_tokens,
            seed=seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )
        defaults.check(options, "the option")
        _require_positive("prompt_chunk", prompt_chunk, least=1)
        _require_positive("context", context, least=2)
        if model == shipped.NAME:
            self._name = shipped.NAME
            self._spec = "local:" + shipped.NAME
            folder = shipped.FOLDER
            expect = expect or shipped.DEMO_DIGEST
        else:
            folder = Path(model).expanduser().absolute()
            self._name = folder.name
            self._spec = f"local:{folder}"
        self._options = {
            name: value
            for name, value in (
                *msgspec.structs.asdict(options).items(),
                ("context", context),
                ("chat_template", chat_template),
            )
            if value is not None and value != () and name != "candidate"
        }
        self._checkpoint: Checkpoint | None = load(
            folder, context=context, chat_template=chat_template, expect=expect
        )
        self._defaults = defaults.merge(options, self._checkpoint.sampling)
        self._chunk = prompt_chunk
        self._clock = clock
        self._identity: Identity | None = None

    def identity(self) -> Identity:
        """Return who answers: digests of everything that can change an answer, and the numerics."""
        if self._identity is None:
            loaded = self._loaded()
            info = packages.load("isonomy.kernels").info()
            self._identity = Identity(
                provider=BACKEND,
                model=self._name,
                spec=self._spec,
                options=self._options,
                deterministic=True,
                artefacts=loaded.artefacts,
                numerics={
                    "version": info.numerics_version,
                    "weights": loaded.stored,
                    "activations": "f32",
                    "cache": "f32",
                    "context": loaded.context,
                    "operations": loaded.architecture.operations(),
                },
                runtime={
                    **self._runtime(),
                    "library": info.library_digest,
                    "compiler": info.compiler,
                    "machine": platform.machine(),
                    "python": platform.python_version(),
                    "versions": _versions("isonomy", *packages.NEEDED),
                },
            )
        return self._identity

    def resolve(self, sampling: Sampling) -> Sampling:
        """Return `sampling` with every value filled in, as it will be used.

        Raises:
            InputError: a value is out of its range.
        """
        defaults.check(sampling)
        return defaults.merge(sampling, self._defaults)

    def generate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Answer one request; `on_text` is called in this thread.

        Raises:
            InputError: the messages can't be made into a prompt, or ask for what is not covered.
            ContextLength: the prompt does not fit.
            NonFinite: the model left the finite numbers.
        """
        return self._generate(request, on_text, lambda: False)

    async def agenerate(
        self, request: Request, *, on_text: Callable[[str], None] | None = None
    ) -> Generation:
        """Answer one request in a worker thread, where `on_text` is called too.

        When the awaiting task is cancelled, the generation ends after the step it is in.
        """
        cancelled = threading.Event()
        try:
            return await asyncio.to_thread(self._generate, request, on_text, cancelled.is_set)
        finally:
            cancelled.set()

    def score(
        self,
        messages: str | Sequence[Message | dict[str, Any]],
        completion: str | Sequence[int] | Generation,
    ) -> scoring.Scored:
        """Return how probable each token of a completion is after these messages.

        The log-probabilities of an answer that was generated from the same messages are those of
        its `tokens`, bit for bit.

        Args:
            messages: As for `isonomy.sdk.Guard.chat`.
            completion: Text, token ids, or a generation.

        Raises:
            InputError: messages or completion can't be made into tokens.
            ContextLength: both together do not fit.
            NonFinite: the model left the finite numbers.
        """
        loaded = self._loaded()
        prompt = loaded.template.render(_plain(Request(messages=as_messages(messages))))
        ids = loaded.tokenizer.encode(prompt, context=loaded.context)
        return scoring.score(loaded, ids, completion)

    def perplexity(self, text: str, **options: Any) -> scoring.Perplexity:
        """Return how well the model predicts a text; see `perplexity.perplexity` for the options.

        Raises:
            InputError: the text has too few tokens, or an option is out of its range.
            NonFinite: the model left the finite numbers.
        """
        return perplexity.perplexity(self._loaded(), text, **options)

    def close(self) -> None:
        """Let go of the weights; generations under way still end. Calling it twice is harmless."""
        self._checkpoint = None

    def __enter__(self) -> Local:
        """Return the backend itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        return f"Local({self._spec.removeprefix('local:')!r})"

    def _loaded(self) -> Checkpoint:
        if self._checkpoint is None:
            raise BackendError(f"{self!r} is closed. Open another one.", backend=BACKEND)
        return self._checkpoint

    def _generate(
        self,
        request: Request,
        on_text: Callable[[str], None] | None,
        cancelled: Callable[[], bool],
    ) -> Generation:
        loaded = self._loaded()
        sampling = self.resolve(request.sampling)
        prompt = loaded.template.render(_plain(request))
        ids = loaded.tokenizer.encode(prompt, context=loaded.context)
        if not ids:
            raise InputError(
                "the prompt is empty: the chat template made no token of these messages. Say "
                "something."
            )
        outcome = steps.run(
            loaded.decoder,
            ids,
            sampling,
            decode=loaded.tokenizer.decode,
            eos_ids=loaded.eos_ids,
            context=loaded.context,
            chunk=self._chunk,
            on_text=on_text,
            cancelled=cancelled,
            clock=self._clock,
        )
        return Generation(
            content=(Text(outcome.text),),
            finish_reason=outcome.finish_reason,
            model=self._name,
            usage=Usage(len(ids), len(outcome.trace.ids)),
            prompt=prompt,
            prompt_ids=tuple(ids),
            tokens=outcome.trace,
            runtime=self._runtime(),
            timings=outcome.timings,
        )

    def _runtime(self) -> dict[str, Any]:
        info = packages.load("isonomy.kernels").info()
        return {"isa": info.isa, "threads": info.threads, "prompt_chunk": self._chunk}


def _plain(request: Request) -> list[dict[str, Any]]:
    """Return the messages as chat templates expect them; refuse what is not text."""
    if request.tools:
        raise InputError("the local backend does not offer tools to the model. Leave out tools.")
    if request.response_format is not None:
        raise InputError(
            "the local backend does not force a response format. Leave out response_format."
        )
    if not request.messages or not request.messages[-1].text:
        raise InputError("the prompt is empty: the last message has no text. Say something.")
    return [{"role": message.role, "content": _text(message)} for message in request.messages]


def _text(message: Message) -> str:
    for part in message.content:
        if not isinstance(part, Text):
            raise InputError(
                f"the local backend reads text only; a {message.role} message holds a part of type "
                f"{type(part).__name__}. Leave it out, or put it into words."
            )
    return message.text


def _require_positive(name: str, value: int | None, *, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number from {least} on, not {value!r}.")


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a source tree
    return found
