"""Speed beside transformers and llama.cpp: the same random weights, two threads, one run.

Decode of one call, a prompt of 512 tokens, 8 and 32 calls at a time, for two sizes and three weight
types; and, for ours, what verifying an answer takes, and a step's time outside the compiled code.
Every contender is a process of its own; they take turns, round by round, and right before and after
each turn the machine's read bandwidth (decode) or peak of multiplications (prompt) is measured.
Rates are medians; ratios and shares are medians of those of the single rounds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import checkpoints
from .contenders import Absent, Contender, peer_python, run_peer
from .measuring import median, table
from .probes import Probes

GGUF = {"f32": "F32", "bf16": "BF16", "int8": "Q8_0"}
PROMPT = 512
ANSWER = 256
PAGE = 32
"""Positions of the smallest page of a cache."""


def main(*, quick: bool = False, threads: int = 2) -> Iterator[str]:
    """Give the comparison as Markdown, a table a size and weight type.

    BENCH_SIZES and BENCH_WEIGHTS narrow it down: ``BENCH_SIZES=135M BENCH_WEIGHTS=bf16,int8``.
    """
    sizes = _chosen("BENCH_SIZES", checkpoints.SHAPES)
    kinds = _chosen("BENCH_WEIGHTS", checkpoints.BYTES)
    yield (
        f"tokens a second, {threads} threads, medians; in brackets the share of what the machine "
        "could do just then: of its read bandwidth (decode), of its fma or int8 peak (prompt)"
    )
    with Probes(threads) as probes:
        for size in sizes:
            for dtype, served in (("float32", ["f32"]), ("bfloat16", ["bf16", "int8"])):
                wanted = [kind for kind in served if kind in kinds]
                if not wanted:
                    continue
                with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as folder:
                    path = Path(folder) / f"{size}-{served[0]}"
                    shape = checkpoints.SHAPES[size]
                    checkpoints.write_apart(path, dtype=dtype, shape=size)
                    for kind in wanted:
                        yield _Comparison(path, size, shape, kind, threads, probes, quick).run()


def _chosen(variable: str, known: Sequence[str] | dict[str, Any]) -> list[str]:
    given = os.environ.get(variable)
    return [name for name in known if given is None or name in given.split(",")]


class _Comparison:
    """All measurements of one size and weight type."""

    def __init__(
        self,
        path: Path,
        size: str,
        shape: dict[str, Any],
        kind: str,
        threads: int,
        probes: Probes,
        quick: bool,
    ) -> None:
        self._path, self._size, self._shape, self._kind = path, size, shape, kind
        self._threads, self._probes, self._quick = threads, probes, quick
        self._contenders: dict[str, Contender] = {}
        self._notes: list[str] = []

    def run(self) -> str:
        """Measure, and return a section of Markdown."""
        with ExitStack() as stack:
            for name, start in (
                ("transformers", self._eager),
                ("llama.cpp", self._llama),
                ("Isonomy", self._ours),
            ):
                try:
                    self._contenders[name] = stack.enter_context(start())
                except Absent as absent:
                    self._notes.append(f"{name}: {absent}")
            rows = self._rows()
            self._notes += self._own()
            self._notes += [self._agreement(), self._versions()]
        self._notes.append(self._memory())
        headings = [
            "what",
            *self._contenders,
            "bandwidth or peak",
            "to transformers",
            "to llama.cpp",
        ]
        notes = "\n".join(f"- {note}" for note in self._notes if note)
        return f"\n### {self._size}, {self._kind}\n\n{table(headings, rows)}\n\n{notes}"

    def _eager(self) -> Contender:
        if self._kind == "int8":
            raise Absent("has no int8 of its own")
        return Contender("eager", threads=self._threads, folder=str(self._path))

    def _ours(self) -> Contender:
        return Contender("ours", threads=self._threads, folder=str(self._path), weights=self._kind)

    def _llama(self) -> Contender:
        python = peer_python()
        file = self._path.with_suffix(f".{GGUF[self._kind]}.gguf")
        run_peer("gguf_file", [str(self._path), str(file), GGUF[self._kind]])
        return Contender("llama", python=python, threads=self._threads, file=str(file))

    def _rows(self) -> list[list[str]]:
        few = self._quick
        large = self._size != "135M"
        read = checkpoints.weights(self._shape) * checkpoints.BYTES[self._kind]
        peak = self._probes.vnni if self._kind == "int8" else self._probes.fma
        operations = checkpoints.operations(self._shape, PROMPT) / PROMPT
        tokens = 16 if few else 32 if large else 64
        rounds = 2 if few else 5
        measures: list[tuple[str, str, dict[str, int], int, Any, float]] = [
            ("decode, 1 call", "decode", {"tokens": tokens}, rounds, self._probes.read, read),
            (f"prompt, {PROMPT} tokens", "prompt", {"tokens": PROMPT}, rounds, peak, operations),
        ]
        for calls in (8,) if few else (8, 32):
            most = {"calls": calls, "tokens": 8 if few else 16 if calls > 8 or large else 24}
            measures.append((f"{calls} calls", "batch", most, 1 if few else 3, None, 0.0))
        return [self._row(*measure) for measure in measures]

    def _row(
        self,
        title: str,
        command: str,
        arguments: dict[str, int],
        rounds: int,
        probe: Callable[[], float | None] | None,
        work: float,
    ) -> list[str]:
        rates: dict[str, list[float]] = {name: [] for name in self._contenders}
        shares: dict[str, list[float]] = {name: [] for name in self._contenders}
        probed: list[float] = []
        first = {"decode": 10, "prompt": 30}.get(command, 10 + arguments.get("calls", 0))
        for number in range(-1, rounds):
            for name, contender in self._contenders.items():
                before = probe() if probe else None
                try:
                    rate = contender.ask(command, number=first + number, **arguments)
                except Absent as absent:
                    if number < 0:
                        self._notes.append(f"{name}, {title}: {absent}")
                    continue
                after = probe() if probe else None
                if number < 0:
                    continue
                rates[name].append(rate)
                if before and after:
                    probed += [before, after]
                    shares[name].append(rate * work / ((before + after) / 2))
        cells = [_cell(rates[name], shares[name]) for name in self._contenders]
        ratios = [_ratio(rates, "Isonomy", name) for name in ("transformers", "llama.cpp")]
        unit = 1e9
        return [title, *cells, f"{median(probed) / unit:.0f} G/s" if probed else "", *ratios]

    def _own(self) -> list[str]:
        """Measure what only ours has."""
        ours = self._contenders.get("Isonomy")
        if ours is None:
            return []
        found = []
        try:
            answer = 64 if self._quick else ANSWER
            run = ours.ask("verify", tokens=answer, number=70)
            found.append(
                f"verifying an answer of {answer} tokens: {answer / run['verify']:.0f} tokens/s, "
                f"{run['generate'] / run['verify']:.1f} times as fast as generating it; "
                f"{100 * run['prompt'] / run['verify']:.0f} % of a prompt's rate with the output "
                "layer on all rows"
            )
        except Absent as absent:
            found.append(f"verifying: {absent}")
        try:
            spent = median([ours.ask("outside", tokens=48, number=80 + r) for r in range(3)])
            found.append(f"outside of the compiled code: {spent:.0f} µs a decode step")
        except Absent as absent:
            found.append(f"outside of the compiled code: {absent}")
        return found

    def _memory(self) -> str:
        """Measure what a process of its own needs for a prompt and 32 calls; no prefix cache."""
        calls, tokens = 32, 8
        try:
            with Contender(
                "ours",
                threads=self._threads,
                folder=str(self._path),
                weights=self._kind,
                prefix_cache_bytes=0,
            ) as ours:
                ours.ask("prompt", tokens=PROMPT, number=1)
                ours.ask("batch", calls=calls, tokens=tokens, number=2)
                found = {name: size / 1e6 for name, size in ours.ask("memory").items()}
        except Absent as absent:
            return f"memory: {absent}"
        weights = checkpoints.weights(self._shape) * checkpoints.BYTES[self._kind] / 1e6
        cache = checkpoints.cache_bytes(self._shape, max(calls * PAGE, PROMPT + PAGE)) / 1e6
        return (
            f"memory: {found['bare']:.0f} MB before loading, {found['loaded']:.0f} after, at most "
            f"{found['most']:.0f}: {found['most'] - weights - cache:.0f} MB beyond weights "
            f"({weights:.0f}) and the cache of {calls} short calls ({cache:.0f})"
        )

    def _versions(self) -> str:
        """Say what was measured."""
        return "measured: " + ", ".join(
            contender.ask("version") for contender in self._contenders.values()
        )

    def _agreement(self) -> str:
        """Say whether the contenders compute the same model."""
        tokens: dict[str, list[int]] = {}
        for name, contender in self._contenders.items():
            try:
                tokens[name] = [
                    contender.ask("next_token", number=number) for number in range(90, 95)
                ]
            except Absent:
                continue
        if "Isonomy" not in tokens:
            return ""
        ours = tokens.pop("Isonomy")
        same = {
            name: sum(a == b for a, b in zip(ours, own, strict=True))
            for name, own in tokens.items()
        }
        return "the likeliest token after each of 5 prompts is the same as ours: " + ", ".join(
            f"{name} {count}" for name, count in same.items()
        )


def _cell(rates: Sequence[float], shares: Sequence[float]) -> str:
    if not rates:
        return "–"
    share = f" ({100 * median(shares):.0f} %)" if shares else ""
    return f"{median(rates):.{1 if median(rates) < 100 else 0}f}{share}"


def _ratio(rates: dict[str, list[float]], ours: str, other: str) -> str:
    own, their = rates.get(ours), rates.get(other)
    if not own or not their:
        return "–"
    return f"{median([a / b for a, b in zip(own, their, strict=True)]):.2f}"
