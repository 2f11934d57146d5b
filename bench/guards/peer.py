"""Measure one other guard: run by the Python of its own environment, which has no Isonomy.

    build/guards/NAME/bin/python bench/guards/peer.py NAME CHECKS CALLS

Prints JSON: microseconds of single calls, the model's own cost taken off (median, 99th
percentile), calls a second with 64 at a time, milliseconds of its import, and its version. Each
guard looks for CHECKS patterns in the question and CHECKS in the answer, by the lightest of its
own ways that does that, with its logging switched off.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.metadata import files as files_of
from pathlib import Path
from typing import Any

QUESTION = "Where is my order 4821?"
ANSWER = "Your order has shipped and will arrive on Tuesday."
CONCURRENT = 64

Call = Callable[[], Any]
Acall = Callable[[], Awaitable[Any]]


def patterns(checks: int) -> list[str]:
    """Return patterns that occur in neither text."""
    return [f"(?i)forbidden {number}" for number in range(checks)]


def llm_guard(checks: int) -> tuple[Call, Acall | None]:
    """LLM Guard's bare scanners: no pipeline around them."""
    from llm_guard.input_scanners import Regex as Input
    from llm_guard.output_scanners import Regex as Output
    from llm_guard.util import configure_logger

    configure_logger("ERROR")
    inputs = [Input(patterns=[p], redact=False) for p in patterns(checks)]
    outputs = [Output(patterns=[p], redact=False) for p in patterns(checks)]

    def call() -> str:
        for scanner in inputs:
            assert scanner.scan(QUESTION)[1]
        answer = ANSWER
        for scanner in outputs:
            assert scanner.scan(QUESTION, answer)[1]
        return answer

    return call, None


def openai_guardrails(checks: int) -> tuple[Call, Acall | None]:
    """OpenAI Guardrails' runner with its keyword check."""
    from guardrails import GuardrailAgent  # noqa: F401  (registers the checks)
    from guardrails.runtime import instantiate_guardrails, load_pipeline_bundles, run_guardrails

    stage = {
        "version": 1,
        "guardrails": [
            {"name": "Keyword Filter", "config": {"keywords": [f"forbidden {n}"]}}
            for n in range(checks)
        ],
    }
    bundle = load_pipeline_bundles({"version": 1, "input": stage, "output": stage})
    before, after = instantiate_guardrails(bundle.input), instantiate_guardrails(bundle.output)

    class Context:
        guardrail_llm = None

    async def acall() -> str:
        await run_guardrails(Context(), QUESTION, "text/plain", before)
        await run_guardrails(Context(), ANSWER, "text/plain", after)
        return ANSWER

    return _on_one_loop(acall), acall


def nemoguardrails(checks: int) -> tuple[Call, Acall | None]:
    """NeMo Guardrails' LLMRails with its regular expressions."""
    from nemoguardrails import LLMRails, RailsConfig
    from nemoguardrails.types import LLMResponse

    class AtOnce:
        model_name, provider_name, provider_url = "at-once", None, None

        async def generate_async(self, prompt: Any, *, stop: Any = None, **kwargs: Any) -> Any:
            return LLMResponse(content=ANSWER)

        async def stream_async(self, prompt: Any, *, stop: Any = None, **kwargs: Any) -> Any:
            yield LLMResponse(content=ANSWER)

    listed = ", ".join(json.dumps(p) for p in patterns(checks))
    config = RailsConfig.from_content(
        yaml_content=f"""
models: []
rails:
  config:
    regex_detection:
      input: {{patterns: [{listed}]}}
      output: {{patterns: [{listed}]}}
  input: {{flows: [regex check input]}}
  output: {{flows: [regex check output]}}
"""
    )
    rails = LLMRails(config, llm=AtOnce())
    messages = [{"role": "user", "content": QUESTION}]

    async def acall() -> Any:
        return await rails.generate_async(messages=messages)

    return _on_one_loop(acall), acall


def litellm(checks: int) -> tuple[Call, Acall | None]:
    """LiteLLM's acompletion with a logger's hooks, around its own mock answer."""
    import re

    import litellm
    from litellm.integrations.custom_logger import CustomLogger

    compiled = [re.compile(p) for p in patterns(checks)]

    class Hooks(CustomLogger):
        async def async_log_pre_api_call(self, model: Any, messages: Any, kwargs: Any) -> None:
            assert not any(p.search(messages[0]["content"]) for p in compiled)

        async def async_log_success_event(self, kwargs: Any, response: Any, *_: Any) -> None:
            assert not any(p.search(response.choices[0].message.content) for p in compiled)

    litellm.telemetry = False
    litellm.callbacks = [Hooks()]

    async def acall() -> Any:
        return await litellm.acompletion(
            model="gpt-4o",
            messages=[{"role": "user", "content": QUESTION}],
            mock_response=ANSWER,
        )

    return _on_one_loop(acall), acall


def langchain(checks: int) -> tuple[Call, Acall | None]:
    """LangChain's PII middleware with patterns of one's own, in an agent without tools."""
    from langchain.agents import create_agent
    from langchain.agents.middleware import PIIMiddleware
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    def answers() -> Any:
        while True:
            yield AIMessage(ANSWER)

    model = GenericFakeChatModel(messages=answers())

    def agent(middleware: list[Any]) -> Any:
        return create_agent(model, middleware=middleware)

    guarded = agent(
        [
            PIIMiddleware(
                f"forbidden_{number}",
                detector=pattern,
                strategy="redact",
                apply_to_input=True,
                apply_to_output=True,
            )
            for number, pattern in enumerate(patterns(checks))
        ]
    )
    bare = agent([])
    asked = {"messages": [{"role": "user", "content": QUESTION}]}
    call: Any = lambda: guarded.invoke(asked)  # noqa: E731
    call.model = lambda: bare.invoke(asked)

    async def acall() -> Any:
        return await guarded.ainvoke(asked)

    return call, acall


def guardrails_ai(checks: int) -> tuple[Call, Acall | None]:
    """Guardrails AI: validate question and answer by a validator of one's own."""
    import re

    from guardrails import Guard
    from guardrails.validators import (
        FailResult,
        PassResult,
        Validator,
        register_validator,
    )

    @register_validator(name="bench/forbidden", data_type="string")
    class Forbidden(Validator):
        def __init__(self, pattern: str, **kwargs: Any) -> None:
            super().__init__(pattern=pattern, **kwargs)
            self._pattern = re.compile(pattern)

        def _validate(self, value: Any, metadata: Any) -> Any:
            return FailResult(error_message="no") if self._pattern.search(value) else PassResult()

    guard = Guard()
    for pattern in patterns(checks):
        guard.use(Forbidden(pattern))

    def call() -> str:
        assert guard.validate(QUESTION).validation_passed
        assert guard.validate(ANSWER).validation_passed
        return ANSWER

    return call, None


PEERS: dict[str, tuple[Callable[[int], tuple[Call, Acall | None]], str, str]] = {
    "llm-guard": (llm_guard, "llm_guard", "llm-guard"),
    "openai-guardrails": (openai_guardrails, "guardrails", "openai-guardrails"),
    "nemoguardrails": (nemoguardrails, "nemoguardrails", "nemoguardrails"),
    "litellm": (litellm, "litellm", "litellm"),
    "langchain": (langchain, "langchain.agents", "langchain"),
    "guardrails-ai": (guardrails_ai, "guardrails", "guardrails-ai"),
}


def _on_one_loop(acall: Acall) -> Call:
    loop = asyncio.new_event_loop()
    return lambda: loop.run_until_complete(acall())


def latencies(call: Call, calls: int) -> list[float]:
    """Return seconds of single calls, sorted, after some to warm up."""
    for _ in range(min(20, calls)):
        call()
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return sorted(times)


def throughput(acall: Acall, calls: int) -> float:
    """Return calls a second with `CONCURRENT` at a time on one loop."""

    async def worker(left: list[int]) -> None:
        while left[0] > 0:
            left[0] -= 1
            await acall()

    async def run() -> float:
        await acall()
        left = [calls]
        started = time.perf_counter()
        await asyncio.gather(*(worker(left) for _ in range(CONCURRENT)))
        return calls / (time.perf_counter() - started)

    return asyncio.run(run())


def import_ms(module: str, repetitions: int = 3) -> float:
    """Return the median milliseconds of an import in a fresh interpreter, its start taken off."""
    spent = []
    for _ in range(repetitions):
        runs = []
        for code in ("pass", f"import {module}"):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            runs.append(time.perf_counter() - started)
        spent.append((runs[1] - runs[0]) * 1000)
    return statistics.median(spent)


def installed_mb(distribution: str) -> float:
    """Return the megabytes of a distribution and of all that it requires without extras."""
    from pip._vendor.packaging.requirements import Requirement

    seen: dict[str, int] = {}
    left = [distribution]
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in seen:
            continue
        try:
            found = files_of(name)
        except PackageNotFoundError:
            seen[name] = 0
            continue
        sizes = [
            Path(str(file.locate())).stat().st_size
            for file in found or ()
            if Path(str(file.locate())).is_file()
        ]
        seen[name] = sum(sizes)
        for line in requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return sum(seen.values()) / 1e6


def main(name: str, checks: int, calls: int) -> None:
    """Measure and print."""
    os.environ.setdefault("OTEL_SDK_DISABLED", "true")
    logging.disable(logging.CRITICAL)
    make, module, distribution = PEERS[name]
    call, acall = make(checks)
    call()
    model = latencies(getattr(call, "model", lambda: ANSWER), calls)
    times = latencies(call, calls)
    own = statistics.median(model)
    single = 1 / (sum(times) / len(times))
    print(
        json.dumps(
            {
                "name": name,
                "version": version(distribution),
                "median_us": (statistics.median(times) - own) * 1e6,
                "p99_us": (times[int(len(times) * 0.99)] - own) * 1e6,
                "calls_s": throughput(acall, calls) if acall else single,
                "import_ms": import_ms(module),
                "installed_mb": installed_mb(distribution),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
