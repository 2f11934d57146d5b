"""`Local`: the built-in deterministic engine as a backend.

The same `Request` gives the same `Generation` bit for bit, on every machine, apart from `runtime`
and `timings`. Requests may come from several threads and loops; one engine computes them together.
Importing this module loads none of the engine's packages; building a `Local` does.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from isonomy.sdk.errors import BackendError, InputError
from isonomy.sdk.generation import Generation, Identity, LayerTrace, Request, Sampling, Usage
from isonomy.sdk.requests import as_messages
from isonomy.sdk.vocabulary import Message, Text

from . import defaults, forcing, grammar, packages, perplexity, scoring, shipped
from .checkpoint import Checkpoint, load
from .errors import BACKEND, WrongDraft

if TYPE_CHECKING:
    from .drafts import Draft
    from .engine import Engine
    from .selftest import SelfTest
    from .sequence import Running

CACHE_BYTES = 2 << 30
"""Memory for caches where nobody says otherwise and no sequence can need more."""

PROMPT_CHUNK = 512
"""Tokens of prompts in one step: enough to be as quick as in one piece, and soon over."""

LONG = 20_000
"""Characters of messages from which a coroutine has them read by a thread, as it takes a while."""


class _Asked(msgspec.Struct, frozen=True, eq=False):
    """A request on its way: `sequence` is driven by `engine`."""

    engine: Any
    sequence: Any
    prompt: str
    grammar: str | None


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
        prompt_chunk: Most tokens of prompts that are read in one step, beside the answers that are
            being written; `None`: 512. As all options down to `trace_layers`, it never changes a
            bit.
        cache_bytes: Memory for the key-value caches of all requests, the prefix cache included.
            `None`: 2 GiB, or what one sequence of full length needs.
        prefix_cache_bytes: How much of it may hold what was computed of requests that have ended.
            `None`: a quarter.
        max_concurrent: Most requests that are computed at a time.
        max_waiting: Most requests beyond these; one more is refused as `Overloaded`.
        draft: Guess tokens ahead and check them together: ``lookup`` guesses that what followed the
            last words before follows again; the folder of a smaller checkpoint with the same
            tokens guesses by that model.
        weights: ``int8`` quantises the linears when the checkpoint is loaded (`isonomy quantize`
            does it once and for all); it is another model then, with other answers.
        checksums: Check every row of every int8 linear against silent data corruption. What was
            found is in `Generation.runtime` as `faults`. It never changes a bit.
        trace_layers: Record the digests of what every layer computes (`TokenTrace.layers`).
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

    verifies = True

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
        cache_bytes: int | None = None,
        prefix_cache_bytes: int | None = None,
        max_concurrent: int = 32,
        max_waiting: int = 1024,
        draft: str | os.PathLike[str] | None = None,
        weights: Literal["int8"] | None = None,
        checksums: bool = False,
        trace_layers: bool = False,
        context: int | None = None,
        chat_template: str | None = None,
        expect: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        for name, text in (("model", model), ("draft", draft)):
            if text is not None or name == "model":
                _require_path(name, text)
        for name, text in (("chat_template", chat_template), ("expect", expect)):
            if text is not None and not isinstance(text, str):
                raise InputError(f"{name} must be a text, not {text!r}.")
        if expect == "":
            raise InputError("expect is empty. Give the digest of the model, or leave it out.")
        for name, flag in (("checksums", checksums), ("trace_layers", trace_layers)):
            if not isinstance(flag, bool):
                raise InputError(f"{name} must be true or false, not {flag!r}.")
        if not isinstance(stop, (str, Sequence)):
            raise InputError(f"stop must be a text or a list of texts, not {stop!r}.")
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
        for name, value, least in (
            ("prompt_chunk", prompt_chunk, 1),
            ("cache_bytes", cache_bytes, 1),
            ("prefix_cache_bytes", prefix_cache_bytes, 0),
            ("context", context, 2),
        ):
            if value is not None:
                _require_whole(name, value, least=least)
        _require_whole("max_concurrent", max_concurrent, least=1)
        _require_whole("max_waiting", max_waiting, least=0)
        if weights not in (None, "int8"):
            raise InputError(f"weights must be 'int8' or left out, not {weights!r}.")
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
                ("weights", weights),
            )
            if value is not None and value != () and name != "candidate"
        }
        loaded = load(
            folder,
            context=context,
            chat_template=chat_template,
            expect=expect,
            int8=weights is not None,
            checksums=checksums,
        )
        self._checkpoint: Checkpoint | None = loaded
        self._defaults = defaults.merge(options, loaded.sampling)
        self._constraints = grammar.Constraints(
            loaded.tokenizer, loaded.architecture.vocab, loaded.eos_ids
        )
        self._single: dict[int, str] = {}
        self._lookup = draft == "lookup"
        self._draft = None if draft is None or self._lookup else _draft(draft, loaded)
        self._chunk = PROMPT_CHUNK if prompt_chunk is None else prompt_chunk
        self._trace_layers = trace_layers
        self._clock = clock
        self._identity: Identity | None = None
        self._engine: Engine | None = _engine(
            loaded,
            self._draft,
            cache_bytes=cache_bytes,
            prefix_cache_bytes=prefix_cache_bytes,
            max_running=max_concurrent,
            max_waiting=max_waiting,
            prompt_chunk=self._chunk,
            clock=clock,
        )

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
                    "grammar": grammar.version(),
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
        self,
        request: Request,
        *,
        on_text: Callable[[str], None] | None = None,
        recorded: Generation | None = None,
    ) -> Generation:
        """Answer one request; `on_text` is called in this thread.

        Args:
            request: What to answer.
            on_text: Receives each piece of text as soon as it is final.
            recorded: What this request is said to have been answered. Its tokens are guesses, which
                are checked at the speed of a prompt (without tokens, nothing is guessed), and
                nothing is taken from the prefix cache: the result is the same without it.

        Raises:
            InputError: the messages can't be made into a prompt, or ask for what is not covered.
            ContextLength: the prompt does not fit.
            TooLarge: prompt and answer can never fit into `cache_bytes`.
            Overloaded: too many requests wait already.
            NonFinite: the model left the finite numbers.
        """
        asked = self._ask(request, on_text is not None, recorded)
        asked.engine.run(asked.sequence, on_text)
        return self._generation(asked)

    async def agenerate(
        self,
        request: Request,
        *,
        on_text: Callable[[str], None] | None = None,
        recorded: Generation | None = None,
    ) -> Generation:
        """Answer one request; `on_text` is called on the running loop.

        However many wait, one thread computes for them all, and only while they wait. When the
        awaiting task is cancelled, the request ends after the step it is in.
        """
        if request.response_format or sum(len(m.text) for m in request.messages) > LONG:
            import asyncio

            asked = await asyncio.to_thread(self._ask, request, on_text is not None, recorded)
        else:
            asked = self._ask(request, on_text is not None, recorded)
        await asked.engine.arun(asked.sequence, on_text)
        return self._generation(asked)

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
        _, ids = _prompt(loaded, Request(messages=as_messages(messages)))
        return scoring.score(loaded, ids, completion)

    def logprobs(self, request: Request, labels: tuple[str, ...]) -> tuple[float, ...]:
        """Return how likely the model finds each label as the beginning of its answer.

        Natural logarithms: of each label `score`'s `total` after the same messages, bit for bit,
        whatever else is computed at the same time. A judge that compares labels
        (`isonomy.sdk.generation.Scorer`) is asked nothing else.

        Args:
            request: What is asked. Sampling, response format and `extra` are not used.
            labels: Answers to compare, each cut into tokens by itself.

        Raises:
            InputError: request or labels can't be made into tokens.
            ContextLength: the prompt and a label do not fit.
            NonFinite: the model left the finite numbers.
        """
        if not isinstance(request, Request):
            raise InputError(f"a request must be a Request, not {type(request).__name__}.")
        loaded = self._loaded()
        _, ids = _prompt(loaded, request)
        return scoring.logprobs(loaded, ids, labels)

    def perplexity(self, text: str, **options: Any) -> scoring.Perplexity:
        """Return how well the model predicts a text; see `perplexity.perplexity` for the options.

        Raises:
            InputError: the text has too few tokens, or an option is out of its range.
            NonFinite: the model left the finite numbers.
        """
        return perplexity.perplexity(self._loaded(), text, **options)

    def retrace(
        self, prompt: Sequence[int], ids: Sequence[int], *, runtime: Mapping[str, Any] | None = None
    ) -> LayerTrace:
        """Return what every layer computes at each step; see `isonomy.sdk.generation.Retracer`."""
        return forcing.retrace(self._loaded(), prompt, ids, runtime)

    def selftest(self, **options: Any) -> SelfTest:
        """Test that what the numerics promise holds here; see `selftest.selftest` for options."""
        from .selftest import selftest

        return selftest(self, self._loaded(), **options)

    def close(self) -> None:
        """Let go of the weights; generations under way still end. Calling it twice is harmless."""
        self._checkpoint = self._draft = None
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Local:
        """Return the backend itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        return f"Local({self._spec.removeprefix('local:')!r})"

    def _loaded(self) -> Checkpoint:
        checkpoint = self._checkpoint
        if checkpoint is None:
            raise self._closed()
        return checkpoint

    def _closed(self) -> BackendError:
        return BackendError(f"{self!r} is closed. Open another one.", backend=BACKEND)

    def _ask(self, request: Request, listening: bool, recorded: Generation | None) -> _Asked:
        """Make a request into a sequence of tokens to be continued."""
        from .sequence import Running

        if not isinstance(request, Request):
            raise InputError(f"a request must be a Request, not {type(request).__name__}.")
        if not isinstance(recorded, Generation | None):
            raise InputError(f"recorded must be a Generation, not {type(recorded).__name__}.")
        loaded, engine = self._loaded(), self._engine
        if engine is None:  # closed by another thread, a moment ago
            raise self._closed()
        sampling = self.resolve(request.sampling)
        prompt, ids = _prompt(loaded, request)
        if not ids:
            raise InputError(
                "the prompt is empty: the chat template made no token of these messages. Say "
                "something."
            )
        constraint = self._constraints.of(request.response_format)
        sequence = Running(
            ids,
            sampling,
            decode=loaded.tokenizer.decode,
            single=self._single,
            eos_ids=loaded.eos_ids,
            context=loaded.context,
            vocab=loaded.architecture.vocab,
            draft=self._drafted(ids, sampling, recorded),
            constraint=constraint,
            trace=self._trace_layers,
            listening=listening,
            cold=recorded is not None,
        )
        return _Asked(engine, sequence, prompt, None if constraint is None else grammar.version())

    def _drafted(
        self, ids: Sequence[int], sampling: Sampling, recorded: Generation | None
    ) -> Draft | None:
        """Say who guesses how the answer goes on, if anybody."""
        from .drafts import DraftModel, PromptLookup, Recorded
        from .sequence import parameters

        draft: Draft | None = None
        if self._lookup:
            draft = PromptLookup()
        elif self._draft is not None:
            assert sampling.max_tokens is not None  # resolved
            draft = DraftModel(
                self._draft.decoder,
                parameters(sampling),
                capacity=len(ids) + sampling.max_tokens,
                chunk=self._chunk,
            )
        if recorded is None:
            return draft
        return Recorded(ids, recorded.tokens.ids, draft) if recorded.tokens is not None else None

    def _generation(self, asked: _Asked) -> Generation:
        sequence: Running = asked.sequence
        runtime = self._runtime() | {
            "cached": sequence.cached,
            "batch": sequence.batch,
            "guessed": sequence.guessed,
            "accepted": sequence.accepted,
        }
        if asked.grammar is not None:
            runtime["grammar"] = asked.grammar
        if sequence.faults:
            runtime["faults"] = sequence.faults
        return Generation(
            content=(Text("".join(sequence.answer.given)),),
            finish_reason=sequence.answer.finish_reason,
            model=self._name,
            usage=Usage(sequence.prompted, len(sequence.steps)),
            prompt=asked.prompt,
            prompt_ids=tuple(sequence.ids[: sequence.prompted]),
            tokens=sequence.trace(),
            runtime=runtime,
            timings={
                "waiting": sequence.admitted - sequence.submitted,
                "prompt": sequence.began - sequence.admitted,
                "decode": sequence.ended - sequence.began,
                "outside": sequence.outside,
            },
        )

    def _runtime(self) -> dict[str, Any]:
        info = packages.load("isonomy.kernels").info()
        return {"isa": info.isa, "threads": info.threads, "prompt_chunk": self._chunk}


def _engine(
    loaded: Checkpoint,
    draft: Checkpoint | None,
    *,
    cache_bytes: int | None,
    prefix_cache_bytes: int | None,
    **options: Any,
) -> Engine:
    from .engine import Engine

    if cache_bytes is None:
        full = loaded.decoder.cache_bytes(loaded.context)
        if draft is not None:
            full += draft.decoder.cache_bytes(draft.context)
        cache_bytes = max(CACHE_BYTES, full)
    if prefix_cache_bytes is None:
        prefix_cache_bytes = cache_bytes // 4
    return Engine(
        loaded.decoder, cache_bytes=cache_bytes, prefix_cache_bytes=prefix_cache_bytes, **options
    )


def _draft(model: str | os.PathLike[str], loaded: Checkpoint) -> Checkpoint:
    """Load a draft model; its tokens must mean the same."""
    folder = shipped.FOLDER if model == shipped.NAME else Path(model).expanduser().absolute()
    # It is never asked in words, so it needs no template of its own.
    draft = load(folder, context=loaded.context, chat_template="")
    if draft.tokenizer.vocabulary() != loaded.tokenizer.vocabulary():
        raise WrongDraft(folder, loaded.artefacts["tokenizer"], draft.artefacts["tokenizer"])
    return draft


def _prompt(loaded: Checkpoint, request: Request) -> tuple[str, list[int]]:
    """Return what the model reads of a request, as text and as ids."""
    prompt = loaded.template.render(_plain(request))
    return prompt, loaded.tokenizer.encode(prompt, context=loaded.context)


def _plain(request: Request) -> list[dict[str, Any]]:
    """Return the messages as chat templates expect them; refuse what is not text."""
    if request.tools:
        raise InputError("the local backend does not offer tools to the model. Leave out tools.")
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


def _require_path(name: str, value: object) -> None:
    if not isinstance(value, (str, os.PathLike)):
        raise InputError(f"{name} must be the folder of a checkpoint, or a name, not {value!r}.")


def _require_whole(name: str, value: int, *, least: int) -> None:
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
