"""Whole decoders of two layers, bit for bit: logits, drawn tokens, log-probabilities, digests.

Every switch of the graph is in one of the models, and every family's combination of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
from tests.kernels.oracle import data, operations, rope, sampling
from tests.kernels.oracle.decoder import RopeKind, Session, Shape
from tests.kernels.oracle.ieee import bf16_to_b32
from tests.kernels.oracle.paths import every_path

from isonomy.kernels import (
    Decoder,
    DecoderConfig,
    Rope,
    SamplingParams,
    expected_shapes,
    rope_frequencies,
)

LAYERS = 2
VOCAB = 53


@dataclass(frozen=True)
class Kind:
    """A kind of rope, as checkpoints describe it."""

    theta: float = 10000.0
    rotary: int = 0  # 0: all of a head's dimensions
    scaling: dict[str, Any] | None = field(default=None, hash=False)
    attention_factor: float = 1.0


@dataclass(frozen=True)
class Model:
    """The switches of a configuration that differ from its defaults, and the weights' storage."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    ropes: tuple[Kind, ...] = (Kind(),)
    bf16: Callable[[str], bool] = lambda name: False
    switches: tuple[tuple[str, Any], ...] = (("tied", True),)

    def config(self) -> DecoderConfig:
        return DecoderConfig(
            **{"rms_eps": 1e-5, "max_positions": 512, **dict(self.switches)},
            vocab=VOCAB,
            layers=LAYERS,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate=self.intermediate,
            ropes=tuple(
                Rope(
                    tuple(rope_frequencies(k.rotary or self.head_dim, k.theta, k.scaling).tolist()),
                    k.attention_factor,
                )
                for k in self.ropes
            ),
        )


def model(
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate: int,
    *,
    ropes: tuple[Kind, ...] = (Kind(),),
    bf16: Callable[[str], bool] = lambda name: False,
    **switches: Any,
) -> Model:
    return Model(
        hidden, heads, kv_heads, head_dim, intermediate, ropes, bf16, tuple(switches.items())
    )


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "llama": model(32, 4, 2, 8, 48, tied=True),
    "qwen2": model(
        *(48, 6, 2, 8, 40),
        ropes=(Kind(1e6, scaling={"rope_type": "linear", "factor": 1.5}),),
        qkv_bias=True,
        rms_eps=1e-6,
    ),
    "qwen3": model(40, 2, 1, 16, 33, qk_norm="head", rms_eps=1e-6, tied=True),
    "mistral": model(
        *(32, 4, 1, 8, 64),
        ropes=(Kind(scaling=LLAMA3),),
        windows=(5, 0),
        bf16=lambda name: True,
    ),
    "all biases": model(
        *(35, 3, 3, 10, 19),
        ropes=(Kind(rotary=6, attention_factor=1.2),),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        output_bias=True,
        qk_norm="head",
        windows=(3, 4),
        activation="gelu_tanh",
        tied=True,
    ),
    "mixed storage": model(
        *(17, 2, 1, 4, 16),
        qkv_bias=True,
        output_bias=True,
        bf16=lambda name: "q_proj" in name or "embed" in name or "up_proj" in name,
        activation="gelu_erf",
    ),
    "gemma": model(  # and gemma3's two ropes
        *(24, 4, 2, 8, 32),
        ropes=(Kind(1e4), Kind(1e6, scaling={"rope_type": "linear", "factor": 8.0})),
        layer_ropes=(0, 1),
        windows=(4, 0),
        norm_offset=True,
        post_norm=True,
        qk_norm="head",
        embedding_multiplier=24**0.5,
        attention_softcap=2.0,
        logit_softcap=3.0,
        scale=0.1,
        activation="gelu_tanh",
        tied=True,
    ),
    "olmo2": model(33, 3, 1, 8, 20, pre_norm=False, post_norm=True, qk_norm="projection"),
    "granite": model(
        *(16, 2, 2, 8, 24),
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        logit_divisor=7.3,
        scale=0.015625,
        tied=True,
    ),
    "granite with caps": model(
        *(16, 2, 1, 8, 24),
        residual_multiplier=0.7,
        post_norm=True,
        logit_divisor=1.7,
        logit_softcap=5.1,
    ),
    "smollm3": model(16, 2, 1, 8, 24, layer_ropes=(-1, 0), tied=True),
    "gpt2": model(
        *(24, 3, 3, 8, 40),
        ropes=(),
        positions="learned",
        max_positions=40,
        norm="layer",
        gated=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        activation="gelu_tanh",
        tied=True,
    ),
    "phi": model(
        *(24, 3, 1, 10, 40), ropes=(Kind(rotary=4),), norm="layer", gated=False, bf16=lambda n: True
    ),
    "mixtral": model(
        *(16, 2, 1, 8, 12), experts=5, experts_per_token=2, expert_intermediate=12, tied=True
    ),
    "qwen3 with experts": model(
        *(16, 2, 1, 8, 20),
        experts=6,
        experts_per_token=4,
        expert_intermediate=9,
        normalise_experts=False,
        sparse_layers=(False, True),
        qk_norm="head",
        bf16=lambda name: "experts" in name,
    ),
    "experts without a gate": model(
        *(16, 2, 1, 8, 20),
        experts=3,
        experts_per_token=3,
        expert_intermediate=20,
        gated=False,
        post_norm=True,
        residual_multiplier=0.5,
        activation="gelu_erf",
    ),
}


LONG = model(16, 2, 1, 8, 17, windows=(19, 0), tied=True)


def weights(model: Model) -> dict[str, np.ndarray]:
    """Random weights; bf16 bits where the model has them so. Some experts are equal in rank."""
    rng = np.random.default_rng([80, model.hidden, model.intermediate])
    out: dict[str, np.ndarray] = {}
    config = model.config()
    for name, shape in expected_shapes(config).items():
        spread = 1.0 if "embed" in name else 0.3
        around = 1.0 if "norm" in name and "bias" not in name and not config.norm_offset else 0.0
        x = np.float32(around) + data.normal(rng, shape) * np.float32(spread)
        if "router" in name:
            x[-1] = x[0]
        out[name] = (x.view(np.uint32) >> 16).astype(np.uint16) if model.bf16(name) else x
    return out


def exact_session(model: Model) -> Session:
    def as_bits(x: np.ndarray) -> list[int]:
        if x.dtype == np.uint16:
            return [bf16_to_b32(b) for b in x.tolist()]
        return data.bits(x)

    tensors, config = weights(model), model.config()
    kinds = [
        RopeKind(
            rope.frequencies(k.rotary or model.head_dim, k.theta, k.scaling), k.attention_factor
        )
        for k in model.ropes
    ]
    of_layer = config.layer_ropes or ((0,) * LAYERS if kinds else (-1,) * LAYERS)
    return Session(
        Shape(
            layers=LAYERS,
            heads=model.heads,
            kv_heads=model.kv_heads,
            head_dim=model.head_dim,
            eps=config.rms_eps,
            ropes=[None if i < 0 else kinds[i] for i in of_layer],
            windows=config.windows,
            activation=getattr(operations, config.activation),
            norm_offset=config.norm_offset,
            qk_projection=config.qk_norm == "projection",
            experts_per_token=config.experts_per_token,
            normalise_experts=config.normalise_experts,
            scale=config.scale,
            attention_softcap=config.attention_softcap,
            embedding_multiplier=config.embedding_multiplier,
            residual_multiplier=config.residual_multiplier,
            logit_divisor=config.logit_divisor,
            logit_softcap=config.logit_softcap,
        ),
        matrices={n: [as_bits(r) for r in x] for n, x in tensors.items() if x.ndim == 2},
        vectors={n: as_bits(x) for n, x in tensors.items() if x.ndim == 1},
    )


PROMPT = (7, 0, 52, 7, 19, 33, 8)
ANSWER_LENGTH = 6
OPTIONS: dict[str, Any] = {
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "seed": 0xDEADBEEF_12345678,
    "candidate": 2,
}


@dataclass(frozen=True)
class Run:
    """What the oracle says of a prompt and a drawn answer."""

    prompt_logits: list[list[int]]
    tokens: list[int]
    logprobs: list[int]
    digests: list[bytes]


@cache
def exact_run(name: str) -> Run:
    session = exact_session(MODELS[name])
    run = Run([session.feed(t) for t in PROMPT], [], [], [])
    history, logits = list(PROMPT), run.prompt_logits[-1]
    for _ in range(ANSWER_LENGTH):
        token = sampling.sample(logits, sampling.Params(**OPTIONS), len(history), history)
        run.tokens.append(token)
        run.logprobs.append(sampling.logprob(logits, token))
        run.digests.append(sampling.digest(logits))
        history.append(token)
        logits = session.feed(token)
    return run


@cache
def decoder(model: Model) -> Decoder:
    return Decoder(model.config(), weights(model))


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_prompt(name):
    want = exact_run(name).prompt_logits
    for path in every_path():
        session = decoder(MODELS[name]).session(32)
        logits = session.feed(np.array(PROMPT, dtype=np.int32), all_logits=True)
        for position, row in enumerate(want):
            assert data.bits(logits[position]) == row, (path, position)


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1, 1, 1), (2, 5)])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_chunks(name, chunks):
    want = exact_run(name).prompt_logits
    for path in every_path():
        session, fed = decoder(MODELS[name]).session(32), 0
        for size in chunks:
            logits = session.feed(np.array(PROMPT[fed : fed + size], dtype=np.int32))
            fed += size
            assert data.bits(logits[-1]) == want[fed - 1], (path, fed)


@pytest.mark.parametrize("name", MODELS)
def test_a_drawn_answer(name):
    want = exact_run(name)
    for path in every_path():
        session = decoder(MODELS[name]).session(32)
        history, chunk = list(PROMPT), list(PROMPT)
        digests = []
        for i in range(ANSWER_LENGTH):
            step = session.step(
                np.array(chunk, dtype=np.int32),
                SamplingParams(**OPTIONS),
                np.array(history, dtype=np.int32),
            )
            digests.append(step.digest)
            assert step.digest == want.digests[i], (path, i)
            assert step.token == want.tokens[i], (path, i)
            logprob = np.array([step.logprob], dtype=np.float32)
            assert data.bits(logprob) == [want.logprobs[i]], (path, i)
            history.append(step.token)
            chunk = [step.token]
        assert sampling.chain_digests(digests) == sampling.chain_digests(want.digests)


def test_the_answers_are_drawn_and_not_merely_the_greatest_logits():
    """So that the comparison above compares noise, too."""
    drawn, greatest = [], []
    for name in MODELS:
        run = exact_run(name)
        drawn.append(run.tokens[0])
        greatest.append(sampling.argmax(dict(enumerate(run.prompt_logits[-1]))))
    assert drawn != greatest


def test_logits_beyond_a_block_of_keys():
    """Positions around 256, in one chunk, in chunks of 100, and token by token at the end."""
    prompt = np.random.default_rng(81).integers(0, VOCAB, 260).astype(np.int32)
    wanted = [254, 255, 256, 257, 259]
    exact = exact_session(LONG)
    want = {p: exact.feed(t, logits=p in wanted) for p, t in enumerate(prompt.tolist())}
    for path in every_path():
        session = decoder(LONG).session(300)
        whole = session.feed(prompt, all_logits=True)
        session.truncate(0)
        parts = [session.feed(prompt[a : a + 100], all_logits=True) for a in (0, 100)]
        parts += [session.feed(prompt[a : a + 1], all_logits=True) for a in range(200, 260)]
        for logits in (whole, np.concatenate(parts)):
            assert all(data.bits(logits[p]) == want[p] for p in wanted), path
